"""The board: everything of one ring, laid out in its segments, as objects.

The client makes it, members inherit it by fork, a fresh interpreter attaches to the descriptors that it is passed.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import mmap
import os
from collections.abc import Iterable, Sequence
from typing import NoReturn

from repartir.errors import InternalError, SharedMemoryFull
from repartir.shm import layout
from repartir.shm.arena import Arena, arena_limit
from repartir.shm.blocks import BlockStore
from repartir.shm.cells import CellTable, Claims, ClaimStack
from repartir.shm.deque import TaskDeque
from repartir.shm.hands import Hand, is_there_a_rest, repair
from repartir.shm.layout import WORD, RingLayout
from repartir.shm.lock import Lock, LockFactory, nothing_to_repair, robust_mutex_works
from repartir.shm.outbox import Outbox
from repartir.shm.parking import ParkingLot, Semaphore
from repartir.shm.segment import Segment, open_unlinked, shm_dir, spill_dir

_ARENA_LOCKS = 1 << 40
"""Bytes of the lock file (where there is one) that stand for the arenas' locks lie from here on."""
_LARGEST_OVERFLOW = 1 << 40


class Kind(enum.IntEnum):
    """What a member is.  Members take tasks from rows of their own kind only."""

    NONE = 0
    CPU = 1
    GPU = 2
    BRIDGE = 3


class MemberState(enum.IntEnum):
    """How far a member is."""

    ABSENT = 0
    STARTING = 1
    INITIALIZING = 2
    READY = 3
    RETIRED = 4


class ClientSleep(enum.IntEnum):
    """Whether a member that answers must wake the client."""

    AWAKE = 0
    PARKED = 1
    NAPS = 2
    """It looks again within a moment; only a member that runs out of work wakes it."""


class Row:
    """One member's row: indices of its words."""

    __slots__ = (
        "baseline",
        "began",
        "blocked",
        "claim",
        "condemned",
        "index",
        "kind",
        "pid",
        "runs",
        "started",
        "state",
        "steals",
    )

    def __init__(self, index: int, base: int) -> None:
        first = base // WORD
        self.index = index
        self.kind = first + layout.R_KIND
        self.pid = first + layout.R_PID
        self.state = first + layout.R_STATE
        self.claim = first + layout.R_CLAIM
        self.started = first + layout.R_STARTED
        self.runs = first + layout.R_RUNS
        self.steals = first + layout.R_STEALS
        self.blocked = first + layout.R_BLOCKED
        self.began = first + layout.R_BEGAN
        self.condemned = first + layout.R_CONDEMNED
        self.baseline = first + layout.R_BASELINE


class BoardClosed(InternalError):  # noqa: N818
    """A part of a closed board was asked for."""


