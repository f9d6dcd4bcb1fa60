"""How often the interval of `monte_carlo` holds the true mean: `python -m bench.coverage` prints the table of the how-to.

Each row is so many independent runs with seeds of their own, in batches of 100, which are quicker than the small ones that a
run begins with by itself.  A true 95 % shows between 94 and 96 % in 19 of 20 rows of 2,000 runs.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from repartir import Executor, SerialExecutor, monte_carlo

REPLICATIONS = 2_000
SIGMA = 1.5


class Case(NamedTuple):
    """A function whose mean is known, and a tolerance that takes some thousand samples."""

    name: str
    fn: Callable[..., Any]
    mean: float
    tol: float


def quarter(rng: np.random.Generator, n: int) -> Any:
    x, y = rng.random((2, n))
    return x * x + y * y <= 1


def exponential(rng: np.random.Generator, n: int) -> Any:
    return np.exp(rng.random((n, 2)).sum(axis=1))


def payoff(rng: np.random.Generator, n: int) -> Any:
    """A call at the money, σ = 0.2: skewed, as payoffs are."""
    return np.maximum(100 * np.exp(0.2 * rng.standard_normal(n) - 0.02) - 100, 0)


def lognormal(rng: np.random.Generator, n: int) -> Any:
    return rng.lognormal(0.0, SIGMA, n)


CASES = (
    Case("quarter of a disc", quarter, math.pi / 4, 0.015),
    Case("exp(x + y)", exponential, (math.e - 1) ** 2, 0.04),
    Case("call at the money", payoff, 100 * math.erf(0.1 / math.sqrt(2)), 0.5),
    Case("lognormal, σ = 1.5", lognormal, math.exp(SIGMA**2 / 2), 0.15),
)


def holds(case: Case, options: dict[str, Any], seed: int) -> tuple[bool, int]:
    """Whether the interval of one run holds the mean, and how many samples it took."""
    est = monte_carlo(case.fn, seed=[seed, 5], batch=100, executor=SerialExecutor(), **options)
    low, high = est.ci
    return bool(low <= case.mean <= high), est.samples


def coverage(
    executor: Any, case: Case, options: dict[str, Any], replications: int = REPLICATIONS
) -> tuple[float, float]:
    """The share of runs whose interval holds the mean, and the mean number of samples."""
    found = list(executor.map(functools.partial(holds, case, options), range(replications)))
    return sum(held for held, _ in found) / replications, sum(samples for _, samples in found) / replications


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replications", type=int, default=REPLICATIONS)
    replications = parser.parse_args().replications
    print("| integrand | rule | interval holds the mean | samples |\n|---|---|---|---|")
    with Executor() as executor:
        for case in CASES:
            rules: dict[str, dict[str, Any]] = {
                "`samples=2_000`": {"samples": 2_000},
                f"`tol={case.tol}`": {"tol": case.tol},
                f"`tol={case.tol}`, `min_samples=10_000`": {"tol": case.tol, "min_samples": 10_000},
                f"`tol={case.tol}`, `min_samples=50_000`": {"tol": case.tol, "min_samples": 50_000},
            }
            for name, options in rules.items():
                share, samples = coverage(executor, case, options, replications)
                print(f"| {case.name} | {name} | {100 * share:.1f} % | {samples:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
