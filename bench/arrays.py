"""What the benchmarks of arrays share: the arrays, the tasks, the timing of calls one after the other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contenders import Pool

MIB = 1 << 20
LARGE_BYTES = 64 * MIB
WARM_UP = 2
"""Calls that do not count: the figures are of the third call on."""

Array = NDArray[np.float64]


def make_array(size_bytes: int = LARGE_BYTES) -> Array:
    """An array of so many bytes, every page of it written."""
    return np.arange(size_bytes // 8, dtype=np.float64)


def identity(array: Array) -> Array:
    """There and back."""
    return array


def last_element(array: Array) -> float:
    """A scalar that touches one element."""
    return float(array[-1])


def total(array: Array) -> float:
    """A scalar that reads every element."""
    return float(array.sum())


def filled(index: int, size_bytes: int) -> Array:
    """A result of so many bytes that no other index has."""
    return np.full(size_bytes // 8, float(index))


def seconds_per_call(pool: Pool, fn: Callable[[Array], Any], size_bytes: int, calls: int) -> float:
    """The median of `calls` from submit to result, after `WARM_UP`; each result is dropped before the next call.

    Each call gets an array of its own, made off the clock: joblib writes one that it has seen before only once.
    """
    times_s = []
    for _ in range(WARM_UP + calls):
        array = make_array(size_bytes)
        began = time.perf_counter()
        result = pool.take(pool.submit(fn, array))
        times_s.append(time.perf_counter() - began)
        del result
    return statistics.median(times_s[WARM_UP:])
