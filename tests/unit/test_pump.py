"""The pump after interruptions, on a board of its own and without members."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from repartir.codec import encode_call
from repartir.errors import InternalError, SharedMemoryFull
from repartir.functions import FunctionTable
from repartir.future import Future
from repartir.outcome import caught, encode_outcome
from repartir.policy import NO_POLICY, Policy, Priority
from repartir.pump import Pump, TaskRecord
from repartir.shm import board as board_module
from repartir.shm.board import Board, BoardClosed
from repartir.shm.layout import AGAIN, ANSWER, MEMBER_LOG, TIMED
from repartir.states import TaskEvent


class SignalError(Exception):
    """What a signal handler raises."""


@pytest.fixture
def pump(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pump]:
    monkeypatch.setattr(board_module, "arena_limit", lambda *_: 1 << 20)
    board = Board.create(2)
    pump = Pump(board, lambda: None)
    yield pump
    pump.let_go()
    board.close()


def submit(pump: Pump, *args: Any, policy: Policy = NO_POLICY) -> Future[Any]:
    driver: Any = object()  # never asked
    future: Future[Any] = Future(driver, pump.new_task_id())
    ref = FunctionTable().encode(len)
    pump.post(future, ref, encode_call(args, {}), 0, len, policy)
    return future


def record_of(pump: Pump, future: Future[Any]) -> TaskRecord:
    return pump.ledger.records[future.task_id]


def in_lanes(pump: Pump) -> set[int]:
    """The words of all tasks that wait in the lanes; takes them out."""
    claim = pump.board.rows[0].claim
    words = set()
    for lane in pump.board.lanes:
        while entry := lane.pop_head(claim):
            words.add(entry[0])
    return words


def test_an_interrupted_post_is_repeated(pump: Pump, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("repartir.shm.deque.TaskDeque.push_tail", interrupt)
        with pytest.raises(SignalError):
            submit(pump, "first")
    second = submit(pump, "second")
    assert not pump.inbox
    assert in_lanes(pump) == {record.word for record in pump.ledger.records.values()}
    assert second.task_id in pump.ledger.records


def test_a_task_whose_post_was_interrupted_can_be_taken_back(
    pump: Pump, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("repartir.shm.deque.TaskDeque.push_tail", interrupt)
        with pytest.raises(SignalError):
            submit(pump, "interrupted")
    (record,) = pump.ledger.records.values()
    assert pump.take_back(record.future)
    submit(pump, "next")
    assert len(in_lanes(pump)) == 1
    assert not pump.inbox


def interrupt(*_: object) -> None:
    raise SignalError


def test_an_interrupted_post_and_a_repost_lose_no_task(pump: Pump, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reposted task takes the position that the interrupted one was meant for."""
    claimed = submit(pump, "its member dies")
    assert in_lanes(pump) == {record_of(pump, claimed).word}
    with monkeypatch.context() as patch:
        patch.setattr("repartir.shm.deque.TaskDeque.push_tail", interrupt)
        with pytest.raises(SignalError):
            submit(pump, "interrupted")
    with pump.mutex:
        pump.repost(record_of(pump, claimed))
    pump.pump()
    assert not pump.inbox
    words = in_lanes(pump)
    assert len(words) == 2
    assert words == {record.word for record in pump.ledger.records.values()}


def test_garbage_makes_room_at_once(pump: Pump) -> None:
    """Nobody else would look again: no task is under way."""
    handle = pump.board.blocks.store([bytes(700_000)], 12345)
    assert handle is not None
    pump.garbage.append(handle)
    submit(pump, b"x" * 600_000)
    assert not pump.inbox
    assert len(in_lanes(pump)) == 1


