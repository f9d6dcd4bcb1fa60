"""No-ops defined in `__main__` against the same no-op of an importable module, in the same pool.

Run as a script (`python -m …`, as the runner does): `noop_of_main` must be a function of `__main__`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from .common import Settings, measure_all, rows_of, run_script, spread_of
from .contenders import OURS, Contender, Pool
from .report import Goal, Report
from .tasks import noop


def noop_of_main() -> None:
    """The twin of `tasks.noop` that lives in `__main__`."""


def _tasks_per_second(pool: Pool, function: Callable[[], None], tasks: int) -> float:
    began = time.perf_counter()
    for future in [pool.submit(function) for _ in range(tasks)]:
        pool.take(future)
    return tasks / (time.perf_counter() - began)


def measure(settings: Settings) -> Report:
    """Rate of `__main__`'s no-op ÷ rate of the module's, for every contender."""
    if noop_of_main.__module__ != "__main__":
        raise RuntimeError("run this benchmark as a script: its function must live in __main__")
    tasks = settings.pick(full=5_000, quick=2_000)

    def relative_rate(contender: Contender) -> float:
        with contender.open(settings.workers) as pool:
            for function in (noop, noop_of_main):
                _tasks_per_second(pool, function, 20 * settings.workers)
            of_module = _tasks_per_second(pool, noop, tasks)
            of_main = _tasks_per_second(pool, noop_of_main, tasks)
            again = _tasks_per_second(pool, noop, tasks)
        return of_main / ((of_module + again) / 2)

    series = measure_all(relative_rate, rounds=settings.pick(7, 3), peer_rounds=settings.pick(2, 1))
    return Report(
        "main_functions",
        "no-ops of __main__ against no-ops of a module",
        rows_of(f"{tasks:,} no-ops", series, "× the module's rate", paired=False),
        [Goal("rate of __main__'s no-ops, against a module's", spread_of(series, OURS), 0.8, at_least=True)],
    )


if __name__ == "__main__":
    raise SystemExit(run_script("main_functions", measure, description=__doc__))
