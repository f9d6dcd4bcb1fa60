"""Whether a function can have changed since it was pickled.

A fingerprint lists what a by-value function refers to, by identity: code, defaults, keyword defaults, cells,
attributes, globals, and the same of each function that it reaches. `holds` looks again. Only what cannot
change inside can be in one: immutable atoms, modules, functions, classes that go by reference, and what is not
sent, inherited and shared arrays and shared objects. For a function that refers to anything else there is none.

A fingerprint keeps nothing of the user's alive but atoms and modules: functions, classes and arrays are held
weakly.
"""

from __future__ import annotations

import builtins
import datetime
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import Any

from repartir import optional
from repartir.inherited import InheritedArrays
from repartir.pickler import MAIN_MODULES, global_names, goes_by_reference

MAX_FUNCTIONS = 64

_MISSING = object()
_EMPTY_CELL = object()
_IMMUTABLE = frozenset(
    {
        *(
            int,
            float,
            str,
            bool,
            bytes,
            complex,
            range,
            re.Pattern,
            type(None),
            type(...),
            type(NotImplemented),
        ),
        *(datetime.date, datetime.time, datetime.datetime, datetime.timedelta, CodeType),
    }
)
_IMMUTABLE_NUMPY = frozenset({"ufunc", "_ArrayFunctionDispatcher"})

Strong = tuple[tuple[str, Any], ...]
Weak = tuple[tuple[str, Callable[[], Any]], ...]


class _Unstable(Exception):  # noqa: N818
    """Something that can change inside is among what the function refers to."""


class _Names:
    """Names and what they meant in one namespace: atoms and modules strongly, the rest weakly."""

    __slots__ = ("count", "strong", "weak")

    def __init__(self, strong: Strong, weak: Weak, count: int) -> None:
        self.strong = strong
        self.weak = weak
        self.count = count

    def hold_in(self, namespace: Mapping[str, Any]) -> bool:
        for name, value in self.strong:
            if namespace.get(name, _MISSING) is not value:
                return False
        for name, ref in self.weak:
            value = ref()
            if value is None or namespace.get(name) is not value:
                return False
        return True


class _Function:
    """What one function refers to. `plain`: it has no keyword defaults, attributes or cells."""

    __slots__ = ("attributes", "cells", "code", "defaults", "globals", "kwdefaults", "plain", "ref")

    def __init__(self, fn: FunctionType, collector: _Collector) -> None:
        self.ref = weakref.ref(fn)
        self.code = fn.__code__
        self.defaults = collector.atoms(fn.__defaults__)
        self.kwdefaults = collector.names((fn.__kwdefaults__ or {}).items())
        self.attributes = collector.names(fn.__dict__.items())
        self.cells = collector.names(_cell_contents(fn))
        self.plain = not (self.kwdefaults.count or self.attributes.count or self.cells.count)
        namespace = fn.__globals__
        self.globals = collector.names(
            ((name, namespace.get(name, _MISSING)) for name in global_names(fn.__code__)), are_globals=True
        )

    def holds(self) -> bool:
        fn = self.ref()
        if fn is None or fn.__code__ is not self.code or fn.__defaults__ is not self.defaults:
            return False
        namespace = fn.__globals__
        for name, value in self.globals.strong:
            if namespace.get(name, _MISSING) is not value:
                return False
        for name, ref in self.globals.weak:
            value = ref()
            if value is None or namespace.get(name) is not value:
                return False
        if self.plain:
            return not (fn.__kwdefaults__ or fn.__dict__)
        return self._rest_holds(fn)

    def _rest_holds(self, fn: FunctionType) -> bool:
        kwdefaults = fn.__kwdefaults__ or {}
        return (
            len(kwdefaults) == self.kwdefaults.count
            and len(fn.__dict__) == self.attributes.count
            and self.kwdefaults.hold_in(kwdefaults)
            and self.attributes.hold_in(fn.__dict__)
            and (not self.cells.count or self.cells.hold_in(dict(_cell_contents(fn))))
        )


