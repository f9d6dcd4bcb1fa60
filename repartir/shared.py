"""Arrays and objects that lie in shared memory from the start: passing them to a task copies nothing.

    table = repartir.shared.from_array(np.load("table.npy"))
    ex.submit(fit, table[:, 3:], 0.5)          # a reference travels, whatever the size of the slice

Each lies in a file without a name, or shares one with other small ones. A worker maps that file once
and keeps the mapping; memory is given back when the array is freed here and the last view of it, in any process, has gone.

An array is read-only in tasks unless it is made with ``writable=True``: then all processes see each write, at once
and unordered. Results never refer to shared memory: what a task returns is a copy.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy

from repartir.errors import SharedMemoryFull
from repartir.shm.segment import Segment, freed_listeners, spill_dir

__all__ = ["SharedArray", "SharedObject", "empty", "from_array", "full", "zeros"]

T = TypeVar("T")

_HEADER = struct.Struct("=Q16sQ")  # magic, token, not 0 once it was freed
_HEADER_BYTES = 64
_FREED_W = 3
_MAGIC = 0x5245504152534852
_ALIGN = 64
_SLAB_BYTES = 1 << 20
_SMALL_BYTES = _SLAB_BYTES // 4
_CAN_REFER = (
    sys.platform == "linux"
)  # elsewhere no other process can open a file without a name: elements travel

_lock = threading.RLock()
os.register_at_fork(after_in_child=_lock._at_fork_reinit)  # type: ignore[attr-defined]
_known: weakref.WeakValueDictionary[bytes, Memory] = weakref.WeakValueDictionary()
_by_mapping: weakref.WeakValueDictionary[int, Memory] = weakref.WeakValueDictionary()
_attached: dict[tuple[bytes, bool], Memory] = {}
"""In a worker: what it has mapped, writable or not, kept between tasks until it is freed by whoever made it."""
_objects: dict[bytes, Any] = {}
"""In a worker: shared objects, unpickled."""
_slab: weakref.ref[Memory] | None = None


class Memory:
    """A file that holds shared arrays, mapped here.

    ``fd`` of its segment is open in the process that made it, and in children which that forked.
    """

    def __init__(self, segment: Segment, token: bytes, origin: tuple[int, int] | None = None) -> None:
        self.segment = segment
        self.token = token
        self.end = _HEADER_BYTES
        self._origin = origin
        self.address = numpy.frombuffer(segment.data, numpy.uint8).__array_interface__["data"][0]
        _by_mapping[id(segment.data)] = self
        if origin is None:
            _known[token] = self
            weakref.finalize(self, _free, segment, os.getpid()).atexit = False

    @classmethod
    def create(cls, size: int) -> Memory:
        """Memory for ``size`` bytes; where shared memory is full, in a file. Raises SharedMemoryFull."""
        size = -(-(_HEADER_BYTES + size) // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            segment = Segment.create(size)
        except SharedMemoryFull as full:
            try:
                segment = Segment.create(size, folder=spill_dir())
            except SharedMemoryFull:
                raise full from None
        token = os.urandom(16)
        _HEADER.pack_into(segment.data, 0, _MAGIC, token, 0)
        return cls(segment, token)

    @property
    def origin(self) -> tuple[int, int]:
        """Process and descriptor under which others open the file."""
        return self._origin or (os.getpid(), self.segment.fd)

    @property
    def is_freed(self) -> bool:
        """Whether whoever made it has no use for it any more."""
        return bool(self.segment.words[_FREED_W])

    def take(self, size: int) -> int:
        """Where ``size`` bytes begin that nobody has yet; -1 if there is no room."""
        start = -(-self.end // _ALIGN) * _ALIGN
        if start + size > self.segment.size:
            return -1
        self.end = start + size
        return start

    def holds(self, low: int, high: int) -> bool:
        """Whether these addresses are of this memory."""
        return bool(self.address <= low and high <= self.address + self.segment.size)


class Lifetime:
    """What an array and all its views share: the memory that it lies in, until it is freed."""

    __slots__ = ("__weakref__", "is_writable", "memory", "name")

    def __init__(self, memory: Memory, is_writable: bool, name: str) -> None:
        self.memory: Memory | None = memory
        self.is_writable = is_writable
        self.name = name


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

    _lifetime: Lifetime | None = None

    def __array_finalize__(self, origin: Any) -> None:
        lifetime = getattr(origin, "_lifetime", None)
        if lifetime is not None and lifetime.memory is not None and lifetime.memory.holds(*_bounds(self)):
            self._lifetime = lifetime

    @property
    def is_shared(self) -> bool:
        """Whether tasks get a reference: not for a copy, nor after it was freed."""
        return self._lifetime is not None and self._lifetime.memory is not None

    def free(self) -> None:
        """Give the memory back once no task and no view needs it; may be repeated."""
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
            raise ValueError(
                f"this shared array {lifetime.name} was freed; use it inside its `with`, or before free()"
            )

    def __getitem__(self, index: Any) -> Any:
        self._check()
        found = super().__getitem__(index)
        if type(found) is SharedArray and found._lifetime is None:
            return found.view(numpy.ndarray)
        return found

    def __setitem__(self, index: Any, value: Any) -> None:
        self._check()
        super().__setitem__(index, value)

    def __repr__(self) -> str:
        self._check()
        return repr(self.view(numpy.ndarray)).replace("array(", "SharedArray(", 1)

    def __str__(self) -> str:
        self._check()
        return str(self.view(numpy.ndarray))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.get("out")
        if out is not None:
            kwargs["out"] = tuple(map(_plain, out))
        result = getattr(ufunc, method)(*map(_plain, inputs), **kwargs)
        if out is not None and len(out) == 1:
            return out[0]
        return result

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        self._check()
        return super().__array_function__(function, types, args, kwargs)

    def copy(self, order: Any = "C") -> Any:
        """A plain array with the same elements."""
        self._check()
        return self.view(numpy.ndarray).copy(order)

    def __reduce_ex__(self, protocol: Any) -> Any:
        self._check()
        return self.view(numpy.ndarray).__reduce_ex__(protocol)


class SharedObject(Generic[T]):
    """An object that was pickled once, for many tasks: each task that gets this handle as an argument gets the object.

    A worker unpickles it once and hands the same object to all its tasks, so they must not change it.
    """

    __slots__ = ("__weakref__", "_memory", "_object", "_size")

    def __init__(self, value: T, memory: Memory, size: int) -> None:
        self._object = value
        self._memory: Memory | None = memory
        self._size = size

    @property
    def is_shared(self) -> bool:
        """Whether it has not been freed."""
        return self._memory is not None

    def get(self) -> T:
        """The object that was shared."""
        return self._object

    def free(self) -> None:
        """Give the memory back once no task needs it; may be repeated."""
        self._memory = None

    def __enter__(self) -> SharedObject[T]:
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


def _plain(value: Any) -> Any:
    if isinstance(value, SharedArray):
        value._check()
        return value.view(numpy.ndarray)
    return value


def _bounds(array: Any) -> tuple[int, int]:
    """The addresses between which the elements lie."""
    low = high = array.__array_interface__["data"][0]
    if array.size == 0:
        return low, low
    for length, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            low += (length - 1) * stride
        else:
            high += (length - 1) * stride
    return low, high + array.itemsize


# ---- making


def empty(shape: Any, dtype: Any = float, *, order: str = "C", writable: bool = False) -> SharedArray:
    """A shared array whose elements are zeros for now.

    ``order``: "C" or "F". ``writable``: tasks may write, and all processes see it. Raises SharedMemoryFull, and
    TypeError for a dtype that holds Python objects.
    """
    dtype = numpy.dtype(dtype)
    if dtype.hasobject:
        raise TypeError(
            f"elements of {dtype} are Python objects, which cannot lie in shared memory: use ex.share(array), which pickles "
            "them once"
        )
    size = int(numpy.prod(shape, dtype=numpy.int64)) * dtype.itemsize
    memory, start = _room(size)
    return _array(
        Lifetime(memory, writable, f"of shape {shape}"), start, dtype, shape, None, order, is_writable=True
    )


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
        return array
    array = numpy.asarray(array)
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    made = empty(array.shape, array.dtype, order=order, writable=writable)
    numpy.copyto(made.view(numpy.ndarray), array)
    return made


def is_plain_array(value: Any) -> bool:
    """Whether a value is an array whose elements can lie in shared memory as they are."""
    return type(value) in (numpy.ndarray, SharedArray, numpy.memmap) and not value.dtype.hasobject


def share_object(value: T, parts: Sequence[Any]) -> SharedObject[T]:
    """A handle of an object, of which ``parts`` are the pickle and its buffers. Raises SharedMemoryFull."""
    sizes = [len(part) for part in parts]
    index = struct.pack(f"=Q{len(sizes)}Q", len(sizes), *sizes)
    starts, at = [], len(index)
    for size in sizes:
        at = -(-at // _ALIGN) * _ALIGN
        starts.append(at)
        at += size
    memory = Memory.create(at)
    data = memoryview(memory.segment.data)[_HEADER_BYTES:]
    data[: len(index)] = index
    for part, start, size in zip(parts, starts, sizes, strict=True):
        if isinstance(part, bytes | bytearray | memoryview):
            data[start : start + size] = part
        else:
            part.write_to(data[start : start + size])
    return SharedObject(value, memory, at)


def _room(size: int) -> tuple[Memory, int]:
    global _slab
    if size > _SMALL_BYTES:
        memory = Memory.create(size)
        return memory, memory.take(size)
    with _lock:
        slab = None if _slab is None else _slab()
        start = -1 if slab is None or slab.segment.fd < 0 else slab.take(size)
        if slab is None or start < 0:
            slab = Memory.create(_SLAB_BYTES)
            start = slab.take(size)
            _slab = weakref.ref(slab)
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
    buffer = memoryview(lifetime.memory.segment.data)
    made = numpy.ndarray.__new__(
        SharedArray,
        shape,
        dtype,
        buffer if is_writable else buffer.toreadonly(),
        start,
        strides,
        order,
    )
    made._lifetime = lifetime
    return made


# ---- travelling


class Reference(NamedTuple):
    """How something shared is pickled: the call that finds it again, and what has to live until then."""

    call: tuple[Callable[..., Any], tuple[Any, ...]]
    held: object


def reference(array: Any) -> Reference | None:
    """How an array that lies in shared memory, as a view of any type, is pickled; None for any other.

    Raises ValueError for one that was freed.
    """
    lifetime = getattr(array, "_lifetime", None)
    if lifetime is not None:
        array._check()
    if not _CAN_REFER or (lifetime is None and (array.base is None or not _known)):
        return None
    memory = lifetime.memory if lifetime is not None else _memory_of(array)
    if memory is None:
        return None
    is_writable = lifetime is not None and lifetime.is_writable and bool(array.flags.writeable)
    start = array.__array_interface__["data"][0] - memory.address
    args = (memory.token, memory.origin, start, array.dtype, array.shape, array.strides, is_writable)
    return Reference((attach, args), memory)


def while_shared(value: Any) -> Callable[[], Any] | None:
    """A weak reference that ends when the value is freed; None for what is not shared, and travels otherwise."""
    if not _CAN_REFER or type(value) not in (SharedArray, SharedObject):
        return None
    weak = weakref.ref(value)

    def alive() -> Any:
        found = weak()
        return found if found is not None and found.is_shared else None

    return alive


def object_reference(shared: SharedObject[Any]) -> Reference:
    """How a shared object is pickled. Raises ValueError for one that was freed."""
    memory = shared._memory
    if memory is None:
        raise ValueError(f"this shared {type(shared._object).__qualname__} was freed")
    if not _CAN_REFER:
        return Reference((_itself, (shared._object,)), memory)
    return Reference((resolve, (memory.token, memory.origin)), memory)


def _memory_of(array: Any) -> Memory | None:
    """The memory in which the elements of a view lie: what it is based on leads to the mapping."""
    base = array.base
    while isinstance(base, numpy.ndarray):
        base = base.base
    return _by_mapping.get(id(base)) if isinstance(base, mmap.mmap) else None


def attach(
    token: bytes,
    origin: tuple[int, int],
    start: int,
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    is_writable: bool,
) -> SharedArray:
    """The array that a pickle refers to. Called by unpickling. Raises ValueError for one that was freed."""
    memory = _memory(token, origin, is_writable)
    lifetime = Lifetime(memory, is_writable, f"of shape {shape}")
    return _array(lifetime, start, dtype, shape, strides, "C", is_writable=is_writable)


def resolve(token: bytes, origin: tuple[int, int]) -> Any:
    """The shared object that a pickle refers to. Called by unpickling. Raises ValueError for one that was freed."""
    import pickle

    if token in _objects:
        return _objects[token]
    data = memoryview(_memory(token, origin, False).segment.data)[_HEADER_BYTES:].toreadonly()
    (count,) = struct.unpack_from("=Q", data)
    sizes = struct.unpack_from(f"={count}Q", data, 8)
    parts, at = [], 8 * (count + 1)
    for size in sizes:
        at = -(-at // _ALIGN) * _ALIGN
        parts.append(data[at : at + size])
        at += size
    value = _objects[token] = pickle.loads(parts[0], buffers=parts[1:])
    return value


def _memory(token: bytes, origin: tuple[int, int], is_writable: bool) -> Memory:
    """What a reference leads to: the maker's own mapping there, elsewhere one that can be written only if it may be."""
    pid, number = origin
    memory = _known.get(token) if pid == os.getpid() else _attached.get((token, is_writable))
    if memory is not None:
        return memory
    with contextlib.suppress(OSError):
        fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.pread(fd, _HEADER.size, 0) == _HEADER.pack(_MAGIC, token, 0):
                segment = Segment.attach(fd, is_writable=is_writable)
                segment.fd = -1
                memory = _attached[token, is_writable] = Memory(segment, token, origin)
                return memory
        finally:
            os.close(fd)
    raise ValueError("a shared array or object was freed, or its process has ended, before the task used it")


def drop_freed() -> None:
    """In a worker, between tasks: let go of what was freed by whoever made it."""
    for key, memory in list(_attached.items()):
        if memory.is_freed:
            del _attached[key]
            _objects.pop(key[0], None)


def total_bytes() -> int:
    """Bytes of shared memory that this process has made and not freed."""
    return sum(memory.segment.size for memory in list(_known.values()) if memory.segment.fd >= 0)
