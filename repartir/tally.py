"""All that is kept of the samples of some batches, and how that of many batches becomes one, always in the same way."""

from __future__ import annotations

import functools
from typing import NamedTuple

from repartir.moments import Moments, Product, merged
from repartir.points import SCRAMBLINGS
from repartir.sketch import Array, Sketch, merged_sketches


class Tally(NamedTuple):
    """Of consecutive batches.

    `samples`: how many the moments are of; `omitted`: those that were NaN.  `sketches`: one a column, or none.  `counts`:
    of a histogram, (k, bins + 2), see `Bins`; or None.
    """

    samples: int
    omitted: int
    moments: Moments
    sketches: tuple[Sketch, ...] = ()
    counts: Array | None = None


def joined(a: Tally, b: Tally) -> Tally:
    """The tally of both parts together."""
    return _with_moments(a, b, merged(a.moments, b.moments))


def _with_moments(a: Tally, b: Tally, moments: Moments) -> Tally:
    return Tally(
        a.samples + b.samples,
        a.omitted + b.omitted,
        moments,
        tuple(map(merged_sketches, a.sketches, b.sketches)),
        None if a.counts is None or b.counts is None else a.counts + b.counts,
    )


class Node(NamedTuple):
    """The tally of batches ``number * 2**level`` up to ``(number + 1) * 2**level``."""

    level: int
    number: int
    tally: Tally


class Tree:
    """Joins batches as the nodes of the binary tree over their indices, whoever tallied which.

    Floating-point sums depend on the order of additions.  Here a node is always the join of its two halves, and a prefix
    of all batches the join of its largest nodes from the right: so bits depend on nothing but the batches.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        """The largest that what was added makes up, in order."""

    def add(self, node: Node) -> None:
        """The next one in order, of whatever level."""
        nodes = self.nodes
        nodes.append(node)
        while len(nodes) > 1:
            left, right = nodes[-2:]
            if left.level != right.level or left.number % 2 or left.number + 1 != right.number:
                break
            nodes[-2:] = [Node(left.level + 1, left.number // 2, joined(left.tally, right.tally))]

    def total(self) -> Tally | None:
        """Of all that was added, if the first is batch 0."""
        if not self.nodes:
            return None
        *rest, total = [node.tally for node in self.nodes]
        for left in reversed(rest):
            total = joined(left, total)
        return total


class Scramblings:
    """Joins batches to one tally for each scrambling; the estimate is made of their means."""

    def __init__(self) -> None:
        self._each: list[Tally] = []
        self._stage: list[Tally] = []
        """Of those that have come of the present stage: a part of it would give some scramblings more points."""

    def add(self, node: Node) -> None:
        """The next batch."""
        self._stage.append(node.tally)
        if len(self._stage) == SCRAMBLINGS:
            self._each = list(map(joined, self._each, self._stage)) if self._each else self._stage
            self._stage = []

    def total(self) -> Tally | None:
        """Of all stages that are complete: the moments are those of the scramblings' means."""
        if not self._each:
            return None
        return functools.reduce(joined, map(_as_one, self._each))


def _as_one(tally: Tally) -> Tally:
    """A scrambling as a sample."""
    moments = tally.moments
    if not moments.n:
        return tally
    products = tuple(Product(each.first, each.sums * 0.0) for each in moments.products)
    return tally._replace(moments=Moments(1, moments.mean, moments.low, moments.m2 * 0.0, products))
