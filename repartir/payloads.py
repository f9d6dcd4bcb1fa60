"""What the payloads of slots and records begin with."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from repartir.shm.arena import HANDLE_BYTES

FUNCTION = struct.Struct(f"=Q{HANDLE_BYTES}s")
"""The head of every call's payload: the function's key and the handle of the block that holds it."""
HEAD_BYTES = FUNCTION.size
PIECE = struct.Struct("=II")
"""The head of a piece of an answer: which one it is, of how many."""
RANGE = struct.Struct("=QQ")
"""Behind the head of a range's payload: its first item and its end, counted from the beginning of its block."""
SPAN = struct.Struct("=QQ")
"""The head of an answer to items: the first one, and how many, or for a batch what it consists of."""


def items_of(payload: bytes) -> tuple[int, int]:
    """The first item of a range and its end."""
    first, end = RANGE.unpack_from(payload, HEAD_BYTES)
    return first, end


def pieces_of(whole: bytes, most: int) -> Iterator[bytes]:
    """An answer cut into pieces of at most ``most`` bytes, each with its head."""
    size = most - PIECE.size
    count = -(-len(whole) // size)
    for nth in range(count):
        yield PIECE.pack(nth, count) + whole[nth * size : (nth + 1) * size]
