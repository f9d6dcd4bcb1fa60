"""Many large results through `map(buffersize=…)`, one by one: what the client's memory and the arena grow by."""

from __future__ import annotations

import importlib
import os

from .common import Settings, run_script
from .procfs import memory
from .report import Goal, Report, Row
from .stats import Spread, spread
from .tasks import distinct

MIB = 1 << 20
SIZE_MIB = 8
BUFFERED = 4


def measure(settings: Settings) -> Report:
    """MiB of private memory and of the arena over the start, the most that was seen."""
    items = settings.pick(full=1_000, quick=100)
    repartir = importlib.import_module("repartir")
    most = 0.0
    with repartir.Executor(settings.workers, "fork") as executor:
        list(executor.map(distinct, [0] * settings.workers, [1] * settings.workers))

        def held() -> float:
            return (memory(os.getpid()).private + executor.stats().backed_bytes) / MIB

        start = held()
        results = executor.map(distinct, range(items), [SIZE_MIB * MIB] * items, buffersize=BUFFERED)
        for nth, result in enumerate(results):
            if result[0] != nth % 251 or result[-1] != nth % 251:
                raise RuntimeError(f"item {nth} is wrong")
            if nth % 10 == 0:
                most = max(most, held() - start)
    grown: Spread = spread([most])
    case = f"{items:,} results of {SIZE_MIB} MiB, buffersize={BUFFERED}"
    return Report(
        "array_stream",
        case,
        [Row(case, "repartir", grown, "MiB over the start")],
        [Goal("MiB of private memory and arena over the start", grown, 80, at_least=False)],
    )


if __name__ == "__main__":
    raise SystemExit(run_script("array_stream", measure, description=__doc__))
