"""The pickler: by value what only this process can know, by reference what every process can import.

By value go functions and classes of `__main__`, lambdas, closures, local classes, and what a module without
an import spec defines. Each call of `dump` pickles them as they are at that moment. Functions pickled
together share one globals dict. This is the only file that knows cloudpickle.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections.abc import Callable
from enum import Enum
from types import CellType, CodeType, FunctionType, MemberDescriptorType
from typing import Any, NamedTuple

import cloudpickle.cloudpickle as cp

from repartir import arrays, classes, memmaps, optional
from repartir.bindings import OwnedGlobals, make_function
from repartir.inherited import OUT_OF_BAND_BYTES, InheritedArrays, inherited_array, newest_snapshot

try:
    # What hashlib has under these names, without loading OpenSSL for 5 to 10 ms
    from _blake2 import blake2b as blake2b
    from _blake2 import blake2s as blake2s
except ImportError:
    from hashlib import blake2b as blake2b
    from hashlib import blake2s as blake2s

PROTOCOL = 5
_EMPTY = bytearray()
MAX_RETURNED_DEFINITION = 64 * 1024
MAIN_MODULES = frozenset({"__main__", "__mp_main__"})

_CODE_FIELDS = (
    "co_argcount co_posonlyargcount co_kwonlyargcount co_nlocals co_stacksize co_flags co_code co_consts co_names "
    "co_varnames co_filename co_name co_qualname co_firstlineno co_linetable co_exceptiontable co_freevars co_cellvars"
).split()


def _reduce_code(code: CodeType) -> Any:
    """With the name of its file, which cloudpickle hides from 3.1.2 on: tracebacks and warnings are to tell it."""
    return CodeType, tuple(getattr(code, field) for field in _CODE_FIELDS)


# Reducers by exact type. Looked up before copyreg's table, as cloudpickle does.
_REDUCERS: dict[type, Callable[[Any], Any]] = {**cp.Pickler._dispatch_table, CodeType: _reduce_code}


class ArrayBuffer:
    """The elements of an array, which travel beside a pickle: copied once, to where they are to lie.

    `order`: in which they are written, "C" or "F".
    """

    __slots__ = ("_array", "_order")

    def __init__(self, array: Any, order: str) -> None:
        self._array = array
        self._order = order

    def __len__(self) -> int:
        return int(self._array.nbytes)

    def __bytes__(self) -> bytes:
        copy = bytearray(len(self))
        self.write_to(memoryview(copy))
        return bytes(copy)

    def write_to(self, target: memoryview) -> None:
        """Copy the elements to `target`, which is as large. Lets other threads run meanwhile."""
        import numpy

        source = self._array if self._order == "C" else self._array.T
        if source.flags.c_contiguous:
            source = source.reshape(-1).view(numpy.uint8)
        numpy.copyto(numpy.ndarray(source.shape, source.dtype, target), source)


Buffer = memoryview | ArrayBuffer


class Encoded:
    """A pickle and the buffers that travel beside it.

    `meta`: the pickle. `buffers`: the out-of-band buffers in the order in which unpickling takes them. They are those
    of the object itself: copy them before the object changes. `keep`: what must live until the receiver has decoded
    it, since the pickle only refers to it.
    """

    __slots__ = ("buffers", "keep", "meta")

    def __init__(self, meta: bytes, buffers: tuple[Buffer, ...], keep: tuple[object, ...] = ()) -> None:
        self.meta = meta
        self.buffers = buffers
        self.keep = keep

    @property
    def size_bytes(self) -> int:
        """Bytes of the pickle and of all buffers."""
        return len(self.meta) + sum(map(len, self.buffers))

    def __repr__(self) -> str:
        return f"<Encoded {len(self.meta)} bytes + {len(self.buffers)} buffers: {self.size_bytes} bytes>"


def goes_by_reference(obj: Any) -> bool:
    """Whether a function or class can be imported by name from a module other than `__main__`."""
    name = getattr(obj, "__module__", None)
    if name in MAIN_MODULES:
        return False
    module = sys.modules.get(name) if isinstance(name, str) else None
    has_spec = getattr(module, "__spec__", None) is not None
    if has_spec and not cp._PICKLE_BY_VALUE_MODULES and vars(module).get(obj.__qualname__) is obj:
        return True
    if not cp._should_pickle_by_reference(obj):
        return False
    if has_spec or not isinstance(name, str):
        return True
    # A submodule made by an extension module has no spec, and comes with its package.
    return getattr(sys.modules.get(name.partition(".")[0]), "__spec__", None) is not None


def global_names(code: CodeType) -> dict[str, None]:
    """The names of the globals that `code` and the code nested in it refer to, in a fixed order."""
    names: dict[str, None] = cp._extract_code_globals(code)
    return names


def dump(
    obj: Any,
    inherited: InheritedArrays | None = None,
    *,
    is_function: bool = False,
    is_result: bool = False,
    owned: OwnedGlobals | None = None,
    threshold: int = OUT_OF_BAND_BYTES,
) -> Encoded | bytes:
    """Pickle `obj`; plain bytes if no buffer of `threshold` or more bytes is in it and nothing shared.

    `inherited`: arrays that the receiver has by fork, as globals of functions. `is_function`: `obj` is a function to
    be cached by the receiver, which brings the classes that it refers to up to date. `is_result`: it goes to the owner
    of what it is made of. `owned`: globals that the receiver has of its own. Raises whatever pickling raises.
    """
    buffers: list[Buffer] = []
    arrays: dict[int, tuple[pickle.PickleBuffer, ArrayBuffer]] = {}

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        known = arrays.get(id(buffer))
        if known is not None:
            buffers.append(known[1])
            return False
        view = buffer.raw()
        if view.nbytes < threshold:
            return True
        buffers.append(view)
        return False

    file = io.BytesIO()
    pickler = Pickler(file, PROTOCOL, buffer_callback=keep_in_band)
    pickler.threshold = threshold
    pickler.arrays = arrays
    pickler.inherited = inherited
    pickler.is_function = is_function
    pickler.is_result = is_result
    pickler.owned = owned
    pickler.dump(obj)
    meta = file.getvalue()
    if buffers or pickler.shared:
        return Encoded(meta, tuple(buffers), tuple(pickler.shared))
    return meta


def dump_in_band(
    obj: Any,
    inherited: InheritedArrays | None = None,
    *,
    whole: bool = False,
    is_result: bool = False,
    contents_of: type | None = None,
    within: Pickler | None = None,
) -> bytes:
    """Pickle `obj` with all its buffers inside. Raises whatever pickling raises.

    `whole`: with the definitions of all classes, so that it stands alone. `contents_of`: with the definition
    of that class only. `within`: whose pickle this becomes a part of; it keeps what is referred to.
    """
    file = io.BytesIO()
    pickler = Pickler(file, PROTOCOL)
    pickler.inherited = inherited
    pickler.whole = whole
    pickler.is_result = is_result
    pickler.contents_of = contents_of
    pickler.dump(obj)
    if within is not None:
        within.shared += pickler.shared
    return file.getvalue()


class Pickler(cp.Pickler):  # type: ignore[misc]
    """A C pickler that asks `reducer_override` for every object but the built-in atoms and containers."""

    # Without this override the C code would consult cloudpickle's ChainMap, in Python, once an object.
    dispatch_table = copyreg.dispatch_table
    __init__ = pickle.Pickler.__init__
    dump = pickle.Pickler.dump

    inherited: InheritedArrays | None = None
    owned: OwnedGlobals | None = None
    threshold = sys.maxsize
    arrays: dict[int, tuple[pickle.PickleBuffer, ArrayBuffer]]
    shared: tuple[object, ...] = ()
    is_function = False
    is_result = False
    whole = False
    contents_of: type | None = None
    _globals_ref: dict[int, dict[str, Any]] | None = None
    _cells: frozenset[int] = frozenset()

    @property
    def globals_ref(self) -> dict[int, dict[str, Any]]:
        """Globals dicts made so far, by the id of the original; read by cloudpickle's function reducer."""
        if self._globals_ref is None:
            self._globals_ref = {}
        return self._globals_ref

    def reducer_override(self, obj: Any) -> Any:
        """Called by the C pickler: a reduce value, or NotImplemented for the ordinary way."""
        kind = type(obj)
        if kind is FunctionType:
            return NotImplemented if goes_by_reference(obj) else self._reduce_function(obj)
        if kind is CellType and id(obj) in self._cells:
            return cp._make_empty_cell, ()
        if kind is memoryview:
            return self._reduce_memoryview(obj)
        shared = optional.shared
        if shared is not None and kind is shared.SharedObject and not self.is_result:
            return self._refer(shared.object_reference(obj))
        reducer = _REDUCERS.get(kind)
        if reducer is not None:
            return reducer(obj)
        if issubclass(kind, type):
            return self._reduce_class(obj)
        numpy = sys.modules.get("numpy")
        if numpy is not None and issubclass(kind, numpy.ndarray):
            return self._reduce_array(obj, kind)
        return NotImplemented

    def _reduce_function(self, fn: FunctionType) -> Any:
        code, globals_, name, defaults, _ = self._function_getnewargs(fn)
        attributes, slots = cp._function_getstate(fn)
        cells = fn.__closure__ or ()
        # The cells themselves are pickled, empty, so that functions which share one still do. The state
        # fills them.
        self._cells = self._cells.union(map(id, cells))
        slots["__closure__"] = None
        contents = tuple(map(cp._get_cell_contents, cells))
        make_args = (code, globals_, name, defaults, fn.__closure__)
        make = cp._make_function
        owned, inherited = self.owned, self.inherited
        if owned is not None and fn.__globals__ is owned.namespace:
            make = make_function
            slots["__globals__"] = {
                key: value for key, value in slots["__globals__"].items() if key not in owned.names
            }
        if inherited:
            slots["__globals__"] = {
                key: _as_inherited(inherited, value) for key, value in slots["__globals__"].items()
            }
        return make, make_args, (attributes, slots, contents), None, None, set_function_state

    def _reduce_array(self, array: Any, kind: type) -> Any:
        if array.dtype.hasobject:
            return NotImplemented
        shared, numpy = optional.shared, sys.modules["numpy"]
        if shared is not None:
            if not self.is_result and kind in (numpy.ndarray, shared.SharedArray):
                found = shared.reference(array)
                if found is not None:
                    return self._refer(found)
            if kind is shared.SharedArray:
                array = array.view(numpy.ndarray)
                kind = type(array)
        if kind is numpy.memmap:
            return memmaps.reduce(array) or (arrays.as_memmap, (array.view(numpy.ndarray),))
        if kind is not numpy.ndarray:
            return arrays.reduce_subclass(array, kind)
        flags = array.flags
        order = "F" if flags.f_contiguous and not flags.c_contiguous else "C"
        if array.nbytes >= self.threshold:
            # Stands for the elements, whatever their strides, type and flags: see `dump`.
            buffer = pickle.PickleBuffer(_EMPTY)
            self.arrays[id(buffer)] = buffer, ArrayBuffer(array, order)
            return arrays.from_buffer, (buffer, array.dtype, array.shape, order)
        if not array.dtype.isnative:
            # Numpy's own way brings some of them home: of which dtype an array is would depend on its size.
            elements = bytearray(bytes(ArrayBuffer(array, order)))
            return arrays.from_buffer, (elements, array.dtype, array.shape, order)
        # A read-only buffer would arrive read-only, but what arrives is the receiver's own to write.
        return (array if flags.writeable else array.copy(order="K")).__reduce_ex__(PROTOCOL)

    def _refer(self, found: Any) -> Any:
        self.shared = (*self.shared, found.held)
        return found.call

    def _reduce_memoryview(self, view: memoryview) -> Any:
        is_large = view.nbytes >= self.threshold
        if not arrays.can_be_cast(view):
            import numpy

            return memoryview, (numpy.asarray(view),)
        elements: Any = view.cast("B") if view.c_contiguous else view.tobytes()
        if is_large:
            import numpy

            elements = numpy.frombuffer(elements, numpy.uint8)
        return arrays.view_of, (elements if is_large else bytearray(elements), view.format, view.shape)

    def _reduce_class(self, cls: type) -> Any:
        if cls.__module__ == "builtins":
            if cls in (type(None), type(...), type(NotImplemented)) or cls in cp._BUILTIN_TYPE_NAMES:
                return cp._class_reduce(cls)
            if goes_by_reference(cls):
                return NotImplemented
        elif goes_by_reference(cls):
            return NotImplemented
        record = classes.record_of(cls)
        if self.contents_of is not None:
            if cls is not self.contents_of:
                return classes.find, (record.token,)
            version = classes.UNVERSIONED
        elif self.whole or (self.is_function and record.is_own):
            version = self._version(cls, record)
        else:
            return classes.recall, (record.token, cls.__qualname__, self._definition(cls, record))
        make, args, set_state, state = _reduce_definition(cls)
        packed = (version, self.is_function, set_state, state)
        return classes.define, (record.token, make, args), packed, None, None, classes.update

    def _version(self, cls: type, record: classes.ClassRecord) -> int:
        """The version of the definition that `cls` has now. Only its owner looks whether it has changed."""
        if not record.is_own:
            return record.version
        contents = dump_in_band(cls, self.inherited, contents_of=cls)
        return record.version_of(blake2b(contents, digest_size=16).digest())

    def _definition(self, cls: type, record: classes.ClassRecord) -> bytes:
        """A pickled definition that stands alone: the owner makes it anew, others once a version."""
        if record.is_own:
            return dump_in_band(cls, self.inherited, whole=True, is_result=self.is_result, within=self)
        known = record.definition
        if known is None or known[0] != record.version:
            # The receiver may be the owner, who has the arrays that this process inherited from it.
            inherited = self.inherited or newest_snapshot()
            known = record.definition = record.version, dump_in_band(cls, inherited, whole=True)
        return b"" if self.is_result and len(known[1]) > MAX_RETURNED_DEFINITION else known[1]


