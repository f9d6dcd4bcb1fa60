"""A 64 MiB array to a task that gives it back, one at a time; beside two plain copies of as much memory.

The copies go into memory that was written before, in turns with Repartir alone: nothing slow comes between.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from .arrays import LARGE_BYTES, MIB, identity, make_array, seconds_per_call
from .common import Settings, against_stdlib, measure_all, ratio_to, rows_of, run_script, spread_of
from .contenders import CONTENDERS, OURS, Contender
from .report import Goal, Report, Row
from .stats import alternate

MOVED_GB = 2 * LARGE_BYTES / 1e9
COPIES = "two np.copyto"


def round_trip_speed(contender: Contender, workers: int, calls: int) -> float:
    """GB/s, both ways counted."""
    with contender.open(workers) as pool:
        return MOVED_GB / seconds_per_call(pool, identity, LARGE_BYTES, calls)


def copies_speed(times: int) -> float:
    """GB/s of a copy into warm memory and one from there on, the median of `times`."""
    original = make_array()
    there, back = np.zeros_like(original), np.zeros_like(original)
    times_s = []
    for _ in range(times):
        began = time.perf_counter()
        np.copyto(there, original)
        np.copyto(back, there)
        times_s.append(time.perf_counter() - began)
    return MOVED_GB / float(np.median(times_s))


def measure(settings: Settings) -> Report:
    """GB/s of every contender in pairs, then of ours and plain copies in pairs of their own."""
    calls = settings.pick(5, 3)
    trips = partial(round_trip_speed, workers=settings.workers, calls=calls)
    pools = measure_all(trips, rounds=settings.pick(5, 2), peer_rounds=settings.pick(2, 1))
    rounds = settings.pick(9, 5)
    copies = alternate(
        {
            OURS: partial(round_trip_speed, CONTENDERS[OURS], settings.workers, settings.pick(15, 7)),
            COPIES: partial(copies_speed, settings.pick(15, 7)),
        },
        {OURS: rounds, COPIES: rounds},
    )
    against_copies = ratio_to(copies[OURS].values, copies[COPIES].values)
    case = "in turns with copies"
    return Report(
        "array_round_trip",
        f"{LARGE_BYTES // MIB} MiB there and back, from the third call on",
        [
            *rows_of("one at a time", pools, "GB/s"),
            Row(case, OURS, spread_of(copies, OURS), "GB/s", note=copies[OURS].failure or ""),
            Row(case, COPIES, spread_of(copies, COPIES), "GB/s", against_copies),
        ],
        [
            Goal(
                "speed there and back, against ProcessPoolExecutor", against_stdlib(pools), 25, at_least=True
            ),
            Goal("speed there and back, against two np.copyto", against_copies, 0.6, at_least=True),
        ],
    )


if __name__ == "__main__":
    raise SystemExit(run_script("array_round_trip", measure, description=__doc__))
