"""What makes two parameter settings the same: a key of 16 bytes, BLAKE2s-128 of their values.

Equal in Python is equal here for numbers (``1``, ``1.0``, ``True`` and ``np.float32(1)`` are one), and the order of names
and of dict entries does not count.  The key decides a row's random stream and its place in a journal, so it is a promise.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import numbers
import os
import types
from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from repartir.pickler import blake2s

KEY_BYTES = 16
_PADDED = "gG"
"""Types of numpy some of whose bytes mean nothing."""


class NoKeyError(TypeError):
    """A value that has none; the message says why."""


def params_key(params: Mapping[str, Any]) -> bytes:
    """The key of parameters: BLAKE2s-128 of the `canonical` form of each, sorted by name.

    Raises ``TypeError`` that names the parameter whose value has no such form.
    """
    digest = blake2s(digest_size=KEY_BYTES)
    for name in sorted(params):
        try:
            value = canonical(params[name])
        except NoKeyError as exc:
            raise TypeError(f"parameter {name}={_short(params[name])} {exc}") from None
        text = name.encode()
        digest.update(b"%d:%b%d:" % (len(text), text, len(value)))
        digest.update(value)
    return digest.digest()


def key_words(key: bytes) -> tuple[int, ...]:
    """The four words of a key, for a random stream's."""
    return tuple(int.from_bytes(key[at : at + 4], "little") for at in range(0, KEY_BYTES, 4))


def canonical(value: Any) -> bytes:
    """A value as bytes: the same for equal values, others for others.

    Numbers, strings, bytes, None, enums, paths, dates, lists, tuples, dicts, sets, arrays, dataclasses, and by their names
    classes and functions of modules.  Raises `NoKeyError` for all else.
    """
    kind = type(value)
    if kind is int:
        return b"n%d/1" % value
    if value is None:
        return b"N"
    if isinstance(value, np.generic):
        return _of_numpy_scalar(value)
    if isinstance(value, numbers.Number):
        return _of_number(value)
    form: bytes = _canonical(value)
    return form


@functools.singledispatch
def _canonical(value: Any) -> bytes:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _joined(b"D", [type(value).__qualname__.encode(), *_of_items(fields)])
    if isinstance(value, np.ufunc):
        return b"F" + value.__name__.encode()
    if isinstance(value, os.PathLike):
        return b"p" + os.fsencode(value)
    raise NoKeyError(
        'cannot be told from others by its value: give each a label, as in grid(model={"svm": SVC(), "tree": Tree()})'
    )


@_canonical.register
def _(value: str) -> bytes:
    return b"s" + value.encode("utf-8", "surrogatepass")


@_canonical.register(bytes)
@_canonical.register(bytearray)
def _(value: bytes) -> bytes:
    return b"b" + bytes(value)


@_canonical.register
def _(value: enum.Enum) -> bytes:
    return b"e" + f"{type(value).__qualname__}.{value.name}".encode()


@_canonical.register
def _(value: list) -> bytes:  # type: ignore[type-arg]
    return _joined(b"l", map(canonical, value))


@_canonical.register
def _(value: tuple) -> bytes:  # type: ignore[type-arg]
    return _joined(b"t", map(canonical, value))


@_canonical.register
def _(value: range) -> bytes:
    return b"r%d:%d:%d" % (value.start, value.stop, value.step)


@_canonical.register(Set)
def _(value: Set[Any]) -> bytes:
    return _joined(b"u", sorted(map(canonical, value)))


@_canonical.register(Mapping)
def _(value: Mapping[Any, Any]) -> bytes:
    return _joined(b"m", _of_items(value))


@_canonical.register(datetime.date)
@_canonical.register(datetime.time)
def _(value: datetime.date | datetime.time) -> bytes:
    return b"d" + value.isoformat().encode()


@_canonical.register
def _(value: datetime.timedelta) -> bytes:
    return b"T%d:%d:%d" % (value.days, value.seconds, value.microseconds)


@_canonical.register
def _(value: np.ndarray) -> bytes:
    if value.dtype.hasobject or value.dtype.names or value.dtype.char in _PADDED:
        return _joined(b"O", [repr(value.shape).encode(), *map(canonical, value.ravel().tolist())])
    head = f"{np.lib.format.dtype_to_descr(value.dtype)}{value.shape}".encode()
    return _joined(b"a", [head, np.ascontiguousarray(value).tobytes()])


@_canonical.register(type)
@_canonical.register(types.FunctionType)
@_canonical.register(types.BuiltinFunctionType)
def _(value: Any) -> bytes:
    if "<" in value.__qualname__:
        raise NoKeyError(
            'has no name of its own: give each a label, as in grid(activation={"square": lambda x: x * x})'
        )
    return b"F" + f"{value.__module__}.{value.__qualname__}".encode()


def _of_number(value: Any) -> bytes:
    if isinstance(value, complex) and value.imag:
        return _joined(b"c", [_of_number(value.real), _of_number(value.imag)])
    if isinstance(value, complex):
        value = value.real
    try:
        return b"n%d/%d" % value.as_integer_ratio()
    except (ValueError, OverflowError):  # nan, inf
        return b"f" + str(float(value)).encode()
    except AttributeError:
        raise NoKeyError("is a number of an unknown kind: give a float or an int") from None


def _of_numpy_scalar(value: np.generic) -> bytes:
    if isinstance(value, np.bool_):
        return b"n%d/1" % bool(value)
    if isinstance(value, np.integer):
        return b"n%d/1" % int(value)
    if isinstance(value, np.complexfloating):
        return _of_number(complex(value))
    if isinstance(value, np.floating):
        return _of_number(value)
    if isinstance(value, np.str_ | np.bytes_):
        return canonical(value.item())
    return canonical(np.asarray(value))


def _of_items(items: Mapping[Any, Any]) -> list[bytes]:
    """The entries of a mapping, sorted by their keys."""
    pairs = sorted((canonical(key), canonical(value)) for key, value in items.items())
    return [part for pair in pairs for part in pair]


def _joined(kind: bytes, parts: Any) -> bytes:
    return kind + b"".join(b"%d:%b" % (len(part), part) for part in parts)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
