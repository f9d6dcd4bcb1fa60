"""A 64 MiB array to a task that gives back one of its elements, one at a time."""

from __future__ import annotations

from .arrays import LARGE_BYTES, MIB, last_element, seconds_per_call
from .common import Settings, against_stdlib, measure_all, rows_of, run_script
from .contenders import ARRAY_CONTENDERS, Contender
from .report import Goal, Report


def measure(settings: Settings) -> Report:
    """GB/s of every contender, in pairs."""
    calls = settings.pick(7, 3)

    def speed(contender: Contender) -> float:
        with contender.open(settings.workers) as pool:
            return LARGE_BYTES / 1e9 / seconds_per_call(pool, last_element, LARGE_BYTES, calls)

    series = measure_all(
        speed, rounds=settings.pick(7, 2), peer_rounds=settings.pick(2, 1), contenders=ARRAY_CONTENDERS
    )
    return Report(
        "array_argument",
        f"{LARGE_BYTES // MIB} MiB argument, scalar result, from the third call on",
        rows_of("one at a time", series, "GB/s", contenders=ARRAY_CONTENDERS),
        [
            Goal(
                "speed of an argument, against ProcessPoolExecutor", against_stdlib(series), 40, at_least=True
            )
        ],
    )


if __name__ == "__main__":
    raise SystemExit(run_script("array_argument", measure, description=__doc__))
