"""Arrays and objects that lie in shared memory from the start: passing them to a task copies nothing.

    table = repartir.shared.from_array(np.load("table.npy"))
    ex.submit(fit, table[:, 3:], 0.5)          # a reference travels, whatever the size of the slice

Each lies in a file without a name, or shares one with other small ones. A worker maps that file once
and keeps the mapping; memory is given back when the array is freed here and the last view of it, in any process, has gone.
Workers forked while it exists inherit its mapping, so then it also waits for the end of their executor.

An array is read-only in tasks unless it is made with ``writable=True``: then all processes see each write, at once
and unordered. Results never refer to shared memory: what a task returns is a copy.
"""

from __future__ import annotations

import errno
import functools
import math
import operator
import os
import struct
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy

from repartir import optional
from repartir.arrays import byte_bounds
from repartir.errors import FreedError, SharedMemoryFull
from repartir.shm.parts import Packed, extents
from repartir.shm.segment import TOO_MANY_FILES, Segment, freed_listeners, page_up, reserve, spill_dir

__all__ = ["SharedArray", "SharedObject", "empty", "from_array", "full", "zeros"]

T = TypeVar("T")

_HEADER = struct.Struct("=Q16sQQ")  # magic, token, whether tasks may write, whether it was freed
_HEADER_BYTES = 64
_FREED_W = 4
_MAGIC = 0x5245504152534852
_ALIGN = 64
_SLAB_BYTES = 1 << 20
_STEP_BYTES = 1 << 15
"""A slab is backed by memory in steps: 1 MiB at once would take a millisecond."""
_SMALL_BYTES = _SLAB_BYTES // 4
_CAN_REFER = (
    sys.platform == "linux"
)  # elsewhere no other process can open a file without a name: elements travel

_lock = threading.RLock()
_known: weakref.WeakValueDictionary[bytes, Memory] = weakref.WeakValueDictionary()
_attached: dict[bytes, Memory] = {}
"""In a worker: what it has mapped, kept between tasks until it is freed by whoever made it."""
_objects: dict[bytes, Any] = {}
"""In a worker: shared objects, unpickled."""
_dropped: set[bytes] = set()
"""In a worker: tokens of what it has let go of and not told the worker yet."""
_slabs: dict[bool, weakref.ref[Memory]] = {}
"""The memory that takes small arrays now: what tasks may write, and what they may not."""
_lifetimes: weakref.WeakSet[Lifetime] = weakref.WeakSet()


def _begin_in_child() -> None:
    """In a forked child: the room that is left in a slab is the parent's to give."""
    _lock._at_fork_reinit()  # type: ignore[attr-defined]
    _slabs.clear()


os.register_at_fork(after_in_child=_begin_in_child)


