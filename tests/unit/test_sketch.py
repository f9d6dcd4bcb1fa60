from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest

import repartir
from repartir.sketch import RELATIVE_ERROR, Bins, merged_sketches, quantile, sketch_of

QS = [0.0, 0.001, 0.05, 0.25, 0.5, 0.9, 0.999, 1.0]


def samples(name: str) -> Any:
    rng = repartir.rng(3)
    return {
        "normal": rng.standard_normal(5000),
        "lognormal": rng.lognormal(0, 5, 5000),
        "many zeros": rng.poisson(0.5, 5000).astype(float) - 1,
        "tiny and huge": 10.0 ** rng.uniform(-300, 300, 5000) * rng.choice([-1, 1], 5000),
        "one": np.array([-3.5]),
    }[name]


@pytest.mark.parametrize("name", ["normal", "lognormal", "many zeros", "tiny and huge", "one"])
def test_quantiles_are_within_the_bound(name: str) -> None:
    values = samples(name)
    ordered = np.sort(values)
    sketch = sketch_of(values)
    for q in QS:
        expected = ordered[math.floor(q * (len(ordered) - 1))]
        assert quantile(sketch, q) == pytest.approx(expected, rel=RELATIVE_ERROR * 1.001, abs=0)


def test_groups_and_order_of_merges_do_not_matter() -> None:
    values = samples("normal")
    whole = sketch_of(values)
    parts = [sketch_of(part) for part in np.split(values, [1, 10, 700, 4000])]
    for found in (
        functools.reduce(merged_sketches, parts),
        functools.reduce(merged_sketches, reversed(parts)),
    ):
        assert np.array_equal(found.keys, whole.keys)
        assert np.array_equal(found.counts, whole.counts)


def test_what_is_infinite_is_at_the_ends_and_nan_is_everywhere() -> None:
    sketch = sketch_of(np.array([math.inf, 1.0, -math.inf]))
    assert [quantile(sketch, q) for q in (0, 1)] == [-math.inf, math.inf]
    assert quantile(sketch, 0.5) == pytest.approx(1, rel=RELATIVE_ERROR * 1.001)
    assert math.isnan(quantile(sketch_of(np.array([math.nan, 1.0])), 0.0))
    assert math.isnan(quantile(sketch_of(np.empty(0)), 0.5))


def test_bins_count_as_numpy_does_and_what_is_outside() -> None:
    values = np.array([-1.0, 0.0, 0.24, 0.25, 1.0, 1.01, math.inf, math.nan])
    bins = Bins(4, 0.0, 1.0)
    counts, edges = np.histogram(values[:6], 4, (0, 1))
    assert list(bins.counts(values)) == [*counts, 1, 2]
    assert list(bins.edges()) == list(edges)
