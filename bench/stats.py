"""Medians of pairs: the arithmetic that every figure goes through.

Machines drift, so two contenders are only compared within one round, in which they ran one after the other.
The figure is the median of the rounds' ratios, with the lowest and the highest beside it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some measurements, with the lowest and the highest of them."""

    median: float
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    """Median, lowest and highest of `values`; ValueError when there are none."""
    known = sorted(values)
    if not known:
        raise ValueError("no measurements to take a median of")
    return Spread(statistics.median(known), known[0], known[-1])


def exactly(value: float) -> Spread:
    """What was measured once."""
    return Spread(value, value, value)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` per cent of `values` do not exceed (nearest rank)."""
    if not values:
        raise ValueError("no measurements to take a percentile of")
    if not 0 < percent <= 100:
        raise ValueError(f"percent must be in (0, 100], not {percent}")
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def pair_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Round by round, numerator / denominator, over the rounds that have both and a denominator but 0."""
    return [a / b for a, b in zip(numerators, denominators, strict=False) if b]


@dataclass(slots=True)
class Series:
    """One contender's measurements in order of rounds, and the error that ended them early, if one did."""

    values: list[float] = field(default_factory=list)
    failure: str | None = None


def alternate(measures: Mapping[str, Callable[[], float]], rounds: Mapping[str, int]) -> dict[str, Series]:
    """Measure A B C, A B C, …: name n takes part in the first `rounds[n]` rounds.

    A measure that raises is out from then on and its error is kept: the others' figures are still wanted.
    """
    series = {name: Series() for name in measures}
    for turn in range(max(rounds.values(), default=0)):
        for name, measure in measures.items():
            own = series[name]
            if turn >= rounds[name] or own.failure is not None:
                continue
            try:
                own.values.append(measure())
            except Exception as error:  # noqa: BLE001 - whatever a library raises is its figure
                own.failure = f"{type(error).__name__}: {error}"
    return series
