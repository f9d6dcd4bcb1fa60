"""Maps without chunks: one item a hundred times as long as the others, and results that are folded in the workers.

The skewed map is held against greedy scheduling: each item, in order, to the worker that is free first, in the time that the
items took, without any overhead.
"""

from __future__ import annotations

import heapq
import operator
import random
import time
from collections.abc import Sequence

from repartir import Executor

from .common import Settings, ratio_to, run_script, spread_of
from .contenders import OURS
from .report import Goal, Report, Row
from .stats import alternate, spread

ITEM_S = 0.001
SKEW = 100


def take(seconds: float) -> float:
    """Takes so long; how long it was."""
    began = time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        pass
    return passed


def doubled(value: float) -> float:
    return value * 2.0


def greedy(durations: Sequence[float], workers: int) -> float:
    """When the last of the items ends, each begun in order by the worker that is free first."""
    free = [0.0] * workers
    for duration in durations:
        heapq.heappush(free, heapq.heappop(free) + duration)
    return max(free)


def measure(settings: Settings) -> Report:
    """Makespans as multiples of greedy ones; seconds of a map with and without `reduce`, and their ratio."""
    count, rounds = settings.pick(1000, 300), settings.pick(9, 3)
    numbers = [float(n) for n in range(settings.pick(1_000_000, 200_000))]
    places = {"first": 0, "last": count - 1, "at random": random.Random(7).randrange(count)}
    with Executor(settings.workers) as pool:

        def skewed(place: int) -> float:
            seconds = [ITEM_S] * count
            seconds[place] *= SKEW
            began = time.perf_counter()
            durations = list(pool.map(take, seconds))
            return (time.perf_counter() - began) / greedy(durations, settings.workers)

        list(pool.map(take, [ITEM_S] * 100))
        makespans = {name: spread(skewed(place) for _ in range(rounds)) for name, place in places.items()}

        def plain() -> float:
            began = time.perf_counter()
            sum(pool.map(doubled, numbers))
            return time.perf_counter() - began

        def folded() -> float:
            began = time.perf_counter()
            pool.map(doubled, numbers, reduce=operator.add)
            return time.perf_counter() - began

        folded()
        times = alternate({"map": plain, "reduce": folded}, {"map": rounds, "reduce": rounds})
    gain = ratio_to(times["map"].values, times["reduce"].values)
    case = f"{len(numbers):,} floats, doubled and added"
    return Report(
        "maps",
        f"maps without chunks, {settings.workers} workers",
        [
            *(
                Row(
                    f"{count} items of {ITEM_S * 1000:g} ms, one {SKEW} ×, {name}", OURS, makespan, "× greedy"
                )
                for name, makespan in makespans.items()
            ),
            Row(case, "map, added in the client", spread_of(times, "map"), "s"),
            Row(case, "map(reduce=add)", spread_of(times, "reduce"), "s"),
        ],
        [
            *(
                Goal(f"makespan of a skewed map, the long item {name}", makespan, 1.1, at_least=False)
                for name, makespan in makespans.items()
            ),
            Goal("reduce in the workers, against the same without", gain, 3.0, at_least=True),
        ],
    )


if __name__ == "__main__":
    raise SystemExit(run_script("maps", measure, description=__doc__))
