"""Warns of large globals that travel with a function each time it is encoded."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from repartir import optional
from repartir.inherited import InheritedArrays
from repartir.pickler import dump, global_names, goes_by_reference

HEAVY_BYTES = 1024 * 1024

_PACKAGE = os.path.dirname(__file__)


class HeavyGlobals:
    """Warns once per function and global; looks again only when the encoded function has doubled in size."""

    def __init__(self, inherited: InheritedArrays | None) -> None:
        self._inherited = inherited
        self._weighed: dict[tuple[str, str], int] = {}
        self._warned: set[tuple[str, str, str]] = set()

    def warn(self, fn: Any, size_bytes: int) -> None:
        """Name each global of HEAVY_BYTES or more that goes with `fn`, whose encoding takes `size_bytes`."""
        while isinstance(fn, partial | MethodType):
            fn = fn.func if isinstance(fn, partial) else fn.__func__
        if type(fn) is not FunctionType:
            return
        function = (fn.__module__, fn.__qualname__)
        if size_bytes < 2 * self._weighed.get(function, 0):
            return
        self._weighed[function] = size_bytes
        for name, value in _globals_of(fn):
            if (
                (*function, name) not in self._warned
                and not self._is_inherited(value)
                and not _is_shared(value)
            ):
                weight = _weight_bytes(value)
                if weight >= HEAVY_BYTES:
                    self._warned.add((*function, name))
                    warnings.warn(_message(fn, name, weight), UserWarning, stacklevel=_users_level())

    def _is_inherited(self, value: Any) -> bool:
        return self._inherited is not None and self._inherited.name_of(value) is not None


def _message(fn: FunctionType, name: str, weight: int) -> str:
    return (
        f"function {fn.__qualname__!r} refers to the global {name!r} of {weight / 2**20:.1f} MiB, which is "
        f"sent to the workers each time the function is encoded. Share it once: `{name} = ex.share({name})`; tasks then "
        f"read it in place. (With start method fork an array that exists before the executor is made and stays the same "
        f"object is not sent either; nor is a numpy.memmap.)"
    )


def _is_shared(value: Any) -> bool:
    shared, numpy = optional.shared, sys.modules.get("numpy")
    if shared is None or numpy is None:
        return False
    return type(value) is shared.SharedObject or (
        isinstance(value, numpy.ndarray) and bool(shared.lies_in_shared_memory(value))
    )


def _globals_of(fn: FunctionType) -> Iterator[tuple[str, Any]]:
    """Names and values of the globals of `fn` and of the by-value functions that it reaches by them."""
    pending, seen = [fn], {id(fn)}
    while pending:
        fn = pending.pop()
        for name in global_names(fn.__code__):
            if name not in fn.__globals__:
                continue
            value = fn.__globals__[name]
            if type(value) is not FunctionType:
                yield name, value
            elif id(value) not in seen and not goes_by_reference(value):
                seen.add(id(value))
                pending.append(value)


def _weight_bytes(value: Any) -> int:
    nbytes = getattr(value, "nbytes", None)
    if isinstance(nbytes, int):
        return nbytes
    if isinstance(value, bytes | bytearray | str):
        return len(value)
    try:
        encoded = dump(value)
    except Exception:  # noqa: BLE001
        return 0
    return len(encoded) if isinstance(encoded, bytes) else encoded.size_bytes


def _users_level() -> int:
    """The stack level, for the caller's `warnings.warn`, of the nearest frame outside this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    return level
