"""The arena: blocks for payloads that do not fit a slot or a record.

One sparse file, mapped whole by every process; ``reserve`` backs it with memory step by step, before use.  Blocks lie
one behind the other, each with a 64-byte header that says its size, its owner, its generation and how much of it is
backed.  The chain of sizes and the owner words (0: free) are the truth; the free lists, one a size class, are derived
from them.  ``A_STALE`` is set while the lists are being changed, so a death or an exception in the middle costs a
rebuild of the lists, in which neighbours that are free become one block, and nothing else.

The lists are a segregated fit (Wilson et al. 1995; the classes are those of Masmano et al. 2004, eight an octave):
a block is taken from its class or the next larger one that has any and split.  Free neighbours are joined late, when
a block is wanted for which no single one is large enough: a block that is freed and wanted again stays whole and warm.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple

from repartir.errors import InternalError, SharedMemoryFull
from repartir.shm.layout import (
    A_CARVED,
    A_CLASSES,
    A_FREE_BYTES,
    A_FREE_W,
    A_FREED,
    A_GENERATION,
    A_LIMIT,
    A_LISTED_W,
    A_MAGIC,
    A_RESERVED,
    A_STALE,
    ARENA_HEADER_BYTES,
    ARENA_MAGIC,
    B_BACKED,
    B_GENERATION,
    B_NEXT,
    B_OWNER,
    B_SIZE,
    BLOCK_HEADER_BYTES,
    WORD,
)
from repartir.shm.lock import Lock
from repartir.shm.parts import Packed, Storable, extents
from repartir.shm.segment import Segment, page_up, reserve, shm_dir

RESULT = 1 << 63
"""Set in the owner word of a block that holds a task's result (its arguments' block carries the bare task word)."""
KEPT = 1 << 62
"""Set in the owner word of a block of arguments that outlived its task in the member of this row."""
UNSENT = RESULT | 1 << 60
"""With a row in its low bits the owner word of an item's result until the client has heard of it."""
FUNCTION_OWNER = 1
"""Owner word of blocks that hold functions: no task has it."""

SLAB = 1 << 20
"""Small blocks are cut from free ones up to this size, so that they do not lie among large ones."""

_SMALLEST = 512
_SHARE = 0.8
_ALIGN = 64
_PAGE = mmap.PAGESIZE
_JOIN_AFTER = 4  # so many large blocks given back pay for the walk
_LEAST_GAP = 8  # what a class leaves unused of a large block
_PLACE_BITS = 56
_WORD_BITS = 64


