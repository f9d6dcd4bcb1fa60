"""`map` over functions that make, use and free a few arrays: a damped signal and its noise, of three lengths.

We run with defaults, the others with chunks of a sixteenth of a worker's share, which no short task does without there.
"""

from __future__ import annotations

import functools
import time

import numpy as np

from .common import Settings, against_stdlib, measure_all, rows_of, run_script
from .contenders import OURS, Contender
from .report import Goal, Report

SAMPLES = {10_000: 3_000, 100_000: 400, 1_000_000: 60}
"""Numbers an array has, and how many tasks of that length there are."""


def decay(seed: int, samples: int) -> float:
    rng = np.random.default_rng(seed)
    x = np.exp(-0.5 * np.arange(samples) / samples) + 0.1 * rng.standard_normal(samples)
    return float(x.mean())


def measure(settings: Settings) -> Report:
    """Seconds of a map, by the length of the arrays."""
    rows, goals = [], []
    for samples, full in SAMPLES.items():
        count = settings.pick(full, full // 4)
        task = functools.partial(decay, samples=samples)

        def seconds(contender: Contender, task: functools.partial[float] = task, count: int = count) -> float:
            chunksize = None if contender.name == OURS else max(1, count // (16 * settings.workers))
            with contender.open(settings.workers) as pool:
                pool.map(task, range(8 * settings.workers), chunksize)
                began = time.perf_counter()
                pool.map(task, range(count), chunksize)
                return time.perf_counter() - began

        series = measure_all(seconds, rounds=settings.pick(9, 3), peer_rounds=settings.pick(3, 1))
        case = f"{count:,} tasks, arrays of {samples * 8 // 1000:,} KB"
        rows += rows_of(case, series, "s")
        goals.append(
            Goal(
                f"time of tasks with arrays of {samples * 8 // 1000:,} KB, against the stdlib's in chunks",
                against_stdlib(series),
                1.05,
                at_least=False,
            )
        )
    return Report("numpy_tasks", f"tasks that make arrays, {settings.workers} workers", rows, goals)


if __name__ == "__main__":
    raise SystemExit(run_script("numpy_tasks", measure, description=__doc__))
