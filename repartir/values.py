"""Values in a file that outlives the program: JSON, with numpy's npy beside it, and pickle only where neither fits.

`dumps` gives text where the value is JSON, else bytes: a header, the JSON, then the pieces (npy, pickle) that the JSON
refers to by number. What JSON has no form for is an object with the one key "!" for its kind:

    {"!": "tuple", "v": [1, 2]}     {"!": "float", "v": "nan"}     {"!": "npy", "v": 0}     {"!": "pickle", "v": 1}

`loads` gives back the value with all its types.
"""

from __future__ import annotations

import base64
import datetime
import io
import json
import math
import pickle
import struct
from collections.abc import Callable
from enum import Enum
from importlib import import_module
from typing import Any

import cloudpickle
import numpy as np

from repartir.diagnosis import describe, first_failure, is_interruption
from repartir.errors import TaskNotSerializable

Stored = str | bytes

_MAGIC = b"RPV1"
_SAFE_INT = 1 << 53  # other readers of JSON may have floats only
_PATHS = frozenset({"PurePosixPath", "PureWindowsPath", "PosixPath", "WindowsPath"})
_PLAIN_SCALARS = "biuf"  # kinds of numpy's whose `item` is exact, up to 8 bytes
_Form = Callable[[Any, "_Encoder"], Any]


def dumps(value: Any, what: str = "the value") -> Stored:
    """``value`` in its stored form.  `TaskNotSerializable`, which begins with ``what``, if nothing can."""
    encoder = _Encoder()
    try:
        try:
            form = encoder.form(value)
        except RecursionError:  # it contains itself, which JSON cannot say
            encoder = _Encoder()
            form = encoder.pickled(value)
    except Exception as error:  # users' code runs while pickling, so anything may come out
        if is_interruption(error):
            raise
        raise _refusal(value, what, error) from error
    text = json.dumps(form, separators=(",", ":"), allow_nan=False)
    if not encoder.pieces:
        return text
    return b"".join([_MAGIC, struct.pack("<I", len(text)), text.encode("ascii"), *encoder.framed()])


def loads(stored: Stored) -> Any:
    """The value that `dumps` was given.  Raises what unpickling raises; ``ValueError`` for what `dumps` did not make."""
    form, pieces = split(stored)
    return Decoder(pieces).value(form)


def pickled(value: Any, what: str) -> bytes:
    """``value`` pickled, by cloudpickle where plain pickle fails.  `TaskNotSerializable` if both do."""
    try:
        return _pickled(value)
    except Exception as error:
        if is_interruption(error):
            raise
        raise _refusal(value, what, error) from error


def _refusal(value: Any, what: str, error: BaseException) -> TaskNotSerializable:
    path, reason = first_failure(value, _pickled) or ([], describe(error))
    part = f": {', '.join(path)}" if path else ""
    return TaskNotSerializable(
        f"{what} ({type(value).__name__}) cannot be stored{part}: {reason}. Use numbers, strings, arrays, lists and dicts "
        "of those, or what pickle can copy."
    )