def _class_bytes(index: int) -> int:
    """Eight sizes an octave, header included: at most an eighth of a block is waste, and not backed if it is large."""
    return (_SMALLEST << index // 8) * (8 + index % 8) // 8


_SIZES = [_class_bytes(index) for index in range(A_CLASSES)]


def _class_below(size: int) -> int:
    """The largest class that a block of ``size`` bytes can serve."""
    octave = size.bit_length() - _SMALLEST.bit_length()
    return octave * 8 + (size >> (octave + 6)) - 8


def _class_of(size: int) -> int:
    """The smallest class whose blocks hold ``size`` bytes."""
    if size <= _SMALLEST:
        return 0
    below = _class_below(size)
    return below if _SIZES[below] == size else below + 1


_SLAB_CLASS = _class_of(SLAB)


class Handle(NamedTuple):
    """A block: where its payload begins, its generation, and how many bytes were stored.

    ``offset`` counts bytes in the segment; its top byte says in which of several arenas the block lies.
    """

    offset: int
    generation: int
    size: int

    @property
    def place(self) -> int:
        """The number of the arena in which the block lies."""
        return self.offset >> _PLACE_BITS

    @property
    def start(self) -> int:
        """The byte of its segment where the payload begins."""
        return self.offset & (1 << _PLACE_BITS) - 1

    def pack(self) -> bytes:
        """The handle as ``HANDLE_BYTES`` bytes."""
        return _HANDLE.pack(self.offset, self.generation, self.size)

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> Handle:
        """What ``pack`` gave."""
        return cls(*_HANDLE.unpack(data))


_HANDLE = struct.Struct("=QQQ")
HANDLE_BYTES = _HANDLE.size


def arena_limit(folder: str | None = None) -> int:
    """Bytes that an arena in ``folder`` (by default that for shared memory) may grow to: a share of what is free."""
    folder = folder or shm_dir()
    try:
        usage = os.statvfs(folder)
    except OSError as exc:
        raise SharedMemoryFull(
            f"cannot make shared memory in {folder}: {exc.strerror}. "
            "Mount a tmpfs there or set REPARTIR_SHM_DIR to a folder that can be written."
        ) from exc
    limit = int(usage.f_bavail * usage.f_frsize * _SHARE) // _PAGE * _PAGE
    return max(limit, 1 << 20)


class Arena:
    """Blocks in one segment, shared by client and members.  ``place``: its number, where there are several."""

    __slots__ = ("_base", "_data", "_segment", "_words", "lock")

    def __init__(self, segment: Segment, lock: Lock, place: int = 0) -> None:
        self._words = segment.words
        self._data = segment.data
        self._segment = segment
        self._base = place << _PLACE_BITS
        self.lock = lock
        lock.repair = self._rebuild

    def create(self) -> None:
        """Write an empty arena's header; done by the segment's maker, or under the lock by who stores the first block."""
        words = self._words
        words[A_LIMIT] = self._segment.size
        words[A_RESERVED] = ARENA_HEADER_BYTES
        words[A_CARVED] = ARENA_HEADER_BYTES
        words[A_MAGIC] = ARENA_MAGIC

    @property
    def limit(self) -> int:
        """Bytes that the arena may grow to."""
        return self._words[A_LIMIT]

    @property
    def free_bytes(self) -> int:
        """Bytes in large free blocks.  A hint, read without the lock."""
        return self._words[A_FREE_BYTES]

    def store(self, parts: Sequence[Storable], owner: int) -> Handle | None:
        """Copy ``parts`` into a new block of ``owner``; None when the arena is full."""
        packed = Packed(parts)
        handle = self._allocate(packed.size, owner)
        if handle is None:
            return None
        try:
            packed.write_to(self._data, handle.start)
        except BaseException:
            self.free(handle)
            raise
        return handle

    def load(self, handle: Handle) -> list[bytearray]:
        """Private copies of the parts of a block."""
        view = memoryview(self._data)
        return [bytearray(view[start:end]) for start, end in self.extents(handle)]

    def extents(self, handle: Handle) -> list[tuple[int, int]]:
        """Where in the segment each part of a block begins and ends."""
        self._check_handle(handle)
        return extents(self._data, handle.start, handle.size)

    def free(self, handle: Handle, *, kept: bool = False) -> bool:
        """Give a block back; False if it was given back before.

        One that outlived its task is given back with ``kept`` only, by the member that keeps it.
        """
        words, lock = self._words, self.lock
        block = self._block_of(handle)
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            if not self._is_of(block, handle) or bool(words[block + B_OWNER] & KEPT) != kept:
                return False
            self._release(block)
            return True
        finally:
            lock.release()

    def keep(self, handle: Handle, row: int) -> bool:
        """The arguments in a block outlive their task: they belong to the member of ``row`` from now on."""
        return self.pass_on(handle, KEPT | row)

    def pass_on(self, handle: Handle, owner: int) -> bool:
        """A block belongs to another from now on; False if it was given back before."""
        words, lock = self._words, self.lock
        block = self._block_of(handle)
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            if not self._is_of(block, handle):
                return False
            words[block + B_OWNER] = owner
            return True
        finally:
            lock.release()

    def holds(self, handle: Handle) -> bool:
        """Whether the block is in use under this handle, seen under the lock."""
        lock, block = self.lock, self._block_of(handle)
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            return self._is_of(block, handle)
        finally:
            lock.release()

    def free_owned(self, *owners: int) -> int:
        """Give back every block of ``owners`` (a dead member's unpublished results); how many there were."""
        lock = self.lock
        freed = 0
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            for block in self._blocks():
                if self._words[block + B_OWNER] in owners:
                    self._release(block)
                    freed += 1
            return freed
        finally:
            lock.release()

    def free_all_but(self, handles: Container[int]) -> None:
        """Give back every block whose payload begins at none of these offsets.  When no member lives any more."""
        lock = self.lock
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            for block in self._blocks():
                if (
                    self._words[block + B_OWNER]
                    and self._base + block * WORD + BLOCK_HEADER_BYTES not in handles
                ):
                    self._release(block)
        finally:
            lock.release()

    def trim(self, most: int) -> int:
        """Give memory of free blocks back to the system, about ``most`` bytes of it at a time; how many bytes it was."""
        words, lock, given = self._words, self.lock, 0
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            if not words[A_MAGIC]:
                return 0
            for block in self._blocks():
                if words[block + B_OWNER] == 0 and given < most:
                    given += self._unback(block)
            self._rebuild()
            carved = page_up(words[A_CARVED])
            if words[A_RESERVED] > carved and given < most:
                end = words[A_RESERVED]
                words[A_RESERVED] = carved
                given += self._segment.discard(carved, end)
            return given
        finally:
            lock.release()

    def used(self) -> tuple[int, int]:
        """Blocks in use and the bytes that they occupy."""
        owners = self.owners()
        return sum(count for count, _ in owners.values()), sum(size for _, size in owners.values())

    def owners(self) -> dict[int, tuple[int, int]]:
        """For each owner word its blocks and the bytes that they occupy."""
        words, lock, found = self._words, self.lock, dict[int, tuple[int, int]]()
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            for block in self._blocks():
                if owner := words[block + B_OWNER]:
                    count, size = found.get(owner, (0, 0))
                    found[owner] = count + 1, size + words[block + B_BACKED]
            return found
        finally:
            lock.release()

    def backed(self) -> int:
        """Bytes of memory that the arena has, used and free."""
        words, lock = self._words, self.lock
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            blocks = sum(words[block + B_BACKED] for block in self._blocks())
            return ARENA_HEADER_BYTES + blocks + max(0, words[A_RESERVED] - words[A_CARVED])
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
                if block not in known or block in seen or _class_below(words[block + B_SIZE]) != size_class:
                    raise InternalError(f"free list {size_class} leads to {block}")
                seen.add(block)
                block = words[block + B_NEXT]
            listed = words[A_LISTED_W + size_class // _WORD_BITS] >> size_class % _WORD_BITS & 1
            if seen and not listed and not words[A_STALE]:
                raise InternalError(f"free list {size_class} of {len(seen)} blocks is marked as empty")
        for block in blocks:
            if words[block + B_BACKED] > words[block + B_SIZE]:
                raise InternalError(f"block {block} is backed beyond its end")

    # ---- taking

    def _allocate(self, size: int, owner: int) -> Handle | None:
        words, lock = self._words, self.lock
        need = max(_SMALLEST, -(-(size + BLOCK_HEADER_BYTES) // _ALIGN) * _ALIGN)
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            if words[A_STALE]:
                self._rebuild()
            elif not words[A_MAGIC]:
                self.create()
            words[A_STALE] = 1
            size_class = _class_of(need)
            block = words[A_FREE_W + size_class]
            if block and size_class < _SLAB_CLASS and words[block + B_BACKED] >= need:
                words[A_FREE_W + size_class] = words[block + B_NEXT]
            else:
                block = self._take(size_class, need)
            if block:
                generation = words[A_GENERATION] + 1
                words[A_GENERATION] = generation
                words[block + B_GENERATION] = generation
                words[block + B_OWNER] = owner
            words[A_STALE] = 0
            if not block:
                return None
            return Handle(self._base + block * WORD + BLOCK_HEADER_BYTES, generation, size)
        finally:
            lock.release()

    def _take(self, size_class: int, need: int) -> int:
        """A free block of which ``need`` bytes are backed, off its list; 0 when there is none.

        In the order of cost: its own class, a larger free block, new memory, and, when there is none, joined neighbours.
        """
        words = self._words
        small = size_class < _SLAB_CLASS
        block = self._pop(size_class) or self._split_next(size_class, _SLAB_CLASS if small else A_CLASSES)
        if not block and not small and words[A_FREED] >= _JOIN_AFTER and words[A_FREE_BYTES] > 2 * need:
            self._rebuild()
            words[A_STALE] = 1
            block = self._split_next(size_class, A_CLASSES)
        if not block and small:
            slab = self._carve(_SIZES[_SLAB_CLASS], SLAB)
            block = slab and self._cut(slab, _SIZES[size_class])
        if not block:
            block = self._carve(_SIZES[size_class], need) or self._split_next(size_class, A_CLASSES)
        if not block:
            self._rebuild()
            words[A_STALE] = 1
            block = (
                self._split_next(size_class, A_CLASSES)
                or self._carve(_SIZES[size_class], need)
                or self._pop_fitting(need)
                or self._carve(need, need)
            )
        if block and not self._back(block, need):
            self._push(block)
            return 0
        return block

    def _pop(self, size_class: int) -> int:
        """The first block of a free list, off the list."""
        block = self._words[A_FREE_W + size_class]
        if block:
            self._unlist(block, A_FREE_W + size_class, size_class)
        return block

    def _unlist(self, block: int, link: int, size_class: int) -> None:
        """Take a block off its list, in which word ``link`` leads to it."""
        words = self._words
        words[link] = words[block + B_NEXT]
        if size_class >= _SLAB_CLASS:
            words[A_FREE_BYTES] = words[A_FREE_BYTES] - words[block + B_SIZE]

    def _push(self, block: int) -> None:
        words, size = self._words, self._words[block + B_SIZE]
        size_class = _class_below(size)
        first = A_FREE_W + size_class
        following = words[first]
        words[block + B_NEXT] = following
        words[first] = block
        if not following:
            word, bit = A_LISTED_W + size_class // _WORD_BITS, 1 << size_class % _WORD_BITS
            if not words[word] & bit:
                words[word] = words[word] | bit
        if size_class >= _SLAB_CLASS:
            words[A_FREE_BYTES] = words[A_FREE_BYTES] + size

    def _split_next(self, size_class: int, below: int) -> int:
        """A block cut from the smallest free one of ``size_class`` or more, but under class ``below``."""
        words = self._words
        index, bits = divmod(size_class, _WORD_BITS)
        listed = words[A_LISTED_W + index] >> bits << bits
        while True:
            while not listed:
                index += 1
                if index > (A_CLASSES - 1) // _WORD_BITS:
                    return 0
                listed = words[A_LISTED_W + index]
            lowest = listed & -listed
            found = index * _WORD_BITS + lowest.bit_length() - 1
            if found >= below:
                return 0
            if block := self._pop(found):
                return self._cut(block, _SIZES[size_class])
            words[A_LISTED_W + index] = words[A_LISTED_W + index] & ~lowest
            listed ^= lowest

    def _pop_fitting(self, need: int) -> int:
        """A block of ``need`` bytes cut from a free one that is too small for the class of this size."""
        words, size_class = self._words, _class_below(need)
        link = A_FREE_W + size_class
        while block := words[link]:
            if words[block + B_SIZE] >= need:
                self._unlist(block, link, size_class)
                return self._cut(block, need)
            link = block + B_NEXT
        return 0

    def _cut(self, block: int, size: int) -> int:
        """Make a block ``size`` bytes long; what is left becomes a free block.  0 if there is no memory."""
        words = self._words
        whole, backed = words[block + B_SIZE], words[block + B_BACKED]
        if whole - size < _SMALLEST:
            return block
        rest = block + size // WORD
        if backed < size + BLOCK_HEADER_BYTES:
            page = rest * WORD & -_PAGE
            end = page_up(rest * WORD + BLOCK_HEADER_BYTES)
            if not self._reserve(page, min(end, words[A_LIMIT])):
                self._push(block)
                return 0
            rest_backed = min(end - rest * WORD, whole - size)
        else:
            rest_backed = backed - size
            words[block + B_BACKED] = size
        words[rest + B_OWNER] = 0
        words[rest + B_GENERATION] = 0
        words[rest + B_SIZE] = whole - size
        words[rest + B_BACKED] = rest_backed
        words[block + B_SIZE] = size
        self._push(rest)
        return block

    def _carve(self, size: int, need: int) -> int:
        """A new block behind the last, of which at least ``need`` bytes are backed."""
        words = self._words
        start, reserved = words[A_CARVED], words[A_RESERVED]
        end, limit = start + size, words[A_LIMIT]
        if end > limit:
            return 0
        backed_to = max(reserved, start & -_PAGE)
        want = min(limit, page_up(start + need))
        if want > backed_to:
            if not self._reserve(backed_to, want):
                return 0
            words[A_RESERVED] = backed_to = want
        block = start // WORD
        words[block + B_OWNER] = 0
        words[block + B_GENERATION] = 0
        words[block + B_SIZE] = size
        words[block + B_BACKED] = min(size, backed_to - start)
        words[A_CARVED] = end
        return block

    def _back(self, block: int, need: int) -> bool:
        """Have ``need`` bytes of a block backed with memory; False if there is none."""
        words = self._words
        backed = words[block + B_BACKED]
        if backed >= need:
            return True
        start = block * WORD
        end = min(page_up(start + need), words[A_LIMIT])
        if not self._reserve(start + backed & -_PAGE, end):
            return False
        words[block + B_BACKED] = min(end - start, words[block + B_SIZE])
        return True

    def _reserve(self, start: int, end: int) -> bool:
        try:
            reserve(self._segment.fd, start, end - start)
        except SharedMemoryFull:
            return False
        return True

    # ---- giving back

    def _release(self, block: int) -> None:
        words = self._words
        if words[A_STALE]:
            words[block + B_OWNER] = 0
            return
        words[A_STALE] = 1
        words[block + B_OWNER] = 0
        self._push(block)
        if words[block + B_SIZE] >= SLAB:
            words[A_FREED] = words[A_FREED] + 1
        words[A_STALE] = 0

    def _unback(self, block: int) -> int:
        """Give back the whole pages of a free block behind its header."""
        words, start = self._words, block * WORD
        first, end = page_up(start + BLOCK_HEADER_BYTES), start + words[block + B_BACKED] & -_PAGE
        if end <= first:
            return 0
        words[block + B_BACKED] = first - start
        return self._segment.discard(first, end)

    # ---- the chain

    def _blocks(self) -> Iterator[int]:
        """The word index of every block's header."""
        words = self._words
        at, end = ARENA_HEADER_BYTES // WORD, words[A_CARVED] // WORD
        while at < end:
            yield at
            at += self._size_of(at) // WORD

    def _size_of(self, block: int) -> int:
        size = self._words[block + B_SIZE]
        if size < _SMALLEST:
            raise InternalError(f"arena block {block} has {size} bytes")
        return size

    def _rebuild(self) -> None:
        """Derive the free lists from the chain, joining free neighbours; what is free at its end is uncarved."""
        words = self._words
        words[A_STALE] = 1
        for word in range(A_LISTED_W, A_LISTED_W + -(-A_CLASSES // _WORD_BITS)):
            words[word] = 0
        for word in range(A_FREE_W, A_FREE_W + A_CLASSES):
            words[word] = 0
        words[A_FREE_BYTES] = 0
        at, end, free = ARENA_HEADER_BYTES // WORD, words[A_CARVED] // WORD, 0
        while at < end:
            size = self._size_of(at)
            if words[at + B_OWNER]:
                if free:
                    self._push(free)
                free = 0
            elif free:
                self._join(free, at)
            else:
                free = at
            at += size // WORD
        if free:
            words[A_RESERVED] = max(
                free * WORD + words[free + B_BACKED] & -_PAGE,
                words[A_RESERVED] if words[free + B_BACKED] == words[free + B_SIZE] else 0,
            )
            words[A_CARVED] = free * WORD
        words[A_FREED] = 0
        words[A_STALE] = 0

    def _join(self, block: int, following: int) -> None:
        """Make one of two free neighbours.  A small gap in what is backed is filled; else the second's memory goes."""
        words, start = self._words, block * WORD
        size, backed, more = words[block + B_SIZE], words[block + B_BACKED], words[following + B_BACKED]
        words[block + B_SIZE] = size + words[following + B_SIZE]
        if backed == size or (
            size - backed <= size // _LEAST_GAP
            and self._reserve(start + backed & -_PAGE, page_up(start + size))
        ):
            words[block + B_BACKED] = size + more
        else:
            first, end = max(page_up(start + backed), start + size & -_PAGE), start + size + more & -_PAGE
            if end > first:
                self._segment.discard(first, end)

    def _block_of(self, handle: Handle) -> int:
        block = (handle.offset - self._base - BLOCK_HEADER_BYTES) // WORD
        if not ARENA_HEADER_BYTES <= block * WORD < self._words[A_LIMIT]:
            raise InternalError(f"arena handle {handle} points outside")
        return block

    def _is_of(self, block: int, handle: Handle) -> bool:
        """Whether the block is in use, under this handle."""
        words = self._words
        if block * WORD >= words[A_CARVED]:
            return False
        return words[block + B_GENERATION] == handle.generation and words[block + B_OWNER] != 0

    def _check_handle(self, handle: Handle) -> None:
        words, block = self._words, self._block_of(handle)
        if not block * WORD < words[A_CARVED]:
            raise InternalError(f"arena handle {handle} points outside")
        if not self._is_of(block, handle):
            raise InternalError(f"arena handle {handle} is of an older generation")
        if handle.size + BLOCK_HEADER_BYTES > words[block + B_SIZE]:
            raise InternalError(f"arena handle {handle} is larger than its block")
