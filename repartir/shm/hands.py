"""What a member has in hand of a map: items that it has reserved, items that others may take, answers not yet sent.

A member works on one range of items at a time.  It reserves a few from the front, runs them without any lock, reserves the
next.  A thief takes the later half of what is not reserved, into a hand of its own, so that it can be robbed in its turn
(lazy splitting: Tzannes et al. 2010).  For a task of another priority a member lays its range aside between two
reservations, so it has a hand for each priority.  ``next``, ``end`` and ``task`` of all hands change under one lock, the
splitting lock; each change is committed by one store, the last of its section.

Answers are appended to the hand's buffer and committed by one store of ``bytes``, by the member alone: who buries it reads
them, so a death costs no answer.  The argument is in ``README.md`` beside this file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from repartir.shm.deque import Entry
from repartir.shm.layout import (
    HAND_HEADER_BYTES,
    SIZE_MASK,
    SLOT_PAYLOAD_BYTES,
    T_BYTES_W,
    T_END_W,
    T_FIRST_W,
    T_NEXT_W,
    T_PAYLOAD,
    T_SIZE_W,
    T_TASK_W,
    T_VICTIM_W,
    WHOLE,
    WORD,
)
from repartir.shm.lock import Lock
from repartir.shm.words import Data, Words


class Hand:
    """A member's hand at byte ``base``, the ``index``-th of all; its member claims with the word ``claim``.

    For whom looks often: ``next_word`` and ``end_word`` are equal when there is nothing to take.
    """

    __slots__ = (
        "_base",
        "_data",
        "_lock",
        "_victim_word",
        "_words",
        "buffer",
        "buffer_bytes",
        "bytes_word",
        "claim",
        "end_word",
        "first_word",
        "index",
        "next_word",
        "task_word",
    )

    def __init__(
        self, words: Words, data: Data, index: int, base: int, buffer_bytes: int, lock: Lock, claim: int
    ) -> None:
        first = base // WORD
        self._words = words
        self._data = data
        self._base = base
        self._lock = lock
        self.index = index
        self.claim = claim
        self.task_word = first + T_TASK_W
        self.next_word = first + T_NEXT_W
        self.end_word = first + T_END_W
        self._victim_word = first + T_VICTIM_W
        self.first_word = first + T_FIRST_W
        self.bytes_word = first + T_BYTES_W
        self.buffer = base + HAND_HEADER_BYTES
        self.buffer_bytes = buffer_bytes

    # ---- for the member whose hand it is

    def take(self, task: int, payload: bytes, flags: int, first: int, end: int) -> None:
        """Begin a range that this member has claimed: others may take of it from now on, unless it stays whole."""
        words, lock = self._words, self._lock
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            words[self.bytes_word] = 0
            words[self.first_word] = first
            self._write(payload, flags, end if flags & WHOLE else first, end)
            words[self.task_word] = task
        finally:
            lock.release()

    def reserve(self, most: int) -> tuple[int, int] | None:
        """The next items, ``most`` at most, which nobody else will run; None when there is none left."""
        words, lock = self._words, self._lock
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            first, end = words[self.next_word], words[self.end_word]
            if first == end:
                return None
            words[self.next_word] = last = min(first + most, end)
            return first, last
        finally:
            lock.release()

    def put_down(self) -> None:
        """All is answered.  The claim first: a claim without a range in hand is one that was not begun."""
        words = self._words
        words[self.claim] = 0
        words[self.task_word] = 0

    def lay_aside(self) -> None:
        """All that was reserved is answered, and this member turns to something else; others may take of the rest."""
        self._words[self.claim] = 0

    def resume(self) -> Entry | None:
        """Claim again what was laid aside; None when others have taken all of it."""
        words, lock = self._words, self._lock
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            task = words[self.task_word]
            if words[self.next_word] == words[self.end_word]:
                words[self.task_word] = 0
                return None
            entry = (task, *self._read())
            words[self.claim] = task
            return entry
        finally:
            lock.release()

    def steal(self, victim: Hand) -> Entry | None:
        """Take the later half of what the victim has not reserved, and claim it; None when there is none."""
        words, lock = self._words, self._lock
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            task = words[victim.task_word]
            first, end = words[victim.next_word], words[victim.end_word]
            if not task or first == end:
                return None
            payload, flags = victim._read()
            middle = (first + end) // 2
            words[self._victim_word] = victim.index + 1
            words[self.bytes_word] = 0
            words[self.first_word] = middle
            self._write(payload, flags, middle, end)
            words[self.task_word] = task
            words[self.claim] = task
            words[victim.end_word] = middle
            words[self._victim_word] = 0
            return task, payload, flags
        except BaseException:
            self._undo_theft(victim)
            raise
        finally:
            lock.release()

    def _write(self, payload: bytes, flags: int, first: int, end: int) -> None:
        start = self._base + T_PAYLOAD
        self._data[start : start + len(payload)] = payload
        self._words[self._base // WORD + T_SIZE_W] = len(payload) | flags
        self._words[self.next_word] = first
        self._words[self.end_word] = end

    def _read(self) -> tuple[bytes, int]:
        field = self._words[self._base // WORD + T_SIZE_W]
        start = self._base + T_PAYLOAD
        return self._data[start : start + min(field & SIZE_MASK, SLOT_PAYLOAD_BYTES)], field & ~SIZE_MASK

    def _undo_theft(self, victim: Hand) -> None:
        """The thief was interrupted: what the victim still has, it has not.  May be repeated."""
        words = self._words
        if words[self._victim_word] != victim.index + 1:
            return
        task = words[self.task_word]
        if task and words[victim.end_word] != words[self.next_word]:
            if words[self.claim] == task:
                words[self.claim] = 0
            words[self.task_word] = 0
        words[self._victim_word] = 0

    # ---- for all

    def has_rest(self) -> bool:
        """A hint: others may take items from this hand."""
        words = self._words
        return bool(words[self.task_word] and words[self.next_word] != words[self.end_word])

    def answers(self, size_of: Callable[[int], int]) -> tuple[int, int, bytes]:
        """The first item whose answer is in the buffer, the word that says what is there, and that: as many bytes as
        ``size_of`` makes of the word."""
        field = self._words[self.bytes_word]
        size = min(size_of(field), self.buffer_bytes)
        return self._words[self.first_word], field, self._data[self.buffer : self.buffer + size]

    # ---- for who buries the member

    def take_rest(self) -> tuple[int, int]:
        """Of a dead member: up to where it had reserved items, and where its range ended; nobody takes of it any more."""
        words, lock = self._words, self._lock
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            reserved, end = words[self.next_word], words[self.end_word]
            words[self.end_word] = reserved
            return reserved, end
        finally:
            lock.release()

    def reset(self) -> None:
        """Ready for a successor."""
        words = self._words
        words[self.task_word] = 0
        words[self.bytes_word] = 0
        words[self.end_word] = words[self.next_word]


def is_there_a_rest(hands: Sequence[Hand]) -> bool:
    """Whether others may take items from one of these; under the lock, so that a range begun before this call is seen."""
    if not hands:
        return False
    lock = hands[0]._lock
    try:
        if code := lock.try_acquire():
            lock.wait(code)
        return any(hand.has_rest() for hand in hands)
    finally:
        lock.release()


def repair(hands: Sequence[Hand]) -> None:
    """The holder of the splitting lock died, perhaps as a thief."""
    for hand in hands:
        at = hand._words[hand._victim_word]
        if at:
            hand._undo_theft(hands[at - 1])
