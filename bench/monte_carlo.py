"""`monte_carlo` of pi against one plain loop of numpy over batches of as many samples, and the cost of the smallest call.

The loop uses numpy's default generator and counts hits, the fastest that a script would be.  "bare forks" share the same
loop and nothing else.  One fork runs the loop as workers do, with freed memory kept: what is left is what sharing gives.
"""

from __future__ import annotations

import time

import numpy as np

from repartir import Executor, SerialExecutor, monte_carlo
from repartir.heap import keep_freed_memory

from .common import Settings, in_forks, ratio_to, run_script, spread_of
from .contenders import OURS
from .report import Goal, Report, Row
from .stats import alternate

CHUNK = 65_536
PLAIN, KEEPING, FORKS = "numpy in one loop", "numpy in one loop, freed memory kept", "bare forks"
SMALLEST, SMALLEST_SERIAL = "1 sample", "1 sample, serial"


def hits(rng: np.random.Generator, n: int) -> np.ndarray:
    x, y = rng.random((2, n))
    return x * x + y * y <= 1


def plain(samples: int) -> float:
    """Pi by the loop that users write."""
    rng, count = np.random.default_rng(7), 0
    for at in range(0, samples, CHUNK):
        count += int(np.count_nonzero(hits(rng, min(CHUNK, samples - at))))
    return 4 * count / samples


def keeping(samples: int) -> float:
    keep_freed_memory()
    return plain(samples)


def measure(settings: Settings) -> Report:
    """Seconds of each, in turn, and the ratio in pairs."""
    samples, rounds = settings.pick(400_000_000, 40_000_000), settings.pick(9, 5)
    calls = settings.pick(300, 100)
    serial = SerialExecutor()
    with Executor(settings.workers) as pool:

        def ours() -> float:
            began = time.perf_counter()
            monte_carlo(hits, samples, seed=7, executor=pool)
            return time.perf_counter() - began

        def loop() -> float:
            began = time.perf_counter()
            plain(samples)
            return time.perf_counter() - began

        def smallest(executor: Executor | SerialExecutor) -> float:
            began = time.perf_counter()
            for _ in range(calls):
                monte_carlo(hits, 1, seed=7, executor=executor)
            return (time.perf_counter() - began) / calls * 1e6

        ours()
        times = alternate(
            {
                PLAIN: loop,
                OURS: ours,
                KEEPING: lambda: in_forks(keeping, samples, 1),
                FORKS: lambda: in_forks(plain, samples, settings.workers),
                SMALLEST: lambda: smallest(pool),
                SMALLEST_SERIAL: lambda: smallest(serial),
            },
            dict.fromkeys((PLAIN, OURS, KEEPING, FORKS, SMALLEST, SMALLEST_SERIAL), rounds),
        )
    case = f"pi, {samples:,} samples"
    speedup = ratio_to(times[PLAIN].values, times[OURS].values)
    return Report(
        "monte_carlo",
        f"means of random samples, {settings.workers} workers",
        [
            Row(case, OURS, spread_of(times, OURS), "s", note=times[OURS].failure or ""),
            *(
                Row(case, name, spread_of(times, name), "s", ratio_to(times[OURS].values, times[name].values))
                for name in (PLAIN, KEEPING, FORKS)
            ),
            Row("the smallest call", OURS, spread_of(times, SMALLEST), "µs"),
            Row("the smallest call, SerialExecutor", OURS, spread_of(times, SMALLEST_SERIAL), "µs"),
        ],
        [Goal("speed of pi against numpy in one loop, two workers", speedup, 1.8, at_least=True)],
    )


if __name__ == "__main__":
    raise SystemExit(run_script("monte_carlo", measure, description=__doc__))
