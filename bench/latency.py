"""One submit, then its result, in a loop: the median and the 99th percentile of a round trip."""

from __future__ import annotations

import statistics
import time

from .common import Settings, against_stdlib, measure_all, rows_of, run_script
from .contenders import Contender
from .report import Goal, Report
from .stats import Series, percentile
from .tasks import noop

WARM_UP = 100


def measure(settings: Settings) -> Report:
    """Microseconds of a round trip, median and p99 of each round, in pairs."""
    trips = settings.pick(full=3_000, quick=1_000)
    tails: dict[str, Series] = {}

    def median_us(contender: Contender) -> float:
        clock = time.perf_counter
        times_us = []
        with contender.open(settings.workers) as pool:
            for _ in range(WARM_UP):
                pool.take(pool.submit(noop))
            for _ in range(trips):
                began = clock()
                pool.take(pool.submit(noop))
                times_us.append((clock() - began) * 1e6)
        tails.setdefault(contender.name, Series()).values.append(percentile(times_us, 99))
        return statistics.median(times_us)

    medians = measure_all(median_us, rounds=settings.pick(7, 3), peer_rounds=settings.pick(3, 1))
    for name, series in medians.items():
        tails.setdefault(name, Series()).failure = series.failure
    return Report(
        "latency",
        "one submit → result",
        [*rows_of("median", medians, "µs"), *rows_of("p99", tails, "µs")],
        [
            Goal("median latency, against ProcessPoolExecutor", against_stdlib(medians), 0.1, at_least=False),
            Goal("p99 latency, against ProcessPoolExecutor", against_stdlib(tails), 0.5, at_least=False),
        ],
    )


if __name__ == "__main__":
    raise SystemExit(run_script("latency", measure, description=__doc__))
