"""The whole demo as independent calls, run by whatever executor is given.

Every call gets its own random stream, a child of one SeedSequence, so the numbers depend on the seed alone
and not on who ran what when: serial and parallel results are equal bit by bit.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import astuple, dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from repartir.demo.forecast import Score, evaluate, persistence_errors, score, scored_steps
from repartir.demo.option import FIVE_ASSETS, Basket, Price, estimate, price_batch
from repartir.demo.series import Floats, Series, co2, sunspots

Result = Score | Floats


@dataclass(frozen=True, slots=True)
class Grid:
    """Candidates of one sweep: every order with every window (in years) that has two rows a coefficient."""

    orders: Sequence[int]
    window_years: Sequence[int]

    def candidates(self, per_year: int) -> list[tuple[int, int]]:
        """Pairs of order and window, the window in steps."""
        pairs = product(self.orders, (years * per_year for years in self.window_years))
        return [(order, window) for order, window in pairs if window - order >= 2 * (order + 1)]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything the demo computes."""

    sunspots: Grid
    co2: Grid
    batches: int
    paths: int


QUICK = Plan(
    sunspots=Grid(orders=range(1, 17), window_years=range(40, 171, 26)),
    co2=Grid(orders=range(2, 25, 2), window_years=range(5, 21, 3)),
    batches=320,
    paths=40_000,
)
FULL = Plan(
    sunspots=Grid(orders=range(1, 25), window_years=range(40, 171, 10)),
    co2=Grid(orders=range(1, 31), window_years=range(4, 23)),
    batches=1_500,
    paths=80_000,
)


class Call(NamedTuple):
    """One unit of work: `fn(*args)`."""

    fn: Callable[..., Result]
    args: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """The scores of one series: all candidates, best in validation first, and the persistence baseline."""

    series: Series
    validated: int
    tested: int
    ranked: list[Score]
    persistence: Score

    @property
    def missing(self) -> int:
        """How many values of the series are missing."""
        return int(np.isnan(self.series.values).sum())


class Study:
    """The calls of a plan and what their results mean."""

    def __init__(self, plan: Plan, seed: int) -> None:
        streams = np.random.SeedSequence(seed)
        self._basket = FIVE_ASSETS
        self._sweeps = [(sunspots(), plan.sunspots), (co2(), plan.co2)]
        self._sweep_calls = [sweep_calls(series, grid, streams.spawn(1)[0]) for series, grid in self._sweeps]
        self._option_calls = option_calls(self._basket, plan.batches, plan.paths, streams.spawn(1)[0])
        self._baseline_seed = streams.spawn(1)[0]
        self.paths = plan.batches * plan.paths

    @property
    def calls(self) -> list[Call]:
        """Every call, in the order in which `sweeps` and `prices` expect the results."""
        return [call for part in (*self._sweep_calls, self._option_calls) for call in part]

    def sweeps(self, results: Sequence[Result]) -> list[Sweep]:
        """One summary a series."""
        summaries, start = [], 0
        for (series, grid), calls in zip(self._sweeps, self._sweep_calls, strict=True):
            scores = [result for result in results[start : start + len(calls)] if isinstance(result, Score)]
            start += len(calls)
            scored = scored_steps(series, max(grid.orders))
            baseline = score(series, scored, persistence_errors(series), 0, 0, self._baseline_seed)
            ranked = sorted(scores, key=lambda each: each.validation_rmse)
            summaries.append(Sweep(series, len(scored[0]), len(scored[1]), ranked, baseline))
        return summaries

    def prices(self, results: Sequence[Result]) -> list[Price]:
        """The option's prices, one a strike."""
        batches = [result for result in results if isinstance(result, np.ndarray)]
        return estimate(self._basket, np.stack(batches))


def sweep_calls(series: Series, grid: Grid, seed: np.random.SeedSequence) -> list[Call]:
    """One call a candidate, each with its own bootstrap stream."""
    scored = scored_steps(series, max(grid.orders))
    candidates = grid.candidates(series.per_year)
    streams = seed.spawn(len(candidates))
    return [
        Call(evaluate, (series, scored, order, window, stream))
        for (order, window), stream in zip(candidates, streams, strict=True)
    ]


def option_calls(basket: Basket, batches: int, paths: int, seed: np.random.SeedSequence) -> list[Call]:
    """One call a batch, each with its own stream."""
    return [Call(price_batch, (basket, paths, stream)) for stream in seed.spawn(batches)]


def run_calls(executor: Executor, calls: Sequence[Call], on_done: Callable[[], None]) -> list[Result]:
    """Results in the order of the calls; `on_done` is called after each one, perhaps in another thread."""

    def report(_: Future[Result]) -> None:
        on_done()

    futures = []
    for call in calls:
        future = executor.submit(call.fn, *call.args)
        future.add_done_callback(report)
        futures.append(future)
    return [future.result() for future in futures]


def digest(results: Sequence[Result]) -> str:
    """SHA-256 over the bits of all results, in order: equal digests mean equal numbers, to the last bit."""
    total = hashlib.sha256()
    for result in results:
        numbers = np.array(astuple(result)) if isinstance(result, Score) else result
        total.update(numbers.tobytes())
    return total.hexdigest()
