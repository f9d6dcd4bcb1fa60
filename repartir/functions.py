"""Functions as bytes: encoded once by the client, unpickled once by a worker, known to both by a digest."""

from __future__ import annotations

import builtins
import struct
import sys
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from repartir import optional
from repartir.bindings import OwnedGlobals
from repartir.codec import decode, encode_function, raw
from repartir.fingerprint import Fingerprint, fingerprint, is_immutable
from repartir.heavy import HEAVY_BYTES, HeavyGlobals
from repartir.inherited import InheritedArrays
from repartir.pickler import MAIN_MODULES, Encoded, blake2b, global_names, goes_by_reference
from repartir.shm.arena import HANDLE_BYTES

FUNCTION = struct.Struct(f"=Q{HANDLE_BYTES}s")
"""The head of every call's payload: the function's key and the handle of the block that holds it."""
HEAD_BYTES = FUNCTION.size

CACHE_COUNT = 256
CACHE_BYTES = 64 * 1024 * 1024
RECENT_COUNT = 16
RECENT_BYTES = 1024 * 1024


class FunctionRef:
    """An encoded function. Alive as long as the function or a task that uses it.

    `key`: 64-bit digest of `blob`, never 0; equal blobs have equal keys. `head`: for the owner of the shared
    memory, what each call of the function begins with; empty until the blob lies there. `needs`: what the blob
    only refers to, weakly, since a function that nobody calls must not keep shared memory from being freed.
    """

    __slots__ = ("__weakref__", "blob", "head", "key", "needs")

    def __init__(self, key: int, blob: bytes | Encoded, needs: tuple[weakref.ref[Any], ...] = ()) -> None:
        self.key = key
        self.blob = blob
        self.head = b""
        self.needs = needs

    def hold(self) -> tuple[object, ...]:
        """What must live until a call of the function has ended."""
        return tuple(ref() for ref in self.needs)

    def __repr__(self) -> str:
        return f"<FunctionRef {self.key:016x}: {_size_bytes(self.blob)} bytes>"


class _Imported:
    """A function that workers import: unchanged while its module still has it under its name."""

    __slots__ = ("fn", "module", "name", "ref")

    def __init__(self, fn: weakref.ref[Any], module: str, name: str, ref: FunctionRef) -> None:
        self.fn = fn
        self.module = module
        self.name = name
        self.ref = ref

    def holds_for(self, fn: Any) -> bool:
        module = sys.modules.get(self.module)
        return self.fn() is fn and module is not None and module.__dict__.get(self.name) is fn


class _ByValue:
    """A function that goes by value: unchanged while its fingerprint holds, if it has one."""

    __slots__ = ("fn", "print", "ref")

    def __init__(self, fn: weakref.ref[Any], print_: Fingerprint | None, ref: FunctionRef) -> None:
        self.fn = fn
        self.print = print_
        self.ref = ref

    def holds_for(self, fn: Any) -> bool:
        return self.fn() is fn and self.print is not None and self.print.holds()


class _Partial:
    """A `functools.partial` of a function, with immutable arguments."""

    __slots__ = ("args", "fn", "inner", "keywords", "ref")

    def __init__(self, call: partial[Any], fn: weakref.ref[Any], inner: _Imported | _ByValue) -> None:
        self.fn = fn
        self.inner = inner
        self.args = call.args
        self.keywords = tuple(call.keywords.items())
        self.ref = _NO_REF

    def holds_for(self, fn: Any) -> bool:
        call: partial[Any] = fn
        if self.fn() is not call or call.args is not self.args or len(call.keywords) != len(self.keywords):
            return False
        if any(call.keywords.get(name, self) is not value for name, value in self.keywords):
            return False
        return not call.__dict__ and self.inner.holds_for(call.func)


class FunctionTable:
    """The client's encoded functions. Holds functions weakly, and takes no lock: each change is one operation
    on a dict.

    `inherited`: the arrays that the workers have by fork. `owned`: the globals that they have of their own.
    """

    def __init__(self, inherited: InheritedArrays | None = None, owned: OwnedGlobals | None = None) -> None:
        self.inherited = inherited
        self.owned = owned
        self._entries: dict[int, _Imported | _ByValue | _Partial] = {}
        self._refs: dict[int, weakref.ref[FunctionRef]] = {}
        self._recent: deque[FunctionRef] = deque(maxlen=RECENT_COUNT)
        self._heavy = HeavyGlobals(inherited)

    def __len__(self) -> int:
        return len(self._entries)

    def encode(self, fn: Callable[..., Any]) -> FunctionRef:
        """The function as it is now. Raises TaskNotSerializable, which names the part that cannot travel."""
        entry = self._entries.get(id(fn))
        if entry is not None and entry.holds_for(fn):
            return entry.ref
        return self._encode(fn)

    @contextmanager
    def once(self, fn: Callable[..., Any]) -> Iterator[FunctionRef]:
        """The function as it is now, for all calls of one map: it stays encoded while the context is open."""
        yield self.encode(fn)

    def _encode(self, fn: Callable[..., Any]) -> FunctionRef:
        # Taken before pickling: a change made meanwhile by another thread then makes it not hold.
        entry = self._entry(fn)
        blob = encode_function(fn, self.inherited, self.owned)
        if _size_bytes(blob) >= HEAVY_BYTES:
            self._heavy.warn(fn, _size_bytes(blob))
        ref = self._ref(blob)
        if entry is not None:
            entry.ref = ref
            self._entries[id(fn)] = entry
        return ref

    def _entry(self, fn: Any) -> _Imported | _ByValue | _Partial | None:
        """An entry that lacks only `ref`, which the caller sets; None for what is encoded anew each time."""
        kind = type(fn)
        if kind is partial:
            if fn.__dict__ or not is_immutable(fn.args) or not is_immutable(tuple(fn.keywords.values())):
                return None
            inner = self._entry(fn.func)
            weak = self._weak(fn)
            return None if inner is None or isinstance(inner, _Partial) else _Partial(fn, weak, inner)
        if kind is FunctionType or kind is BuiltinFunctionType or issubclass(kind, type):
            name, module = str(fn.__qualname__), str(fn.__module__)
            home = sys.modules.get(module)
            is_there = module not in MAIN_MODULES and home is not None and home.__dict__.get(name) is fn
            if is_there and (kind is BuiltinFunctionType or goes_by_reference(fn)):
                return _Imported(self._weak(fn), module, name, _NO_REF)
        if kind is FunctionType and not goes_by_reference(fn):
            return _ByValue(self._weak(fn), fingerprint(fn, self.inherited), _NO_REF)
        return None

    def _weak(self, fn: Any) -> weakref.ref[Any]:
        entries, key = self._entries, id(fn)
        return weakref.ref(fn, lambda _: entries.pop(key, None))

    def _ref(self, blob: bytes | Encoded) -> FunctionRef:
        key = digest(blob)
        needs: tuple[weakref.ref[Any], ...] = ()
        if isinstance(blob, Encoded):
            needs, blob.keep = tuple(map(weakref.ref, blob.keep)), ()
        known = self._refs.get(key)
        ref = None if known is None else known()
        if ref is None:
            refs = self._refs
            ref = FunctionRef(key, blob, needs)
            refs[key] = weakref.ref(ref, partial(_drop, refs, key))
            if isinstance(blob, bytes) and len(blob) < RECENT_BYTES:
                self._recent.append(ref)
        return ref