class Fingerprint:
    """What a function refers to, made by `fingerprint`."""

    __slots__ = ("functions", "modules")

    def __init__(self, functions: tuple[_Function, ...], modules: int | None) -> None:
        self.functions = functions
        self.modules = modules

    def holds(self) -> bool:
        """Whether all of it is still the same."""
        for function in self.functions:
            if not function.holds():
                return False
        return self.modules is None or self.modules == len(sys.modules)


def fingerprint(fn: FunctionType, inherited: InheritedArrays | None) -> Fingerprint | None:
    """The fingerprint of a function that goes by value; None if it refers to what can change inside."""
    collector = _Collector(inherited)
    try:
        collector.function(fn)
        functions = []
        while collector.pending:
            functions.append(_Function(collector.pending.pop(), collector))
    except _Unstable:
        return None
    return Fingerprint(tuple(functions), len(sys.modules) if collector.has_package else None)


class _Collector:
    """Sorts what a function refers to; `pending` are the by-value functions still to be looked at."""

    def __init__(self, inherited: InheritedArrays | None) -> None:
        self.inherited = inherited
        self.pending: list[FunctionType] = []
        self.seen: set[int] = set()
        self.has_package = False

    def function(self, fn: FunctionType) -> None:
        if id(fn) not in self.seen:
            if len(self.seen) >= MAX_FUNCTIONS:
                raise _Unstable
            self.seen.add(id(fn))
            self.pending.append(fn)

    def atoms(self, defaults: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if defaults is not None and not all(map(is_immutable, defaults)):
            raise _Unstable
        return defaults

    def names(self, items: Iterable[tuple[str, Any]], *, are_globals: bool = False) -> _Names:
        strong: list[tuple[str, Any]] = []
        weak: list[tuple[str, Callable[[], Any]]] = []
        count = 0
        for name, value in items:
            count += 1
            if value is _MISSING or value is _EMPTY_CELL or is_immutable(value):
                strong.append((name, value))
            elif isinstance(value, ModuleType):
                strong.append((name, self.module(value)))
            else:
                weak.append((name, self.weakly(value, is_global=are_globals)))
        return _Names(tuple(strong), tuple(weak), count)

    def module(self, module: ModuleType) -> ModuleType:
        if sys.modules.get(module.__name__) is not module or module.__name__ in MAIN_MODULES:
            raise _Unstable
        # A submodule imported later is then sent along, as the function may use it.
        self.has_package = self.has_package or hasattr(module, "__path__")
        return module

    def weakly(self, value: Any, *, is_global: bool) -> Callable[[], Any]:
        if type(value) is FunctionType:
            if not goes_by_reference(value):
                self.function(value)
        elif issubclass(type(value), type):
            if value.__module__ != builtins.__name__ and not goes_by_reference(value):
                raise _Unstable
        elif not (is_global and self.inherited is not None and self.inherited.name_of(value) is not None):
            shared = optional.shared
            look: Callable[[], Any] | None = None if shared is None else shared.unchanged(value)
            if look is None:
                raise _Unstable
            return look
        return weakref.ref(value)


def is_immutable(value: Any) -> bool:
    """Whether nothing in `value` can ever change."""
    kind = type(value)
    if kind in _IMMUTABLE:
        return True
    if kind is tuple or kind is frozenset:
        return all(map(is_immutable, value))
    if kind is BuiltinFunctionType:
        return value.__self__ is None or isinstance(value.__self__, ModuleType)
    if kind.__module__ == "numpy":
        numpy = sys.modules["numpy"]
        if issubclass(kind, numpy.generic):
            return not issubclass(kind, numpy.void)
        return kind.__name__ in _IMMUTABLE_NUMPY
    return False


def _cell_contents(fn: FunctionType) -> list[tuple[str, Any]]:
    def contents(cell: CellType) -> Any:
        try:
            return cell.cell_contents
        except ValueError:
            return _EMPTY_CELL

    cells = fn.__closure__ or ()
    return [(name, contents(cell)) for name, cell in zip(fn.__code__.co_freevars, cells, strict=True)]
