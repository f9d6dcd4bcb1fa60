"""64 MiB to a worker and back: against the other pools, and against two plain copies of it in this process."""

from __future__ import annotations

import time

import numpy as np

from .common import Settings, against_stdlib, measure_all, ratio_to, rows_of, run_script
from .contenders import OURS, Contender
from .report import Goal, Report, Row
from .stats import Series, spread
from .tasks import give_back

MIB = 1 << 20
SIZE_MIB = 64
WARM_UP = 2
COPIES = "two np.copyto"


def measure(settings: Settings) -> Report:
    """GB/s of the way there and back, from the third call on."""
    trips = settings.pick(full=7, quick=3)
    array = np.ones(SIZE_MIB * MIB, np.uint8)

    def trip_rate(contender: Contender) -> float:
        with contender.open(settings.workers) as pool:
            for _ in range(WARM_UP):
                pool.take(pool.submit(give_back, array))
            count = trips if contender.name == OURS else 1
            began = time.perf_counter()
            for _ in range(count):
                pool.take(pool.submit(give_back, array))
            return count * 2 * array.nbytes / (time.perf_counter() - began) / 1e9

    def copy_rate() -> float:
        there, back = np.zeros_like(array), np.zeros_like(array)
        began = time.perf_counter()
        for _ in range(trips):
            np.copyto(there, array)
            np.copyto(back, there)
        return trips * 2 * array.nbytes / (time.perf_counter() - began) / 1e9

    series = measure_all(
        trip_rate, rounds=settings.pick(7, 3), peer_rounds=settings.pick(2, 1), yardsticks={COPIES: copy_rate}
    )
    copies = series.pop(COPIES, Series())
    ratio = ratio_to(series[OURS].values, copies.values)
    case = f"{SIZE_MIB} MiB there and back"
    return Report(
        "array_round_trip",
        case,
        [
            *rows_of(case, series, "GB/s"),
            Row(
                case,
                COPIES,
                spread(copies.values) if copies.values else None,
                "GB/s",
                ratio,
                copies.failure or "",
            ),
        ],
        [
            Goal(f"{case}, against ProcessPoolExecutor", against_stdlib(series), 25, at_least=True),
            Goal(f"{case}, against {COPIES}", ratio, 0.6, at_least=True),
        ],
    )


if __name__ == "__main__":
    raise SystemExit(run_script("array_round_trip", measure, description=__doc__))
