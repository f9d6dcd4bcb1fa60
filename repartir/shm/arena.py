"""The arena: blocks for payloads that do not fit a slot or a record.

One sparse file, mapped whole by every process; ``reserve`` backs it with memory step by step, before use.  Blocks are
carved one behind the other, each with a 64-byte header that says its size class, its generation and its owner; freed
ones go to the free list of their class and are reused warm.  The owner word is the truth (0: free); the free lists are
derived from it, so a death or an exception in the middle costs at most a rebuild of the lists.  A block gets a new
generation when it is given out, so one store frees it, and a handle never fits a later use of its block.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from repartir.errors import InternalError, SharedMemoryFull
from repartir.shm.layout import (
    A_CARVED,
    A_CLASSES,
    A_FREE_W,
    A_LIMIT,
    A_MAGIC,
    A_RESERVED,
    ARENA_HEADER_BYTES,
    ARENA_MAGIC,
    B_CLASS,
    B_GENERATION,
    B_NEXT,
    B_OWNER,
    BLOCK_HEADER_BYTES,
    WORD,
)
from repartir.shm.lock import Lock
from repartir.shm.segment import Segment, reserve, shm_dir

RESULT = 1 << 63
"""Set in the owner word of a block that holds a task's result (its arguments' block carries the bare task word)."""
FUNCTION_OWNER = 1
"""Owner word of blocks that hold functions: no task has it."""

_SMALLEST = 512
_RESERVE_STEP = 1 << 20
_SHARE = 0.8
_ALIGN = 64
_MAX_PARTS = 1 << 20


def _class_bytes(index: int) -> int:
    """Four sizes an octave, header included: at most a quarter of a block is waste."""
    return (_SMALLEST << index // 4) * (4 + index % 4) // 4 & -_ALIGN


_SIZES = [_class_bytes(index) for index in range(A_CLASSES)]


def _class_of(size: int) -> int:
    low, high = 0, A_CLASSES - 1
    while low < high:
        middle = (low + high) // 2
        if _SIZES[middle] >= size:
            high = middle
        else:
            low = middle + 1
    return low


@dataclass(frozen=True, slots=True)
class Handle:
    """A block: byte offset of its payload, its generation, and how many bytes were stored."""

    offset: int
    generation: int
    size: int

    def pack(self) -> bytes:
        return _HANDLE.pack(self.offset, self.generation, self.size)

    @classmethod
    def unpack(cls, data: bytes) -> Handle:
        return cls(*_HANDLE.unpack(data))


_HANDLE = struct.Struct("=QQQ")
HANDLE_BYTES = _HANDLE.size


def arena_limit() -> int:
    """Bytes that an arena may grow to: a share of what the shared-memory folder has free."""
    folder = shm_dir()
    try:
        usage = os.statvfs(folder)
    except OSError as exc:
        raise SharedMemoryFull(
            f"cannot make shared memory in {folder}: {exc.strerror}. "
            "Mount a tmpfs there or set REPARTIR_SHM_DIR to a folder that can be written."
        ) from exc
    limit = int(usage.f_bavail * usage.f_frsize * _SHARE) // mmap.PAGESIZE * mmap.PAGESIZE
    return max(limit, 1 << 20)


class Arena:
    """Blocks in one segment, shared by client and members."""

    __slots__ = ("_data", "_fd_of", "_words", "lock")

    def __init__(self, segment: Segment, lock: Lock) -> None:
        self._words = segment.words
        self._data = segment.data
        self._fd_of = segment
        self.lock = lock
        lock.repair = self._rebuild

    def create(self) -> None:
        """Write an empty arena's header; done once, by the segment's maker."""
        words = self._words
        words[A_LIMIT] = self._fd_of.size
        words[A_RESERVED] = ARENA_HEADER_BYTES
        words[A_CARVED] = ARENA_HEADER_BYTES
        words[A_MAGIC] = ARENA_MAGIC

    def store(self, parts: Sequence[bytes | memoryview], owner: int) -> Handle | None:
        """Copy ``parts`` into a new block of ``owner``; None when the arena is full."""
        sizes = [len(part) for part in parts]
        index = struct.pack(f"=Q{len(sizes)}Q", len(sizes), *sizes)
        starts, end = _starts(len(index), sizes)
        handle = self._allocate(end, owner)
        if handle is None:
            return None
        data, base = self._data, handle.offset
        try:
            data[base : base + len(index)] = index
            for part, size, start in zip(parts, sizes, starts, strict=True):
                data[base + start : base + start + size] = part
        except BaseException:
            self.free(handle)
            raise
        return handle

    def load(self, handle: Handle) -> list[bytearray]:
        """Private copies of the parts of a block."""
        view = memoryview(self._data)
        self._check_handle(handle)
        base, limit = handle.offset, handle.size
        (count,) = struct.unpack_from("=Q", view, base)
        if count > _MAX_PARTS or (count + 1) * WORD > limit:
            raise InternalError(f"arena block of {limit} bytes with {count} parts")
        sizes = struct.unpack_from(f"={count}Q", view, base + WORD)
        starts, end = _starts((count + 1) * WORD, sizes)
        if end != limit:
            raise InternalError(f"arena block of {limit} bytes with parts of {sizes} bytes")
        return [
            bytearray(view[base + start : base + start + size])
            for start, size in zip(starts, sizes, strict=True)
        ]

    def free(self, handle: Handle) -> bool:
        """Give a block back; False if it was given back before."""
        words, lock = self._words, self.lock
        block = (handle.offset - BLOCK_HEADER_BYTES) // WORD
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            if words[block + B_GENERATION] != handle.generation or words[block + B_OWNER] == 0:
                return False
            self._release(block)
            return True
        finally:
            lock.release()

    def free_owned(self, owner: int) -> int:
        """Give back every block of ``owner`` (a dead member's unpublished results); how many there were."""
        lock = self.lock
        freed = 0
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            for block in self._blocks():
                if self._words[block + B_OWNER] == owner:
                    self._release(block)
                    freed += 1
            return freed
        finally:
            lock.release()

    def used(self) -> tuple[int, int]:
        """Blocks in use and the bytes that they occupy."""
        lock = self.lock
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            used = [block for block in self._blocks() if self._words[block + B_OWNER]]
            return len(used), sum(_SIZES[self._words[block + B_CLASS]] for block in used)
        finally:
            lock.release()

    def check(self) -> None:
        """Raise ``InternalError`` unless every block is whole and every listed one free; keep others away."""
        words = self._words
        blocks = list(self._blocks())
        known = set(blocks)
        for size_class in range(A_CLASSES):
            block, seen = words[A_FREE_W + size_class], set()
            while block:
                if block not in known or block in seen or words[block + B_CLASS] != size_class:
                    raise InternalError(f"free list {size_class} leads to {block}")
                seen.add(block)
                block = words[block + B_NEXT]

    def _allocate(self, size: int, owner: int) -> Handle | None:
        words, lock = self._words, self.lock
        size_class = _class_of(size + BLOCK_HEADER_BYTES)
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            block = self._pop_free(size_class) or self._carve(size_class) or self._larger(size_class)
            if not block:
                return None
            words[block + B_GENERATION] = words[block + B_GENERATION] + 1
            words[block + B_OWNER] = owner
            return Handle(block * WORD + BLOCK_HEADER_BYTES, words[block + B_GENERATION], size)
        finally:
            lock.release()

    def _pop_free(self, size_class: int) -> int:
        """Take a free block off its list; an exception before its owner is set costs the block until a rebuild."""
        words, first = self._words, A_FREE_W + size_class
        while block := words[first]:
            words[first] = words[block + B_NEXT]
            if words[block + B_OWNER] == 0:
                return block
        return 0

    def _larger(self, size_class: int) -> int:
        for candidate in range(size_class + 1, A_CLASSES):
            if block := self._pop_free(candidate):
                return block
        return 0

    def _carve(self, size_class: int) -> int:
        words = self._words
        start, end = words[A_CARVED], words[A_CARVED] + _SIZES[size_class]
        if end > words[A_LIMIT]:
            return 0
        reserved = words[A_RESERVED]
        if end > reserved:
            want = min(words[A_LIMIT], max(end, reserved + _RESERVE_STEP))
            try:
                reserve(self._fd_of.fd, reserved, want - reserved)
            except SharedMemoryFull:
                return 0
            words[A_RESERVED] = want
        block = start // WORD
        words[block + B_OWNER] = 0
        words[block + B_GENERATION] = 0
        words[block + B_CLASS] = size_class
        words[A_CARVED] = end
        return block

    def _release(self, block: int) -> None:
        words = self._words
        first = A_FREE_W + words[block + B_CLASS]
        words[block + B_OWNER] = 0
        words[block + B_NEXT] = words[first]
        words[first] = block

    def _blocks(self) -> list[int]:
        """The word index of every block's header."""
        words = self._words
        blocks, at, end = [], ARENA_HEADER_BYTES // WORD, words[A_CARVED] // WORD
        while at < end:
            blocks.append(at)
            at += _SIZES[words[at + B_CLASS]] // WORD
        return blocks

    def _rebuild(self) -> None:
        """The holder died: derive the free lists from the owner words."""
        words = self._words
        for size_class in range(A_CLASSES):
            words[A_FREE_W + size_class] = 0
        for block in self._blocks():
            if words[block + B_OWNER] == 0:
                first = A_FREE_W + words[block + B_CLASS]
                words[block + B_NEXT] = words[first]
                words[first] = block

    def _check_handle(self, handle: Handle) -> None:
        words = self._words
        block = (handle.offset - BLOCK_HEADER_BYTES) // WORD
        if not ARENA_HEADER_BYTES <= block * WORD < words[A_CARVED]:
            raise InternalError(f"arena handle {handle} points outside")
        if words[block + B_GENERATION] != handle.generation or words[block + B_OWNER] == 0:
            raise InternalError(f"arena handle {handle} is of an older generation")
        if handle.size + BLOCK_HEADER_BYTES > _SIZES[words[block + B_CLASS]]:
            raise InternalError(f"arena handle {handle} is larger than its block")


def _starts(index_bytes: int, sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where each part starts behind an index of ``index_bytes``, and where the last one ends."""
    starts, at = [], index_bytes
    for size in sizes:
        at = -(-at // _ALIGN) * _ALIGN
        starts.append(at)
        at += size
    return starts, at
