"""Parallel efficiency: calibrated CPU work ÷ (workers × wall) for short tasks.

A task burns a fixed amount of work, not a fixed time on the clock: a worker that its neighbours slow down is
not let off.  What the work costs is measured in this process right before and right after each pool runs it.
The ceiling is what bare forked processes reach that share nothing but the cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .common import Settings, in_forks, measure_all, ratio_to, rows_of, run_script, spread_of
from .contenders import OURS, Contender, Pool
from .report import Goal, Report, Row
from .tasks import burn


@dataclass(frozen=True, slots=True)
class Case:
    """One way of handing out tasks of one length."""

    name: str
    task_us: float
    through_map: bool
    goal: float


CASES = (
    Case("100 µs, one by one", 100, False, 0.72),
    Case("100 µs, map", 100, True, 0.92),
    Case("1 ms, one by one", 1000, False, 0.97),
)

CEILING = "bare forks"


def cpu_seconds(turns: int, times: int) -> float:
    """CPU seconds of this process for `burn(turns)`, `times` times over."""
    began = time.process_time()
    for _ in range(times):
        burn(turns)
    return time.process_time() - began


def turns_for(task_us: float) -> int:
    """How many turns of `burn` make a task of about `task_us` microseconds."""
    trial = 20_000
    cpu_seconds(trial, 5)
    return max(1, round(trial * task_us * 1e-6 * 20 / cpu_seconds(trial, 20)))


def efficiency(run: Callable[[], float], turns: int, tasks: int, workers: int) -> float:
    """Work ÷ (workers × wall), where `run` does `tasks` tasks and returns its wall seconds."""
    sample = max(1, tasks // 5)
    before = cpu_seconds(turns, sample)
    wall = run()
    after = cpu_seconds(turns, sample)
    work = (before + after) / (2 * sample) * tasks
    return work / (workers * wall)


def _pool_seconds(contender: Contender, case: Case, turns: int, tasks: int, workers: int) -> float:
    with contender.open(workers) as pool:
        _hand_out(pool, case, [10 * turns] * (2 * workers))
        began = time.perf_counter()
        _hand_out(pool, case, [turns] * tasks)
        return time.perf_counter() - began


def _hand_out(pool: Pool, case: Case, items: Sequence[int]) -> None:
    if case.through_map:
        pool.map(burn, items, None)
        return
    for future in [pool.submit(burn, turns) for turns in items]:
        pool.take(future)


def _measure_case(case: Case, settings: Settings) -> tuple[list[Row], Goal]:
    turns = turns_for(case.task_us)
    workers = settings.workers
    tasks = round(settings.pick(400_000, 150_000) * workers / case.task_us)

    def pooled(contender: Contender) -> float:
        return efficiency(
            lambda: _pool_seconds(contender, case, turns, tasks, workers), turns, tasks, workers
        )

    def burn_all(times: int) -> None:
        for _ in range(times):
            burn(turns)

    def bare() -> float:
        return efficiency(lambda: in_forks(burn_all, tasks, workers), turns, tasks, workers)

    rounds, peer_rounds = settings.pick(5, 3), settings.pick(2, 1)
    series = measure_all(pooled, rounds, peer_rounds, yardsticks={CEILING: bare})
    ceiling = series[CEILING]
    against_ceiling = ratio_to(series[OURS].values, ceiling.values) if OURS in series else None
    note = ceiling.failure or "the machine's ceiling"
    rows = [
        *rows_of(case.name, series, "of ideal"),
        Row(case.name, CEILING, spread_of(series, CEILING), "of ideal", against_ceiling, note),
    ]
    return rows, Goal(f"efficiency, {case.name}", spread_of(series, OURS), case.goal, at_least=True)


def measure(settings: Settings) -> Report:
    """Efficiency of every contender in each of `CASES`."""
    rows: list[Row] = []
    goals: list[Goal] = []
    for case in CASES:
        case_rows, goal = _measure_case(case, settings)
        rows += case_rows
        goals.append(goal)
    return Report("efficiency", f"parallel efficiency, {settings.workers} workers", rows, goals)


if __name__ == "__main__":
    raise SystemExit(run_script("efficiency", measure, description=__doc__))
