"""Distinct 8 MiB results through `map(buffersize=4)`, consumed one by one: how much memory they take at most.

Counted is the client's private memory and all shared memory that the arena has, over what they were before the first
item.  A page of the arena that only the client maps counts twice.  The standard library's `map` has no `buffersize`
before Python 3.14 and collects all results, so nobody else takes part.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial

from .arrays import MIB, filled
from .common import Settings, run_fresh, run_script, spread_of
from .contenders import OURS
from .procfs import memory
from .report import Goal, Report, Row
from .stats import Series, alternate
from .tasks import noop

RESULT_BYTES = 8 * MIB
BUFFERSIZE = 4


def client(workers: int, items: int) -> None:
    """The fresh interpreter: look at the memory with each result in hand."""
    from repartir import Executor

    own = os.getpid()
    with Executor(workers, "fork") as executor:
        for future in [executor.submit(noop) for _ in range(100)]:
            future.result()
        private, arena = memory(own).private, executor.stats().backed_bytes
        most = most_private = most_arena = 0
        task = partial(filled, size_bytes=RESULT_BYTES)
        for index, result in enumerate(executor.map(task, range(items), buffersize=BUFFERSIZE)):
            if result[0] != index or result[-1] != index:
                raise RuntimeError(f"result {index} is the one of item {result[0]:.0f}")
            more_private = memory(own).private - private
            more_arena = executor.stats().backed_bytes - arena
            most = max(most, more_private + more_arena)
            most_private, most_arena = max(most_private, more_private), max(most_arena, more_arena)
    print(json.dumps({"most": most, "private": most_private, "arena": most_arena}))


def measure(settings: Settings) -> Report:
    """MiB over the start at most, one fresh client a round."""
    items = settings.pick(1_000, 100)
    private, arena = Series(), Series()

    def most_mib() -> float:
        found = run_fresh("array_stream", "--client", str(settings.workers), str(items), timeout_s=120)
        private.values.append(found["private"] / MIB)
        arena.values.append(found["arena"] / MIB)
        return float(found["most"]) / MIB

    series = {**alternate({OURS: most_mib}, {OURS: settings.pick(3, 1)}), "private": private, "arena": arena}
    cases = {OURS: "both together", "private": "private to the client", "arena": "shared memory"}
    return Report(
        "array_stream",
        f"{items:,} results of {RESULT_BYTES // MIB} MiB through map(buffersize={BUFFERSIZE})",
        [
            Row(case, OURS, spread_of(series, key), "MiB over the start", note=series[OURS].failure or "")
            for key, case in cases.items()
        ],
        [Goal("MiB of client and arena over the start", spread_of(series, OURS), 80, at_least=False)],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        client(int(sys.argv[2]), int(sys.argv[3]))
    else:
        raise SystemExit(run_script("array_stream", measure, description=__doc__))
