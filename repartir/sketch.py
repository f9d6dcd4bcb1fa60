"""What else is kept of samples that do not travel: a sketch for quantiles, and counts for a histogram.

The sketch is DDSketch (Masson, Rim and Lee 2019) without its limit on buckets: a count for each bucket
(γ^(i-1), γ^i] of magnitudes, γ = (1 + α) / (1 - α), for both signs, and one for zero.  A quantile is told as the middle of
its bucket, which is within α = 0.1 % of every value in it: the error is relative to the sample of that rank, wherever it
lies.  Counts add up, so what is merged in whatever groups and order is the same.  A decade takes 1,152 buckets at most.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

RELATIVE_ERROR = 1e-3
_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA = math.log(_GAMMA)
_ONE = 1 << 20
"""The key of the bucket of 1; those of smaller and larger magnitudes are at most 373,000 away."""
_INFINITY = 1 << 21
_NAN = 1 << 22

Array = npt.NDArray[Any]


class Sketch(NamedTuple):
    """How many samples are in each bucket that has some.  Keys order buckets as their values; zero's is 0."""

    keys: Array
    counts: Array


def sketch_of(values: Array) -> Sketch:
    """Of values of shape (n,), which may be infinite or NaN."""
    magnitudes = np.abs(values)
    keys = np.zeros(len(values), dtype=np.int64)
    inside = (magnitudes > 0) & (magnitudes < np.inf)
    keys[inside] = np.ceil(np.log(magnitudes[inside]) / _LOG_GAMMA).astype(np.int64) + _ONE
    keys[np.isinf(values)] = _INFINITY
    keys = np.where(values < 0, -keys, keys)
    keys[np.isnan(values)] = _NAN
    return Sketch(*np.unique(keys, return_counts=True))


def merged_sketches(a: Sketch, b: Sketch) -> Sketch:
    """The sketch of both parts together."""
    keys, where = np.unique(np.concatenate((a.keys, b.keys)), return_inverse=True)
    counts = np.zeros(len(keys), dtype=np.int64)
    np.add.at(counts, where, np.concatenate((a.counts, b.counts)))
    return Sketch(keys, counts)


def quantile(sketch: Sketch, q: float) -> float:
    """The value of rank ``floor(q * (n - 1))``, from 0, within ``RELATIVE_ERROR``; NaN if there is a NaN, or nothing."""
    if not len(sketch.keys) or sketch.keys[-1] == _NAN:
        return math.nan
    ends = np.cumsum(sketch.counts)
    key = int(sketch.keys[np.searchsorted(ends, math.floor(q * (int(ends[-1]) - 1)), side="right")])
    if key == 0:
        return 0.0
    if abs(key) == _INFINITY:
        return math.copysign(math.inf, key)
    return math.copysign(2 * math.exp((abs(key) - _ONE) * _LOG_GAMMA - math.log1p(_GAMMA)), key)


class Histogram(NamedTuple):
    """As ``numpy.histogram`` returns it.  `counts`: (bins,), or (…, bins) for arrays.  `edges`: (bins + 1,)."""

    counts: Array
    edges: Array


class Bins(NamedTuple):
    """Equal bins from ``low`` to ``high``, and what is beyond them on both sides."""

    bins: int
    low: float
    high: float

    def edges(self) -> Array:
        return np.histogram_bin_edges(np.empty(0), self.bins, (self.low, self.high))

    def counts(self, values: Array) -> Array:
        """(bins + 2,): how many of the values are in each bin, then below and above all of them; NaN is nowhere."""
        inside, _ = np.histogram(values[~np.isnan(values)], self.bins, (self.low, self.high))
        return np.append(inside, [np.count_nonzero(values < self.low), np.count_nonzero(values > self.high)])
