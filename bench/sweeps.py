"""Sweeps: what a row costs, what the journal costs, and the same sweep as scripts with joblib and multiprocessing.Pool.

The scripts lie in `sweep_scripts`; each runs as a process of its own, from its start to its end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from repartir import Executor, grid, sweep

from .common import ROOT, Settings, ratio_to, run_script, spread_of
from .contenders import OURS
from .report import Goal, Report, Row
from .stats import Series, Spread, alternate, spread

ROW_S = 0.001
SCRIPTS = {OURS: "ours", "joblib.Parallel": "with_joblib", "multiprocessing.Pool": "with_pool"}
FOLDER = Path(__file__).parent / "sweep_scripts"


def nothing(i: int) -> int:
    return i


def busy(i: int) -> int:
    """Works for a millisecond."""
    until = time.perf_counter() + ROW_S
    while time.perf_counter() < until:
        pass
    return i


def lines_of(script: str) -> int:
    """Lines of a script that are not blank."""
    return sum(bool(line.strip()) for line in (FOLDER / f"{script}.py").read_text().splitlines())


def run_of(script: str) -> float:
    """Wall seconds of a script, in a folder of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory(prefix="repartir-bench-") as folder:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, FOLDER / f"{script}.py"],
            cwd=folder,
            env=environment,
            check=True,
            capture_output=True,
        )
        return time.perf_counter() - began


def per_row_us(count: int, rounds: int, workers: int) -> Spread:
    """Microseconds a row of a sweep whose function does nothing takes."""

    def one(pool: Executor) -> float:
        began = time.perf_counter()
        sweep(nothing, grid(i=range(count)), seed=1, executor=pool)
        return (time.perf_counter() - began) / count * 1e6

    with Executor(workers) as pool:
        one(pool)
        return spread(one(pool) for _ in range(rounds))


def with_and_without_journal(count: int, rounds: int, workers: int) -> dict[str, Series]:
    """Wall seconds of a sweep of rows of a millisecond, with a new journal each time, and without."""
    with Executor(workers) as pool, tempfile.TemporaryDirectory(prefix="repartir-bench-") as folder:
        numbers = iter(range(1_000_000))

        def run(journal: Path | None) -> float:
            began = time.perf_counter()
            sweep(busy, grid(i=range(count)), seed=1, executor=pool, journal=journal)
            return time.perf_counter() - began

        runs = {"with": lambda: run(Path(folder, f"{next(numbers)}.db")), "without": lambda: run(None)}
        return alternate(runs, dict.fromkeys(runs, rounds))


def measure(settings: Settings) -> Report:
    """Microseconds a row; wall seconds with and without a journal, in pairs; wall seconds of whole scripts, in pairs."""
    rows_a_sweep, rounds = settings.pick(20_000, 3_000), settings.pick(7, 3)
    cost = per_row_us(rows_a_sweep, rounds, settings.workers)
    count = settings.pick(10_000, 1_000)
    journal = with_and_without_journal(count, rounds, settings.workers)
    journal_ratio = ratio_to(journal["with"].values, journal["without"].values)
    scripts = alternate(
        {name: lambda script=script: run_of(script) for name, script in SCRIPTS.items()},  # type: ignore[misc]
        dict.fromkeys(SCRIPTS, rounds),
    )
    rows = [
        Row(f"{rows_a_sweep:,} rows that do nothing", OURS, cost, "µs a row"),
        Row(f"{count:,} rows of 1 ms, no journal", OURS, spread_of(journal, "without"), "s"),
        Row(f"{count:,} rows of 1 ms, journal", OURS, spread_of(journal, "with"), "s", journal_ratio),
    ]
    goals = [
        Goal("a row of a sweep, µs", cost, 60, at_least=False),
        Goal(
            f"a sweep of {count:,} rows of 1 ms with a journal, against none",
            journal_ratio,
            1.1,
            at_least=False,
        ),
    ]
    for name, script in SCRIPTS.items():
        ratio = None if name == OURS else ratio_to(scripts[OURS].values, scripts[name].values)
        case = "1,200 rows, a whole script"
        rows.append(Row(case, name, spread_of(scripts, name), "s", ratio, f"{lines_of(script)} lines"))
        if ratio is not None:
            goals.append(Goal(f"a whole script, against {name}", ratio, 1.0, at_least=False))
    return Report("sweeps", f"parameter sweeps, {settings.workers} workers", rows, goals)


if __name__ == "__main__":
    raise SystemExit(run_script("sweeps", measure, description=__doc__))
