"""Sleep and wake of members: one semaphore a row, one idle bit a row, one lock.

The argument why no member sleeps beside a queued task is in ``README.md`` beside this file.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import time
from collections.abc import Callable, Sequence

from repartir.shm.clib import Timespec, holding_gil, releasing_gil
from repartir.shm.layout import H_IDLE_MASK_W, H_SPIN_MASK_W, H_WAIT_MASK_W
from repartir.shm.lock import Lock
from repartir.shm.segment import Segment
from repartir.shm.words import Words


class Semaphore:
    """A process-shared POSIX semaphore at ``offset`` of a segment."""

    __slots__ = ("_deadline", "_now", "_pointer", "_wait", "post")

    def __init__(self, segment: Segment, offset: int) -> None:
        self._pointer = segment.pointer(offset)
        self._deadline = Timespec()
        self.post: Callable[[], int] = functools.partial(holding_gil().sem_post, self._pointer)
        library = releasing_gil()
        self._wait: Callable[[], int]
        self._now: Callable[[], float]
        if hasattr(library, "sem_clockwait"):
            self._now = time.monotonic
            self._wait = functools.partial(
                library.sem_clockwait, self._pointer, time.CLOCK_MONOTONIC, ctypes.byref(self._deadline)
            )
        else:
            self._now = time.time
            self._wait = functools.partial(library.sem_timedwait, self._pointer, ctypes.byref(self._deadline))

    def create(self) -> None:
        """Make the semaphore anew with the value 0; nobody may be waiting on it."""
        if releasing_gil().sem_init(self._pointer, 1, 0):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def wait(self, timeout_s: float) -> bool:
        """Wait for a post; False after ``timeout_s`` or a signal (whose Python handler then runs in the caller)."""
        until = self._now() + timeout_s
        self._deadline.set(until)
        if self._wait() == 0:
            return True
        code = ctypes.get_errno()
        if code not in (errno.ETIMEDOUT, errno.EINTR, 0):
            raise OSError(code, os.strerror(code))
        return False


class ParkingLot:
    """Which members sleep, which look for work awake, and the way to wake one.

    A member that finds nothing may ``start_spinning``; when it finds work it calls ``stop_spinning``.  Before it parks
    on its semaphore it calls ``announce`` and looks once more at every deque under its lock; if that look found work,
    it calls ``retract``.  A poster calls ``wake`` after its push.
    """

    __slots__ = ("_idle", "_lock", "_post", "_spin", "_wait", "_words")

    def __init__(self, words: Words, lock: Lock, posts: Sequence[Callable[[], object]]) -> None:
        self._words = words
        self._lock = lock
        self._post = posts
        mask_words = -(-len(posts) // 64)
        self._idle = range(H_IDLE_MASK_W, H_IDLE_MASK_W + mask_words)
        self._spin = range(H_SPIN_MASK_W, H_SPIN_MASK_W + mask_words)
        self._wait = range(H_WAIT_MASK_W, H_WAIT_MASK_W + mask_words)

    def anyone_idle(self) -> bool:
        """A hint that is never wrongly False for a poster that has pushed and unlocked before."""
        words = self._words
        for mask in self._idle:
            if words[mask]:
                return True
        return False

    def is_idle(self, row: int) -> bool:
        return bool(self._words[H_IDLE_MASK_W + row // 64] >> row % 64 & 1)

    def anyone_waits(self) -> bool:
        """The same for members that wait for a child: they take others' children meanwhile."""
        words = self._words
        for mask in self._wait:
            if words[mask]:
                return True
        return False

    def anyone_helps(self) -> bool:
        """Whether there is somebody to wake for a child."""
        words = self._words
        for mask in self._idle:
            if words[mask]:
                return True
        for mask in self._wait:
            if words[mask]:
                return True
        return False

    def is_waiting(self, row: int) -> bool:
        return bool(self._words[H_WAIT_MASK_W + row // 64] >> row % 64 & 1)

    def is_spinning(self, row: int) -> bool:
        return bool(self._words[H_SPIN_MASK_W + row // 64] >> row % 64 & 1)

    def start_spinning(self, row: int, most: int) -> bool:
        """The member of ``row`` looks for work awake, unless ``most`` do so already."""
        words, lock, mask = self._words, self._lock, H_SPIN_MASK_W + row // 64
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            if self._spinning() >= most:
                return False
            words[mask] = words[mask] | 1 << row % 64
            return True
        finally:
            lock.release()

    def stop_spinning(self, row: int) -> None:
        """The member of ``row`` found work; it then looks at the hints and wakes another if there is more."""
        words, lock, mask = self._words, self._lock, H_SPIN_MASK_W + row // 64
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            words[mask] = words[mask] & ~(1 << row % 64)
        finally:
            lock.release()

    def announce(self, row: int) -> None:
        """The member of ``row`` is about to sleep."""
        words, lock, word, bit = self._words, self._lock, row // 64, 1 << row % 64
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            words[H_SPIN_MASK_W + word] = words[H_SPIN_MASK_W + word] & ~bit
            words[H_IDLE_MASK_W + word] = words[H_IDLE_MASK_W + word] | bit
        finally:
            lock.release()

    def retract(self, row: int) -> None:
        """The member of ``row`` found work after it announced; a wake that was meant for it goes on to another."""
        words, lock, mask, bit = self._words, self._lock, H_IDLE_MASK_W + row // 64, 1 << row % 64
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            bits = words[mask]
            if bits & bit:
                words[mask] = bits & ~bit
            else:
                self._wake_one()
        finally:
            lock.release()

    def forget(self, row: int) -> None:
        """The member of ``row`` is dead: it neither sleeps nor spins."""
        words, lock, word, bit = self._words, self._lock, row // 64, 1 << row % 64
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            words[H_SPIN_MASK_W + word] = words[H_SPIN_MASK_W + word] & ~bit
            words[H_IDLE_MASK_W + word] = words[H_IDLE_MASK_W + word] & ~bit
            words[H_WAIT_MASK_W + word] = words[H_WAIT_MASK_W + word] & ~bit
        finally:
            lock.release()

    def wake(self, tasks: int = 1, preferred: int | None = None) -> int:
        """Wake sleepers for ``tasks`` new tasks, one for each that no spinning member will find; how many were woken."""
        lock, woken = self._lock, 0
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            wanted = tasks - self._spinning()
            if wanted > 0 and preferred is not None and self.is_idle(preferred):
                self._post_and_clear(preferred)
                woken = 1
            while woken < wanted and self._wake_one():
                woken += 1
            return woken
        finally:
            lock.release()

    def wake_row(self, row: int) -> None:
        """Wake the member of ``row`` if it sleeps: there is something that nobody else can take, spinning or not."""
        lock = self._lock
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            if self.is_idle(row):
                self._post_and_clear(row)
        finally:
            lock.release()

    def start_waiting(self, row: int) -> None:
        """The member of ``row`` is about to sleep until a child has ended; it takes nothing from the lanes."""
        words, lock, mask = self._words, self._lock, H_WAIT_MASK_W + row // 64
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            words[mask] = words[mask] | 1 << row % 64
        finally:
            lock.release()

    def stop_waiting(self, row: int) -> bool:
        """It sleeps no more; False if somebody has woken it, maybe for a child that it will not take."""
        words, lock, mask, bit = self._words, self._lock, H_WAIT_MASK_W + row // 64, 1 << row % 64
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            bits = words[mask]
            if not bits & bit:
                return False
            words[mask] = bits & ~bit
            return True
        finally:
            lock.release()

    def wake_waiter(self, row: int) -> None:
        """Wake the member of ``row`` if it sleeps until a child has ended: one has."""
        lock = self._lock
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            if self.is_waiting(row):
                self._post_and_clear(row, H_WAIT_MASK_W)
        finally:
            lock.release()

    def wake_helper(self) -> None:
        """Wake somebody for a new child, unless a spinning member will find it: one without a task first."""
        lock = self._lock
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            if not self._spinning() and not self._wake_one():
                self._wake_one(self._wait)
        finally:
            lock.release()

    def wake_all(self) -> None:
        """Wake every sleeper, whatever else goes on (a death, a shutdown)."""
        lock = self._lock
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            while self._wake_one() or self._wake_one(self._wait):
                pass
        finally:
            lock.release()

    def _spinning(self) -> int:
        words, count = self._words, 0
        for mask in self._spin:
            count += words[mask].bit_count()
        return count

    def _wake_one(self, masks: range | None = None) -> bool:
        masks = masks or self._idle
        for mask in masks:
            bits = self._words[mask]
            if bits:
                self._post_and_clear((mask - masks[0]) * 64 + (bits & -bits).bit_length() - 1, masks[0])
                return True
        return False

    def _post_and_clear(self, row: int, masks: int = H_IDLE_MASK_W) -> None:
        """Post first: an exception in between costs a wake too many, never one too few."""
        self._post[row]()
        mask = masks + row // 64
        self._words[mask] = self._words[mask] & ~(1 << row % 64)