class _Encoder:
    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def framed(self) -> list[bytes]:
        return [part for piece in self.pieces for part in (struct.pack("<Q", len(piece)), piece)]

    def form(self, value: Any) -> Any:
        make = _FORMS.get(type(value))
        if make is not None:
            return make(value, self)
        if isinstance(value, Enum):
            return self.enum(value)
        cls = type(value)
        if cls.__name__ in _PATHS and cls.__module__.partition(".")[0] == "pathlib":
            return {"!": "path", "class": cls.__name__, "v": str(value)}
        if isinstance(value, np.generic):
            return self.scalar(value)
        return self.pickled(value)

    def pickled(self, value: Any) -> Any:
        return self.piece("pickle", _pickled(value))

    def piece(self, kind: str, data: bytes) -> Any:
        self.pieces.append(data)
        return _tagged(kind, len(self.pieces) - 1)

    def array(self, value: np.ndarray[Any, Any]) -> Any:
        if not _npy_keeps(value.dtype):
            return self.pickled(value)
        file = io.BytesIO()
        np.lib.format.write_array(file, value, allow_pickle=False)
        return self.piece("npy", file.getvalue())

    def scalar(self, value: np.generic) -> Any:
        if type(value) is np.str_:
            return _tagged("numpy.str", str(value))
        if type(value) is np.bytes_:
            return _tagged("numpy.bytes", base64.b64encode(bytes(value)).decode())
        dtype = value.dtype
        if type(value) is not dtype.type or not _npy_keeps(dtype):
            return self.pickled(value)
        if dtype.kind in _PLAIN_SCALARS and dtype.itemsize <= 8:
            return {"!": "scalar", "dtype": dtype.str, "v": self.form(value.item())}
        file = io.BytesIO()
        np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)
        return self.piece("npy.scalar", file.getvalue())

    def enum(self, value: Enum) -> Any:
        cls = type(value)
        found: Any = None
        if value.name in cls.__members__ and "<locals>" not in cls.__qualname__:
            found = _look_up(cls.__module__, cls.__qualname__)
        if found is not cls:
            return self.pickled(value)
        return {"!": "enum", "class": f"{cls.__module__}:{cls.__qualname__}", "v": value.name}


def _pickled(value: Any) -> bytes:
    try:
        return pickle.dumps(value, 5)
    except Exception as error:
        if is_interruption(error):
            raise
        return bytes(cloudpickle.dumps(value, 5))


def _npy_keeps(dtype: np.dtype[Any]) -> bool:
    if dtype.hasobject:
        return False
    try:
        described = np.lib.format.dtype_to_descr(dtype)
        kept = np.lib.format.descr_to_dtype(described)
    except (TypeError, ValueError):
        return False
    return kept == dtype and kept.isalignedstruct == dtype.isalignedstruct and not _has_metadata(dtype)


def _has_metadata(dtype: np.dtype[Any]) -> bool:
    if dtype.metadata is not None:
        return True
    if dtype.subdtype is not None:
        return _has_metadata(dtype.subdtype[0])
    return any(_has_metadata(dtype.fields[name][0]) for name in dtype.names or () if dtype.fields is not None)


def _tagged(kind: str, form: Any) -> dict[str, Any]:
    return {"!": kind, "v": form}


def _int(value: int, _: _Encoder) -> Any:
    return value if -_SAFE_INT <= value <= _SAFE_INT else _tagged("int", hex(value))


def _float(value: float, _: _Encoder) -> Any:
    return value if math.isfinite(value) else _tagged("float", repr(value))


def _list(value: list[Any], encoder: _Encoder) -> Any:
    return [encoder.form(item) for item in value]


def _dict(value: dict[Any, Any], encoder: _Encoder) -> Any:
    form = encoder.form
    if all(type(key) is str for key in value) and "!" not in value:
        return {key: form(item) for key, item in value.items()}
    return _tagged("dict", [[form(key), form(item)] for key, item in value.items()])


def _sequence(kind: str) -> _Form:
    return lambda value, encoder: _tagged(kind, [encoder.form(item) for item in value])


def _datetime(value: datetime.datetime, encoder: _Encoder) -> Any:
    if value.tzinfo not in (None, datetime.UTC) or value.fold:
        return encoder.pickled(value)
    return _tagged("datetime", value.isoformat())


def _time(value: datetime.time, encoder: _Encoder) -> Any:
    if value.tzinfo is not None or value.fold:
        return encoder.pickled(value)
    return _tagged("time", value.isoformat())


def _as_it_is(value: Any, _: _Encoder) -> Any:
    return value


_FORMS: dict[type, _Form] = {
    type(None): _as_it_is,
    bool: _as_it_is,
    str: _as_it_is,
    int: _int,
    float: _float,
    list: _list,
    dict: _dict,
    tuple: _sequence("tuple"),
    set: _sequence("set"),
    frozenset: _sequence("frozenset"),
    bytes: lambda value, _: _tagged("bytes", base64.b64encode(value).decode()),
    complex: lambda value, encoder: _tagged("complex", [encoder.form(value.real), encoder.form(value.imag)]),
    np.ndarray: lambda value, encoder: encoder.array(value),
    datetime.datetime: _datetime,
    datetime.time: _time,
    datetime.date: lambda value, _: _tagged("date", value.isoformat()),
    datetime.timedelta: lambda value, _: _tagged(
        "timedelta", [value.days, value.seconds, value.microseconds]
    ),
}


