from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from repartir.shm.deque import Entry
from repartir.shm.layout import CALL_EACH, CALL_MANY, D_HEAD_W, D_TAIL_W, IN_BLOCK, SLOT_PAYLOAD_BYTES
from tests.shared import Fuse, Interrupted, Room

ROWS = 3

payloads = st.binary(max_size=20) | st.integers(0, SLOT_PAYLOAD_BYTES).map(lambda size: bytes([size]) * size)
flags = st.sampled_from([0, IN_BLOCK, CALL_MANY, CALL_EACH, IN_BLOCK | CALL_EACH])
rows = st.integers(0, ROWS - 1)
cuts = st.none() | st.integers(0, 7)


class DequeMachine(RuleBasedStateMachine):
    """The model: entries by position between `head` and `tail`, None for what was removed; the claim of each row."""

    @initialize(capacity=st.sampled_from([8, 4, 16]), start=st.sampled_from([0, 3, 1 << 40]))
    def begin(self, capacity: int, start: int) -> None:
        self.room = Room(size=1 << 17)
        self.fuse = Fuse(self.room.words)
        for word in (D_HEAD_W, D_TAIL_W):
            self.room.words[word] = start
        self.deque = self.room.deque(capacity, ROWS, self.fuse)
        self.capacity = capacity
        self.head = self.tail = start
        self.entries: dict[int, Entry | None] = {}
        self.claims = [0] * ROWS
        self.task = 0

    def teardown(self) -> None:
        if hasattr(self, "room"):
            self.room.close()

    @rule(new=st.lists(st.tuples(payloads, flags), min_size=1, max_size=5), cut=cuts | st.integers(8, 20))
    def push_tail(self, new: list[tuple[bytes, int]], cut: int | None) -> None:
        entries = [(self.task + nth + 1, payload, flag) for nth, (payload, flag) in enumerate(new)]
        self.task += len(entries)
        fits = self.tail - self.head + len(entries) <= self.capacity
        self.fuse.left = -1 if cut is None else cut
        try:
            assert self.deque.push_tail(entries) == fits
        except Interrupted:
            fits = self.room.words[D_TAIL_W] != self.tail
        if fits:
            for each in entries:
                self.entries[self.tail] = each
                self.tail += 1

    @rule(row=rows, cut=cuts)
    def pop_head(self, row: int, cut: int | None) -> None:
        head = self.head
        while head < self.tail and self.entries[head] is None:
            head += 1
        self.pop(row, cut, head, "pop_head", D_HEAD_W)

    @rule(row=rows, cut=cuts)
    def pop_tail(self, row: int, cut: int | None) -> None:
        last = self.tail - 1
        while last >= self.head and self.entries[last] is None:
            last -= 1
        self.pop(row, cut, last, "pop_tail", D_TAIL_W)

    @rule(cut=cuts)
    def trim(self, cut: int | None) -> None:
        head = self.head
        while head < self.tail and self.entries[head] is None:
            head += 1
        self.fuse.left = -1 if cut is None else cut
        try:
            assert self.deque.trim() == self.capacity - (self.tail - head)
        except Interrupted:
            assert self.room.words[D_HEAD_W] in (self.head, head)
        self.head = self.room.words[D_HEAD_W]

    def pop(self, row: int, cut: int | None, position: int, end: str, word: int) -> None:
        expected = self.entries[position] if self.head <= position < self.tail else None
        was = self.claims[row]
        self.fuse.left = -1 if cut is None else cut
        try:
            assert getattr(self.deque, end)(self.room.word(row)) == expected
            done = True
        except Interrupted:
            self.fuse.left = -1
            self.deque.lock.repair()
            done = expected is not None and self.claim(row) == expected[0]
            assert done or self.claim(row) in (was, 0)
            self.claims[row] = self.claim(row)
        if done and expected is not None:
            self.claims[row] = expected[0]
        moved = self.room.words[word]
        if end == "pop_head":
            assert self.head <= moved <= position + (1 if done else 0)
            assert moved == position + 1 or not (done and expected)
            self.head = moved
        else:
            assert position + (0 if done else 1) <= moved <= self.tail
            assert moved == position or not (done and expected)
            self.tail = moved

    @precondition(lambda self: self.tail)
    @rule(back=st.integers(-1, 17), other=st.booleans(), cut=cuts)
    def remove(self, back: int, other: bool, cut: int | None) -> None:
        position = self.tail - back
        if position < 0:
            return
        there = self.entries.get(position) if self.head <= position < self.tail else None
        known = self.entries.get(position)
        task = (known[0] if known else 999_999) + other * 1_000_000
        removable = there is not None and there[0] == task
        self.fuse.left = -1 if cut is None else cut
        try:
            assert self.deque.remove(position, task) == removable
        except Interrupted:
            return  # the removal is its last access
        if removable:
            self.entries[position] = None

    @rule()
    def ask(self) -> None:
        self.fuse.left = -1
        assert self.deque.is_empty() == (self.head == self.tail)

    @rule()
    def repair(self) -> None:
        """Without a death in between a repair changes nothing: what is claimed has left."""
        self.fuse.left = -1
        self.deque.lock.repair()

    def claim(self, row: int) -> int:
        return self.room.words[self.room.word(row)]

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "room"):
            return
        self.fuse.left = -1
        self.deque.check()
        assert (self.room.words[D_HEAD_W], self.room.words[D_TAIL_W]) == (self.head, self.tail)
        assert self.deque.size_hint() == self.tail - self.head
        assert self.deque.room() == self.capacity - (self.tail - self.head)
        assert self.deque.tail == self.tail
        assert [self.claim(row) for row in range(ROWS)] == self.claims
        assert self.deque.taken(self.head - 1) or not self.head
        assert not self.deque.taken(self.head)


TestDeque = DequeMachine.TestCase
TestDeque.settings = settings(stateful_step_count=40)
