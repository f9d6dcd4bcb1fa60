"""What a function computes, told apart by a digest that comments, layout and docstrings leave as it is.

The digest is of *parts*, each under its name:

- the function, and the functions and classes of its own file that it names, and those that they name;
- what it carries: bound arguments of a ``partial``, captured variables, defaults, the object of a bound method or callable;
- data among the globals it names, as they are at that moment: atoms (``N = 1000``), lists, dicts, sets, arrays, namespaces
  (as of argparse), dataclasses, paths, dates, and what is made of them; of a memory-mapped array its file's name.  Of other
  objects, which programs change while they run, the class counts, and functions and classes of its file that are in them.

Other files are other versions of a library, and count by name only, except where a function of a file that is not installed
is carried along.  A part is the syntax tree of its source, without what has no effect, in a form that is the same in every
version of Python.  Where there is no source (``exec``, the plain prompt) it is the bytecode, which is the same in one
version of Python only; for what is written in C, name and version.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import datetime
import enum
import functools
import numbers
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from repartir.pickler import blake2b, global_names
from repartir.syntaxtrees import (
    Sources,
    class_names,
    constant_form,
    default_nodes,
    form_of,
    loaded_names,
    text_of,
)

_ATOMS = (int, float, complex, str, bytes, bool, type(None), type(...), np.generic)
_PLAIN = {int, float, complex, str, bytes, bool, type(None)}
_DATA = (
    *_ATOMS, list, tuple, set, frozenset, dict, np.ndarray, argparse.Namespace, SimpleNamespace, os.PathLike,
    numbers.Number, datetime.date, datetime.time, datetime.timedelta, range, slice, re.Pattern,
)  # fmt: skip
_DEPTH = 50  # of what a function carries
_MEMBERS = 10_000  # of a container that is looked at for functions
_INSTALLED = ("<frozen ", os.path.dirname(os.__file__) + os.sep)
_PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_PYTHON = f"Python {sys.version_info[0]}.{sys.version_info[1]}"


@dataclass(frozen=True, slots=True)
class FunctionDescription:
    """``digest``: 32 hexadecimal digits of all that counts.

    ``parts``: qualified name → source without comments, for people.  A part that has no source says so.
    """

    name: str
    digest: str
    parts: dict[str, str]


def describe_function(fn: Callable[..., Any]) -> FunctionDescription:
    """What ``fn``, anything that can be called, computes.  ``TypeError`` if it cannot be called."""
    if not callable(fn):
        raise TypeError(f"the function must be callable, not {type(fn).__name__}")
    reader = _Reader()
    innermost = _innermost(fn)
    if isinstance(innermost, FunctionType | type):
        reader.homes.append(_globals_of(innermost))
    reader.carry("the function", fn)
    reader.read_all()
    hashed = blake2b(digest_size=16)
    for part in sorted(reader.forms):
        for text in (part, reader.forms[part]):
            data = text.encode("utf-8", "backslashreplace")
            hashed.update(b"%d:%b" % (len(data), data))
    return FunctionDescription(_name_of(innermost), hashed.hexdigest(), reader.texts)


class _Reader:
    """Collects parts: a form that counts, and a text that is shown."""

    def __init__(self) -> None:
        self.homes: list[Mapping[str, Any]] = []
        self.forms: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self._seen: dict[int, Any] = {}  # id → the object, which so keeps its id
        self._open: list[int] = []  # the values that the one at hand is in
        self._unread: deque[FunctionType | type] = deque()
        self._sources = Sources()
        self._functions: dict[
            str, dict[tuple[int, str], ast.AST]
        ] = {}  # file → first line and name → its node

    def _add(self, part: str, form: str, text: str) -> None:
        name, number = part, 1
        while self.forms.get(name, form) != form:  # two of one name: both count
            number += 1
            name = f"{part} ({number})"
        self.forms[name] = form
        if text:
            self.texts[name] = text

    def carry(self, part: str, value: Any) -> None:
        """Add a value that belongs to the function; functions and classes are parts of their own."""
        form = self._carried(value)
        is_reference = isinstance(value, FunctionType | type)
        self._add(part, form, "" if is_reference else f"{part}: {form:.500}")

    # ── functions and classes

    def read_all(self) -> None:
        """Add the functions and classes that were met, and those that they lead to."""
        while self._unread:
            found = self._unread.popleft()
            if isinstance(found, type):
                self._read_class(found)
            else:
                self._read_function(found)

    def _meet(self, found: FunctionType | type) -> str:
        """Have it read later; how the forms of others refer to it."""
        if id(found) not in self._seen:
            self._seen[id(found)] = found
            self._unread.append(found)
        return (
            f"class {found.__qualname__}"
            if isinstance(found, type)
            else f"function {found.__code__.co_qualname}"
        )

    def _read_function(self, fn: FunctionType) -> None:
        """Add ``fn`` with all that it names and carries."""
        name = fn.__code__.co_qualname
        node = self._sources.function(fn.__code__)
        if node is None:
            self._add_bytecode(name, fn.__code__)
        else:
            self._add(name, form_of(node), text_of(node))
        for outer in getattr(node, "decorator_list", []):
            self._names(loaded_names(outer), fn.__globals__)
        self._names(global_names(fn.__code__), fn.__globals__)
        self._captures(fn)
        given = [*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()]
        for number, value in enumerate(given):
            literals = default_nodes(node)
            if len(literals) != len(given) or not isinstance(literals[number], ast.Constant):
                self.carry(f"{name}, default {number}", value)
        wrapped = getattr(fn, "__wrapped__", None)
        if wrapped is not None:
            self.carry(f"{name}, wrapped", wrapped)

    def _captures(self, fn: FunctionType) -> None:
        for variable, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False):
            self.carry(f"{fn.__code__.co_qualname}, captured {variable}", _cell(cell))

    def _read_class(self, cls: type) -> None:
        """Add ``cls`` with all that it and its methods name."""
        name = cls.__qualname__
        names = _globals_of(cls)
        node = self._sources.class_(cls, _methods_of(cls))
        if node is None:
            form = self._carried({key: value for key, value in vars(cls).items() if not key.startswith("__")})
            self._add(name, form, f"<no source> {form:.500}")
        else:
            self._add(name, form_of(node), text_of(node))
            self._names(class_names(node), names)
        for method in (fn for member in vars(cls).values() for fn in _functions_in(member)):
            is_generated = node is not None and method.__code__.co_filename == "<string>"  # by dataclass, say
            if method.__globals__ is names and not is_generated and id(method) not in self._seen:
                self._seen[id(method)] = method  # its source stands in that of its class
                self._names(global_names(method.__code__), names)
                self._captures(method)
        for base in (type(cls), *cls.__mro__[1:]):
            self._named(base.__qualname__, base, names)

    def _names(self, names: Mapping[str, None], where: Mapping[str, Any]) -> None:
        for name in names:
            if name in where and not (name.startswith("__") and name.endswith("__")):
                self._named(name, where[name], where)

    def _named(self, name: str, value: Any, where: Mapping[str, Any]) -> None:
        """A global of the file whose names are ``where``."""
        if isinstance(value, type):
            if _globals_of(value) is where:
                self._meet(value)
        elif isinstance(value, enum.Enum):
            self._add(f"{name} =", self._carried(value), f"{name} = {value}")
        elif _globals_of(type(value)) is where:
            self._meet(type(value))
            if isinstance(value, tuple) or dataclasses.is_dataclass(value):
                self._data(name, value)
        elif isinstance(value, _DATA) or dataclasses.is_dataclass(value):
            self._data(name, value)
            if isinstance(value, list | tuple | set | frozenset | dict):
                self._members(name, value, where)
        elif callable(value) and any(_globals_of(fn) is where for fn in _functions_behind(value)):
            self.carry(f"{name} =", value)

    def _members(self, name: str, value: Any, where: Mapping[str, Any]) -> None:
        if id(value) in self._seen or len(value) > _MEMBERS:
            return
        self._seen[id(value)] = value
        for member in value.values() if isinstance(value, dict) else value:
            if callable(member) or _globals_of(type(member)) is where:
                self._named(f"{name}[…]", member, where)

    def _inside(self, value: Any, form: Callable[[Any], str]) -> str:
        """The form of a value that has others in it, perhaps itself."""
        if id(value) in self._open or len(self._open) >= _DEPTH:
            return f"again {type(value).__qualname__}"
        self._open.append(id(value))
        try:
            return form(value)
        finally:
            self._open.pop()

    # ── data among the globals

    def _data(self, name: str, value: Any) -> None:
        self._add(f"{name} =", self._data_form(value), f"{name} = {value!r:.500}")

    def _data_form(self, value: Any) -> str:
        """The form of data.  Of anything else in them its name or its class, but in what was made to stay as it is."""
        if isinstance(value, enum.Enum | np.ndarray) or isinstance(value, _ATOMS) or _is_frozen(value):
            return self._carried(value)
        return self._inside(value, self._data_compound)

    def _data_compound(self, value: Any) -> str:
        kind = type(value).__qualname__
        if isinstance(value, list | tuple | set | frozenset):
            if type(value) in (list, tuple) and set(map(type, value)) <= _PLAIN:
                return f"{kind} {_digest(repr(value).encode('utf-8', 'backslashreplace'))}"
            forms = map(self._data_form, value)
            return f"{kind}({', '.join(forms if isinstance(value, list | tuple) else sorted(forms))})"
        if isinstance(value, dict):
            items = sorted(f"{self._data_form(key)}: {self._data_form(item)}" for key, item in value.items())
            return f"{kind}({', '.join(items)})"
        if isinstance(value, argparse.Namespace | SimpleNamespace):
            return f"{kind} {self._data_form(vars(value))}"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
            return f"{kind} {self._data_form(fields)}"
        if isinstance(value, os.PathLike):
            return f"{kind} {os.fspath(value)!r}"
        if isinstance(value, _DATA):
            return f"{kind} {value!r}"
        if callable(value):
            return f"{getattr(value, '__module__', None)}.{_name_of(value)}"
        return f"{type(value).__module__}.{kind} object"

    # ── what is carried: values

    def _carried(self, value: Any) -> str:
        """The form of a value that belongs to the function."""
        if isinstance(value, enum.Enum):
            return f"{self._carried(type(value))}.{value.name}"
        if isinstance(value, _ATOMS):
            return _atom(value)
        return self._inside(value, self._compound)

    def _compound(self, value: Any) -> str:
        if isinstance(value, FunctionType | type):
            is_ours = any(_globals_of(value) is home for home in self.homes) or not _is_installed(value)
            if not is_ours:
                return self._foreign(value)
            return self._meet(value)
        if isinstance(value, ModuleType):
            return f"module {value.__name__}"
        if isinstance(value, BuiltinFunctionType | np.ufunc):
            owner = getattr(value, "__self__", None)
            if owner is None or isinstance(owner, ModuleType | type):
                return self._foreign(value)
            return f"{value.__name__} of {self._carried(owner)}"
        if isinstance(value, MethodType):
            return f"{self._carried(value.__func__)} of {self._carried(value.__self__)}"
        if isinstance(value, functools.partial):
            bound = self._carried(value.args), self._carried(dict(sorted(value.keywords.items())))
            return f"partial {self._carried(value.func)} {bound[0]} {bound[1]}"
        if isinstance(value, np.memmap) and value.filename is not None:
            return f"memmap {value.filename} {value.offset} {value.dtype.str} {value.shape}"
        if (
            isinstance(value, np.ndarray)
            and not isinstance(value, np.ma.MaskedArray)
            and not value.dtype.hasobject
        ):
            return f"array {value.dtype.str} {value.shape} {_bytes_digest(value)}"
        if type(value) in (list, tuple):
            return f"{type(value).__name__}({', '.join(map(self._carried, value))})"
        if type(value) in (set, frozenset):
            return f"set({', '.join(sorted(map(self._carried, value)))})"
        if type(value) is dict:
            items = (f"{self._carried(key)}: {self._carried(item)}" for key, item in value.items())
            return f"dict({', '.join(items)})"
        return self._object(value)

    def _object(self, value: Any) -> str:
        """An object by its class and what pickling would keep of it."""
        form = self._carried(type(value))
        wrapped = getattr(value, "__wrapped__", None)
        if callable(wrapped):  # lru_cache, a compiled function
            return f"{form} around {self._carried(wrapped)}"
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:  # noqa: BLE001 - not made to be pickled: its class must do
            return f"{form} object"
        if isinstance(reduced, str):
            return f"{form} {reduced}"
        state = [list(item) if isinstance(item, Iterator) else item for item in reduced[1:]]
        return f"{form} object {self._carried(state)}"

    def _foreign(self, value: Any) -> str:
        """What counts by its name: of an installed package, or written in C.  What a library's function captures counts."""
        module = getattr(value, "__module__", None) or "builtins"
        form = f"{module}.{_name_of(value)}"
        if isinstance(value, type):
            return form
        if isinstance(value, FunctionType):
            return f"{form} {[self._carried(_cell(cell)) for cell in value.__closure__ or ()]}"
        package = sys.modules.get(module.partition(".")[0])
        return f"{form} ({getattr(package, '__version__', _PYTHON)})"

    def _add_bytecode(self, name: str, code: CodeType) -> None:
        form = f"{_PYTHON} {_bytecode(code)}"
        digest = blake2b(form.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()
        self._add(name, form, f"<no source: bytecode {digest} of {_PYTHON}>")


def _innermost(fn: Any) -> Any:
    """The function that a callable is about: within partials, bound methods, decorators that say what they wrap."""
    for _ in range(_DEPTH):
        if isinstance(fn, functools.partial):
            fn = fn.func
        elif isinstance(fn, MethodType):
            fn = fn.__func__
        elif callable(getattr(fn, "__wrapped__", None)) and not isinstance(fn, type):
            fn = fn.__wrapped__
        else:
            break
    return fn


def _globals_of(value: Any) -> Mapping[str, Any]:
    """The names of the file that a function, a class or the class of a callable stands in."""
    if isinstance(value, FunctionType):
        return value.__globals__
    if not isinstance(value, type):
        value = type(value)
    for member in vars(value).values():
        for fn in _functions_in(member):
            if fn.__module__ == value.__module__:
                return fn.__globals__
    module = sys.modules.get(value.__module__)
    return {} if module is None else vars(module)


def _name_of(fn: Any) -> str:
    name = getattr(fn, "__qualname__", None) or getattr(fn, "__name__", None) or type(fn).__qualname__
    return str(name)


def _is_installed(value: FunctionType | type) -> bool:
    """Whether it came with Python or a package, or is written in C, so that it counts by name."""
    if isinstance(value, type):
        members = (fn.__code__.co_filename for member in vars(value).values() for fn in _functions_in(member))
        module = sys.modules.get(value.__module__)
        home = "<main>" if value.__module__ == "__main__" else getattr(module, "__file__", None)
        filename = home or next(members, None)
    else:
        filename = value.__code__.co_filename
    return (
        filename is None or filename.startswith(_INSTALLED) or any(folder in filename for folder in _PACKAGES)
    )


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet assigned
        return None


def _methods_of(cls: type) -> list[CodeType]:
    """The code of what was written in the class."""
    codes = [fn.__code__ for member in vars(cls).values() for fn in _functions_in(member)]
    return [
        code
        for code in codes
        if code.co_qualname.startswith(f"{cls.__qualname__}.") and code.co_filename != "<string>"
    ]


def _functions_in(member: Any) -> Iterator[FunctionType]:
    """The functions that a member of a class is made of."""
    if isinstance(member, property):
        inner = [member.fget, member.fset, member.fdel]
    elif isinstance(member, staticmethod | classmethod):
        inner = [member.__func__]
    elif isinstance(member, functools.cached_property | functools.partialmethod):
        inner = [member.func]
    else:
        inner = [member, _innermost(member) if callable(member) else None]
    yield from (fn for fn in inner if isinstance(fn, FunctionType))


def _functions_behind(value: Any) -> Iterator[Any]:
    """What may be of the user's file in a callable that a library made: what it wraps, captures, or has as an attribute."""
    yield from (value, _innermost(value))
    if isinstance(value, FunctionType):
        inside: list[Any] = [_cell(cell) for cell in value.__closure__ or ()]
    else:
        inside = list(getattr(value, "__dict__", {}).values())
    yield from (
        _innermost(fn) for fn in inside if isinstance(fn, FunctionType | MethodType | functools.partial)
    )


def _bytes_digest(array: np.ndarray[Any, Any]) -> str:
    if array.dtype.char in "gG":  # extended precision: some of its bytes mean nothing
        data: bytes | memoryview = " ".join(map(str, array.ravel())).encode()
    else:
        data = np.ascontiguousarray(array).view(np.uint8).data if array.size else b""
    return _digest(data)


def _digest(data: bytes | memoryview) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def _is_frozen(value: Any) -> bool:
    """Whether it was made to stay as it is, as settings are: a frozen dataclass, a named tuple."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return bool(getattr(type(value), "__dataclass_params__").frozen)  # noqa: B009
    return isinstance(value, tuple) and type(value) is not tuple


def _atom(value: Any) -> str:
    if isinstance(value, np.generic) and not value.dtype.hasobject:
        return f"numpy.{value.dtype.str} {_bytes_digest(np.asarray(value))}"
    return constant_form(value)


def _bytecode(code: CodeType) -> str:
    consts = [
        _bytecode(const) if isinstance(const, CodeType) else constant_form(const) for const in code.co_consts
    ]
    return f"({code.co_code.hex()} {consts} {code.co_names} {code.co_varnames} {code.co_freevars})"
