"""Answers to items of a map: many of them go in one record.

Values of one simple type lie there as a column.  Other plain values (``ATOMS``) are joined to the pickle of a list, whose
frame is left away; it is put around them again for unpickling, which is one call for all of them.  All others are pickled
one by one, and these pickles joined in the same way.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any

from repartir.outcome import Value, decode_outcome
from repartir.shm.layout import SIZE_MASK

PLAIN, PICKLED, NOTHING, INTEGERS, FLOATS = (kind << 32 for kind in range(5))
"""What a batch consists of; above all sizes, since a hand keeps both in one word: the kind and the number of bytes, or of
values where these have no bytes or eight each."""
COLUMNS: dict[type, tuple[int, str | None]] = {
    type(None): (NOTHING, None),
    int: (INTEGERS, "q"),
    float: (FLOATS, "d"),
}
"""Types of which many in a row go without a pickle: the kind, and the format of the column."""
KINDS = ~SIZE_MASK
_PROTOCOL = 3  # without frames, which could not be joined
_BEGIN, _END = b"\x80\x03](", b"e."
_BYTES = struct.Struct("<cI")

_dumps = pickle.dumps
_TAKEN = RuntimeError("taken")


class Failed:
    """The outcome of ``count`` items that have an error instead of values."""

    __slots__ = ("count", "error")

    def __init__(self, error: BaseException, count: int = 1) -> None:
        self.error = error
        self.count = count

    def take(self) -> BaseException:
        """The error, of which nothing here keeps the traceback that it gets when it is raised."""
        error, self.error = self.error, _TAKEN
        return error


class Mixed(list[Any]):
    """Values, among which there may be a ``Failed``."""


def plain(value: Any) -> bytes:
    """A plain value as an element of a batch."""
    return _dumps(value, _PROTOCOL)[2:-1]


def pickled(body: bytes) -> bytes:
    """A pickle as an element of a batch."""
    return _BYTES.pack(b"B", len(body)) + body


def batch_bytes(field: int) -> int:
    """How many bytes a batch has."""
    kind, count = field & KINDS, field & SIZE_MASK
    return 0 if kind == NOTHING else count * 8 if kind in (INTEGERS, FLOATS) else count


def values_of(field: int, batch: bytes) -> list[Any]:
    """The values of a batch."""
    kind = field & KINDS
    if kind == NOTHING:
        return [None] * (field & SIZE_MASK)
    if kind in (INTEGERS, FLOATS):
        return memoryview(batch).cast("q" if kind == INTEGERS else "d").tolist()
    values: list[Any] = pickle.loads(b"".join((_BEGIN, batch, _END)))
    if kind == PLAIN:
        return values
    outcomes = [decode_outcome(value) for value in values]
    if all(type(each) is Value for each in outcomes):
        return [each.value for each in outcomes]  # type: ignore[union-attr]
    return Mixed(each.value if isinstance(each, Value) else Failed(each.exception) for each in outcomes)
