"""A shared 64 MiB array given to 20 tasks that each sum it, against summing the same array 20 times here.

Shared by the library's own means, where it has any: `Executor.share`, `ray.put`, joblib's automatic memmapping; the
others send the array with each task.  The goal is for an array that the workers have seen before; "shared anew" is the
first time, sharing included.  The ceiling is what bare forked processes reach that sum an array which they inherited:
memory has its own limits.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from .arrays import LARGE_BYTES, MIB, Array, make_array, total
from .common import Settings, in_forks, measure_all, ratio_to, rows_of, run_script, spread_of
from .contenders import ARRAY_CONTENDERS, CONTENDERS, OURS, Contender, Pool
from .report import Goal, Report, Row
from .stats import Series, alternate
from .tasks import noop_item

TASKS = 20
SHARING = {name: ARRAY_CONTENDERS[name] for name in (OURS, "joblib", "ray")}
SERIAL, PRIVATE, CEILING = "serial sums", "serial, not shared", "bare forks"
NOTES = {
    PRIVATE: "its pages may be huge ones",
    CEILING: "the machine's ceiling",
}


def speed_of(run: Callable[[], object]) -> float:
    """Sums per second, where `run` does `TASKS` of them."""
    began = time.perf_counter()
    run()
    return TASKS / (time.perf_counter() - began)


def shared_sums(pool: Pool, shared: object) -> None:
    """All tasks of one round."""
    pool.map(total, [shared] * TASKS, 1)


def serial_sums(array: Array, times: int = TASKS) -> None:
    """As many sums in this process."""
    for _ in range(times):
        total(array)


def measure(settings: Settings) -> Report:
    """Sums per second of every contender, then of ours and serial sums in pairs of their own."""
    array = make_array()
    anew: dict[str, Series] = {}

    def speed(contender: Contender) -> float:
        with contender.open(settings.workers) as pool:
            pool.map(noop_item, range(TASKS), 1)
            if contender.name not in SHARING:
                return speed_of(lambda: shared_sums(pool, array))
            began = time.perf_counter()
            shared = pool.share(array)
            shared_sums(pool, shared)
            first = TASKS / (time.perf_counter() - began)
            anew.setdefault(contender.name, Series()).values.append(first)
            return speed_of(lambda: shared_sums(pool, shared))

    seen = measure_all(speed, rounds=settings.pick(2, 1), peer_rounds=1, contenders=ARRAY_CONTENDERS)
    for name in SHARING.keys() & seen.keys():
        anew.setdefault(name, Series()).failure = seen[name].failure
    rounds = settings.pick(25, 7)
    with CONTENDERS[OURS].open(settings.workers) as pool:
        shared = pool.share(array)
        shared_sums(pool, shared)
        paired = alternate(
            {
                OURS: lambda: speed_of(lambda: shared_sums(pool, shared)),
                SERIAL: lambda: speed_of(lambda: serial_sums(shared)),
                PRIVATE: lambda: speed_of(lambda: serial_sums(array)),
                CEILING: lambda: (
                    TASKS / in_forks(lambda share: serial_sums(array, share), TASKS, settings.workers)
                ),
            },
            dict.fromkeys((OURS, SERIAL, PRIVATE, CEILING), rounds),
        )
    ratios = {
        name: ratio_to(paired[OURS].values, series.values) for name, series in paired.items() if name != OURS
    }
    case = "in turns with serial sums"
    return Report(
        "array_shared",
        f"{TASKS} sums of a shared array of {LARGE_BYTES // MIB} MiB, {settings.workers} workers",
        [
            *rows_of("seen before", seen, "sums/s", contenders=ARRAY_CONTENDERS),
            *rows_of("shared anew", anew, "sums/s", contenders=SHARING),
            *(
                Row(
                    case,
                    name,
                    spread_of(paired, name),
                    "sums/s",
                    ratios.get(name),
                    series.failure or NOTES.get(name, ""),
                )
                for name, series in paired.items()
            ),
        ],
        [Goal("speed of shared sums, against serial sums", ratios[SERIAL], 1.7, at_least=True)],
    )


if __name__ == "__main__":
    raise SystemExit(run_script("array_shared", measure, description=__doc__))
