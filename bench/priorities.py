"""How soon a high-priority task begins behind 100,000 tasks of 1 ms, and while a map of such items runs on all workers.

From the call of `submit` to the begin of the call in the worker, in lengths of a task as they turned out.  The high tasks
come one after the other, at odd moments.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from repartir import Executor

from .common import Settings, run_script
from .contenders import OURS
from .report import Goal, Report, Row
from .stats import Spread, exactly, percentile, spread

TASK_S = 0.001
LIMIT_S = 60.0


def task(_: object = None) -> tuple[float, float]:
    """One of those that it overtakes: when it began and ended."""
    began = time.monotonic()
    time.sleep(TASK_S)
    return began, time.monotonic()


def delays(pool: Executor, times: int) -> list[float]:
    """Milliseconds from a submit of a high task to its begin, one after the other."""
    high, rng, found = pool.options(priority="high"), random.Random(5), []
    for _ in range(times):
        time.sleep(rng.random() * 3 * TASK_S)
        submitted = time.monotonic()
        found.append((high.submit(time.monotonic).result(LIMIT_S) - submitted) * 1e3)
    return found


def length_ms(runs: list[tuple[float, float]]) -> float:
    return spread([(ended - began) * 1e3 for began, ended in runs]).median


def behind_backlog(workers: int, tasks: int, times: int) -> tuple[list[float], float]:
    """Their delays, and the length of a task, while as many tasks wait as were submitted before."""
    with Executor(workers) as pool:
        waiting = [pool.submit(task) for _ in range(tasks)]
        found = delays(pool, times)
        assert not waiting[-1].done()
        runs = [future.result() for future in waiting[:100]]
        for future in waiting:
            future.cancel()
    return found, length_ms(runs)


def inside_a_map(workers: int, items: int, times: int) -> tuple[list[float], float]:
    """The same while all workers are in a map."""
    with Executor(workers) as pool:
        results = pool.map(task, range(items))
        next(results)
        found = delays(pool, times)
        runs = [next(results) for _ in range(100)]
        results.close()  # type: ignore[attr-defined]
    return found, length_ms(runs)


def measure(settings: Settings) -> Report:
    """Delays in milliseconds, and in lengths of a task."""
    tasks, times = settings.pick(100_000, 20_000), settings.pick(1000, 200)
    cases: dict[str, Callable[..., tuple[list[float], float]]] = {
        f"behind {tasks:,} tasks of 1 ms": behind_backlog,
        "between items of 1 ms of a map": inside_a_map,
    }
    rows: list[Row] = []
    goals: list[Goal] = []
    for case, play in cases.items():
        found, length = play(settings.workers, tasks, times)
        rows += [
            Row(case, OURS, Spread(percentile(found, 50), min(found), max(found)), "ms"),
            Row(f"{case}: 99 of 100 within", OURS, exactly(percentile(found, 99)), "ms"),
        ]
        goals.append(
            Goal(
                f"task lengths until 95 of 100 begin, {case}",
                exactly(percentile(found, 95) / length),
                2,
                at_least=False,
            )
        )
    return Report("priorities", f"high-priority tasks, {settings.workers} workers", rows, goals)


if __name__ == "__main__":
    raise SystemExit(run_script("priorities", measure, description=__doc__))