_NO_REF = FunctionRef(0, b"")


def function_of(call: Any) -> FunctionType | None:
    """The Python function behind a partial or a bound method; None if there is none."""
    while not isinstance(call, FunctionType):
        inner = call.func if isinstance(call, partial) else getattr(call, "__func__", None)
        if inner is None:
            return None
        call = inner
    return call


def owned_globals(initializer: Any) -> OwnedGlobals | None:
    """The globals, other than functions, classes and modules, that an initializer which goes by value refers to,
    itself or through functions of its module.
    """
    first = function_of(initializer)
    if first is None or goes_by_reference(first):
        return None
    namespace, names = first.__globals__, set()
    seen, waiting = {first}, [first]
    while waiting:
        for name in global_names(waiting.pop().__code__):
            value = namespace.get(name, waiting)
            if isinstance(value, FunctionType) and value.__globals__ is namespace and value not in seen:
                seen.add(value)
                waiting.append(value)
            elif value is waiting:
                if not hasattr(builtins, name):
                    names.add(name)
            elif not isinstance(value, FunctionType | BuiltinFunctionType | ModuleType | type):
                names.add(name)
    return OwnedGlobals(namespace, frozenset(names)) if names else None


def _size_bytes(blob: bytes | Encoded) -> int:
    return len(blob) if isinstance(blob, bytes) else blob.size_bytes


def _drop(refs: dict[int, weakref.ref[FunctionRef]], key: int, dead: weakref.ref[FunctionRef]) -> None:
    if refs.get(key) is dead:
        refs.pop(key, None)


def digest(blob: bytes | Encoded) -> int:
    """64-bit digest of an encoded function, never 0."""
    if isinstance(blob, bytes):
        return int.from_bytes(blake2b(blob, digest_size=8).digest(), "little") or 1
    state = blake2b(blob.meta, digest_size=8)
    for buffer in blob.buffers:
        state.update(raw(buffer))
    return int.from_bytes(state.digest(), "little") or 1


class FunctionCache:
    """A worker's unpickled functions, within a number and a total size; the least recently used go first."""

    def __init__(self, max_count: int = CACHE_COUNT, max_bytes: int = CACHE_BYTES) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._entries: OrderedDict[int, tuple[Callable[..., Any], int]] = OrderedDict()
        self._shared: dict[int, set[bytes]] = {}
        """By key, the tokens of the shared arrays and objects that a function refers to."""
        self._newest: tuple[int, Callable[..., Any] | None] = (0, None)
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: int) -> Callable[..., Any] | None:
        """The function under `key`, if it is still here."""
        newest, fn = self._newest
        if newest == key:
            return fn
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        self._newest = key, entry[0]
        return entry[0]

    def put(
        self, key: int, blob: bytes | bytearray | memoryview, buffers: Sequence[Any] = ()
    ) -> Callable[..., Any]:
        """Unpickle a function and keep it under `key`. Raises whatever unpickling raises."""
        with optional.noting() as tokens:
            fn: Callable[..., Any] = decode(blob, buffers)
        if tokens:
            self._shared[key] = tokens
        size = len(blob) + sum(memoryview(buffer).nbytes for buffer in buffers)
        old = self._entries.pop(key, None)
        if old is not None:
            self.size_bytes -= old[1]
        self._entries[key] = fn, size
        self._newest = key, fn
        self.size_bytes += size
        while len(self._entries) > 1 and (
            len(self._entries) > self._max_count or self.size_bytes > self._max_bytes
        ):
            self._remove(next(iter(self._entries)))
        return fn

    def forget(self, tokens: set[bytes]) -> bool:
        """Drop the functions that refer to any of these shared arrays and objects. Whether there were any."""
        found = [key for key, own in self._shared.items() if not own.isdisjoint(tokens)]
        for key in found:
            self._remove(key)
            if self._newest[0] == key:
                self._newest = (0, None)
        return bool(found)

    def _remove(self, key: int) -> None:
        self._shared.pop(key, None)
        self.size_bytes -= self._entries.pop(key)[1]
