"""Locks in shared memory that survive their holder.

``PthreadLock`` is a process-shared robust ``pthread_mutex``; ``FcntlLock`` does the same with a record lock where the C
library has no robust mutexes (macOS).  Both are used in one way only, inline, because a signal handler or a finalizer
can raise between any two bytecodes:

    try:
        if code := lock.try_acquire():      # 0: taken
            lock.wait(code)
        ...                         # abort-safe: invisible until one commit store, which comes last
    finally:
        lock.release()              # harmless when not the owner

A taker that follows a dead owner runs ``repair`` of the structure before it goes on: ``try_acquire`` then says
``EOWNERDEAD``, holds the lock, and leaves the repair to ``wait``.  An exception of a signal handler in just that moment
leaves a mutex that nobody can take any more: every taker then gets an ``InternalError``, and the executor breaks.  A
thread that takes a lock which it holds (from a signal handler or a finalizer) gets an ``InternalError`` instead of a
deadlock; the ``release`` that follows is not meant for the section that it interrupted, and leaves that its lock.
"""

from __future__ import annotations

import collections
import ctypes
import errno
import fcntl
import functools
import itertools
import operator
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn, Protocol

from repartir.errors import InternalError
from repartir.shm.clib import Timespec, holding_gil, releasing_gil
from repartir.shm.layout import LOCK_BYTES
from repartir.shm.segment import Segment
from repartir.shm.words import Words

_SLICE_S = 0.2  # longest sleep in the C library, so that Python's signal handlers get through
_SPINS = 64
_SELF_TEST_S = 1.0
_REPAIRS = 100  # more are no interruptions, but an error of the repair's own
_TAKEN_AGAIN = "a shared lock was taken again by its owner (from a signal handler or a finalizer)"
_SHARED, _ROBUST, _ERRORCHECK = 1, 1, 2
EOWNERDEAD = getattr(errno, "EOWNERDEAD", 130)


class Lock(Protocol):
    """What the structures of this package need of a lock."""

    repair: Callable[[], None]

    @property
    def try_acquire(self) -> Callable[[], int]: ...

    @property
    def release(self) -> Callable[[], object]: ...  # looked up for each call: after a refusal it is another

    def wait(self, code: int) -> None: ...

    def create(self) -> None: ...


def nothing_to_repair() -> None:
    """For structures whose every commit is one store."""


class _Iterable:
    """Iterating over it calls what its ``__iter__`` was set to."""

    __slots__ = ("__iter__",)

    def __init__(self, make: Callable[[], Iterator[object]]) -> None:
        self.__iter__ = make


def _in_turn(*calls: Callable[[], object]) -> Callable[[], object]:
    """A function that makes all of ``calls``, up to the first that returns False, and runs no bytecode for it.

    Python looks for signals when it enters a function of its own, so in a ``finally`` a handler that raises would keep
    such a function from doing anything; this one is C throughout.
    """
    results = _Iterable(functools.partial(map, operator.call, calls))
    not_false = functools.partial(operator.is_not, False)
    return functools.partial(
        collections.deque, _Iterable(functools.partial(itertools.takewhile, not_false, results)), 0
    )


def _refuse(lock: PthreadLock | FcntlLock) -> NoReturn:
    """This thread holds the lock: the next ``release`` is that of the refused section, and only puts the real one back.

    That of another thread, which was interrupted while it waited, does nothing.
    """
    here = threading.RLock()
    here.acquire()
    lock.release = _in_turn(
        here._is_owned,  # type: ignore[attr-defined]
        functools.partial(setattr, lock, "release", lock.release),
    )
    raise InternalError(_TAKEN_AGAIN)


