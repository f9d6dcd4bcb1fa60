"""Where the results of children come in: a table of cells a row, and the claims of nested tasks.

A member that posts a child takes one of its cells for it; who runs the child writes the outcome there, or the client that
it died.  ``README.md`` beside this file argues why each result arrives once and each block is freed by one party.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from repartir.errors import InternalError
from repartir.shm.layout import (
    C_PARENT,
    C_STATUS,
    C_TASK,
    CELL_HEADER_BYTES,
    CELL_OPEN,
    CELL_PAYLOAD_BYTES,
    CELL_STATUS_SHIFT,
    CELL_WORDS,
    N_COUNTER_W,
    N_ENDED_W,
    NEST_HEADER_BYTES,
    SIZE_MASK,
    WORD,
)
from repartir.shm.lock import Lock
from repartir.shm.words import Data, Words


class Ending(NamedTuple):
    """How a child ended: one of the ``CELL_…`` of ``layout.py``, and what belongs to it."""

    word: int
    status: int
    payload: bytes


class CellTable:
    """The cells of one row, behind the header at byte ``base`` and the claims of ``depth`` levels.

    Only the row's member takes cells; it gives one back when nobody else can have the child any more.
    """

    __slots__ = ("_cells", "_data", "_words", "claims", "count", "counter", "ended_word", "lock")

    def __init__(self, words: Words, data: Data, base: int, depth: int, count: int, lock: Lock) -> None:
        self._words = words
        self._data = data
        self.counter = base // WORD + N_COUNTER_W
        self.ended_word = base // WORD + N_ENDED_W
        """The index of a word that changes whenever a child of this row has ended: a hint without the lock."""
        self.claims = (base + NEST_HEADER_BYTES) // WORD
        """The claim of level 0 is the row's own; the word of this index belongs to level 1."""
        self._cells = self.claims + depth
        self.count = count
        self.lock = lock

    def status_word(self, cell: int) -> int:
        """The index of the word that is 0 until the child of this cell has ended: a hint without the lock."""
        return self._cells + cell * CELL_WORDS + C_STATUS

    def take(self, cell: int, word: int, parent: int) -> None:
        """Make a free cell the place for the result of child ``word``, which nobody else knows yet."""
        words, at = self._words, self._cells + cell * CELL_WORDS
        words[at + C_STATUS] = CELL_OPEN
        words[at + C_PARENT] = parent
        words[at + C_TASK] = word

    def release(self, cell: int) -> None:
        """The child of this cell is settled, or nobody else will ever have it."""
        self._words[self._cells + cell * CELL_WORDS + C_TASK] = 0

    def abandon(self, cell: int, word: int) -> bool:
        """Want the result of ``word`` no more; False if it has come already."""
        words, lock, at = self._words, self.lock, self._cells + cell * CELL_WORDS
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            if words[at + C_TASK] != word or words[at + C_STATUS] != CELL_OPEN:
                return False
            words[at + C_TASK] = 0
            return True
        finally:
            lock.release()

    def put(self, cell: int, word: int, status: int, payload: bytes) -> bool:
        """Say how child ``word`` has ended; False (and nothing said) if nobody wants to know, or it was said before."""
        words, lock, at = self._words, self.lock, self._cells + cell * CELL_WORDS
        size = len(payload)
        if size > CELL_PAYLOAD_BYTES:
            raise InternalError(f"{size} bytes for a cell")
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            if words[at + C_TASK] != word or words[at + C_STATUS] != CELL_OPEN:
                return False
            start = at * WORD + CELL_HEADER_BYTES
            self._data[start : start + size] = payload
            words[self.ended_word] = words[self.ended_word] + 1
            words[at + C_STATUS] = status << CELL_STATUS_SHIFT | size
            return True
        finally:
            lock.release()

    def read(self, cell: int, word: int) -> Ending | None:
        """How child ``word`` has ended; None if it has not.  May be repeated until the cell is released."""
        words, lock, at = self._words, self.lock, self._cells + cell * CELL_WORDS
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            if words[at + C_TASK] != word or words[at + C_STATUS] == CELL_OPEN:
                return None
            return self._ending(at)
        finally:
            lock.release()

    def ended(self) -> int:
        """The word that changes, seen under the lock: no ``put`` that was over before this is missed."""
        lock = self.lock
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            return self._words[self.ended_word]
        finally:
            lock.release()

    def parent_of(self, cell: int, word: int) -> int:
        """The word of the task that has submitted child ``word``; 0 if that is not known any more."""
        words, lock, at = self._words, self.lock, self._cells + cell * CELL_WORDS
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            return words[at + C_PARENT] if words[at + C_TASK] == word else 0
        finally:
            lock.release()

    def clear(self) -> list[Ending]:
        """The member of this row is dead: nobody waits for its children; what the cells held."""
        words, lock = self._words, self.lock
        endings = []
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            for at in range(self._cells, self._cells + self.count * CELL_WORDS, CELL_WORDS):
                if words[at + C_TASK]:
                    endings.append(self._ending(at))
                    words[at + C_TASK] = 0
            return endings
        finally:
            lock.release()

    def check(self) -> None:
        """Raise ``InternalError`` unless every cell is free."""
        for at in range(self._cells, self._cells + self.count * CELL_WORDS, CELL_WORDS):
            if self._words[at + C_TASK]:
                raise InternalError(f"a cell is left to child {self._words[at + C_TASK]:x}")

    def _ending(self, at: int) -> Ending:
        words = self._words
        field = words[at + C_STATUS]
        size = field & SIZE_MASK
        if size > CELL_PAYLOAD_BYTES:
            raise InternalError(f"cell with {size} bytes")
        start = at * WORD + CELL_HEADER_BYTES
        return Ending(words[at + C_TASK], field >> CELL_STATUS_SHIFT, self._data[start : start + size])


class ClaimStack:
    """The claim words of one row, from the task that its member has taken to what it runs meanwhile; those in use.

    A member claims one level above the highest that is in use, and lets go of the highest only, so the words in use are
    those before the first 0; a death between a claim and its commit leaves that claim as the highest.
    """

    __slots__ = ("_above", "_depth", "_words", "first")

    def __init__(self, words: Words, first: int, above: int, depth: int) -> None:
        self._words = words
        self.first = first
        self._above = above
        self._depth = depth

    def __iter__(self) -> Iterator[int]:
        """The indices of the words in use."""
        words = self._words
        if words[self.first]:
            yield self.first
            for index in range(self._above, self._above + self._depth):
                if not words[index]:
                    return
                yield index

    def tasks(self) -> list[int]:
        """The task words, the oldest first."""
        return [self._words[index] for index in self]

    def clear(self) -> None:
        """The member is dead, and its claims are judged; the highest first, so that none is left behind a 0."""
        for index in reversed(list(self)):
            self._words[index] = 0


class Claims:
    """The claim words in use of all rows."""

    __slots__ = ("_stacks",)

    def __init__(self, stacks: Sequence[ClaimStack]) -> None:
        self._stacks = stacks

    def __iter__(self) -> Iterator[int]:
        return itertools.chain.from_iterable(self._stacks)
