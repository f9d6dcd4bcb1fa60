"""Global arrays that members inherit by fork and that therefore need not be sent."""

from __future__ import annotations

import itertools
import os
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from repartir import optional
from repartir.classes import record_of
from repartir.errors import InternalError

# From here on a buffer travels beside the pickle, not in it: where the curves of bench/array_threshold.py cross.
OUT_OF_BAND_BYTES = 64 * 1024

_keys = itertools.count(1)
_snapshots: dict[tuple[int, int], weakref.ref[InheritedArrays]] = {}


class InheritedArrays:
    """The large global arrays at the moment the members' common ancestor was forked.

    Made by `snapshot_inherited` before the fork. Afterwards the client calls `release`, so that it can free
    its arrays; the forked side does not, and keeps this object, so that `resolve` finds them there.
    """

    __slots__ = ("__weakref__", "_by_id", "_by_name", "_held", "key")

    def __init__(self, arrays: dict[tuple[str, str], Any]) -> None:
        self.key = (os.getpid(), next(_keys))
        self._held: tuple[Any, ...] = tuple(arrays.values())
        self._by_name: dict[tuple[str, str], Callable[[], Any]] = {}
        self._by_id: dict[int, tuple[Callable[[], Any], tuple[str, str]]] = {}
        for name, array in arrays.items():
            ref = weakref.ref(array)
            self._by_name[name] = ref
            self._by_id[id(array)] = ref, name
        if arrays:
            key = self.key
            _snapshots[key] = weakref.ref(self, lambda _: _snapshots.pop(key, None))

    def __len__(self) -> int:
        return len(self._by_name)

    def name_of(self, value: object) -> tuple[str, str] | None:
        """Module and name under which members have `value` itself; None if they do not have it."""
        entry = self._by_id.get(id(value))
        return entry[1] if entry is not None and entry[0]() is value else None

    def resolve(self, module: str, name: str) -> Any:
        """The array that was global `name` of `module` at the snapshot. KeyError if there was none."""
        array = self._by_name[module, name]()
        if array is None:
            raise KeyError((module, name))
        return array

    def release(self) -> None:
        """Stop keeping the arrays alive in this process. Call it in the client once the fork is done."""
        self._held = ()


def snapshot_inherited(module_names: Iterable[str] = ("__main__",)) -> InheritedArrays:
    """Remember the global arrays of at least OUT_OF_BAND_BYTES, and the classes, of these modules.

    Call it right before the fork, and only if members will be forked from this process. The classes get their
    tokens now, so that instances which a member inherited come back as instances of the client's classes.
    """
    numpy, shared = sys.modules.get("numpy"), optional.shared
    arrays: dict[tuple[str, str], Any] = {}
    for module_name in module_names:
        module = sys.modules.get(module_name)
        for name, value in list(vars(module).items()) if module is not None else ():
            if numpy is not None and isinstance(value, numpy.ndarray):
                # What lies in shared memory is referred to: freed in time, and read-only where it shall be.
                is_shared = shared is not None and shared.lies_in_shared_memory(value)
                if value.nbytes >= OUT_OF_BAND_BYTES and not is_shared:
                    arrays[module_name, name] = value
            elif issubclass(type(value), type) and getattr(value, "__module__", None) == module_name:
                record_of(value)
    return InheritedArrays(arrays)


def inherited_array(key: tuple[int, int], module: str, name: str) -> Any:
    """The inherited array that a pickle refers to. Called by unpickling, in members only."""
    ref = _snapshots.get(key)
    snapshot = None if ref is None else ref()
    try:
        if snapshot is not None:
            return snapshot.resolve(module, name)
    except KeyError:
        pass
    raise InternalError(
        f"{module}.{name} was sent as an inherited array to a process that did not inherit it"
    )


def newest_snapshot() -> InheritedArrays | None:
    """The snapshot taken last of those that are still in use in this process."""
    for ref in reversed(list(_snapshots.values())):
        snapshot = ref()
        if snapshot is not None:
            return snapshot
    return None