class _Inherited:
    """Stands in a pickle for a global of a function that the receiver has by fork."""

    def __init__(self, key: tuple[int, int], name: tuple[str, str]) -> None:
        self.call = inherited_array, (key, *name)

    def __reduce__(self) -> Any:
        return self.call


def _as_inherited(inherited: InheritedArrays, value: Any) -> Any:
    name = inherited.name_of(value)
    return value if name is None else _Inherited(inherited.key, name)


def set_function_state(fn: Any, state: tuple[Any, Any, tuple[Any, ...]]) -> None:
    """Fill an empty function. Called by unpickling."""
    attributes, slots, contents = state
    cp._function_setstate(fn, (attributes, slots))
    fn.__globals__["__builtins__"] = fn.__builtins__  # for functions that this one makes
    for cell, value in zip(fn.__closure__ or (), contents, strict=True):
        if value is not cp._empty_cell_value:
            cell.cell_contents = value


def _reduce_definition(cls: type) -> tuple[Callable[..., type], tuple[Any, ...], Any, Any]:
    """How to make an empty class like `cls`, what fills it, and the state that it takes."""
    if issubclass(cls, Enum):
        return _reduce_enum(cls)
    type_kwargs: dict[str, Any] = {"__qualname__": cls.__qualname__}
    if "__module__" in cls.__dict__:
        type_kwargs["__module__"] = cls.__module__
    if isinstance(cls.__dict__.get("__dict__"), property):
        type_kwargs["__dict__"] = cls.__dict__["__dict__"]
    attributes, slots = cp._class_getstate(cls)
    attributes.pop("__slotnames__", None)  # a cache of copyreg's, which comes with the first pickled instance
    bases = cp._get_bases(cls)
    if "__slots__" in attributes and NamedTuple not in bases:
        # Only the creation of a class can give it slots. A NamedTuple makes its own.
        type_kwargs["__slots__"] = attributes.pop("__slots__")
        attributes = {
            name: value for name, value in attributes.items() if type(value) is not MemberDescriptorType
        }
    args = (type(cls), cls.__name__, bases, type_kwargs, None, None)
    return cp._make_skeleton_class, args, cp._class_setstate, (attributes, slots)


def _reduce_enum(cls: type[Enum]) -> tuple[Callable[..., type], tuple[Any, ...], Any, Any]:
    """Unlike cloudpickle's: with aliases, and with the attributes that a constructor gave the members."""
    attributes, _ = cp._enum_getstate(cls)
    values: dict[str, Any] = {}
    given: dict[str, dict[str, Any]] = {}
    for name, member in cls.__members__.items():
        attributes.pop(name, None)
        values[name] = member.value
        own = {key: value for key, value in vars(member).items() if key not in _OF_EVERY_MEMBER}
        if own:
            given[name] = own
    args = (cls.__bases__, cls.__name__, cls.__qualname__, values, cls.__module__, None, None)
    return cp._make_skeleton_enum, args, set_enum_state, (attributes, given)


_OF_EVERY_MEMBER = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_"})


def set_enum_state(cls: type[Enum], state: tuple[dict[str, Any], dict[str, dict[str, Any]]]) -> None:
    """Fill an empty enum. Called by unpickling."""
    attributes, given = state
    cp._class_setstate(cls, (attributes, {}))
    for name, own in given.items():
        vars(cls.__members__[name]).update(own)
