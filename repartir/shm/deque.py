"""The task deque: a ring of fixed slots with the payload inline, changed only under its lock.

The client pushes to the tail of a lane; its member and thieves take from the head (FIFO).  A member pushes and pops
the tail of its own spawn deque (LIFO), thieves take the head.  Positions count up for ever; position ``p`` lies in slot
``p % capacity``.  ``head`` and ``tail`` are each one commit store, the last of their section, so a death or an
exception at any point leaves either the old state or the new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from repartir.errors import InternalError
from repartir.shm.layout import (
    D_HEAD_W,
    D_TAIL_W,
    DEQUE_HEADER_BYTES,
    S_SIZE,
    S_TASK,
    SIZE_MASK,
    SLOT_HEADER_BYTES,
    SLOT_PAYLOAD_BYTES,
    SLOT_WORDS,
    WORD,
)
from repartir.shm.lock import Lock
from repartir.shm.words import Data, Words

Entry = tuple[int, bytes, int]
"""Task word, payload (at most ``SLOT_PAYLOAD_BYTES``), flags (``IN_BLOCK``, ``CALL_MANY``, ``CALL_EACH``)."""


class TaskDeque:
    """A deque at byte ``base`` with ``capacity`` slots (a power of two); ``claims`` are the claim words in use.

    For a member that looks often: while the words of index ``head_word`` and ``tail_word`` are equal it is empty.
    """

    __slots__ = (
        "_capacity",
        "_claims",
        "_data",
        "_mask",
        "_slots",
        "_words",
        "head_word",
        "lock",
        "tail_word",
    )

    def __init__(
        self, words: Words, data: Data, base: int, capacity: int, lock: Lock, claims: Iterable[int]
    ) -> None:
        self._words = words
        self._data = data
        self._capacity = capacity
        self._mask = capacity - 1
        self.head_word = base // WORD + D_HEAD_W
        self.tail_word = base // WORD + D_TAIL_W
        self._slots = (base + DEQUE_HEADER_BYTES) // WORD
        self._claims = claims
        self.lock = lock
        lock.repair = self._repair

    def size_hint(self) -> int:
        """Entries, as seen without the lock: good for deciding where to look, not for reading a payload."""
        return self._words[self.tail_word] - self._words[self.head_word]

    def taken(self, position: int) -> bool:
        """Whether the entry at ``position`` has left the deque: a hint that turns True once and stays so."""
        return self._words[self.head_word] > position

    @property
    def tail(self) -> int:
        """The position that the next push will use; exact for the only process that pushes."""
        return self._words[self.tail_word]

    def room(self) -> int:
        """Free slots; for the only process that pushes never too many."""
        return self._capacity - (self._words[self.tail_word] - self._words[self.head_word])

    def push_tail(self, entries: Sequence[Entry]) -> bool:
        """Append ``entries`` in one commit; False (and nothing appended) when they do not all fit."""
        words, data, lock, mask, slots = self._words, self._data, self.lock, self._mask, self._slots
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            tail = words[self.tail_word]
            if tail - words[self.head_word] + len(entries) > self._capacity:
                return False
            for task, payload, flags in entries:
                slot = slots + (tail & mask) * SLOT_WORDS
                size = len(payload)
                start = slot * WORD + SLOT_HEADER_BYTES
                data[start : start + size] = payload
                words[slot + S_SIZE] = size | flags
                words[slot] = task
                tail += 1
            words[self.tail_word] = tail
            return True
        finally:
            lock.release()

    def pop_head(self, claim: int) -> Entry | None:
        """Take the oldest entry, after writing its task word to the claim word ``claim``; None when empty."""
        words, lock, task = self._words, self.lock, 0
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            head = words[self.head_word]
            tail = words[self.tail_word]
            while head != tail:
                slot = self._slots + (head & self._mask) * SLOT_WORDS
                head += 1
                task = words[slot]
                if task:
                    entry = self._read(slot, task)
                    words[claim] = task
                    words[self.head_word] = head
                    return entry
                words[self.head_word] = head
            return None
        except BaseException:
            if task:
                self._void((claim,))
            raise
        finally:
            lock.release()

    def pop_tail(self, claim: int) -> Entry | None:
        """Take the newest entry, after writing its task word to the claim word ``claim``; None when empty."""
        words, lock, task = self._words, self.lock, 0
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            head = words[self.head_word]
            tail = words[self.tail_word]
            while head != tail:
                tail -= 1
                slot = self._slots + (tail & self._mask) * SLOT_WORDS
                task = words[slot]
                if task:
                    entry = self._read(slot, task)
                    words[claim] = task
                    words[self.tail_word] = tail
                    return entry
                words[self.tail_word] = tail
            return None
        except BaseException:
            if task:
                self._void((claim,))
            raise
        finally:
            lock.release()

    def remove(self, position: int, task: int) -> bool:
        """Take back ``task``, pushed at ``position``, unless somebody claimed it already."""
        words, lock = self._words, self.lock
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            slot = self._slots + (position & self._mask) * SLOT_WORDS
            if not words[self.head_word] <= position < words[self.tail_word] or words[slot + S_TASK] != task:
                return False
            words[slot + S_TASK] = 0
            return True
        finally:
            lock.release()

    def trim(self) -> int:
        """Let go of slots at the head whose task was taken back; how many are free.  For the only process that pushes."""
        words, lock = self._words, self.lock
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            head, tail = words[self.head_word], words[self.tail_word]
            while head != tail and not words[self._slots + (head & self._mask) * SLOT_WORDS]:
                head += 1
            words[self.head_word] = head
            return self._capacity - (tail - head)
        finally:
            lock.release()

    def holds(self, position: int, task: int) -> bool:
        """Whether ``task``, pushed at ``position``, still waits here."""
        words, lock = self._words, self.lock
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            slot = self._slots + (position & self._mask) * SLOT_WORDS
            return words[self.head_word] <= position < words[self.tail_word] and words[slot + S_TASK] == task
        finally:
            lock.release()

    def clear(self) -> list[int]:
        """Take all entries out; their task words.  Nobody is to run them: who pushed them is dead."""
        words, lock = self._words, self.lock
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            tail = words[self.tail_word]
            entries = range(words[self.head_word], tail)
            tasks = [words[self._slots + (at & self._mask) * SLOT_WORDS] for at in entries]
            words[self.head_word] = tail
            return [task for task in tasks if task]
        finally:
            lock.release()

    def is_empty(self) -> bool:
        """Under the lock, so that a push which was unlocked before this call is seen."""
        words, lock = self._words, self.lock
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            return words[self.head_word] == words[self.tail_word]
        finally:
            lock.release()

    def check(self) -> None:
        """Raise ``InternalError`` unless the invariants hold; the caller keeps others away."""
        head, tail = self._words[self.head_word], self._words[self.tail_word]
        if not 0 <= tail - head <= self._capacity:
            raise InternalError(f"deque with head {head}, tail {tail}, capacity {self._capacity}")
        for position in range(head, tail):
            slot = self._slots + (position & self._mask) * SLOT_WORDS
            if self._words[slot + S_SIZE] & SIZE_MASK > SLOT_PAYLOAD_BYTES:
                raise InternalError(f"deque slot {position} has {self._words[slot + S_SIZE]} bytes")

    def _read(self, slot: int, task: int) -> Entry:
        field = self._words[slot + S_SIZE]
        size = field & SIZE_MASK
        if size > SLOT_PAYLOAD_BYTES:
            raise InternalError(f"deque slot with {size} bytes")
        start = slot * WORD + SLOT_HEADER_BYTES
        return task, self._data[start : start + size], field & ~SIZE_MASK

    def _repair(self) -> None:
        """The holder died in the middle of a pop."""
        self._void(self._claims)

    def _void(self, claims: Iterable[int]) -> None:
        """Reset each of these claims that names an entry still at the head or the tail: it was not committed."""
        words = self._words
        head, tail = words[self.head_word], words[self.tail_word]
        if head == tail:
            return
        ends = {
            words[self._slots + (position & self._mask) * SLOT_WORDS] for position in (head, tail - 1)
        } - {0}
        for claim in claims:
            if words[claim] in ends:
                words[claim] = 0
