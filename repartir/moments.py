"""Count, mean and spread of columns of samples, and how those of two parts become those of both.

A mean is kept as two floats, ``mean + low``, of which the second holds what rounding took from the first: the batches'
means come from two passes over the samples (so ``low`` is the mean of the deviations from ``mean``), and each merge adds
what its own addition lost.  So a mean of 1e9 with a variance of 1 is right to its last bit after any number of merges,
where a plain running mean would lose half an ulp, 6e-8, in each.  Sums of squared deviations are sums of positive numbers
about means that are right: they need no compensation.  Merging is Chan, Golub and LeVeque's formula (1979).

Nothing here calls BLAS, whose bits depend on the number of its threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

LARGEST_COVARIANCE = 64
"""Of vectors with more components than that the covariance is not kept: it would cost more than most samples do."""

Array = npt.NDArray[Any]
Block = tuple[int, int]
"""The first and the end of columns, two or more, whose covariance is kept."""


class Product(NamedTuple):
    """Sums of products of the deviations of d columns from ``first`` on, (d, d)."""

    first: int
    sums: Array


class Moments(NamedTuple):
    """Of ``n`` samples with k columns: floats where k is 1, arrays of shape (k,) otherwise.

    `m2`: sums of squared deviations from the mean.
    """

    n: int
    mean: Any
    low: Any
    m2: Any
    products: tuple[Product, ...] = ()


def moments_of(columns: Array, blocks: tuple[Block, ...] = (), totals: Array | None = None) -> Moments:
    """Of samples of shape (k, n), booleans or floats.  ``totals``: the columns' sums, if they are known."""
    k, n = columns.shape
    if n == 0:
        zeros = _plain(np.zeros(k))
        return Moments(
            0, zeros, zeros, zeros, tuple(Product(at, np.zeros((end - at,) * 2)) for at, end in blocks)
        )
    if columns.dtype == np.bool_ and not blocks:
        counts = _plain(np.array([float(np.count_nonzero(row)) for row in columns]))
        return Moments(n, counts / n, counts * 0.0, counts * (n - counts) / n)
    with np.errstate(all="ignore"):  # what is infinite has no spread: the estimate shows it
        values = columns.astype(float, copy=False)
        mean = (values.sum(axis=1) if totals is None else totals) / n
        deviations = values - mean[:, None]
        low = np.nan_to_num(deviations.sum(axis=1) / n, nan=0.0, posinf=0.0, neginf=0.0)
        products = tuple(Product(at, _products(deviations[at:end], low[at:end])) for at, end in blocks)
        m2 = np.square(deviations, out=deviations).sum(axis=1) - n * low * low
    return Moments(n, _plain(mean), _plain(low), _plain(m2), products)


def _plain(values: Array) -> Any:
    """A float in place of an array of one: a tenth of the time."""
    return float(values[0]) if len(values) == 1 else values


def _products(deviations: Array, low: Array) -> Array:
    d, n = deviations.shape
    sums = np.empty((d, d))
    for at in range(d):
        row = (deviations[at:] * deviations[at]).sum(axis=1) - n * low[at:] * low[at]
        sums[at, at:] = sums[at:, at] = row
    return sums


def merged(a: Moments, b: Moments) -> Moments:
    """The moments of both parts together."""
    if a.n == 0 or b.n == 0:
        return a if b.n == 0 else b
    if isinstance(a.mean, float):
        return _merged(a, b)
    with np.errstate(all="ignore"):
        return _merged(a, b)


def _merged(a: Moments, b: Moments) -> Moments:
    n = a.n + b.n
    delta = (b.mean - a.mean) + (b.low - a.low)
    step = delta * (b.n / n)
    mean = a.mean + step
    back = mean - a.mean
    lost = (a.mean - (mean - back)) + (step - back)  # exactly what the sum has lost (Knuth's two-sum)
    if not np.isfinite(lost).all():
        mean, lost = _where_infinite(a.mean + b.mean, mean, lost)
    weight = a.n * b.n / n
    products = []
    for left, right in zip(a.products, b.products, strict=True):
        own = delta[left.first : left.first + len(left.sums)]
        products.append(Product(left.first, left.sums + right.sums + np.multiply.outer(own, own) * weight))
    return Moments(n, mean, a.low + lost, a.m2 + b.m2 + delta * delta * weight, tuple(products))


def _where_infinite(both: Any, mean: Any, lost: Any) -> tuple[Any, Any]:
    """Means where some are infinite or NaN: as a plain sum has them, and nothing is lost."""
    is_fine = np.isfinite(lost)
    return (
        _plain(np.atleast_1d(np.where(is_fine, mean, both))),
        _plain(np.atleast_1d(np.where(is_fine, lost, 0.0))),
    )
