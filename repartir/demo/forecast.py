"""One candidate of the sweep: an autoregression fitted by least squares, rolled through the held-out years.

    value[t] = deterministic terms[t] + a1 value[t-1] + … + ap value[t-p] + noise

It is fitted to the `window` observations before an origin, forecasts one step ahead until the next origin, is
fitted anew there, and so on. No forecast sees its own or a later value. The candidate is chosen by its error
in the validation years; what judges it is its error in the later test years, which chose nothing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from repartir.demo.series import Floats, Ints, Series

BOOTSTRAP_REPLICATES = 1_000
Scored = tuple[Ints, Ints]
"""Indices of the validation steps and of the test steps."""


@dataclass(frozen=True, slots=True)
class Score:
    """Root mean square one-step errors of one candidate, in the unit of the series.

    `gain` is 1 - error / error of persistence in the test years. The `_se` are standard errors from the
    moving-block bootstrap of the test errors, paired for the gain.
    """

    order: int
    window: int
    validation_rmse: float
    test_rmse: float
    test_se: float
    gain: float
    gain_se: float


def design(series: Series, order: int) -> Floats:
    """(n, terms + order) regressors of each step; NaN where the history is too short or has a gap."""
    columns = [np.ones_like(series.times)]
    if series.trend_and_harmonics is not None:
        columns.append(series.times - series.times.mean())
        for k in range(1, series.trend_and_harmonics + 1):
            phase = 2 * np.pi * k * series.times
            columns += [np.cos(phase), np.sin(phase)]
    for lag in range(1, order + 1):
        lagged = np.full_like(series.values, np.nan)
        lagged[lag:] = series.values[:-lag]
        columns.append(lagged)
    return np.column_stack(columns)


def fit(regressors: Floats, targets: Floats) -> Floats:
    """(columns,) least-squares coefficients over the rows without a NaN; ValueError if those are too few."""
    complete = np.isfinite(regressors).all(axis=1) & np.isfinite(targets)
    if complete.sum() < regressors.shape[1]:
        raise ValueError(f"{complete.sum()} complete rows cannot fit {regressors.shape[1]} coefficients")
    coefficients, *_ = np.linalg.lstsq(regressors[complete], targets[complete], rcond=None)
    return np.asarray(coefficients, dtype=np.float64)


def rolling_errors(series: Series, order: int, window: int) -> Floats:
    """(n,) one-step forecast errors from the validation years on; NaN before, and where a value is missing.

    The first `order` of the `window` observations before an origin serve as lags only.
    """
    regressors, values = design(series, order), series.values
    errors = np.full_like(values, np.nan)
    for origin in range(series.first_of(series.validation_from), len(values), series.refit_every):
        train = slice(origin - window + order, origin)
        ahead = slice(origin, origin + series.refit_every)
        errors[ahead] = values[ahead] - regressors[ahead] @ fit(regressors[train], values[train])
    return errors


def scored_steps(series: Series, max_order: int) -> Scored:
    """Indices of the validation and of the test steps that count, the same for every order up to `max_order`.

    A step counts when its value and the `max_order` values before it are all there.
    """
    complete = np.isfinite(sliding_window_view(series.values, max_order + 1)).all(axis=1)
    steps = np.flatnonzero(complete) + max_order
    validation, test = series.first_of(series.validation_from), series.first_of(series.test_from)
    return steps[(steps >= validation) & (steps < test)], steps[steps >= test]


def block_bootstrap(rows: int, block: int, replicates: int, rng: np.random.Generator) -> Ints:
    """(replicates, rows) indices: blocks of consecutive rows drawn with replacement (Künsch 1989)."""
    blocks = -(-rows // block)
    starts = rng.integers(0, rows - block + 1, size=(replicates, blocks, 1))
    return (starts + np.arange(block)).reshape(replicates, -1)[:, :rows]


def rmse(errors: Floats) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(errors))))


def persistence_errors(series: Series) -> Floats:
    """(n,) errors of the forecast "as the step before"."""
    return np.diff(series.values, prepend=np.nan)


def evaluate(series: Series, scored: Scored, order: int, window: int, seed: np.random.SeedSequence) -> Score:
    """Score one candidate on the `scored` steps; the bootstrap draws from `seed`."""
    return score(series, scored, rolling_errors(series, order, window), order, window, seed)


def score(
    series: Series, scored: Scored, errors: Floats, order: int, window: int, seed: np.random.SeedSequence
) -> Score:
    """The Score of given one-step errors (n,)."""
    validation, test = scored
    squares = np.square(np.column_stack([errors[test], persistence_errors(series)[test]]))
    drawn = block_bootstrap(len(test), series.block, BOOTSTRAP_REPLICATES, np.random.default_rng(seed))
    resampled = np.sqrt(squares[drawn].mean(axis=1))
    own, naive = np.sqrt(squares.mean(axis=0))
    return Score(
        order=order,
        window=window,
        validation_rmse=rmse(errors[validation]),
        test_rmse=float(own),
        test_se=float(resampled[:, 0].std(ddof=1)),
        gain=float(1 - own / naive),
        gain_se=float((1 - resampled[:, 0] / resampled[:, 1]).std(ddof=1)),
    )
