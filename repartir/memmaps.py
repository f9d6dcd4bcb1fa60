"""Memory-mapped arrays travel as file, offset, shape and strides: the receiver maps the same file."""

from __future__ import annotations

import mmap
import os
import weakref
from typing import Any

from repartir.arrays import byte_bounds

_IN_FILE = frozenset({"r", "r+", "w+"})
_identities: weakref.WeakKeyDictionary[mmap.mmap, tuple[int, int]] = weakref.WeakKeyDictionary()
"""Device and inode of the file that a mapping was found to be of."""


def reduce(array: Any) -> Any:
    """How a `numpy.memmap` is pickled as a reference; None where its elements have to travel.

    That is so for mode "c" (what was written is in no file), for one whose file has no name any more or was replaced by
    another of that name, and for an array of this type that maps nothing.
    """
    import numpy

    mapping = getattr(array, "_mmap", None)
    name = getattr(array, "filename", None)
    mode = getattr(array, "mode", None)
    if mapping is None or name is None or mode not in _IN_FILE or not array.nbytes:
        return None
    path = os.path.abspath(name)
    start = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
    base = numpy.frombuffer(mapping, numpy.uint8).__array_interface__["data"][0]
    low, high = byte_bounds(array)
    first, last = start + low - base, start + high - base
    try:
        status = os.stat(path)
    except OSError:
        return None
    if first < start or last > status.st_size or last - start > len(mapping):
        return None
    identity = status.st_dev, status.st_ino
    if _identities.get(mapping) != identity:
        if not _is_mapped_at(base, path, status.st_ino):
            return None
        _identities[mapping] = identity
    origin = array.__array_interface__["data"][0] - low
    is_writable = mode != "r" and array.flags.writeable
    return attach, (
        path,
        identity,
        first,
        last - first,
        origin,
        array.dtype,
        array.shape,
        array.strides,
        is_writable,
    )


def attach(
    path: str,
    identity: tuple[int, int],
    first: int,
    size: int,
    origin: int,
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    is_writable: bool,
) -> Any:
    """Map bytes `first` to `first + size` of a file; the element at index 0 lies `origin` bytes behind the first.

    Called by unpickling. Raises OSError if there is another file of that name by now, or none.
    """
    import numpy

    try:
        status = os.stat(path)
    except OSError as exc:
        raise type(exc)(exc.errno, f"the file of a numpy.memmap: {exc.strerror}", path) from exc
    if (status.st_dev, status.st_ino) != identity:
        raise OSError(f"the file of a numpy.memmap was replaced by another while the task waited: {path!r}")
    mapped: Any = numpy.memmap(path, numpy.uint8, "r+" if is_writable else "r", first, (size,))
    view: Any = numpy.ndarray.__new__(numpy.memmap, shape, dtype, mapped.data, origin, strides)
    view._mmap, view.filename, view.offset, view.mode = (
        mapped._mmap,
        mapped.filename,
        mapped.offset,
        mapped.mode,
    )
    return view


def _is_mapped_at(address: int, path: str, inode: int) -> bool:
    """Whether what is mapped at an address is the file that has this path now; True where the system does not tell.

    By path too, since some file systems show one inode to ``stat`` and another one there.
    """
    try:
        with open("/proc/self/maps", "rb") as lines:
            for line in lines:
                extent, _, _, _, mapped, *rest = line.split(None, 5)
                low, high = (int(end, 16) for end in extent.split(b"-"))
                if low <= address < high:
                    name = os.fsdecode(rest[0].rstrip(b"\n")) if rest else ""
                    return int(mapped) == inode or name == os.path.realpath(path)
    except OSError:
        pass
    return True
