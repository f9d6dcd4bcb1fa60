"""A worker that kills itself before its k-th access to a shared word.

`bring_up` goes in as an initializer.  It puts a counting object in the place of each view of the shared words that the
worker's structures hold; the product knows nothing of it.  One worker of all is the victim: the first that finds a
deque that is not empty (or, for a death at birth, the first at all).  From there on its accesses are counted.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from repartir.worker import Worker, current

TASKS = 64


class Fact(IntEnum):
    """Words that tell the test how far the victim came."""

    COUNT = 0
    """Accesses of the victim so far."""
    DIED = 1
    STARTED = 2
    """The task word that the victim had stored as started, and not finished."""
    ANSWERED = 3
    """How many records the victim committed to its outbox."""
    RUNS = 8
    """From here on a word for each task: how often its function was called."""


class Facts:
    """Shared by test and workers: a file, mapped by each."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        with open(path, "a+b") as file:
            file.truncate(4096)
            self._words = memoryview(mmap.mmap(file.fileno(), 4096)).cast("Q")

    def __getitem__(self, index: int) -> int:
        return self._words[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._words[index] = value

    def __reduce__(self) -> tuple[Any, ...]:
        return Facts, (self.path,)

    def runs(self, task: int) -> int:
        return self[Fact.RUNS + task]


@dataclass(frozen=True)
class Fate:
    """When the victim dies: before its access number `k` from its first claim on, or from its birth on.

    With `always_at_start` every worker is a victim and dies right before it says that it has started a task.  With `thief`
    the first claim that counts is that of items which another has, with `resumes` that of a range which was laid aside.
    """

    facts: Facts
    k: int
    from_birth: bool = False
    always_at_start: bool = False
    thief: bool = False
    resumes: bool = False

    def choose(self) -> bool:
        """Whether this process is the victim: the first that asks."""
        try:
            os.mkdir(f"{self.facts.path}.chosen")
        except FileExistsError:
            return False
        return True


class Mortal:
    """What a worker's accesses mean to its fate."""

    def __init__(self, worker: Worker, fate: Fate) -> None:
        self.fate = fate
        self.row = worker._row
        self.outbox_tail = worker._outbox.tail_word
        self.chosen: bool | None = fate.choose() if fate.from_birth else None

    def count(self, words: Any) -> None:
        """Before an access: this may be the last moment."""
        if self.chosen is None and self._claims_something(words):
            self.chosen = self.fate.choose()
        if self.chosen:
            facts = self.fate.facts
            facts[Fact.COUNT] += 1
            if facts[Fact.COUNT] == self.fate.k:
                self.die()

    def stored(self, index: int, value: int) -> None:
        """After a store to the ring's word `index`."""
        facts = self.fate.facts
        if index == self.row.started:
            facts[Fact.STARTED] = value
        elif index == self.outbox_tail and facts[Fact.STARTED]:
            facts[Fact.ANSWERED] += 1
        elif index == self.row.claim and value == 0 and not self.fate.from_birth:
            self.chosen = False  # its first task is over

    def die(self) -> None:
        self.fate.facts[Fact.DIED] += 1
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()

    def _claims_something(self, words: Any) -> bool:
        frame = sys._getframe(3)
        if self.fate.thief:
            return frame.f_code.co_name == "steal"
        if self.fate.resumes:
            return frame.f_code.co_name == "resume"
        if frame.f_code.co_name not in ("pop_head", "pop_tail"):
            return False
        deque = frame.f_locals["self"]
        return bool(words[deque.tail_word] != words[deque.head_word])


class ArenaWords:
    """The arena's words as a mortal worker sees them."""

    def __init__(self, words: Any, mortal: Mortal) -> None:
        self.words = words
        self.mortal = mortal

    def __getitem__(self, index: int) -> int:
        self.mortal.count(self.words)
        value: int = self.words[index]
        return value

    def __setitem__(self, index: int, value: int) -> None:
        self.mortal.count(self.words)
        self.words[index] = value


class RingWords(ArenaWords):
    """The ring's words as a mortal worker sees them."""

    def __setitem__(self, index: int, value: int) -> None:
        mortal = self.mortal
        if mortal.fate.always_at_start and index == mortal.row.started and value:
            mortal.die()
        super().__setitem__(index, value)
        if mortal.chosen:
            mortal.stored(index, value)


def bring_up(fate: Fate) -> None:
    """As an initializer: from now on this worker is mortal."""
    worker = current()
    assert worker is not None
    board, mortal = worker._board, Mortal(worker, fate)
    ring: Any = RingWords(board.words, mortal)
    arena: Any = ArenaWords(board.blocks.arenas[0]._words, mortal)
    worker._words = board.words = board.parking._words = ring
    board.blocks.arenas[0]._words = arena
    for loop in worker._ranges:
        loop._words = ring
    for structure in (*board.deques, *board.outboxes, *board.hands):
        structure._words = ring


def run(facts: Facts, task: int, value: Any) -> Any:
    """A task that counts its runs."""
    facts[Fact.RUNS + task] += 1
    return value
