"""Calls and values to bytes and large buffers, and back (pickle protocol 5).

What travels is either plain `bytes`, or an `Encoded`: a pickle and the buffers that go beside it. `decode`
takes both apart. Whoever encodes copies the buffers at once; whoever decodes passes writable buffers of its
own, which the decoded arrays then live in.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from typing import Any

from repartir.bindings import OwnedGlobals
from repartir.diagnosis import describe, first_failure, is_interruption
from repartir.errors import FreedError, TaskNotSerializable, UseAfterFreeError
from repartir.inherited import OUT_OF_BAND_BYTES, InheritedArrays, snapshot_inherited
from repartir.pickler import PROTOCOL, ArrayBuffer, Encoded, dump
from repartir.shm.parts import Packed, extents

__all__ = [
    "ATOMS",
    "OUT_OF_BAND_BYTES",
    "PROTOCOL",
    "Encoded",
    "InheritedArrays",
    "decode",
    "encode_call",
    "encode_function",
    "encode_result",
    "encode_value",
    "join_parts",
    "parts_of",
    "raw",
    "snapshot_inherited",
    "split_parts",
]

# Exact types whose plain pickle is right in every process.
ATOMS = frozenset({int, float, str, bool, type(None), bytes, complex})

_dumps = pickle.dumps
_loads = pickle.loads
_are_atoms = ATOMS.issuperset

Part = bytes | memoryview | ArrayBuffer

_REMEDY = "Pass data that pickle can copy, or make the object inside the task."


def encode_call(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    inherited: InheritedArrays | None = None,
    threshold: int = OUT_OF_BAND_BYTES,
) -> Encoded | bytes:
    """The arguments of one call; `decode` gives `(args, kwargs)`.

    `inherited`: arrays that the receiver has by fork: as globals of functions they are sent as references.
    `threshold`: bytes from which on a buffer travels beside the pickle. Raises TaskNotSerializable, which names the
    argument.
    """
    if not kwargs and _are_atoms(map(type, args)):
        return _dumps((args, kwargs), PROTOCOL)
    try:
        return dump((args, kwargs), inherited, threshold=threshold)
    except Exception as error:
        # Users' code runs while pickling, so anything may come out.
        if is_interruption(error):
            raise
        named = [(f"argument {position}", value) for position, value in enumerate(args)]
        named += [(f"argument {name!r}", value) for name, value in kwargs.items()]
        raise _failure("the call", named, inherited, error) from error


def encode_value(
    value: Any, inherited: InheritedArrays | None = None, what: str = "the value"
) -> Encoded | bytes:
    """One value; `decode` gives it back. Raises TaskNotSerializable, whose message begins with `what`."""
    if type(value) in ATOMS:
        return _dumps(value, PROTOCOL)
    try:
        return dump(value, inherited)
    except Exception as error:
        if is_interruption(error):
            raise
        raise _failure(what, [(what, value)], inherited, error) from error


def encode_result(value: Any, threshold: int = OUT_OF_BAND_BYTES) -> Encoded | bytes:
    """What a task returned, for the client; `decode` gives it back. Raises TaskNotSerializable."""
    if type(value) in ATOMS:
        return _dumps(value, PROTOCOL)
    try:
        return dump(value, is_result=True, threshold=threshold)
    except Exception as error:
        if is_interruption(error):
            raise
        raise _failure("the result", [("the result", value)], None, error) from error


def encode_function(
    fn: Any, inherited: InheritedArrays | None = None, owned: OwnedGlobals | None = None
) -> Encoded | bytes:
    """A callable as it is now; `decode` gives it back. Raises TaskNotSerializable, which names the part."""
    try:
        return dump(fn, inherited, is_function=True, owned=owned)
    except Exception as error:
        if is_interruption(error):
            raise
        raise _failure("the function", [("the function", fn)], inherited, error) from error


def decode(data: bytes | bytearray | memoryview, buffers: Sequence[Any] = ()) -> Any:
    """What was encoded as `data` and `buffers`. Raises whatever unpickling raises: it may run users' code."""
    return _loads(data, buffers=buffers) if buffers else _loads(data)


def parts_of(encoded: Encoded | bytes) -> list[Part]:
    """The pickle, then its buffers."""
    return [encoded] if isinstance(encoded, bytes) else [encoded.meta, *encoded.buffers]


def raw(part: Part) -> bytes | memoryview:
    """A part's bytes."""
    return bytes(part) if isinstance(part, ArrayBuffer) else part


def join_parts(parts: Sequence[Part]) -> bytes:
    """Parts as one string."""
    packed = Packed(parts)
    joined = bytearray(packed.size)
    packed.write_to(joined, 0)
    return bytes(joined)


def split_parts(joined: bytes) -> list[bytearray]:
    """What `join_parts` joined, each part writable."""
    return [bytearray(joined[start:end]) for start, end in extents(joined, 0, len(joined))]


def _failure(
    what: str, named: Iterable[tuple[str, Any]], inherited: InheritedArrays | None, error: BaseException
) -> TaskNotSerializable:
    is_freed = isinstance(error, FreedError)
    kind, remedy = (UseAfterFreeError, "") if is_freed else (TaskNotSerializable, f". {_REMEDY}")
    for name, value in named:
        found = first_failure(value, lambda part: dump(part, inherited))
        if found is not None:
            path, reason = found
            where = ": ".join([f"{name} ({type(value).__qualname__})", *path])
            return kind(f"{where}: {reason}{remedy}")
    return kind(f"{what} cannot be pickled: {describe(error)}{remedy}")
