"""A whole ring on the explorer's memory: the real board, workers and ledger, and a client that recovers as ours does.

``Client.recover`` does what ``Members._member_exited`` does, in the same order; a test may leave out or swap steps, to
show what each is for.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

from repartir import children, outcome, worker
from repartir.ledger import Ledger, Record, Repost
from repartir.shm import board as board_module
from repartir.shm import layout
from repartir.shm.arena import RESULT, Handle
from repartir.shm.board import Board, Kind
from repartir.shm.layout import ANSWER_IN_BLOCK, IN_BLOCK, RingLayout
from repartir.shm.outbox import records
from repartir.states import TaskEvent
from repartir.worker import MemberSettings, Worker
from tests.interleave.explorer import FakeLockFactory, FakeSegment, FakeSemaphore, World

ARENA_BYTES = layout.ARENA_HEADER_BYTES + 8192
DIED = "died"


def _semaphore(segment: FakeSegment, offset: int) -> FakeSemaphore:
    return FakeSemaphore(segment.world, f"semaphore {(offset - layout.HEADER_BYTES) // layout.ROW_BYTES}")


@contextmanager
def on_fake_parts() -> Iterator[None]:
    """Boards made in here have the explorer's locks and semaphores; a worker's spin looks for work once."""
    parts = {"LockFactory": FakeLockFactory, "Semaphore": _semaphore}
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)
    with (
        mock.patch.multiple(board_module, **parts),
        mock.patch.multiple(worker, time=clock, SPIN_S=1.5),
        mock.patch.multiple(children, SPIN_S=-1.0),
    ):
        yield


def make_board(world: World, rows: int) -> Board:
    shape = RingLayout(
        rows,
        capacity=4,
        spawn_capacity=4,
        outbox_bytes=256,
        mailbox_capacity=4,
        depth=8,
        cells=2,
        shared_capacity=4,
    )
    arena = world.segment(ARENA_BYTES, "arena")
    segment = world.segment(shape.total_bytes, "ring")
    overflow = world.segment(layout.ARENA_HEADER_BYTES, "overflow")
    board = Board(segment, (arena, overflow), shape, None)  # type: ignore[arg-type]
    board._format()
    arena.raw[layout.A_RESERVED] = ARENA_BYTES
    words = segment.words
    for row in board.rows:
        words[row.kind] = Kind.CPU
        names = {row.claim: "claim", row.started: "started", row.runs: "runs", row.steals: "steals"}
        names[row.condemned] = "condemned"
        words.names.update({word: f"{name} of {row.index}" for word, name in names.items()})
        for what, deques in (
            ("lane", board.lanes),
            ("spawn deque", board.spawns),
            ("mailbox", board.mailboxes),
        ):
            it = deques[row.index]
            words.names[it.head_word] = f"head of {what} {row.index}"
            words.names[it.tail_word] = f"tail of {what} {row.index}"
        words.names[board.outboxes[row.index].tail_word] = f"tail of outbox {row.index}"
        cells = board.cells[row.index]
        words.names[cells.ended_word] = f"ended children of {row.index}"
        words.names[cells.counter] = f"children of {row.index}"
        words.names[cells.claims] = f"claim of {row.index} at level 1"
        for cell in range(cells.count):
            words.names[cells.status_word(cell)] = f"status of cell {cell} of {row.index}"
            words.names[cells.status_word(cell) - 1] = f"word of cell {cell} of {row.index}"
    for what, shared in (("high lane", board.high), ("low lane", board.low)):
        words.names[shared.head_word] = f"head of {what}"
        words.names[shared.tail_word] = f"tail of {what}"
    words.names[layout.H_IDLE_MASK_W] = "idle mask"
    words.names[layout.H_SPIN_MASK_W] = "spin mask"
    words.names[layout.H_WAIT_MASK_W] = "wait mask"
    return board


class RingWorker(Worker):
    """Answers a task with its number, in a block when the number is even; notes what ran."""

    ran: list[int]

    def __init__(self, board: Board, index: int, ran: list[int], spinners: int = 1) -> None:
        super().__init__(board, index, -1, MemberSettings(None, (), frozenset(), None, spinners, None))
        self.ran = ran

    def _call(self, payload: bytes, flags: int) -> outcome.Value | outcome.Error:
        task = payload[0]
        if flags & IN_BLOCK:
            (content,) = self._board.blocks.load(Handle.unpack(payload[1:]))
            assert content == bytes([task]) * 300, f"the arguments of task {task} were overwritten"
        self.ran.append(task)
        return outcome.Value(bytes([task]) * 100 if task % 2 == 0 else task)

    def serve(self, tasks: int) -> None:
        """Run up to ``tasks`` tasks that can be found."""
        for _ in range(tasks):
            if entry := self.find_work():
                if self._words[self._row.condemned]:
                    return
                self.run_one(entry)


class Client:
    """Enters tasks, drains outboxes, recovers what the dead left."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.ledger: Ledger[list[Any]] = Ledger()
        self.futures: dict[int, list[Any]] = {}
        """What each task was settled with; once, if all is well."""
        self.inbox: deque[Record[list[Any]]] = deque()

    def enter(self, task: int, *, in_block: bool = False) -> None:
        future = self.futures[task] = []
        record = Record(task, future, bytes([task]), 0, None, None)
        if in_block:
            record.block = self.board.blocks.store([bytes([task]) * 300], record.word)
            record.payload += record.block.pack()
            record.flags = IN_BLOCK
        self.inbox.append(record)

    def post(self, at: int, *, spawn: bool = False) -> None:
        """Post all that wait to one deque, one by one, and wake a member for each; -2 is the high lane, -1 the low one."""
        lane = self.board.deques[at] if at < 0 else (self.board.spawns if spawn else self.board.lanes)[at]
        parking = self.board.parking
        while self.inbox:
            record = self.inbox[0]
            record.lane, record.position = at, lane.tail
            self.ledger.enter(record)
            assert lane.push_tail([(record.word, record.payload, record.flags)])
            if parking.anyone_idle():
                parking.wake(1, at if at >= 0 else None)
            self.inbox.popleft()

    def mail(self, at: int) -> None:
        """Post all that wait to the mailbox of one member, and wake that."""
        box = self.board.mailboxes[at]
        while self.inbox:
            record = self.inbox[0]
            record.lane, record.position = len(self.board.lanes) + at, box.tail
            self.ledger.enter(record)
            assert box.push_tail([(record.word, record.payload, record.flags)])
            self.board.parking.wake_row(at)
            self.inbox.popleft()

    def drain(self, at: int) -> None:
        outbox = self.board.outboxes[at]
        for word, status, payload in records(outbox.peek()):
            record = self.ledger.answered(word)
            if record is None:
                if status == ANSWER_IN_BLOCK:
                    self.board.blocks.free(Handle.unpack(payload))
                continue
            if status == ANSWER_IN_BLOCK:
                handle = Handle.unpack(payload)
                meta, *buffers = self.board.blocks.load(handle)
                result = outcome.decode_outcome(meta, buffers)
                self.settle(record, result, TaskEvent.ANSWER)
                self.board.blocks.free(handle)
            else:
                self.settle(record, outcome.decode_outcome(payload), TaskEvent.ANSWER)
        outbox.consumed()

    def settle(self, record: Record[list[Any]], result: object, event: TaskEvent) -> None:
        record.future.append(result)
        if record.block is not None:
            self.board.blocks.free(record.block)
        self.ledger.close(record, event)

    def recover(self, at: int, steps: str = "drain repair judge free reset wake") -> None:
        """What a death calls for."""
        board, row = self.board, self.board.rows[at]
        claim = 0
        for step in steps.split():
            if step == "drain":
                self.drain(at)
            elif step == "repair":
                board.lock_and_unlock_all()
            elif step == "judge":
                claim = board.words[row.claim]
                self.judge(claim, board.words[row.started])
            elif step == "free":
                claim = claim or board.words[row.claim]
                if claim:
                    board.blocks.free_owned(claim | RESULT)
            elif step == "reset":
                board.reset_row(at)
            elif step == "wake":
                board.parking.wake_all()

    def judge(self, claim: int, started: int) -> None:
        for action in self.ledger.member_died([claim], started):
            if isinstance(action, Repost):
                self.ledger.repost(action.record, lost=True)
                self.inbox.appendleft(action.record)
            else:
                self.settle(action.record, DIED, TaskEvent.FAIL)

    def finish(self, workers: list[RingWorker]) -> None:
        """Nobody dies any more: run what is left."""
        self.post(0)
        for _ in range(3):
            for one in workers:
                one.serve(4)
                self.drain(one._index)
        assert not self.inbox
        assert not self.ledger.records, f"lost: {sorted(self.ledger.records)}"

    def check(self, world: World, ran: list[int], *, deaths: int) -> None:
        """Each task settled once, none ran twice, no answer was wasted; nothing is left in the arena, no lock held."""
        board = self.board
        for task, results in self.futures.items():
            assert len(results) == 1, f"task {task} was settled with {results}"
            if results == [DIED]:
                assert ran.count(task) <= 1, f"task {task} ran twice"
            else:
                assert isinstance(results[0], outcome.Value)
                assert results[0].value == (bytes([task]) * 100 if task % 2 == 0 else task)
                assert ran.count(task) == 1, f"task {task} ran {ran.count(task)} times"
        assert list(self.futures.values()).count([DIED]) <= deaths
        assert self.ledger.late == 0, "an answer came too late"
        for it in (*board.deques, *board.outboxes):
            it.check()
            assert it.lock.owner is None  # type: ignore[attr-defined]
        board.blocks.arenas[0].check()
        assert board.blocks.used() == (0, 0), "blocks are left"
        for row in board.rows:
            assert board.words[row.claim] == 0, f"row {row.index} still claims {board.words[row.claim]:x}"
        world.no_lock_held()
