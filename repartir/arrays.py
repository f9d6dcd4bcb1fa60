"""How arrays and what is made of them are put together again: the functions that pickles of them call.

A subclass of numpy's own goes as a plain array and what makes it more than that; a user's subclass goes its own way.
"""

from __future__ import annotations

import sys
from typing import Any

from repartir import optional

_NATIVE = frozenset("cbB?hHiIlLqQnNfdP")


def from_buffer(buffer: Any, dtype: Any, shape: tuple[int, ...], order: Any) -> Any:
    """An array whose elements lie in `buffer`."""
    import numpy

    return numpy.ndarray(shape, dtype, buffer, order=order)


def byte_bounds(array: Any) -> tuple[int, int]:
    """The addresses between which the elements lie."""
    low = high = array.__array_interface__["data"][0]
    if array.size == 0:
        return low, low
    for length, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            low += (length - 1) * stride
        else:
            high += (length - 1) * stride
    return low, high + array.itemsize


def can_be_cast(view: memoryview) -> bool:
    """Whether ``memoryview.cast`` can make such a view of bytes; else only numpy can."""
    if not view.nbytes:
        return view.ndim == 1 and view.format == "B"
    return view.format.removeprefix("@") in _NATIVE


def view_of(elements: Any, format_: str, shape: tuple[int, ...]) -> memoryview:
    """A memoryview of `elements`."""
    view = memoryview(elements).cast("B")
    return view if format_ == "B" and len(shape) == 1 else view.cast(format_, shape)  # type: ignore[call-overload]


def reduce_subclass(array: Any, kind: type) -> Any:
    """How an instance of a subclass of `ndarray` is pickled: NotImplemented for one that is not numpy's own."""
    numpy = sys.modules["numpy"]
    if kind is numpy.ma.MaskedArray and (array._baseclass is numpy.ndarray or is_shared(array._baseclass)):
        mask = None if array._mask is numpy.ma.nomask else array._mask
        return as_masked, (array._data, mask, array._fill_value, array._hardmask)
    if kind is numpy.matrix:
        return as_matrix, (array.view(numpy.ndarray),)
    if kind is numpy.recarray:
        return as_recarray, (array.view(array.dtype, numpy.ndarray), array.dtype)
    return NotImplemented


def is_shared(kind: type) -> bool:
    """Whether this is the type of arrays in shared memory."""
    shared = optional.shared
    return shared is not None and kind is shared.SharedArray


def as_masked(data: Any, mask: Any, fill_value: Any, hard_mask: bool) -> Any:
    """A masked array over `data`; `mask` None: nothing was ever masked."""
    import numpy

    mask = numpy.ma.nomask if mask is None else mask
    array: Any = numpy.ma.MaskedArray(data, mask=mask, hard_mask=hard_mask)
    array._fill_value = fill_value
    return array


def as_matrix(data: Any) -> Any:
    """A matrix over `data`."""
    import numpy

    return data.view(numpy.matrix)


def as_recarray(data: Any, dtype: Any) -> Any:
    """A record array over `data`."""
    import numpy

    return data.view(dtype, numpy.recarray)


def as_memmap(data: Any) -> Any:
    """What a memory map becomes whose file the receiver cannot map: an array of that type in memory."""
    import numpy

    return data.view(numpy.memmap)
