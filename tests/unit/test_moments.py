from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import repartir
from repartir.moments import Moments, merged, moments_of


def exact(values: Any) -> tuple[float, float]:
    """Mean and sum of squared deviations in fractions."""
    numbers = [Fraction(float(value)) for value in values]
    mean = sum(numbers) / len(numbers)
    return float(mean), float(sum((number - mean) ** 2 for number in numbers))


def hard(n: int) -> Any:
    """Mean 1e9, variance 1."""
    return 1e9 + repartir.rng(5).standard_normal(n)


def in_pieces(values: Any, size: int) -> Moments:
    pieces = [moments_of(values[None, at : at + size]) for at in range(0, len(values), size)]
    return functools.reduce(merged, pieces)


@pytest.mark.parametrize("size", [1, 7, 100, 2000])
def test_a_small_spread_about_a_large_mean_survives_any_number_of_merges(size: int) -> None:
    values = hard(2000)
    mean, m2 = exact(values)
    found = in_pieces(values, size)
    assert found.n == 2000
    assert abs((found.mean + found.low) - mean) <= math.ulp(mean)
    assert found.m2 == pytest.approx(m2, rel=1e-11)


def test_the_mean_without_what_rounding_took_would_be_off() -> None:
    """So the test above would notice."""
    values = hard(2000)
    mean = functools.reduce(
        lambda mean, pair: mean + (pair[1] - mean) / pair[0], enumerate(map(float, values), 1), 0.0
    )
    assert abs(mean - math.fsum(values) / 2000) > math.ulp(1e9)


def test_vectors_have_covariances() -> None:
    columns = 1e6 + repartir.rng(6).standard_normal((5, 300))
    columns[2] += columns[1]
    parts = [moments_of(columns[:, at : at + 50], ((1, 4),)) for at in range(0, 300, 50)]
    found = functools.reduce(merged, parts)
    (product,) = found.products
    assert product.first == 1
    np.testing.assert_allclose(product.sums / 299, np.cov(columns[1:4]), rtol=1e-9)
    np.testing.assert_allclose(found.m2 / 299, columns.var(axis=1, ddof=1), rtol=1e-9)


def test_booleans_are_counted() -> None:
    hits = repartir.rng(7).random((1, 1001)) < 0.1
    counted, summed = moments_of(hits), moments_of(hits.astype(float))
    assert counted.mean == pytest.approx(summed.mean + summed.low, rel=1e-15)
    assert counted.m2 == pytest.approx(summed.m2)


def test_nothing_changes_nothing() -> None:
    some = moments_of(np.arange(6.0).reshape(2, 3), ((0, 2),))
    none = moments_of(np.empty((2, 0)), ((0, 2),))
    assert merged(some, none) is some
    assert merged(none, some) is some


def test_what_is_infinite_has_no_spread_and_warns_nobody() -> None:
    one, other = moments_of(np.array([[1.0, math.inf]])), moments_of(np.array([[2.0]]))
    for found in (merged(one, other), merged(other, one), merged(one, one)):
        assert (found.mean, found.low) == (math.inf, 0.0)
        assert not math.isfinite(found.m2)
    found = merged(moments_of(np.array([[-math.inf], [1.0]])), moments_of(np.array([[1.0], [2.0]])))
    assert list(found.mean) == [-math.inf, 1.5]