def split(stored: Stored) -> tuple[Any, list[memoryview]]:
    if isinstance(stored, str):
        return json.loads(stored), []
    if not stored.startswith(_MAGIC):
        raise ValueError("a stored value begins with bytes that are not Repartir's")
    view = memoryview(stored)
    (size,) = struct.unpack_from("<I", view, 4)
    form = json.loads(bytes(view[8 : 8 + size]))
    pieces, at = [], 8 + size
    while at < len(view):
        (size,) = struct.unpack_from("<Q", view, at)
        pieces.append(view[at + 8 : at + 8 + size])
        if len(pieces[-1]) != size:
            raise ValueError("a stored value is cut short")
        at += 8 + size
    return form, pieces


def _look_up(module: str, qualname: str) -> Any:
    found: Any = import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


class Decoder:
    """Forms back to values, with all their types."""

    def __init__(self, pieces: list[memoryview]) -> None:
        self.pieces = pieces

    def value(self, form: Any) -> Any:
        if isinstance(form, list):
            return [self.value(item) for item in form]
        if not isinstance(form, dict):
            return form
        if "!" not in form:
            return {key: self.value(item) for key, item in form.items()}
        kind = form["!"]
        read = getattr(self, "_" + kind.replace(".", "_"), None)
        if read is None:
            raise ValueError(f"a stored value has the unknown kind {kind!r}: a newer Repartir made it")
        return read(form["v"], form)

    def _int(self, v: str, _: Any) -> Any:
        return int(v, 16)

    def _float(self, v: str, _: Any) -> Any:
        return float(v)

    def _complex(self, v: list[Any], _: Any) -> Any:
        return complex(self.value(v[0]), self.value(v[1]))

    def _bytes(self, v: str, _: Any) -> Any:
        return base64.b64decode(v)

    def _dict(self, v: list[Any], _: Any) -> Any:
        return {self.value(key): self.value(item) for key, item in v}

    def _tuple(self, v: list[Any], _: Any) -> Any:
        return tuple(self.value(item) for item in v)

    def _set(self, v: list[Any], _: Any) -> Any:
        return {self.value(item) for item in v}

    def _frozenset(self, v: list[Any], _: Any) -> Any:
        return frozenset(self.value(item) for item in v)

    def _datetime(self, v: str, _: Any) -> Any:
        return datetime.datetime.fromisoformat(v)

    def _date(self, v: str, _: Any) -> Any:
        return datetime.date.fromisoformat(v)

    def _time(self, v: str, _: Any) -> Any:
        return datetime.time.fromisoformat(v)

    def _timedelta(self, v: list[int], _: Any) -> Any:
        return datetime.timedelta(*v)

    def _path(self, v: str, form: Any) -> Any:
        return getattr(import_module("pathlib"), form["class"])(v)

    def _enum(self, v: str, form: Any) -> Any:
        module, _, qualname = form["class"].partition(":")
        cls = _look_up(module, qualname)
        if cls is None:
            raise ValueError(f"there is no enum {form['class']} any more, of which {v} is stored")
        return cls[v]

    def _scalar(self, v: Any, form: Any) -> Any:
        return np.dtype(form["dtype"]).type(self.value(v))

    def _numpy_str(self, v: str, _: Any) -> Any:
        return np.str_(v)

    def _numpy_bytes(self, v: str, _: Any) -> Any:
        return np.bytes_(base64.b64decode(v))

    def _npy(self, v: int, _: Any) -> Any:
        return np.lib.format.read_array(io.BytesIO(self.pieces[v]), allow_pickle=False)

    def _npy_scalar(self, v: int, form: Any) -> Any:
        return self._npy(v, form)[()]

    def _pickle(self, v: int, _: Any) -> Any:
        return pickle.loads(self.pieces[v])
