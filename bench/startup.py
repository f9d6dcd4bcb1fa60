"""From making an executor to its first result: in a warm process, and the first one of a fresh interpreter.

The fresh client also counts resource tracker processes below it: ours must need none.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time

from .common import Settings, against_stdlib, measure_all, rows_of, run_fresh, run_script, spread_of
from .contenders import CONTENDERS, OURS, Contender
from .procfs import command_line, tree
from .report import Goal, Report
from .stats import Series
from .tasks import noop


def first_result_ms(contender: Contender, workers: int) -> tuple[float, int]:
    """Milliseconds until the first result of a new pool, and the resource trackers that it left running."""
    began = time.perf_counter()
    with contender.open(workers) as pool:
        pool.take(pool.submit(noop))
        elapsed_ms = (time.perf_counter() - began) * 1e3
        trackers = sum("resource_tracker" in command_line(pid) for pid in tree(os.getpid()))
    return elapsed_ms, trackers


def client(name: str, workers: int) -> None:
    """The fresh interpreter: imports, then the clock runs."""
    contender = CONTENDERS[name]
    importlib.import_module(contender.module)
    elapsed_ms, trackers = first_result_ms(contender, workers)
    print(json.dumps({"ms": elapsed_ms, "trackers": trackers}))


def measure(settings: Settings) -> Report:
    """Milliseconds to the first result, warm and fresh, in pairs; resource trackers of fresh clients."""
    trackers: dict[str, Series] = {}

    def warm_ms(contender: Contender) -> float:
        return first_result_ms(contender, settings.workers)[0]

    def fresh_ms(contender: Contender) -> float:
        found = run_fresh("startup", "--client", contender.name, str(settings.workers), timeout_s=30)
        trackers.setdefault(contender.name, Series()).values.append(float(found["trackers"]))
        return float(found["ms"])

    measure_all(warm_ms, rounds=2, peer_rounds=1)
    warm = measure_all(warm_ms, rounds=settings.pick(25, 9), peer_rounds=settings.pick(7, 3))
    fresh = measure_all(fresh_ms, rounds=settings.pick(9, 3), peer_rounds=settings.pick(5, 1))
    return Report(
        "startup",
        "executor made → first result (fork)",
        [
            *rows_of("warm process", warm, "ms"),
            *rows_of("fresh interpreter", fresh, "ms"),
            *rows_of("fresh interpreter: resource trackers", trackers, "processes", paired=False),
        ],
        [
            Goal(
                "time to first result, against ProcessPoolExecutor", against_stdlib(warm), 1.5, at_least=False
            ),
            Goal("resource tracker processes", spread_of(trackers, OURS), 0, at_least=False),
        ],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        client(sys.argv[2], int(sys.argv[3]))
    else:
        raise SystemExit(run_script("startup", measure, description=__doc__))
