"""Successive halving: all points with little of something, the best of them with more, and so on.

Source: Jamieson, Talwalkar 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from repartir.results import Point, lack_of
from repartir.sweeprow import SweepRow, sign_of


class Halving(NamedTuple):
    """The rungs of a sweep.  `counts` tells how many points each has."""

    name: str
    resources: tuple[Any, ...]
    metric: str | Callable[[Any], float] | None
    mode: str

    def counts(self, points: int) -> list[int]:
        """How many of so many points there are on each rung."""
        counts = [points]
        for less, more in zip(self.resources, self.resources[1:], strict=False):
            counts.append(max(1, int(counts[-1] * less / more)))
        return counts

    def check(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Raise ``ValueError`` where the space names the parameter that the rungs set."""
        if any(self.name in point for point in points):
            raise ValueError(f"halving() sets {self.name}, so the space must not have it")

    def at(self, point: Mapping[str, Any], rung: int) -> dict[str, Any]:
        """A point on this rung."""
        return {**point, self.name: self.resources[rung]}

    def survivors(
        self, points: Sequence[dict[str, Any]], rows: Sequence[Sequence[SweepRow]], rung: int
    ) -> list[dict[str, Any]]:
        """Of the points, whose rows on this rung are given, those of the next one, in their order; none after the last.

        A point with a row that failed, or whose metric is nan, is none.  Raises ``ValueError`` where rows have finished, and
        none of them has the metric.
        """
        if rung + 1 == len(self.resources):
            return []
        left = int(len(points) * self.resources[rung] / self.resources[rung + 1])
        sign, ranked = sign_of(self.mode), []
        for nth, of_point in enumerate(rows):
            point = Point(tuple(of_point))
            if of_point and point.holds(self.metric):
                ranked.append((sign * point.mean(self.metric), nth))
        finished = [row for of_point in rows for row in of_point if row.error is None]
        if finished and not ranked:
            raise ValueError(f"halving() cannot choose who goes on: {lack_of(self.metric, finished)}")
        return [points[nth] for nth in sorted(nth for _, nth in sorted(ranked)[: max(1, left)])]


def halving(
    name: str,
    resources: Sequence[float],
    metric: str | Callable[[Any], float] | None = None,
    mode: str = "min",
) -> Halving:
    """Rungs for `sweep`: ``halving("epochs", [1, 3, 9], metric="loss")``.

    All points are called with ``epochs=1``, the best third of them with 3, the best ninth with 9.  Each rung begins when the
    one before it has ended.

    Args:
        name: the parameter that is set.
        resources: its values, growing; from rung to rung as large a share of the points goes on as the value grows.
        metric: what decides: the name of an entry of the result, a function of it, or None for results that are numbers.
        mode: whether "min" or "max" is best.  Repeats are averaged.
    """
    values = tuple(resources)
    if not isinstance(name, str):
        raise TypeError(f"halving() needs the name of a parameter, not {name!r:.60}")
    if not values or not all(less < more for less, more in zip((0, *values), values, strict=False)):
        raise ValueError(f"halving() needs positive resources that grow, as [1, 3, 9], not {resources!r:.60}")
    sign_of(mode)
    return Halving(name, values, metric, mode)