class Memory:
    """A file that holds shared arrays, mapped here.

    ``fd`` of its segment is open in the process that made it, and in children which that forked. ``needs``: what has
    to live as long as what lies here does, since that refers to it.
    """

    def __init__(
        self, segment: Segment, token: bytes, is_writable: bool, origin: tuple[int, int] | None
    ) -> None:
        self.segment = segment
        self.token = token
        self.is_writable = is_writable
        self.needs: tuple[object, ...] = ()
        self.end = _HEADER_BYTES
        self.backed = segment.size
        self.pid = os.getpid()
        self._origin = origin
        self.address = numpy.frombuffer(segment.data, numpy.uint8).__array_interface__["data"][0]
        _known[token] = self
        if origin is None:
            weakref.finalize(self, _free, segment, self.pid).atexit = False

    @classmethod
    def create(cls, size: int, *, is_writable: bool = False) -> Memory:
        """Memory for ``size`` bytes; where shared memory is full, in a file. Raises SharedMemoryFull."""
        return cls._in(_segment(page_up(_HEADER_BYTES + size)), is_writable)

    @classmethod
    def create_slab(cls, is_writable: bool) -> Memory:
        """Memory for small arrays, little of which is backed yet. Raises SharedMemoryFull."""
        slab = cls._in(_segment(_SLAB_BYTES, _STEP_BYTES), is_writable)
        slab.backed = _STEP_BYTES
        return slab

    @classmethod
    def _in(cls, segment: Segment, is_writable: bool) -> Memory:
        try:
            token = os.urandom(16)
            _HEADER.pack_into(segment.data, 0, _MAGIC, token, is_writable, 0)
            return cls(segment, token, is_writable, None)
        except BaseException:
            segment.close()
            raise

    @property
    def origin(self) -> tuple[int, int]:
        """Process and descriptor under which others open the file."""
        return self._origin or (os.getpid(), self.segment.fd)

    @property
    def is_freed(self) -> bool:
        """Whether whoever made it has no use for it any more."""
        return bool(self.segment.words[_FREED_W])

    def take(self, size: int) -> int:
        """Where ``size`` bytes begin that nobody has yet; -1 if there is no room, here or in all of shared memory."""
        start = -(-self.end // _ALIGN) * _ALIGN
        end = start + size
        if end > self.segment.size:
            return -1
        if end > self.backed:
            backed = -(-end // _STEP_BYTES) * _STEP_BYTES
            try:
                reserve(self.segment.fd, self.backed, backed - self.backed)
            except SharedMemoryFull:
                return -1
            self.backed = backed
        self.end = end
        return start

    def holds(self, low: int, high: int) -> bool:
        """Whether these addresses are of this memory."""
        return bool(self.address <= low and high <= self.address + self.segment.size)


def _segment(size: int, reserved: int | None = None) -> Segment:
    try:
        return Segment.create(size, reserved=reserved)
    except (SharedMemoryFull, OSError) as full:
        try:
            return Segment.create(size, reserved=reserved, folder=spill_dir())
        except (SharedMemoryFull, OSError):
            if isinstance(full, SharedMemoryFull):
                raise full from None
            raise SharedMemoryFull(f"cannot make {size:,} bytes of shared memory: {full.strerror}") from full


class Lifetime:
    """What an array and all its views share: the memory that it lies in, until it is freed."""

    __slots__ = ("__weakref__", "memory", "name", "root")

    def __init__(self, memory: Memory, name: str) -> None:
        self.memory: Memory | None = memory
        self.name = name
        self.root: weakref.ref[SharedArray] | None = None
        _lifetimes.add(self)


def _free(segment: Segment, pid: int) -> None:
    if os.getpid() == pid:
        segment.words[_FREED_W] = 1
        for listener in list(freed_listeners):
            listener.on_shared_freed()
    segment.close()


class SharedArray(numpy.ndarray[Any, Any]):
    """An array in shared memory. Its slices and transposed views are of this type, too; what is computed is not.

    ``with`` and ``free`` give the memory back before the garbage collector would: tasks that were submitted before
    still have it, any other use of the array or of its views raises ``ValueError``.
    """

    __slots__ = ("_lifetime",)

    _lifetime: Lifetime | None

    def __array_finalize__(self, origin: Any) -> None:
        lifetime = getattr(origin, "_lifetime", None)
        if (
            lifetime is not None
            and lifetime.memory is not None
            and not lifetime.memory.holds(*byte_bounds(self))
        ):
            lifetime = None
        self._lifetime = lifetime

    def free(self) -> None:
        """Give the memory back once no task needs it and this array and its views have gone; may be repeated."""
        if self._lifetime is not None:
            self._lifetime.memory = None

    def __enter__(self) -> SharedArray:
        self._check()
        return self

    def __exit__(self, *_: object) -> None:
        self.free()

    def _check(self) -> None:
        lifetime = self._lifetime
        if lifetime is not None and lifetime.memory is None:
            raise FreedError(
                f"this shared array {lifetime.name} was freed; use it inside its `with`, or before free()"
            )

    def __setitem__(self, index: Any, value: Any) -> None:
        self._check()
        super().__setitem__(index, _plain(value))

    def __str__(self) -> str:
        return str(_plain(self))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.get("out")
        if out is not None:
            kwargs["out"] = tuple(map(_plain, out))
        if "where" in kwargs:
            kwargs["where"] = _plain(kwargs["where"])
        result = getattr(ufunc, method)(*map(_plain, inputs), **kwargs)
        if out is None or result is NotImplemented:
            return result
        if len(out) == 1:
            return out[0]
        return tuple(got if given is None else given for got, given in zip(result, out, strict=True))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        _check_all(args)
        _check_all(kwargs.values())
        return _computed(super().__array_function__(function, types, args, kwargs))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _plain(self).__reduce_ex__(protocol)

    def __copy__(self) -> Any:
        return _plain(self).copy(order="K")

    def __deepcopy__(self, memo: Any) -> Any:
        return _plain(self).copy(order="K")


def _checked(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: SharedArray, *args: Any, **kwargs: Any) -> Any:
        self._check()
        return _computed(method(self, *args, **kwargs))

    return call


def _of_plain(method: Callable[..., Any]) -> Callable[..., Any]:
    """A reduction. By way of ``__array_ufunc__`` numpy would lose a reference to the array when it fails."""

    @functools.wraps(method)
    def call(self: SharedArray, *args: Any, **kwargs: Any) -> Any:
        return method(_plain(self), *args, **kwargs)

    return call


def _check_methods() -> None:
    """Make every method and view of an array look first whether it was freed, and what it computes a plain array."""
    own = vars(SharedArray)
    for name, value in vars(numpy.ndarray).items():
        is_public = not name.startswith("_") or name in _CHECKED
        if not is_public or name in own:
            continue
        if callable(value):
            setattr(SharedArray, name, (_of_plain if name in _REDUCTIONS else _checked)(value))
        elif name in _VIEWS:
            setattr(SharedArray, name, property(_checked(value.__get__), value.__set__, doc=value.__doc__))


_CHECKED = frozenset(
    {"__getitem__", "__repr__", "__format__", "__bool__", "__int__", "__float__", "__complex__", "__index__"}
)
_REDUCTIONS = frozenset(
    {
        *("sum", "prod", "mean", "std", "var", "min", "max", "any", "all", "argmin", "argmax"),
        *("cumsum", "cumprod", "round", "clip", "trace"),
    }
)
_VIEWS = frozenset({"T", "mT", "real", "imag", "flat", "data", "ctypes"})


def _computed(value: Any) -> Any:
    """A result, without this type where it does not lie in shared memory."""
    if type(value) is SharedArray:
        return value if value._lifetime is not None else _bare(value)
    if type(value) in (tuple, list):
        return type(value)(map(_computed, value))
    return value


def _check_all(values: Any) -> None:
    for value in values:
        if type(value) is SharedArray:
            value._check()
        elif type(value) in (tuple, list):
            _check_all(value)


def _plain(value: Any) -> Any:
    if isinstance(value, SharedArray):
        value._check()
        return _bare(value)
    return value


def _bare(array: Any) -> Any:
    return numpy.ndarray.view(array, numpy.ndarray)


_check_methods()


class SharedObject(Generic[T]):
    """An object that was pickled once, for many tasks: each task that gets this handle, in whatever, gets the object.

    It is as it was when it was shared. A worker unpickles it once and hands the same object to all its tasks, so they
    must not change it; arrays in it are read-only there.
    """

    __slots__ = ("__weakref__", "_memory", "_object", "_size")

    def __init__(self, value: T, memory: Memory, size: int) -> None:
        self._object = value
        self._memory: Memory | None = memory
        self._size = size

    def get(self) -> T:
        """The object that was shared, not a copy."""
        return self._object

    def free(self) -> None:
        """Give the memory back once no task needs it; may be repeated."""
        self._memory = None

    def _held(self) -> Memory:
        if self._memory is None:
            raise FreedError(f"this shared object of type {type(self._object).__qualname__} was freed")
        return self._memory

    def __enter__(self) -> SharedObject[T]:
        self._held()
        return self

    def __exit__(self, *_: object) -> None:
        self.free()

    def __repr__(self) -> str:
        state = f"{self._size} bytes" if self._memory is not None else "freed"
        return f"<SharedObject {type(self._object).__qualname__}: {state}>"

    def __reduce__(self) -> Any:
        return _itself, (self._object,)


def _itself(value: Any) -> Any:
    return value


# ---- making


def empty(shape: Any, dtype: Any = float, *, order: str = "C", writable: bool = False) -> SharedArray:
    """A shared array whose elements are zeros for now.

    ``order``: "C" or "F". ``writable``: tasks may write, and all processes see it. Raises SharedMemoryFull, and
    TypeError for a dtype that holds Python objects.
    """
    dtype, shape = numpy.dtype(dtype), _lengths(shape)
    if dtype.hasobject:
        raise TypeError(
            f"elements of {dtype} are Python objects, which cannot lie in shared memory: use ex.share(array), which pickles "
            "them once"
        )
    if order not in ("C", "F"):
        raise ValueError(f"order must be 'C' or 'F', not {order!r}")
    if dtype.itemsize == 0 and dtype.kind in "SU":
        dtype = numpy.dtype((dtype, 1))  # as numpy.empty does
    size = math.prod(shape) * dtype.itemsize
    if size > sys.maxsize // 2:
        raise ValueError(f"no array can be as large as shape {shape} of {dtype}")
    memory, start = _room(size, writable)
    lifetime = Lifetime(memory, f"of shape {shape}")
    return _array(lifetime, start, dtype, shape, None, order, is_writable=True)


def _lengths(shape: Any) -> tuple[int, ...]:
    try:
        lengths = tuple(map(operator.index, shape if hasattr(shape, "__iter__") else (shape,)))
    except TypeError:
        raise TypeError(f"a shape is an integer or a tuple of integers, not {shape!r}") from None
    if any(length < 0 for length in lengths):
        raise ValueError(f"a length cannot be negative: shape {shape!r}")
    return lengths


def zeros(shape: Any, dtype: Any = float, *, order: str = "C", writable: bool = False) -> SharedArray:
    """A shared array of zeros; see `empty`."""
    return empty(shape, dtype, order=order, writable=writable)


def full(
    shape: Any, fill_value: Any, dtype: Any = None, *, order: str = "C", writable: bool = False
) -> SharedArray:
    """A shared array in which every element is ``fill_value``; see `empty`."""
    made = empty(
        shape, numpy.asarray(fill_value).dtype if dtype is None else dtype, order=order, writable=writable
    )
    made[...] = fill_value
    return made


def from_array(array: Any, *, writable: bool = False) -> SharedArray:
    """A shared copy of an array, in its order; what is shared already is given back as it is. See `empty`."""
    if isinstance(array, SharedArray) and array._lifetime is not None:
        array._check()
        if writable and not _memory_of(array).is_writable:
            raise ValueError("this array is shared for reading: share a copy of it, writable=True")
        return array
    if isinstance(array, numpy.ma.MaskedArray):
        raise TypeError("a masked array is two arrays: use ex.share(array), or share its data and its mask")
    array = numpy.asarray(array)
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    made = empty(array.shape, array.dtype, order=order, writable=writable)
    numpy.copyto(_bare(made), array)
    return made


def is_plain_array(value: Any) -> bool:
    """Whether a value is an array whose elements can lie in shared memory as they are."""
    return type(value) in (numpy.ndarray, SharedArray, numpy.memmap) and not value.dtype.hasobject


def share_object(value: T, parts: Sequence[Any], needs: tuple[object, ...] = ()) -> SharedObject[T]:
    """A handle of an object, of which ``parts`` are the pickle and its buffers. Raises SharedMemoryFull.

    ``needs``: what has to live as long, since the pickle only refers to it.
    """
    packed = Packed(parts)
    memory = Memory.create(packed.size)
    memory.needs = needs
    packed.write_to(memory.segment.data, _HEADER_BYTES)
    return SharedObject(value, memory, packed.size)


def _room(size: int, is_writable: bool) -> tuple[Memory, int]:
    if size > _SMALL_BYTES:
        memory = Memory.create(size, is_writable=is_writable)
        return memory, memory.take(size)
    with _lock:
        known = _slabs.get(is_writable)
        slab = None if known is None else known()
        start = -1 if slab is None else slab.take(size)
        if slab is None or start < 0:
            slab = Memory.create_slab(is_writable)
            start = slab.take(size)
            if start >= 0:
                _slabs[is_writable] = weakref.ref(slab)
    if start < 0:
        slab = Memory.create(size, is_writable=is_writable)
        start = slab.take(size)
    return slab, start


def _array(
    lifetime: Lifetime,
    start: int,
    dtype: Any,
    shape: Any,
    strides: tuple[int, ...] | None,
    order: Any,
    *,
    is_writable: bool,
) -> SharedArray:
    assert lifetime.memory is not None
    made = numpy.ndarray.__new__(
        SharedArray, shape, dtype, lifetime.memory.segment.data, start, strides, order
    )
    made._lifetime = lifetime
    lifetime.root = weakref.ref(made)
    if not is_writable:
        numpy.ndarray.setflags(made, write=False)
    return made


# ---- travelling


class Reference(NamedTuple):
    """How something shared is pickled: the call that finds it again, and what has to live until then."""

    call: tuple[Callable[..., Any], tuple[Any, ...]]
    held: object


def reference(array: Any) -> Reference | None:
    """How a plain array or a SharedArray is pickled that lies in shared memory; None for any other.

    Raises FreedError for one that was freed.
    """
    memory = _memory_of(array)
    if memory is None or not _CAN_REFER:
        return None
    is_writable = memory.is_writable and bool(array.flags.writeable)
    start = array.__array_interface__["data"][0] - memory.address
    args = (memory.token, memory.origin, start, array.dtype, array.shape, array.strides, is_writable)
    return Reference((attach, args), memory)


def object_reference(shared: SharedObject[Any]) -> Reference:
    """How a shared object is pickled. Raises FreedError for one that was freed."""
    memory = shared._held()
    if not _CAN_REFER:
        return Reference((_itself, (shared._object,)), memory)
    return Reference((resolve, (memory.token, memory.origin, shared._size)), memory)


def resolved(value: Any) -> Any:
    """The object behind a handle, for a task in this process; anything else is itself. Raises FreedError."""
    if type(value) is not SharedObject:
        return value
    value._held()
    return value.get()


def lies_in_shared_memory(array: Any) -> bool:
    """Whether an array is a SharedArray or a view of one, so that it is never sent. False for one that was freed."""
    try:
        return _CAN_REFER and _memory_of(array) is not None
    except FreedError:
        return False


def unchanged(shared: Any) -> Callable[[], Any] | None:
    """A call that gives something shared back as long as a pickle of it holds, then None; None for anything else."""
    if type(shared) is SharedObject:
        ref = weakref.ref(shared)
        return lambda: None if (found := ref()) is None or found._memory is None else found
    if type(shared) is not SharedArray or not lies_in_shared_memory(shared):
        return None
    view = weakref.ref(shared)
    form = _form(shared)

    def look() -> Any:
        found = view()
        if found is None or found._lifetime is None or found._lifetime.memory is None:
            return None
        return found if _form(found) == form else None

    return look


def _form(array: Any) -> tuple[Any, ...]:
    return array.shape, array.strides, array.dtype, array.flags.writeable


def _memory_of(array: Any) -> Any:
    lifetime = getattr(array, "_lifetime", None)
    if lifetime is not None:
        array._check()
        return lifetime.memory
    if array.base is None or not _known:
        return None
    low, high = byte_bounds(array)
    for memory in list(_known.values()):
        if memory.holds(low, high):
            return memory
    return None


def attach(
    token: bytes,
    origin: tuple[int, int],
    start: int,
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    is_writable: bool,
) -> SharedArray:
    """The array that a pickle refers to. Called by unpickling. Raises FreedError for one that was freed."""
    lifetime = Lifetime(_memory(token, origin), f"of shape {shape}")
    return _array(lifetime, start, dtype, shape, strides, "C", is_writable=is_writable)


def resolve(token: bytes, origin: tuple[int, int], size: int) -> Any:
    """The shared object of ``size`` bytes that a pickle refers to. Called by unpickling. Raises FreedError for one that
    was freed.
    """
    import pickle

    memory = _memory(token, origin)
    if token in _objects:
        return _objects[token]
    data = memory.segment.data
    view = memoryview(data).toreadonly()
    meta, *buffers = [view[start:end] for start, end in extents(data, _HEADER_BYTES, size)]
    value = _objects[token] = pickle.loads(meta, buffers=buffers)
    return value


def _memory(token: bytes, origin: tuple[int, int]) -> Memory:
    if optional.noted is not None:
        optional.noted.add(token)
    memory = _known.get(token)
    if memory is not None and (memory._origin is not None or memory.pid == os.getpid()):
        return memory
    _let_go()
    memory = _attached[token] = _open(token, origin)
    return memory


def _open(token: bytes, origin: tuple[int, int]) -> Memory:
    """Map the file of another process: for reading only, if tasks may do no more. Raises FreedError."""
    pid, number = origin
    cause: OSError | None = None
    try:
        fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
        try:
            header = os.pread(fd, _HEADER.size, 0)
            if len(header) == _HEADER.size and header[:24] == _HEADER.pack(_MAGIC, token, 0, 0)[:24]:
                is_writable = bool(_HEADER.unpack(header)[2])
                segment = Segment.attach(fd, read_only=not is_writable)
                segment.fd = -1
                return Memory(segment, token, is_writable, origin)
        finally:
            os.close(fd)
    except OSError as exc:
        if exc.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            text = f"{exc.strerror}: a shared array cannot be mapped. {TOO_MANY_FILES}"
            raise OSError(exc.errno, text) from None
        cause = exc
    raise FreedError(
        "a shared array or object was freed, or its process has ended, before the task used it"
    ) from cause


def drop_freed() -> set[bytes]:
    """In a worker, between tasks: let go of what was freed by whoever made it. The tokens of what it was."""
    _let_go()
    dropped = set(_dropped)
    _dropped.clear()
    return dropped


def is_something_freed() -> bool:
    """Whether this process still has something that was freed by whoever made it."""
    return any(memory.is_freed for memory in list(_attached.values()))


def _let_go() -> None:
    for token, memory in list(_attached.items()):
        if memory.is_freed:
            _dropped.add(token)
            _objects.pop(token, None)
            del _attached[token]


def protect() -> None:
    """In the process that forks workers: the arrays that they inherit are as read-only as those that they are sent."""
    for lifetime in list(_lifetimes):
        array = None if lifetime.root is None else lifetime.root()
        if array is not None and lifetime.memory is not None and not lifetime.memory.is_writable:
            numpy.ndarray.setflags(array, write=False)


def total_bytes() -> int:
    """Bytes of shared memory that this process has made and not freed."""
    pid = os.getpid()
    return sum(
        memory.backed for memory in list(_known.values()) if memory.pid == pid and memory.segment.fd >= 0
    )


optional.shared = sys.modules[__name__]