class PthreadLock:
    """A robust process-shared mutex of ``LOCK_BYTES`` at ``offset`` of a segment."""

    __slots__ = ("_pointer", "release", "repair", "try_acquire")

    def __init__(self, segment: Segment, offset: int) -> None:
        library = holding_gil()
        self._pointer = segment.pointer(offset)
        self.try_acquire: Callable[[], int] = functools.partial(library.pthread_mutex_trylock, self._pointer)
        self.release: Callable[[], object] = functools.partial(library.pthread_mutex_unlock, self._pointer)
        self.repair = nothing_to_repair

    def create(self) -> None:
        """Initialise the mutex; done once, by the segment's maker."""
        library = holding_gil()
        attributes = ctypes.create_string_buffer(64)
        for code in (
            library.pthread_mutexattr_init(attributes),
            library.pthread_mutexattr_setpshared(attributes, _SHARED),
            library.pthread_mutexattr_setrobust(attributes, _ROBUST),
            library.pthread_mutexattr_settype(attributes, _ERRORCHECK),
            library.pthread_mutex_init(self._pointer, attributes),
        ):
            if code:
                raise OSError(code, os.strerror(code))

    def wait(self, code: int) -> None:
        """Take the lock after ``try_acquire`` returned ``code``: it is busy, or its owner died, or is this thread."""
        spins = _SPINS
        while code == errno.EBUSY and spins:
            os.sched_yield()
            code = self.try_acquire()
            spins -= 1
        if code != errno.EBUSY:
            return self._taken(code)
        deadline = Timespec()
        timedlock = releasing_gil().pthread_mutex_timedlock
        while True:
            until = time.time() + _SLICE_S
            deadline.set(until)
            code = timedlock(self._pointer, ctypes.byref(deadline))
            if code != errno.ETIMEDOUT:
                return self._taken(code)

    def _taken(self, code: int) -> None:
        if code == EOWNERDEAD:
            self._recover()
        elif code == errno.EDEADLK:
            _refuse(self)
        elif code:
            if code == errno.ENOTRECOVERABLE:
                # glibc's trylock then leaves its thread's mark, on which others would wait for ever and unlock crashes.
                holding_gil().pthread_mutex_destroy(self._pointer)
            raise InternalError(f"a shared lock is unusable: {os.strerror(code)}")

    def _recover(self) -> None:
        """Repair, whatever interrupts: a mutex that is let go before it is marked consistent is lost for ever."""
        interruption = None
        for _ in range(_REPAIRS):
            try:
                self.repair()
                break
            except InternalError:
                raise
            except BaseException as exc:  # noqa: BLE001 - raised again below
                interruption = exc
        else:
            raise InternalError("what a dead process left cannot be repaired") from interruption
        holding_gil().pthread_mutex_consistent(self._pointer)
        if interruption is not None:
            raise interruption


class FcntlLock:
    """A record lock on one byte of a file of its own, a thread lock inside, and a word that tells of a dead owner.

    The file belongs to locks alone: closing any descriptor of it would drop every lock of the process.
    """

    __slots__ = ("_byte", "_dirty", "_fd", "_held", "_inside", "_words", "release", "repair")

    def __init__(self, fd: int, byte: int, words: Words, dirty: int) -> None:
        self._fd = fd
        self._byte = byte
        self._words = words
        self._dirty = dirty
        self._inside = threading.RLock()
        self._held = [False]
        self.repair = nothing_to_repair
        let_go = _in_turn(
            functools.partial(operator.getitem, self._held, 0),
            functools.partial(operator.setitem, words, dirty, 0),
            functools.partial(operator.setitem, self._held, 0, False),
        )
        self.release: Callable[[], object] = _in_turn(
            self._inside._is_owned,  # type: ignore[attr-defined]
            let_go,
            functools.partial(fcntl.lockf, fd, fcntl.LOCK_UN, 1, byte),
            self._inside.release,
        )

    def create(self) -> None:
        self._words[self._dirty] = 0

    def try_acquire(self) -> int:
        if self._inside._is_owned():  # type: ignore[attr-defined]
            return errno.EDEADLK
        if not self._inside.acquire(blocking=False):
            return errno.EBUSY
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._byte)
        except OSError:
            self._inside.release()
            return errno.EBUSY
        self._taken()
        return 0

    def _taken(self) -> None:
        if self._words[self._dirty]:
            self.repair()
        self._held[0] = True
        self._words[self._dirty] = 1

    def wait(self, code: int) -> None:
        """Take the lock after ``try_acquire`` returned ``code``; signal handlers run meanwhile."""
        if code == errno.EDEADLK:
            _refuse(self)
        self._inside.acquire()
        while True:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX, 1, self._byte)
                break
            except OSError as exc:  # to the kernel the threads of a process are one waiter: no deadlock
                if exc.errno != errno.EDEADLK:
                    raise
            os.sched_yield()
        self._taken()


def _robust_mutex_works() -> bool:
    """Let a thread die with a lock and look whether the next taker is told."""
    try:
        segment = Segment.create(4096)
    except ImportError:
        return False
    try:
        lock = PthreadLock(segment, 0)
        try:
            lock.create()
        except (AttributeError, OSError):
            return False
        holder = threading.Thread(target=lock.try_acquire)
        holder.start()
        holder.join()
        until = time.monotonic() + _SELF_TEST_S
        while (code := lock.try_acquire()) == errno.EBUSY and time.monotonic() < until:
            os.sched_yield()  # `join` returns before the thread is quite gone
        lock.release()
        return code == EOWNERDEAD
    finally:
        segment.close()


robust_mutex_works = functools.cache(_robust_mutex_works)


class LockFactory:
    """Makes the locks of one segment: robust mutexes where they work, record locks on ``lock_fd`` elsewhere.

    ``first_byte`` keeps the record locks of several segments apart in one lock file.
    """

    def __init__(self, segment: Segment, lock_fd: int | None = None, first_byte: int = 0) -> None:
        self._segment = segment
        self._lock_fd = lock_fd
        self._first_byte = first_byte

    def __call__(self, offset: int, dirty: int) -> Lock:
        """The lock at byte ``offset`` (``LOCK_BYTES`` long), whose dirty word has the index ``dirty``."""
        if self._lock_fd is None:
            return PthreadLock(self._segment, offset)
        return FcntlLock(self._lock_fd, self._first_byte + offset // LOCK_BYTES, self._segment.words, dirty)
