"""Stored values as people and other programs may see them.  Nothing is unpickled, nothing is imported."""

from __future__ import annotations

import base64
import datetime
import math
from typing import Any

from repartir.values import Decoder, Stored, split

_PRINTED_BITS = 4096  # Python refuses to print far longer numbers


def readable(stored: Stored) -> Any:
    """A value of `values.dumps` as JSON has it: arrays as nested lists, pickles as "<pickle, N bytes>"."""
    form, pieces = split(stored)
    return _Reader(pieces).value(form)


class _Reader(Decoder):
    """Forms to what JSON has, without pickle and imports.  Floats that JSON lacks are "nan", "inf" and "-inf"."""

    def _int(self, v: str, _: Any) -> Any:
        number = int(v, 16)
        return number if number.bit_length() <= _PRINTED_BITS else v

    def _float(self, v: str, _: Any) -> Any:
        return v

    def _complex(self, v: list[Any], _: Any) -> Any:
        return str(complex(*(float(self.value(part)) for part in v)))

    def _bytes(self, v: str, _: Any) -> Any:
        return f"<bytes, {len(base64.b64decode(v))} bytes>"

    def _dict(self, v: list[Any], _: Any) -> Any:
        return {str(self.value(key)): self.value(item) for key, item in v}

    def _tuple(self, v: list[Any], _: Any) -> Any:
        return self.value(v)

    _set = _frozenset = _tuple

    def _datetime(self, v: str, _: Any) -> Any:
        return v

    _date = _time = _numpy_str = _datetime

    def _path(self, v: str, form: Any) -> Any:
        return v

    def _timedelta(self, v: list[int], _: Any) -> Any:
        return str(datetime.timedelta(*v))

    def _enum(self, v: str, form: Any) -> Any:
        return f"{form['class'].rpartition(':')[2]}.{v}"

    def _scalar(self, v: Any, form: Any) -> Any:
        return self.value(v)

    def _numpy_bytes(self, v: str, _: Any) -> Any:
        return self._bytes(v, _)

    def _npy(self, v: int, _: Any) -> Any:
        return _json_of(super()._npy(v, _).tolist())

    def _npy_scalar(self, v: int, _: Any) -> Any:
        return self._npy(v, _)

    def _pickle(self, v: int, _: Any) -> Any:
        return f"<pickle, {len(self.pieces[v])} bytes>"


def _json_of(value: Any) -> Any:
    """What ``ndarray.tolist`` gives, in JSON's terms."""
    if isinstance(value, list | tuple):
        return [_json_of(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
