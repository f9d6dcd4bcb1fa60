"""How several parts lie in one piece of memory: their number and sizes, then each where a cache line begins.

A pickle and its buffers lie so in a block of the arena, in the file of a shared object, and in an answer that comes in
pieces.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from typing import Protocol

from repartir.errors import InternalError
from repartir.shm.layout import WORD

_ALIGN = 64
_MAX_PARTS = 1 << 20


class Part(Protocol):
    """What may lie there besides bytes: something that knows its size and writes itself."""

    def __len__(self) -> int: ...

    def write_to(self, target: memoryview) -> None: ...


Storable = bytes | bytearray | memoryview | Part


class Packed:
    """Parts, and where they are to lie; ``size`` bytes in all."""

    __slots__ = ("_index", "_parts", "_starts", "size")

    def __init__(self, parts: Sequence[Storable]) -> None:
        sizes = [len(part) for part in parts]
        self._parts = parts
        self._index = struct.pack(f"=Q{len(sizes)}Q", len(sizes), *sizes)
        self._starts, self.size = _starts(len(self._index), sizes)

    def write_to(self, data: mmap.mmap | bytearray, base: int) -> None:
        """Copy the parts to ``data`` from byte ``base`` on."""
        data[base : base + len(self._index)] = self._index
        for part, start in zip(self._parts, self._starts, strict=True):
            first, end = base + start, base + start + len(part)
            if isinstance(part, bytes | bytearray | memoryview):
                data[first:end] = part
            else:
                part.write_to(memoryview(data)[first:end])


def extents(data: mmap.mmap | bytes, base: int, size: int) -> list[tuple[int, int]]:
    """Where in ``data`` each part begins and ends, of ``size`` bytes from ``base`` on.  Checked before it is used."""
    (count,) = struct.unpack_from("=Q", data, base)
    if count > _MAX_PARTS or (count + 1) * WORD > size:
        raise InternalError(f"arena block of {size} bytes with {count} parts")
    sizes = struct.unpack_from(f"={count}Q", data, base + WORD)
    starts, end = _starts((count + 1) * WORD, sizes)
    if end != size:
        raise InternalError(f"arena block of {size} bytes with parts of {sizes} bytes")
    return [(base + start, base + start + part) for start, part in zip(starts, sizes, strict=True)]


def _starts(index_bytes: int, sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where each part starts behind an index of ``index_bytes``, and where the last one ends."""
    starts, at = [], index_bytes
    for size in sizes:
        at = -(-at // _ALIGN) * _ALIGN
        starts.append(at)
        at += size
    return starts, at