def test_a_lane_with_less_room_than_it_showed_is_an_error(
    pump: Pump, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repartir.shm.deque.TaskDeque.push_tail", lambda *_: False)
    with pytest.raises(InternalError, match="room"):
        submit(pump, "one")


def test_an_ended_pump_hands_each_task_an_error_of_its_own(pump: Pump) -> None:
    futures = [submit(pump, "a"), submit(pump, "b")]
    pump.end(lambda: RuntimeError("ended"))
    assert [future for future, _, _ in pump.due] == futures
    errors = [error for _, _, error in pump.due]
    assert errors[0] is not errors[1]
    assert not pump.ledger.records


def test_members_are_heard_when_no_task_can_come_any_more(pump: Pump) -> None:
    """What they log at their exit: who watches is woken by it, again and again until it is taken."""
    pump.ended = True
    assert pump.board.outboxes[1].put(0, MEMBER_LOG, b"bye")
    pump.pump_surely()
    assert list(pump.said) == [(1, MEMBER_LOG, b"bye")]
    assert not pump.has_news_for_sure()


def test_a_stopped_task_holds_up_no_submit(pump: Pump) -> None:
    """Its arguments wait for its member's end, which tells those that wait for room."""
    future = submit(pump, b"x" * 100_000)
    row = pump.board.rows[0]
    entry = next(entry for lane in pump.board.lanes if (entry := lane.pop_head(row.claim)))
    assert pump.placed == {future.task_id}
    killed: list[int] = []
    assert pump.stop(future, killed.append)
    assert killed == [0]
    assert not pump.placed
    room: Future[Any] = Future()
    pump.room.append(room)
    assert pump.board.words[row.claim] == entry[0]
    with pump.mutex:
        pump.bury_orphans(0)
    assert room.done()
    assert pump.board.blocks.usage()[0].arguments == (0, 0)


def test_a_task_that_failed_was_not_taken_back(pump: Pump) -> None:
    """Its cancelling was interrupted, and its error, which may be followed by another attempt, has just come."""
    future = submit(pump, policy=Policy(retries=1))
    record = record_of(pump, future)
    assert in_lanes(pump) == {record.word}
    body = encode_outcome(caught(ValueError()))
    assert isinstance(body, bytes)
    assert pump.board.outboxes[0].put(record.word, ANSWER, body)
    pump.board.words[pump.board.rows[0].claim] = 0
    pump.doubtful.append(record)
    pump.resolve_doubtful()
    assert len(pump.failed) == 1
    assert not future.cancelled()


@pytest.mark.parametrize("size", [1, 100_000])
def test_an_interrupted_submit_is_not_watched(pump: Pump, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """The broker's thread would look after it for ever."""
    with monkeypatch.context() as patch:
        patch.setattr(pump, "inbox", type("Cut", (deque,), {"append": interrupt})())
        with pytest.raises(SignalError):
            submit(pump, b"x" * size, policy=Policy(timeout=1.0))
    assert not pump.watched
    submit(pump, b"x" * size, policy=Policy(timeout=1.0, retries=1))
    assert len(pump.watched) == 1
    flags = {record.flags & (AGAIN | TIMED) for record in pump.ledger.records.values()}
    assert flags == {AGAIN | TIMED}


@pytest.mark.parametrize("where", ["inbox", "placed"])
def test_an_interrupted_submit_leaves_no_block(
    pump: Pump, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    class Cut(type(getattr(pump, where))):  # type: ignore[misc]
        def append(self, _: object) -> None:
            raise SignalError

        add = append

    with monkeypatch.context() as patch:
        patch.setattr(pump, where, Cut())
        with pytest.raises(SignalError):
            submit(pump, b"x" * 100_000)
    memory, spilled = pump.board.blocks.usage()
    assert memory.arguments == spilled.arguments == (0, 0)
    assert not pump.placed
    submit(pump, b"x" * 100_000)
    assert len(in_lanes(pump)) == 1


def lengths(pump: Pump) -> tuple[int, ...]:
    return tuple(deque.size_hint() for deque in (*pump.board.lanes, *pump.board.mailboxes))


def test_a_task_goes_to_the_lane_of_the_worker_that_it_wishes_for(pump: Pump) -> None:
    for _ in range(3):
        submit(pump, "x", policy=Policy(worker=1))
    assert lengths(pump) == (0, 3, 0, 0)


def test_wishes_under_backlog(pump: Pump) -> None:
    """Posted together with plain tasks, each is where it wishes; what finds no room there goes elsewhere."""
    pump.backlog = 0
    capacity = pump.board.shape.capacity
    wishes: list[Any] = [submit(pump, "x", policy=Policy(worker=1)) for _ in range(20)]
    plain = [submit(pump, "x") for _ in range(20)]
    pump.pump()
    assert {record_of(pump, future).lane for future in wishes} == {1}
    assert lengths(pump)[0] == 20 - sum(record_of(pump, future).lane for future in plain)
    for _ in range(capacity + 100):
        submit(pump, "x", policy=Policy(worker=1))
    pump.pump()
    assert not pump.inbox
    assert lengths(pump)[1] == capacity
    assert sum(lengths(pump)) == 40 + capacity + 100


def only(row: int) -> Policy:
    return Policy(worker=row, exclusive=True)


def test_what_is_for_one_member_alone_waits_behind_no_backlog(pump: Pump) -> None:
    while not pump.inbox:
        submit(pump, "x")
    future = submit(pump, "x", policy=only(1))
    assert lengths(pump)[2:] == (0, 1)
    assert pump.inbox
    assert not pump.is_taken(future)
    assert pump.take_back(future)
    claim = pump.board.rows[1].claim
    assert pump.board.mailboxes[1].pop_head(claim) is None


def test_a_full_mailbox_refuses(pump: Pump) -> None:
    for _ in range(32):
        submit(pump, b"x" * 1000, policy=only(0))
    with pytest.raises(RuntimeError, match="32 tasks for worker 0 alone wait already"):
        submit(pump, b"x" * 1000, policy=only(0))
    assert pump.board.blocks.usage()[0].arguments[0] == 32
    assert len(pump.ledger) == 32


def test_a_repost_stays_with_its_row_and_fails_where_that_is_full(pump: Pump) -> None:
    box, claim = pump.board.mailboxes[1], pump.board.rows[1].claim
    future = submit(pump, "x", policy=only(1))
    record = record_of(pump, future)
    for _ in range(2):
        assert box.pop_head(claim) == (record.word, record.payload, record.flags)
        with pump.mutex:
            pump.repost(record)
    assert record.attempt == 3
    assert box.pop_head(claim)
    for _ in range(32):
        submit(pump, "x", policy=only(1))
    with pump.mutex:
        pump.repost(record)
    assert isinstance(future.exception(), RuntimeError)
    assert record.task_id not in pump.ledger.records


def test_a_retry_goes_where_its_first_attempt_went(pump: Pump) -> None:
    records = [record_of(pump, submit(pump, "x", policy=policy)) for policy in (only(1), NO_POLICY)]
    assert pump.board.mailboxes[1].pop_head(pump.board.rows[1].claim)
    in_lanes(pump)
    with pump.mutex:
        for record in records:
            pump.ledger.repost(record)
            pump.resumes(record)
    pump.pump()
    assert lengths(pump)[2:] == (0, 1)
    assert in_lanes(pump) == {records[1].word}


@pytest.mark.parametrize("where", ["deque.TaskDeque.push_tail", "parking.ParkingLot.wake_row"])
def test_an_interrupted_post_to_a_mailbox_is_sorted_out(
    pump: Pump, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Either it lies there, and counts, or nobody will run it, and it is forgotten."""
    with monkeypatch.context() as patch:
        patch.setattr(f"repartir.shm.{where}", interrupt)
        with pytest.raises(SignalError):
            submit(pump, b"x" * 1000, policy=only(0))
    assert len(pump.doubtful) == len(pump.ledger) == 1
    pump.resolve_doubtful()
    lies_there = lengths(pump)[2] == 1
    assert lies_there == ("wake_row" in where)
    assert len(pump.ledger) == pump.board.blocks.usage()[0].arguments[0] == int(lies_there)


def test_an_ended_pump_takes_no_mail(pump: Pump) -> None:
    pump.end(lambda: RuntimeError("ended"))
    with pytest.raises(BoardClosed):
        submit(pump, "x", policy=only(0))


def test_arguments_that_find_no_room_anywhere_are_refused(
    pump: Pump, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(record: TaskRecord, parts: Any) -> None:
        record.block = [bytes(part) for part in parts]

    monkeypatch.setattr(pump, "place_in_memory", lambda *_: False)
    monkeypatch.setattr(pump, "on_full", keep)
    with pytest.raises(SharedMemoryFull):
        submit(pump, b"x" * 1000, policy=only(0))
    assert not pump.ledger.records


HIGH, LOW = Policy(priority=Priority.HIGH), Policy(priority=Priority.LOW)


def shared(pump: Pump) -> tuple[int, int]:
    return pump.board.high.size_hint(), pump.board.low.size_hint()


def test_a_high_task_overtakes_the_backlog(pump: Pump) -> None:
    """At once, though plain tasks are gathered."""
    while not pump.inbox:
        submit(pump, "x")
    submit(pump, "x", policy=HIGH)
    assert shared(pump) == (1, 0)
    submit(pump, "x", policy=LOW)
    pump.pump()
    assert shared(pump) == (1, 1)


def test_what_finds_no_room_waits_in_its_own_inbox(pump: Pump) -> None:
    capacity = pump.board.shape.shared_capacity
    for _ in range(capacity + 10):
        submit(pump, "x", policy=HIGH)
        submit(pump, "x", policy=LOW)
    pump.pump()
    assert shared(pump) == (capacity, capacity)
    assert (len(pump.urgent), len(pump.deferred)) == (10, 10)
    assert not pump.can_post()
    submit(pump, "x")
    pump.pump()
    assert not pump.inbox, "those of another priority hold up nobody"
    assert pump.board.high.pop_head(pump.board.rows[0].claim)
    pump.pump()
    assert (len(pump.urgent), len(pump.deferred)) == (9, 10)
    assert len(pump.unsettled()) == 2 * capacity + 21


def test_what_was_taken_back_makes_room(pump: Pump) -> None:
    """Members that skip it tell nobody."""
    pump.backlog = 1 << 30
    for policy in (NO_POLICY, HIGH, LOW):
        futures: list[Any] = []
        while not pump.anything_waits():
            futures.append(submit(pump, "x", policy=policy))
        assert all(pump.take_back(future) for future in futures[:-1])
        pump.pump()
        assert not pump.anything_waits()


@pytest.mark.parametrize("policy", [HIGH, LOW, Policy(limit=("x", 1))], ids=["high", "low", "limit"])
@pytest.mark.parametrize("where", ["deque.TaskDeque.push_tail", "parking.ParkingLot.anyone_idle"])
def test_an_interrupted_post_by_rank_is_repeated(
    pump: Pump, monkeypatch: pytest.MonkeyPatch, policy: Policy, where: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(f"repartir.shm.{where}", interrupt)
        with pytest.raises(SignalError):
            submit(pump, "first", policy=policy)
    submit(pump, "second", policy=policy)
    second = 0 if policy.limit else 1
    assert len(pump.waiting()) == 1 - second
    assert sum(shared(pump)) + len(in_lanes(pump)) == 1 + second


def test_a_repost_and_a_retry_keep_their_priority(pump: Pump) -> None:
    claim = pump.board.rows[0].claim
    for again in (pump.repost, pump.rests):
        record = record_of(pump, submit(pump, "x", policy=HIGH))
        assert pump.board.high.pop_head(claim)
        with pump.mutex:
            again(record)
            if again == pump.rests:
                pump.resumes(record)
        pump.pump()
        assert pump.board.high.pop_head(claim) == (record.word, record.payload, record.flags)


def limited(most: int = 2, **options: Any) -> Policy:
    return Policy(limit=("licence", most), **options)


def taken(pump: Pump) -> TaskRecord:
    """A member takes the next task."""
    claim = pump.board.rows[0].claim
    entry = next(entry for lane in pump.board.deques if (entry := lane.pop_head(claim)))
    record = pump.ledger.claimant(entry[0])
    assert record is not None
    return record


def test_what_exceeds_a_limit_is_held_back(pump: Pump) -> None:
    futures = [submit(pump, n, policy=limited()) for n in range(5)]
    assert sum(lengths(pump)) == 2
    assert len(pump.waiting()) == 3
    assert not pump.can_post()
    record = taken(pump)
    with pump.mutex:
        pump.settle(record, 1, None, TaskEvent.ANSWER)
    assert pump.place_free
    pump.pump()
    assert not pump.place_free
    assert len(pump.waiting()) == 2
    assert pump.take_back(futures[4]), "one that waits"
    assert pump.take_back(futures[1]), "one that is posted"
    pump.pump()
    assert [record.future for record in pump.waiting()] == [futures[4]]
    in_lanes(pump)
    for future in futures[2:4]:
        with pump.mutex:
            pump.settle(record_of(pump, future), 1, None, TaskEvent.ANSWER)
    pump.pump()
    assert not pump.anything_waits()
    assert not pump.ledger.records
    assert not any(limit.held for limit in pump.limits.all())


def test_a_task_that_rests_holds_no_place_and_one_that_is_reposted_keeps_it(pump: Pump) -> None:
    first, second = (submit(pump, n, policy=limited(1)) for n in range(2))
    with pump.mutex:
        pump.repost(taken(pump))
    pump.pump()
    record = taken(pump)
    assert record.future is first
    with pump.mutex:
        pump.rests(record)
    pump.pump()
    assert taken(pump).future is second
    with pump.mutex:
        pump.resumes(record)
    pump.pump()
    assert pump.waiting() == [record]


def test_a_stopped_task_holds_its_place_until_its_member_is_dead(pump: Pump) -> None:
    first, second = (submit(pump, n, policy=limited(1)) for n in range(2))
    assert taken(pump).future is first
    assert pump.stop(first, lambda _: None)
    pump.pump()
    assert [record.future for record in pump.waiting()] == [second]
    with pump.mutex:
        pump.bury_orphans(0)
    assert pump.place_free
    pump.pump()
    assert not pump.waiting()


def test_a_limited_task_goes_where_its_priority_and_its_wish_are(pump: Pump) -> None:
    policies = [limited(9, priority=Priority.HIGH), limited(9, priority=Priority.LOW), limited(9, worker=1)]
    for policy in policies * 3:
        submit(pump, "x", policy=policy)
    pump.pump()
    assert shared(pump) == (3, 3)
    assert lengths(pump) == (0, 3, 0, 0)


def test_limited_tasks_without_room_wait_without_a_poll(pump: Pump) -> None:
    pump.backlog = 1 << 30
    while not pump.anything_waits():
        submit(pump, "x")
    submit(pump, "x", policy=limited())
    assert not pump.can_post()
    taken(pump)
    pump.pump()
    assert len(pump.waiting()) == 1
    assert pump.inbox, "what was held back is posted first"


def test_an_ended_pump_fails_what_waits_in_every_inbox(pump: Pump) -> None:
    pump.backlog = 0
    futures = [submit(pump, "x", policy=policy) for policy in (NO_POLICY, LOW, limited(1), limited(1), HIGH)]
    pump.end(lambda: RuntimeError("ended"))
    assert {future for future, _, _ in pump.due} == set(futures)
    assert not pump.waiting()
