from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from repartir.errors import InternalError
from repartir.shm.arena import RESULT, Arena, Handle
from repartir.shm.layout import A_CARVED, A_RESERVED
from tests.shared import ArenaRoom, Fuse, Interrupted

LIMIT = 1 << 17
LOST = 99
"""The owner under which an act that is cut off stores, so that what it left can be told and freed."""

sizes = st.integers(0, 3000) | st.integers(0, 40_000)
owners = st.sampled_from([1, 2, 2 | RESULT])
cuts = st.none() | st.integers(0, 15) | st.integers(0, 300)
picks = st.integers(0, 1000)


class ArenaMachine(RuleBasedStateMachine):
    """The model: what is stored under which handle, by whom; and handles that were freed."""

    @initialize()
    def begin(self) -> None:
        self.room = ArenaRoom(LIMIT)
        self.fuse = Fuse(self.room.words)
        self.arena = Arena(self.room.segment, self.room.arena.lock)
        self.arena._words = self.fuse
        self.stored: dict[Handle, tuple[int, list[bytes]]] = {}
        self.stale: list[Handle] = []

    def teardown(self) -> None:
        if hasattr(self, "room"):
            self.room.close()

    @rule(lengths=st.lists(sizes, max_size=4), owner=owners, seed=st.integers(1, 255), cut=cuts)
    def store(self, lengths: list[int], owner: int, seed: int, cut: int | None) -> None:
        parts = [bytes([seed]) * length for length in lengths]
        self.fuse.left = -1 if cut is None else cut
        try:
            handle = self.arena.store(parts, LOST if cut is not None else owner)
        except Interrupted:
            self.recover()
            return
        self.fuse.left = -1
        if handle is None:
            return
        assert handle not in self.stored
        assert handle not in self.stale
        if cut is not None:
            assert self.arena.free_owned(LOST) == 1
            self.stale.append(handle)
        else:
            self.stored[handle] = owner, parts

    def recover(self) -> None:
        self.fuse.left = -1
        self.arena.lock.repair()
        self.arena.free_owned(LOST)

    @rule(pick=picks, cut=cuts)
    def free(self, pick: int, cut: int | None) -> None:
        if not self.stored:
            return
        handle = list(self.stored)[pick % len(self.stored)]
        self.fuse.left = -1 if cut is None else cut
        try:
            assert self.arena.free(handle)
        except Interrupted:
            self.recover()
            self.arena.free(handle)  # whoever is interrupted frees again
        self.stale.append(handle)
        del self.stored[handle]

    @rule(owner=owners, cut=cuts)
    def free_owned(self, owner: int, cut: int | None) -> None:
        theirs = [handle for handle, (who, _) in self.stored.items() if who == owner]
        self.fuse.left = -1 if cut is None else cut
        try:
            assert self.arena.free_owned(owner) == len(theirs)
        except Interrupted:
            self.recover()
            assert self.arena.free_owned(owner) <= len(theirs)
        for handle in theirs:
            self.stale.append(handle)
            del self.stored[handle]

    @rule(pick=picks)
    def free_again(self, pick: int) -> None:
        if self.stale:
            assert not self.arena.free(self.stale[pick % len(self.stale)])

    @rule(pick=picks)
    def load(self, pick: int) -> None:
        if self.stored:
            handle = list(self.stored)[pick % len(self.stored)]
            assert self.arena.load(handle) == self.stored[handle][1]

    @rule(pick=picks)
    def load_stale(self, pick: int) -> None:
        if self.stale:
            with pytest.raises(InternalError):
                self.arena.load(self.stale[pick % len(self.stale)])

    @rule(most=st.sampled_from([4096, 1 << 30]), cut=cuts)
    def trim(self, most: int, cut: int | None) -> None:
        """Memory goes, content stays; what an exception cuts short is done by the next."""
        self.fuse.left = -1 if cut is None else cut
        try:
            self.arena.trim(most)
        except Interrupted:
            self.fuse.left = -1

    @rule(pick=picks, row=st.integers(0, 1000))
    def keep(self, pick: int, row: int) -> None:
        """A block that outlived its task is given back by its keeper only."""
        if self.stored:
            handle = list(self.stored)[pick % len(self.stored)]
            assert self.arena.keep(handle, row)
            assert not self.arena.free(handle)
            assert self.arena.free(handle, kept=True)
            assert not self.arena.keep(handle, row)
            self.stale.append(handle)
            del self.stored[handle]

    @rule()
    def rebuild(self) -> None:
        """As after a death: nothing that is used changes, and nothing free is lost."""
        self.arena.lock.repair()

    @rule()
    def all_of_it(self) -> None:
        """Every free block can be had, once, beside what is stored."""
        handles = []
        while handle := self.arena.store([b""], LOST):
            handles.append(handle)
        blocks = len(list(self.arena._blocks()))
        assert len(handles) + len(self.stored) == blocks
        assert len({handle.offset for handle in (*handles, *self.stored)}) == blocks
        assert self.room.words[A_CARVED] + 512 > LIMIT
        assert self.arena.free_owned(LOST) == len(handles)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "room"):
            return
        self.fuse.left = -1
        self.arena.check()
        assert self.arena.used()[0] == len(self.stored)
        assert max(self.room.words[A_CARVED], self.room.words[A_RESERVED]) <= LIMIT
        for handle, (_, parts) in self.stored.items():
            assert self.arena.load(handle) == parts


TestArena = ArenaMachine.TestCase
TestArena.settings = settings(stateful_step_count=20)
