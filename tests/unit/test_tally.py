from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import repartir
from repartir.moments import merged, moments_of
from repartir.points import SCRAMBLINGS
from repartir.tally import Node, Scramblings, Tally, Tree

BATCHES = 45


def leaves() -> list[Node]:
    values = 1e6 + repartir.rng(4).standard_normal((BATCHES, 3))
    return [Node(0, at, Tally(3, 0, moments_of(row[None]))) for at, row in enumerate(values)]


@pytest.mark.parametrize("seed", range(20))
def test_any_spans_make_the_same_tree(seed: int) -> None:
    alone, joined = Tree(), Tree()
    for leaf in leaves():
        alone.add(leaf)
    cuts = sorted({0, BATCHES, *map(int, repartir.rng(seed).integers(BATCHES, size=seed))})
    for first, end in itertools.pairwise(cuts):
        span = Tree()
        for leaf in leaves()[first:end]:
            span.add(leaf)
        assert len(span.nodes) <= 2 * math.ceil(math.log2(BATCHES))
        for node in span.nodes:
            joined.add(node)
    assert joined.total() == alone.total()


def test_another_order_would_show() -> None:
    """So the test above would notice."""
    in_order, plain = Tree(), leaves()[0].tally.moments
    for leaf in leaves():
        in_order.add(leaf)
        plain = plain if leaf.number == 0 else merged(plain, leaf.tally.moments)
    total = in_order.total()
    assert total is not None
    assert total.moments != plain


def test_scramblings_are_samples_and_count_when_their_stage_is_complete() -> None:
    joins = Scramblings()
    assert joins.total() is None
    values = repartir.rng(4).standard_normal((2 * SCRAMBLINGS, 4))
    for at, row in enumerate(values):
        joins.add(Node(0, at, Tally(4, 0, moments_of(row[None]))))
        total = joins.total()
        assert (total is None) == (at + 1 < SCRAMBLINGS)
        if total is not None:
            assert total.samples == 4 * SCRAMBLINGS * ((at + 1) // SCRAMBLINGS)
            assert total.moments.n == SCRAMBLINGS
    means = values.reshape(2, SCRAMBLINGS, 4).transpose(1, 0, 2).reshape(SCRAMBLINGS, 8).mean(axis=1)
    assert total is not None
    assert total.moments.mean + total.moments.low == pytest.approx(means.mean())
    assert total.moments.m2 == pytest.approx(np.square(means - means.mean()).sum())
