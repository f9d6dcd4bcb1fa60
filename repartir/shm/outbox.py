"""The outbox: a member's answers to the client, a ring of bytes with one producer and one consumer.

A record is a header (task word 8 bytes, payload size 4, status 4) and the payload, padded to 8; it may wrap around.
The member appends under the lock and commits by one store of ``tail``.  The client copies all that is there under the
lock, works through its copy, and calls ``consumed`` only when every answer is settled: what it had not finished when
an exception hit comes again.  ``head`` is published under the next lock, so the copy is ordered before the reuse.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from repartir.errors import InternalError
from repartir.shm.layout import O_HEAD_W, O_TAIL_W, OUTBOX_HEADER_BYTES, RECORD_HEADER_BYTES, WORD
from repartir.shm.lock import Lock
from repartir.shm.words import Data, Words

_HEADER = struct.Struct("=QII")

Answer = tuple[int, int, bytes]
"""Task word, status, payload."""


class Outbox:
    """A ring of ``size`` bytes (a power of two) behind the header at byte ``base``.

    For a client that looks often: while the word of index ``tail_word`` equals ``consumed_tail`` there is nothing new.
    """

    __slots__ = (
        "_copied",
        "_data",
        "_head",
        "_ring",
        "_size",
        "_words",
        "consumed_tail",
        "lock",
        "tail_word",
    )

    def __init__(self, words: Words, data: Data, base: int, size: int, lock: Lock) -> None:
        self._words = words
        self._data = data
        self._size = size
        self._head = base // WORD + O_HEAD_W
        self.tail_word = base // WORD + O_TAIL_W
        self._ring = base + OUTBOX_HEADER_BYTES
        self.consumed_tail = words[self._head]
        self._copied = self.consumed_tail
        self.lock = lock

    @property
    def largest_bytes(self) -> int:
        """The largest payload that a record may carry: more goes to the arena."""
        return self._size // 8

    def put(self, task: int, status: int, payload: bytes) -> bool:
        """Append a record; False (and nothing appended) when there is no room now.  For the member."""
        words, data, lock, size = self._words, self._data, self.lock, self._size
        length = len(payload)
        need = RECORD_HEADER_BYTES + (length + 7 & ~7)
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            tail = words[self.tail_word]
            if tail + need - words[self._head] > size:
                return False
            at = tail & size - 1
            record = _HEADER.pack(task, length, status) + payload
            start = self._ring + at
            end = at + RECORD_HEADER_BYTES + length
            if end <= size:
                data[start : self._ring + end] = record
            else:
                cut = size - at
                data[start : start + cut] = record[:cut]
                data[self._ring : self._ring + end - size] = record[cut:]
            words[self.tail_word] = tail + need
            return True
        finally:
            lock.release()

    def has_news(self) -> bool:
        """Whether there are records that were not consumed, seen under the lock: none whose ``put`` was over before this
        call is missed.  For the client.
        """
        lock = self.lock
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            return self._words[self.tail_word] != self.consumed_tail
        finally:
            lock.release()

    def peek(self) -> bytes:
        """A copy of every record that is not consumed.  For the client."""
        words, data, lock, size = self._words, self._data, self.lock, self._size
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            head = self.consumed_tail
            words[self._head] = head
            tail = words[self.tail_word]
            if not 0 <= tail - head <= size:
                raise InternalError(f"outbox with head {head}, tail {tail}, size {size}")
            at = head & size - 1
            end = at + tail - head
            if end <= size:
                copy = data[self._ring + at : self._ring + end]
            else:
                copy = data[self._ring + at : self._ring + size] + data[self._ring : self._ring + end - size]
            self._copied = tail
            return copy
        finally:
            lock.release()

    def consumed(self) -> None:
        """All that the last ``peek`` returned is settled.  For the client."""
        self.consumed_tail = self._copied

    def check(self) -> None:
        """Raise ``InternalError`` unless the invariants hold; the caller keeps others away."""
        head, tail = self._words[self._head], self._words[self.tail_word]
        if not 0 <= tail - head <= self._size or (tail | head) & 7:
            raise InternalError(f"outbox with head {head}, tail {tail}, size {self._size}")


def records(copy: bytes) -> Iterator[Answer]:
    """The records in what ``Outbox.peek`` returned."""
    at = 0
    unpack = _HEADER.unpack_from
    total = len(copy)
    while at < total:
        try:
            task, length, status = unpack(copy, at)
        except struct.error as exc:
            raise InternalError(f"outbox record with {total - at} bytes left") from exc
        at += RECORD_HEADER_BYTES
        if at + length > total:
            raise InternalError(f"outbox record of {length} bytes with {total - at} left")
        yield task, status, copy[at : at + length]
        at += length + 7 & ~7


__all__ = ["Answer", "Outbox", "records"]
