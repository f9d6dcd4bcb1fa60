"""Submit and result of no-ops: tasks per second when all are submitted, then all results are taken."""

from __future__ import annotations

import time

from .common import Settings, against_stdlib, measure_all, rows_of, run_script
from .contenders import Contender
from .report import Goal, Report
from .tasks import noop


def measure(settings: Settings) -> Report:
    """Tasks per second of every contender, in pairs."""
    tasks = settings.pick(full=10_000, quick=3_000)

    def tasks_per_second(contender: Contender) -> float:
        with contender.open(settings.workers) as pool:
            for future in [pool.submit(noop) for _ in range(20 * settings.workers)]:
                pool.take(future)
            began = time.perf_counter()
            futures = [pool.submit(noop) for _ in range(tasks)]
            for future in futures:
                pool.take(future)
            return tasks / (time.perf_counter() - began)

    series = measure_all(tasks_per_second, rounds=settings.pick(7, 3), peer_rounds=settings.pick(3, 1))
    return Report(
        "throughput",
        "submit + result of no-ops",
        rows_of(f"{tasks:,} no-ops", series, "tasks/s"),
        [Goal("tasks/s, against ProcessPoolExecutor (fork)", against_stdlib(series), 8, at_least=True)],
    )


if __name__ == "__main__":
    raise SystemExit(run_script("throughput", measure, description=__doc__))
