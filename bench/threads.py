"""Matrix products in every worker at once: threads of BLAS that share the cores against threads that fight for them.

The stdlib's workers start as many threads of BLAS each as there are cores.
"""

from __future__ import annotations

import os
import time

import numpy as np

from .common import Settings, against_stdlib, measure_all, rows_of, run_script, spread_of
from .contenders import CONTENDERS, OURS, STDLIB, Contender
from .report import Goal, Report
from .stats import Series

SIDE = 1500


def multiply(times: int) -> tuple[int, int]:
    """So many products of matrices; the process, and its threads."""
    matrix = np.ones((SIDE, SIDE))
    for _ in range(times):
        np.dot(matrix, matrix)
    return os.getpid(), len(os.listdir("/proc/self/task"))


def measure(settings: Settings) -> Report:
    """Products a second of the stdlib's pool and ours, and the threads of their workers."""
    tasks, times = 4 * settings.workers, settings.pick(4, 2)
    threads: dict[str, Series] = {}

    def products_a_second(contender: Contender) -> float:
        with contender.open(settings.workers) as pool:
            for future in [pool.submit(multiply, 1) for _ in range(2 * settings.workers)]:
                pool.take(future)
            began = time.perf_counter()
            done = [pool.take(future) for future in [pool.submit(multiply, times) for _ in range(tasks)]]
            elapsed = time.perf_counter() - began
        of_processes = dict(done)
        threads.setdefault(contender.name, Series()).values.append(float(sum(of_processes.values())))
        return tasks * times / elapsed

    two = {name: CONTENDERS[name] for name in (OURS, STDLIB)}
    rounds = settings.pick(9, 3)
    series = measure_all(products_a_second, rounds, rounds, contenders=two)
    cores = len(os.sched_getaffinity(0))
    return Report(
        "threads",
        f"products of {SIDE} × {SIDE} matrices on {settings.workers} workers, {cores} cores",
        [
            *rows_of("products", series, "1/s", contenders=two),
            *rows_of("threads of all workers", threads, "threads", paired=False, contenders=two),
        ],
        [
            Goal("matrix products, against the stdlib's workers", against_stdlib(series), 1.0, at_least=True),
            Goal(
                "threads of all workers",
                spread_of(threads, OURS),
                float(max(cores, settings.workers)),
                at_least=False,
            ),
        ],
    )


if __name__ == "__main__":
    raise SystemExit(run_script("threads", measure, description=__doc__))
