from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from repartir.shm.layout import O_HEAD_W, O_TAIL_W, RECORD_HEADER_BYTES
from repartir.shm.outbox import Answer, records
from tests.shared import Fuse, Interrupted, Room

cuts = st.none() | st.integers(0, 8)


def size_of(answer: Answer) -> int:
    return RECORD_HEADER_BYTES + (len(answer[2]) + 7 & ~7)


class OutboxMachine(RuleBasedStateMachine):
    """The model: answers that are not consumed, how many of them were read, and the bytes still held back."""

    @initialize(size=st.sampled_from([64, 256, 1024]), start=st.integers(0, 200).map(lambda words: words * 8))
    def begin(self, size: int, start: int) -> None:
        self.room = Room(size=1 << 17)
        self.fuse = Fuse(self.room.words)
        for word in (O_HEAD_W, O_TAIL_W):
            self.room.words[word] = start
        self.outbox = self.room.outbox(size, words=self.fuse)
        self.size = size
        self.waiting: list[Answer] = []
        self.read = 0
        self.unpublished = 0

    def teardown(self) -> None:
        if hasattr(self, "room"):
            self.room.close()

    @rule(
        task=st.integers(0, 2**64 - 1),
        status=st.integers(0, 2**32 - 1),
        length=st.integers(0, 70) | st.integers(0, 1100),
        cut=cuts,
    )
    def put(self, task: int, status: int, length: int, cut: int | None) -> None:
        answer = (task, status, bytes(range(256))[task % 200 :][:1] * length)
        used = sum(map(size_of, self.waiting)) + self.unpublished
        fits = used + size_of(answer) <= self.size
        tail = self.room.words[O_TAIL_W]
        self.fuse.left = -1 if cut is None else cut
        try:
            assert self.outbox.put(*answer) == fits
        except Interrupted:
            assert self.room.words[O_TAIL_W] == tail, "the commit is the last access"
            return
        if fits:
            self.waiting.append(answer)

    @rule(cut=cuts)
    def peek(self, cut: int | None) -> None:
        self.fuse.left = -1 if cut is None else cut
        head = self.outbox.consumed_tail
        try:
            assert list(records(self.outbox.peek())) == self.waiting
        except Interrupted:
            if self.room.words[O_HEAD_W] == head:
                self.unpublished = 0
            return
        self.read = len(self.waiting)
        self.unpublished = 0

    @rule()
    def consumed(self) -> None:
        self.outbox.consumed()
        self.unpublished += sum(map(size_of, self.waiting[: self.read]))
        del self.waiting[: self.read]
        self.read = 0

    @rule()
    def another_client(self) -> None:
        """What is consumed but not published comes again to a client that starts anew: only a fresh one has none."""
        if not self.unpublished:
            self.outbox = self.room.outbox(self.size, words=self.fuse)
            self.read = 0

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "room"):
            return
        self.fuse.left = -1
        self.outbox.check()
        assert self.outbox.has_news() == bool(self.waiting)


TestOutbox = OutboxMachine.TestCase
