"""The blocks of one ring: an arena in shared memory and, for what finds no room there, one in a file.

The file lies in the folder for temporary files, has no name and is mapped like the other, so a container with 64 MiB
of /dev/shm works all the same, at the speed of the page cache.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from repartir.shm.arena import FUNCTION_OWNER, KEPT, RESULT, Arena, Handle
from repartir.shm.layout import owner_of_functions, spawner_of
from repartir.shm.parts import Storable
from repartir.shm.segment import Segment


class Opened(NamedTuple):
    """A block's parts where they lie.  The block may be given back once ``exporter`` has died.

    ``buffers`` and all that is made of them keep ``exporter`` alive; ``meta`` does not.
    """

    meta: memoryview
    buffers: list[memoryview]
    exporter: Any


class Usage(NamedTuple):
    """What blocks hold, as numbers of blocks and bytes of memory."""

    arguments: tuple[int, int]
    results: tuple[int, int]
    kept: tuple[int, int]
    functions: tuple[int, int]

    @property
    def blocks(self) -> int:
        return sum(count for count, _ in self)

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self)


NOTHING = Usage((0, 0), (0, 0), (0, 0), (0, 0))


class BlockStore:
    """Arenas, the fast one first, behind one interface; ``Arena`` says what its methods do."""

    __slots__ = ("_segments", "arenas")

    def __init__(self, arenas: Sequence[Arena], segments: Sequence[Segment]) -> None:
        self.arenas = tuple(arenas)
        self._segments = tuple(segments)

    @property
    def limit(self) -> int:
        """Bytes that blocks may take in shared memory."""
        return self.arenas[0].limit

    def store(self, parts: Sequence[Storable], owner: int) -> Handle | None:
        """Copy ``parts`` into a new block of ``owner``; None when neither memory nor file has room."""
        return self.store_in_memory(parts, owner) or self.arenas[1].store(parts, owner)

    def store_in_memory(self, parts: Sequence[Storable], owner: int) -> Handle | None:
        """The same; None when shared memory is full."""
        return self.arenas[0].store(parts, owner)

    def load(self, handle: Handle) -> list[bytearray]:
        """Private copies of the parts of a block."""
        return self.arenas[handle.place].load(handle)

    def open(self, handle: Handle) -> Opened:
        """The parts of a block without a copy: writable, and valid until the block is given back."""
        import numpy

        place = handle.place
        (start, end), *extents = self.arenas[place].extents(handle)
        data = self._segments[place].data
        meta = memoryview(data)[start:end]
        if not extents:
            return Opened(meta, [], None)
        base, last = extents[0][0], extents[-1][1]
        exporter: Any = numpy.frombuffer(data, numpy.uint8, last - base, base)
        view = memoryview(exporter)
        return Opened(meta, [view[start - base : end - base] for start, end in extents], exporter)

    def peek(self, handle: Handle) -> list[memoryview]:
        """The parts of a block where they lie, for as long as somebody else keeps it: nothing here does."""
        place = handle.place
        view = memoryview(self._segments[place].data)
        return [view[start:end] for start, end in self.arenas[place].extents(handle)]

    def extent(self, handle: Handle) -> tuple[weakref.ref[mmap.mmap], int, int]:
        """The mapping in which a block's payload lies, where it begins and where it ends."""
        start = handle.start
        return weakref.ref(self._segments[handle.place].data), start, start + handle.size

    def free(self, handle: Handle, *, kept: bool = False) -> bool:
        """Give a block back; False if it was given back before."""
        return self.arenas[handle.place].free(handle, kept=kept)

    def keep(self, handle: Handle, row: int) -> bool:
        """The arguments in a block outlive their task, in the member of ``row``."""
        return self.arenas[handle.place].keep(handle, row)

    def pass_on(self, handle: Handle, owner: int) -> bool:
        """A block belongs to another from now on; False if it was given back before."""
        return self.arenas[handle.place].pass_on(handle, owner)

    def holds(self, handle: Handle) -> bool:
        """Whether the block is in use under this handle: then what was read of it before this call was whole."""
        return self.arenas[handle.place].holds(handle)

    def free_owned(self, *owners: int) -> int:
        """Give back every block of ``owners``; how many there were."""
        return sum(arena.free_owned(*owners) for arena in self.arenas)

    @property
    def free_bytes(self) -> int:
        """Bytes in large free blocks.  A hint, read without locks."""
        return sum(arena.free_bytes for arena in self.arenas)

    def trim(self, most: int) -> int:
        """Give memory that no block uses back to the system; how many bytes it was, 0 when nothing is left to give."""
        return sum(arena.trim(most) for arena in self.arenas)

    def keep_only(self, handles: Iterable[Handle]) -> None:
        """Give back every other block, and its memory to the system.  When no member lives any more."""
        offsets = {handle.offset for handle in handles}
        for arena in self.arenas:
            arena.free_all_but(offsets)
            while arena.trim(1 << 40):
                pass

    def usage(self) -> tuple[Usage, Usage]:
        """What blocks hold in memory, and in the file."""
        memory, spilled = (_usage(arena) for arena in self.arenas)
        return memory, spilled

    def used(self) -> tuple[int, int]:
        """Blocks in use and the bytes that they occupy."""
        used = [arena.used() for arena in self.arenas]
        return sum(blocks for blocks, _ in used), sum(size for _, size in used)

    def make_private(self) -> None:
        """In a forked child: what it writes to views of blocks stays its own."""
        for segment in self._segments:
            segment.make_private()


def _usage(arena: Arena) -> Usage:
    held = [[0, 0], [0, 0], [0, 0], [0, 0]]
    for owner, (count, size) in arena.owners().items():
        is_function = owner in (FUNCTION_OWNER, owner_of_functions(spawner_of(owner)))
        kind = 1 if owner & RESULT else 2 if owner & KEPT else 3 if is_function else 0
        held[kind][0] += count
        held[kind][1] += size
    return Usage(*((count, size) for count, size in held))


class BlockRef(weakref.ref[Any]):
    """A weak reference to an exporter that knows the block."""

    __slots__ = ("handle",)
    handle: Handle


def watch(exporter: Any, handle: Handle, dead: deque[BlockRef]) -> BlockRef:
    """Have the reference that this gives appended to ``dead`` when the last view of the block has died.

    By C code alone, so no signal handler's exception can get lost in between.  Keep the reference until then.
    """
    ref = BlockRef(exporter, dead.append)
    ref.handle = handle
    return ref


def when_dead(exporter: Any, call: Any, *args: Any) -> None:
    """Have ``call(*args)`` called when the last view of an opened block has died; from any thread, so without locks.

    As long as no signal handler raises right then: for what may get lost.
    """
    weakref.finalize(exporter, call, *args).atexit = False
