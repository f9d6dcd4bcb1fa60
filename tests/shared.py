"""One shared structure by itself, in a segment of its own, and forked processes that work on it."""

from __future__ import annotations

import mmap
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from repartir.errors import SharedMemoryFull
from repartir.shm import segment
from repartir.shm.arena import Arena
from repartir.shm.deque import TaskDeque
from repartir.shm.layout import (
    A_DIRTY_W,
    A_LOCK,
    ARENA_HEADER_BYTES,
    D_DIRTY_W,
    DEQUE_HEADER_BYTES,
    H_PARKING_DIRTY_W,
    H_PARKING_LOCK,
    HEADER_BYTES,
    O_DIRTY_W,
    OUTBOX_HEADER_BYTES,
    R_SEMAPHORE,
    ROW_BYTES,
    SLOT_BYTES,
    WORD,
)
from repartir.shm.lock import Lock, LockFactory, nothing_to_repair
from repartir.shm.outbox import Outbox
from repartir.shm.parking import ParkingLot, Semaphore
from repartir.shm.segment import Segment, open_unlinked, shm_dir

LIMIT_S = 20.0
LOCK_KINDS = ("pthread", "fcntl")


class Room:
    """A segment with locks of one kind: what a test makes its structure in.

    Its words from byte `spare` on belong to no structure: the test's own, shared with the processes that it forks.
    """

    def __init__(self, lock_kind: str = "pthread", size: int = 1 << 20) -> None:
        self.size = size
        self.spare = size - (1 << 16)
        self.segment = Segment.create(size)
        self.lock_fd = open_unlinked(shm_dir()) if lock_kind == "fcntl" else None
        self.words = self.segment.words
        self._factory = LockFactory(self.segment, self.lock_fd)
        self._locks: list[Lock] = []

    def word(self, index: int) -> int:
        """The index in `words` of the test's own word number `index`."""
        assert 0 <= index < 1 << 13
        return self.spare // WORD + index

    def lock(self, offset: int, dirty: int) -> Lock:
        made = self._factory(offset, dirty)
        self._locks.append(made)
        return made

    def deque(self, capacity: int = 8, claims: int = 16, words: Any = None) -> TaskDeque:
        """A deque whose claim words are the test's own words 0 to `claims` - 1."""
        assert DEQUE_HEADER_BYTES + capacity * SLOT_BYTES <= self.spare
        lock = self.lock(0, D_DIRTY_W)
        lock.create()
        own = [self.word(index) for index in range(claims)]
        return TaskDeque(words or self.words, self.segment.data, 0, capacity, lock, own)

    def outbox(self, size: int = 1024, nth: int = 0, words: Any = None) -> Outbox:
        """The `nth` of several outboxes of `size` bytes."""
        base = nth * (OUTBOX_HEADER_BYTES + size)
        assert base + OUTBOX_HEADER_BYTES + size <= self.spare
        lock = self.lock(base, base // WORD + O_DIRTY_W)
        lock.create()
        return Outbox(words or self.words, self.segment.data, base, size, lock)

    def lot(self, members: int, words: Any = None) -> tuple[ParkingLot, list[Semaphore]]:
        assert HEADER_BYTES + members * ROW_BYTES <= self.spare
        lock = self.lock(H_PARKING_LOCK, H_PARKING_DIRTY_W)
        lock.create()
        semaphores = [
            Semaphore(self.segment, HEADER_BYTES + row * ROW_BYTES + R_SEMAPHORE) for row in range(members)
        ]
        for semaphore in semaphores:
            semaphore.create()
        return ParkingLot(words or self.words, lock, [semaphore.post for semaphore in semaphores]), semaphores

    def close(self) -> None:
        self.segment.close()
        if self.lock_fd is not None:
            os.close(self.lock_fd)
        for lock in self._locks:
            lock.repair = nothing_to_repair  # it leads back to its structure: a cycle


class ArenaRoom:
    """An arena in a segment of its own; `limit` bytes is as far as it grows."""

    def __init__(self, limit: int = 1 << 22, lock_kind: str = "pthread") -> None:
        self.segment = Segment.create(limit, reserved=ARENA_HEADER_BYTES)
        self.lock_fd = open_unlinked(shm_dir()) if lock_kind == "fcntl" else None
        lock = LockFactory(self.segment, self.lock_fd)(A_LOCK, A_DIRTY_W)
        lock.create()
        self.words = self.segment.words
        self.arena = Arena(self.segment, lock)
        self.arena.create()

    def close(self) -> None:
        self.segment.close()
        if self.lock_fd is not None:
            os.close(self.lock_fd)
        self.arena.lock.repair = nothing_to_repair  # it leads back to the arena: a cycle


def fill_shared_memory(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As if /dev/shm had no room left; what spills goes to `folder`."""

    def full(fd: int, offset: int, size: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").startswith("/dev/shm"):
            raise SharedMemoryFull("no room")

    monkeypatch.setattr(segment, "reserve", full)
    monkeypatch.setenv("TMPDIR", str(folder))


@contextmanager
def room(lock_kind: str = "pthread", size: int = 1 << 20) -> Iterator[Room]:
    made = Room(lock_kind, size)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def arena_room(limit: int = 1 << 22, lock_kind: str = "pthread") -> Iterator[ArenaRoom]:
    made = ArenaRoom(limit, lock_kind)
    try:
        yield made
    finally:
        made.close()


class Interrupted(BaseException):
    """What `Fuse` raises."""


class Fuse:
    """Words that raise `Interrupted` instead of the access number `left` (from 0), as a signal handler may."""

    def __init__(self, words: Any) -> None:
        self._words = words
        self.left = -1

    def _burn(self) -> None:
        if self.left == 0:
            self.left = -1
            raise Interrupted
        self.left -= self.left > 0

    def __getitem__(self, index: int) -> int:
        self._burn()
        value: int = self._words[index]
        return value

    def __setitem__(self, index: int, value: int) -> None:
        self._burn()
        self._words[index] = value


class Deadly(Fuse):
    """Words that kill this process instead of the access number `left`."""

    def _burn(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= self.left > 0


class Forked:
    """A forked process that runs `target(*args)` and ends with status 0, or 1 after an exception (on stderr)."""

    def __init__(self, target: Callable[..., object], *args: object) -> None:
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                target(*args)
                status = 0
            except BaseException:  # noqa: BLE001 - a child never returns into the test
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)

    def wait(self, timeout_s: float = LIMIT_S) -> int:
        """The exit code (negative: the signal); AssertionError, after a dump of its stacks, when it goes on."""
        if self.status is None:
            fd = os.pidfd_open(self.pid)
            try:
                poller = select.poll()
                poller.register(fd, select.POLLIN)
                ended = bool(poller.poll(timeout_s * 1000))
                if not ended:
                    os.kill(self.pid, signal.SIGABRT)
                    poller.poll(1000)
            finally:
                os.close(fd)
            if not ended:
                self.kill()
                raise AssertionError(f"process {self.pid} did not end within {timeout_s} s")
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def join(self, timeout_s: float = LIMIT_S) -> None:
        """`wait`, and AssertionError unless it ended well."""
        status = self.wait(timeout_s)
        assert status == 0, f"process {self.pid} ended with {status}"

    def kill(self) -> None:
        """SIGKILL, and gone when this returns."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class Family:
    """The forked processes of one test."""

    def __init__(self) -> None:
        self.members: list[Forked] = []

    def fork(self, target: Callable[..., object], *args: object) -> Forked:
        child = Forked(target, *args)
        self.members.append(child)
        return child

    def join(self, timeout_s: float = LIMIT_S) -> None:
        """Wait for all; AssertionError unless each ended well."""
        until = time.monotonic() + timeout_s
        for child in self.members:
            child.join(max(0.1, until - time.monotonic()))

    def kill(self) -> None:
        for child in self.members:
            child.kill()


@contextmanager
def family() -> Iterator[Family]:
    """Forked processes that do not outlive the block."""
    children = Family()
    try:
        yield children
    finally:
        children.kill()


class Gate:
    """A pipe to wait at until another process opens it; it also opens when every holder of its other end is dead."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def open(self, count: int = 1) -> None:
        os.write(self._write, bytes(count))

    def wait(self, timeout_s: float = LIMIT_S) -> None:
        poller = select.poll()
        poller.register(self._read, select.POLLIN)
        assert poller.poll(timeout_s * 1000), f"nobody opened the gate within {timeout_s} s"
        os.read(self._read, 1)

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


@contextmanager
def gates(count: int) -> Iterator[list[Gate]]:
    made = [Gate() for _ in range(count)]
    try:
        yield made
    finally:
        for gate in made:
            gate.close()


class Threads:
    """Threads whose exceptions are the test's."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._raised: list[BaseException] = []

    def start(self, target: Callable[..., object], *args: object) -> None:
        thread = threading.Thread(target=self._run, args=(target, *args), daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self, timeout_s: float = LIMIT_S) -> None:
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
            assert not thread.is_alive(), f"{thread} did not end within {timeout_s} s"
        for raised in self._raised:
            raise raised

    def _run(self, target: Callable[..., object], *args: object) -> None:
        try:
            target(*args)
        except BaseException as exc:  # noqa: BLE001 - raised by `join`
            self._raised.append(exc)


class Patience:
    """Called by a loop that found nothing to do: it leaves the core to others, and fails when that goes on for long."""

    def __init__(self, timeout_s: float = LIMIT_S) -> None:
        self._end = time.monotonic() + timeout_s

    def __call__(self) -> None:
        assert time.monotonic() < self._end, "nothing moves any more"
        time.sleep(50e-6)


class Tally:
    """Counters shared with forked processes: `width` for each of `writers`, each of which counts in its own only."""

    def __init__(self, writers: int, width: int) -> None:
        self._width = width
        self._memory = mmap.mmap(-1, max(1, writers * width))

    def count(self, writer: int, which: int) -> None:
        self._memory[writer * self._width + which] += 1

    def of(self, writer: int) -> bytes:
        start = writer * self._width
        return self._memory[start : start + self._width]

    def total(self, which: int) -> int:
        return sum(self._memory[which :: self._width])

    def totals(self) -> list[int]:
        return [self.total(which) for which in range(self._width)]


def until(condition: Callable[[], object], timeout_s: float = LIMIT_S) -> None:
    """Yield the core until `condition()`; for conditions that nothing can be waited on for."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{condition} did not come true within {timeout_s} s"
        os.sched_yield()