class Board:
    """Rows, deques, outboxes, parking lot and blocks of one ring.  Closed, it has none: ``BoardClosed``."""

    def __init__(
        self, ring: Segment, arenas: Sequence[Segment], shape: RingLayout, lock_fd: int | None
    ) -> None:
        self.segments = (ring, *arenas)
        self.shape = shape
        self.lock_fd = lock_fd
        self.words = ring.words
        self.rows = [Row(index, shape.row(index)) for index in range(shape.rows)]
        make = LockFactory(ring, lock_fd)
        self.cells = [self._cell_table(shape.nest(index), make) for index in range(shape.rows)]
        self.stacks = [
            ClaimStack(ring.words, row.claim, cells.claims, shape.depth)
            for row, cells in zip(self.rows, self.cells, strict=True)
        ]
        claims = Claims(self.stacks)
        self.semaphores = [
            Semaphore(ring, shape.row(index) + layout.R_SEMAPHORE) for index in range(shape.rows)
        ]
        self._parking_lock = make(layout.H_PARKING_LOCK, layout.H_PARKING_DIRTY_W)
        self.parking = ParkingLot(ring.words, self._parking_lock, [sem.post for sem in self.semaphores])
        self.lanes = [
            self._deque(shape.lane(index), shape.capacity, make, claims) for index in range(shape.rows)
        ]
        self.spawns = [
            self._deque(shape.spawn(index), shape.spawn_capacity, make, claims) for index in range(shape.rows)
        ]
        self.outboxes = [self._outbox(shape.outbox(index), make) for index in range(shape.rows)]
        self._splitting_lock = make(layout.H_SPLITTING_LOCK, layout.H_SPLITTING_DIRTY_W)
        self.hands = [
            Hand(
                ring.words,
                ring.data,
                level * shape.rows + row.index,
                shape.hand(row.index, level),
                shape.buffer_bytes,
                self._splitting_lock,
                row.claim,
            )
            for level in layout.LEVELS
            for row in self.rows
        ]
        """Those for normal ranges by row, then those for high ones, then those for low ones."""
        self._splitting_lock.repair = functools.partial(repair, self.hands)
        self.mailboxes = [
            self._deque(shape.mailbox(index), shape.mailbox_capacity, make, claims)
            for index in range(shape.rows)
        ]
        self.high = self._deque(shape.high_lane, shape.shared_capacity, make, claims)
        self.low = self._deque(shape.low_lane, shape.shared_capacity, make, claims)
        self.deques = (*self.lanes, *self.spawns, *self.mailboxes, self.high, self.low)
        make_in_arena = LockFactory(arenas[0], lock_fd, first_byte=_ARENA_LOCKS)
        locks = (
            make_in_arena(layout.A_LOCK, layout.A_DIRTY_W),
            make_in_arena(layout.A_OVERFLOW_LOCK, layout.A_OVERFLOW_DIRTY_W),
        )
        self.blocks = BlockStore(
            [
                Arena(arena, lock, place)
                for place, (arena, lock) in enumerate(zip(arenas, locks, strict=True))
            ],
            arenas,
        )

    @classmethod
    def create(cls, rows: int, limit: int | None = None) -> Board:
        """Make the segments of a ring for ``rows`` members, whose blocks take at most ``limit`` bytes of shared memory.

        Raises ``SharedMemoryFull``.
        """
        shape = RingLayout(rows)
        limit = arena_limit() if limit is None else min(limit, arena_limit()) // mmap.PAGESIZE * mmap.PAGESIZE
        with contextlib.ExitStack() as undo:
            ring = Segment.create(shape.total_bytes)
            undo.callback(ring.close)
            arena = Segment.create(limit, reserved=layout.ARENA_HEADER_BYTES)
            undo.callback(arena.close)
            overflow = _overflow()
            undo.callback(overflow.close)
            lock_fd = None
            if not robust_mutex_works():
                lock_fd = open_unlinked(shm_dir())
                undo.callback(os.close, lock_fd)
            board = cls(ring, (arena, overflow), shape, lock_fd)
            board._format()
            undo.pop_all()
        return board

    @classmethod
    def attach(cls, ring_fd: int, arena_fds: Sequence[int], lock_fd: int | None) -> Board:
        """Map the segments of a ring whose descriptors were passed to this process."""
        ring, arenas = Segment.attach(ring_fd), [Segment.attach(fd) for fd in arena_fds]
        shape = _shape_of(ring)
        if shape is None or arenas[0].words[layout.A_MAGIC] != layout.ARENA_MAGIC:
            raise InternalError("the segment passed is no ring of this version of Repartir")
        return cls(ring, arenas, shape, lock_fd)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise BoardClosed(f"the board is closed and has no {name}")

    def descriptors(self) -> list[int]:
        """The descriptors that ``attach`` needs in another process."""
        fds = [segment.fd for segment in self.segments]
        return fds if self.lock_fd is None else [*fds, self.lock_fd]

    def close(self) -> None:
        """Close the descriptors and let go of the memory; the board is of no use afterwards."""
        for segment in self.segments:
            segment.close()
        if self.lock_fd is not None:
            os.close(self.lock_fd)
        for lock in self._locks():
            lock.repair = nothing_to_repair  # it led back to the structure: a cycle
        vars(self).clear()

    def reset_row(self, index: int) -> None:
        """Make a dead member's row ready for its successor.  Its lane and its mailbox keep their tasks."""
        row = self.rows[index]
        self.parking.forget(index)
        self.stacks[index].clear()
        for word in (row.pid, row.state, row.claim, row.started, row.blocked, row.began, row.condemned):
            self.words[word] = 0
        for hand in self.hands_of(index):
            hand.reset()
        self.semaphores[index].create()

    def hands_of(self, index: int) -> list[Hand]:
        """The hands of one member, by priority."""
        return self.hands[index :: len(self.rows)]

    def condemn(self, index: int, word: int) -> bool:
        """Whether the member of this row may be killed at no other task's expense: it is still at task ``word``.

        From now on it begins no other task but ends instead.  When this is False it is not condemned (any more).
        """
        row, words = self.rows[index], self.words
        words[row.condemned] = word
        self.lock_and_unlock_all()  # a claim that is made from now on is made by a member that sees the word above
        if words[row.claim] == word:
            return True
        words[row.condemned] = 0
        return False

    def lock_and_unlock_all(self) -> None:
        """Take every lock on tasks once, so that the repairs which a death calls for are done."""
        for deque in self.deques:
            deque.is_empty()
        is_there_a_rest(self.hands[:1])

    @property
    def closing(self) -> bool:
        return bool(self.words[layout.H_CLOSING])

    def set_closing(self) -> None:
        self.words[layout.H_CLOSING] = 1

    def set_client_sleep(self, how: ClientSleep) -> None:
        self.words[layout.H_CLIENT_SLEEP] = how

    def _locks(self) -> list[Lock]:
        deques = [deque.lock for deque in self.deques]
        arenas = [arena.lock for arena in self.blocks.arenas]
        outboxes, cells = [it.lock for it in self.outboxes], [it.lock for it in self.cells]
        return [self._parking_lock, self._splitting_lock, *arenas, *deques, *outboxes, *cells]

    def _format(self) -> None:
        for lock in self._locks():
            lock.create()
        for semaphore in self.semaphores:
            semaphore.create()
        self.blocks.arenas[
            0
        ].create()  # the overflow by whoever needs it first: writing to a file's page takes milliseconds
        words = self.words
        words[layout.H_ROWS] = self.shape.rows
        words[layout.H_VERSION] = layout.VERSION
        words[layout.H_MAGIC] = layout.MAGIC

    def _deque(self, base: int, capacity: int, make: LockFactory, claims: Iterable[int]) -> TaskDeque:
        ring = self.segments[0]
        lock = make(base, base // WORD + layout.D_DIRTY_W)
        return TaskDeque(ring.words, ring.data, base, capacity, lock, claims)

    def _outbox(self, base: int, make: LockFactory) -> Outbox:
        ring = self.segments[0]
        lock = make(base, base // WORD + layout.O_DIRTY_W)
        return Outbox(ring.words, ring.data, base, self.shape.outbox_bytes, lock)

    def _cell_table(self, base: int, make: LockFactory) -> CellTable:
        ring = self.segments[0]
        lock = make(base, base // WORD + layout.N_DIRTY_W)
        return CellTable(ring.words, ring.data, base, self.shape.depth, self.shape.cells, lock)


def _overflow() -> Segment:
    """The segment for blocks that find no room in shared memory; without room for any where there is no folder for it."""
    folder = spill_dir()
    try:
        limit = min(arena_limit(folder), _LARGEST_OVERFLOW)
        return Segment.create(limit, reserved=layout.ARENA_HEADER_BYTES, folder=folder)
    except SharedMemoryFull:
        return Segment.create(layout.ARENA_HEADER_BYTES)


def _shape_of(ring: Segment) -> RingLayout | None:
    """The layout that a segment's header names, None unless it is one of ours and fits the segment."""
    words = ring.words
    if ring.size < layout.HEADER_BYTES or words[layout.H_MAGIC] != layout.MAGIC:
        return None
    if words[layout.H_VERSION] != layout.VERSION or not 1 <= words[layout.H_ROWS] <= layout.MAX_ROWS:
        return None
    shape = RingLayout(words[layout.H_ROWS])
    return shape if shape.total_bytes == ring.size else None
