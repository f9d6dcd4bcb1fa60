"""A grid search of scikit-learn, 60 fits on the digits, by joblib's backends: ours against loky.

All in one process; who goes first alternates from round to round.  Once with workers that are there already, which is
bound by the fits, and once from nothing.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

from .common import Settings, ratio_to, run_script
from .report import Goal, Report, Row
from .stats import Series, spread

OURS, LOKY = "repartir", "loky"
GRID = {"C": [0.1, 1.0, 10.0, 100.0], "gamma": [1e-4, 1e-3, 1e-2]}
FOLDS = 5
GOAL = 1.0

Run = Callable[[], object]


def search(rows: int, workers: int) -> Run:
    """A grid search over so many digits, by whatever backend is chosen."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    features, labels = load_digits(return_X_y=True)
    model = GridSearchCV(SVC(), GRID, cv=FOLDS, n_jobs=workers)
    return lambda: model.fit(features[:rows], labels[:rows])


def no_ops(calls: int, workers: int) -> Run:
    """So many calls that do nothing."""
    from joblib import Parallel, delayed

    return lambda: Parallel(workers)(delayed(abs)(n) for n in range(calls))


def seconds(run: Run, backend: str) -> float:
    """Wall seconds of `run` on a backend."""
    from joblib import parallel_config

    with parallel_config(backend):
        began = time.perf_counter()
        run()
        return time.perf_counter() - began


def end_workers() -> None:
    """End the workers that either backend keeps for its next call."""
    from joblib.externals.loky import get_reusable_executor

    import repartir.integrations.joblib as ours

    ours.shutdown()
    get_reusable_executor().shutdown(wait=True, kill_workers=True)


def take_turns(run: Run, rounds: int, *, from_nothing: bool) -> dict[str, Series]:
    """Both backends `rounds` times, each first in every other round."""
    found: dict[str, Series] = {OURS: Series(), LOKY: Series()}
    if not from_nothing:
        for backend in found:
            seconds(run, backend)
    for turn in range(rounds):
        for backend in (OURS, LOKY) if turn % 2 else (LOKY, OURS):
            if from_nothing:
                end_workers()
            found[backend].values.append(seconds(run, backend))
    return found


def measure(settings: Settings) -> Report:
    """Wall seconds, in pairs."""
    import repartir.integrations.joblib  # noqa: F401 - registers the backend

    digits, calls = settings.pick(1797, 600), settings.pick(50_000, 10_000)
    fits = search(digits, settings.workers)
    cases: dict[str, tuple[Run, bool]] = {
        f"60 fits, {digits} digits": (fits, False),
        f"60 fits, {digits} digits, from nothing": (fits, True),
        f"{calls:,} no-ops": (no_ops(calls, settings.workers), False),
    }
    rows: list[Row] = []
    goals: list[Goal] = []
    with warnings.catch_warnings(action="ignore"):
        for case, (run, from_nothing) in cases.items():
            found = take_turns(run, settings.pick(5, 3), from_nothing=from_nothing)
            ratio = ratio_to(found[OURS].values, found[LOKY].values)
            rows.append(Row(case, OURS, spread(found[OURS].values), "s"))
            rows.append(Row(case, LOKY, spread(found[LOKY].values), "s", ratio))
            if run is fits:
                goals.append(Goal(f"{case}, against loky", ratio, GOAL, at_least=False))
        end_workers()
    return Report("joblib_backend", "joblib's backends: wall time", rows, goals)


if __name__ == "__main__":
    raise SystemExit(run_script("joblib_backend", measure, description=__doc__))
