"""Many tasks with 64 KiB arrays: what grows after the first thousand.

How much memory is in use at a time depends on who is faster, client or workers. So the first thousand keep two
more rounds of results than the rest: what grows afterwards grows for another reason.
"""

from __future__ import annotations

import importlib
import os
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from .common import Settings, run_script
from .procfs import memory, tree
from .report import Goal, Report, Row
from .stats import spread
from .tasks import give_back

SIZE_BYTES = 1 << 16
FIRST = 1_000
AT_A_TIME = 100


def _counts(executor: object) -> dict[str, float]:
    pids = tree(os.getpid())
    return {
        "resident memory of all processes": float(sum(memory(pid).resident for pid in pids)),
        "memory of the arena": float(executor.stats().backed_bytes),  # type: ignore[attr-defined]
        "mappings": float(sum(len(Path(f"/proc/{pid}/maps").read_text().splitlines()) for pid in pids)),
        "descriptors": float(sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)),
    }


def measure(settings: Settings) -> Report:
    """Growth in per cent, from the first thousand tasks to the last."""
    tasks = settings.pick(full=100_000, quick=10_000)
    repartir = importlib.import_module("repartir")
    array = np.zeros(SIZE_BYTES, np.uint8)
    with repartir.Executor(settings.workers, "fork") as executor:

        def run(count: int, keep_rounds: int) -> None:
            kept: deque[list[Any]] = deque(maxlen=keep_rounds)
            for begin in range(0, count, AT_A_TIME):
                array[0] = begin // AT_A_TIME % 251
                futures = [executor.submit(give_back, array) for _ in range(AT_A_TIME)]
                results = [future.result() for future in futures]
                if any(result[0] != array[0] for result in results):
                    raise RuntimeError("a result is wrong")
                kept.append(results)
                del futures, results

        run(FIRST, keep_rounds=2)
        before = _counts(executor)
        run(tasks - FIRST, keep_rounds=0)
        after = _counts(executor)
    grown = {name: spread([(after[name] / before[name] - 1) * 100]) for name in before}
    case = f"{tasks:,} tasks with {SIZE_BYTES >> 10} KiB"
    return Report(
        "array_steady",
        f"{case}, after the first {FIRST:,}",
        [Row(f"growth of {name}", "repartir", value, "%") for name, value in grown.items()],
        [Goal(f"growth of {name}, %", value, 2, at_least=False) for name, value in grown.items()],
    )


if __name__ == "__main__":
    raise SystemExit(run_script("array_steady", measure, description=__doc__))
