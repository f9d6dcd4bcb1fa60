"""Attempts on a clock and a generator that the test gives, on a board without members: the test plays these."""

from __future__ import annotations

import dataclasses
import logging
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from repartir.attempts import Attempts
from repartir.codec import encode_call
from repartir.errors import PoisonTask, TaskTimeout, WorkerDied
from repartir.functions import FunctionTable
from repartir.future import Future
from repartir.ledger import KEPT_FAILURES, Died
from repartir.members import Members
from repartir.outcome import RemoteTraceback, caught, encode_outcome
from repartir.payloads import PIECE
from repartir.policy import MAX_REPOSTS, Policy
from repartir.pump import CANCELLED, Pump, TaskRecord
from repartir.shm import board as board_module
from repartir.shm.board import Board
from repartir.shm.layout import ANSWER, ANSWER_PIECE
from repartir.stacks import StackFile
from repartir.states import TaskEvent
from repartir.stats import in_seconds
from repartir.supervisor import MemberExited
from tests.shared import Threads


class Always(random.Random):
    """Draws the same each time."""

    def random(self) -> float:
        return 0.0


class Nursery:
    """Notes what the supervisor is told to do to which row."""

    def __init__(self) -> None:
        self.acts: list[tuple[str, int]] = []

    def __getattr__(self, act: str) -> Any:
        return lambda row=-1: self.acts.append((act, row))


class Bench:
    """Attempts at tasks on a board of two rows, with a clock that stands still."""

    def __init__(self, board: Board) -> None:
        self.now = 1000.0
        self.board = board
        self.rings = 0
        self.pump = Pump(board, self.ring)
        self.nursery = Nursery()
        self.stacks = [StackFile() for _ in board.rows]
        self.attempts = Attempts(self.pump, self.nursery, self.stacks, lambda: self.now, Always())  # type: ignore[arg-type]

    def ring(self) -> None:
        self.rings += 1

    def submit(self, *args: Any, **options: Any) -> Future[Any]:
        driver: Any = object()  # never asked
        future: Future[Any] = Future(driver, self.pump.new_task_id())
        call = encode_call(args, {})
        self.pump.post(future, FunctionTable().encode(len), call, 0, len, Policy(**options))
        return future

    def record(self, future: Future[Any]) -> TaskRecord:
        return self.pump.ledger.records[future.task_id]

    def claims(self, at: int = 0) -> bool:
        """The member of row ``at`` takes a task and begins it."""
        row = self.board.rows[at]
        entry = next((entry for lane in self.board.lanes if (entry := lane.pop_head(row.claim))), None)
        if entry is not None:
            self.board.words[row.started] = entry[0]
            self.board.words[row.began] = int(self.now * 1e9)
        return entry is not None

    def fails(self, future: Future[Any], error: BaseException) -> None:
        record = self.record(future)
        self.pump.failed.append((record, record.word, error))
        self.attempts.look()

    def dies(self, at: int, code: int = -9) -> None:
        row, words = self.board.rows[at], self.board.words
        with self.pump.mutex:
            for action in self.pump.ledger.member_died([words[row.claim]], words[row.started]):
                assert isinstance(action, Died)
                self.attempts.died(action.record, code, begun=action.begun)
        self.board.reset_row(at)
        self.attempts.look()

    def answers(self, at: int, error: BaseException) -> None:
        """The member of row ``at`` publishes this error, and has not let go of its claim yet."""
        word = self.board.words[self.board.rows[at].claim]
        body = encode_outcome(caught(error))
        assert isinstance(body, bytes)
        assert self.board.outboxes[at].put(word, ANSWER, body)
        self.pump.pump()

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.attempts.look()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(board_module, "arena_limit", lambda *_: 1 << 20)
    board = Board.create(2)
    bench = Bench(board)
    yield bench
    bench.stacks.clear()
    bench.pump.let_go()
    board.close()


def test_a_retry_waits_for_its_back_off_to_the_instant(bench: Bench) -> None:
    future = bench.submit(retries=3, backoff=2.0)
    for wait in (2.0, 4.0, 8.0):
        assert bench.claims()
        bench.fails(future, ValueError("again"))
        assert bench.pump.next_look == pytest.approx(bench.now + wait)
        bench.passes(wait - 0.001)
        assert not bench.claims()
        bench.passes(0.001)
    assert bench.claims()
    bench.fails(future, ValueError("for good"))
    error = future.exception(0)
    assert isinstance(error, ValueError)
    assert error.args == ("for good",)
    assert len(error.__notes__) == 4
    assert bench.pump.next_look == float("inf")


def test_retries_are_posted_in_the_order_in_which_they_are_due(bench: Bench) -> None:
    late, soon = bench.submit(retries=1, backoff=5.0), bench.submit(retries=1, backoff=1.0)
    assert bench.claims(0)
    assert bench.claims(1)
    bench.fails(late, ValueError())
    bench.fails(soon, ValueError())
    bench.passes(1.0)
    assert bench.claims()
    assert bench.board.words[bench.board.rows[0].claim] == bench.record(soon).word
    assert not bench.claims()
    bench.passes(4.0)
    assert bench.claims()


def test_an_error_of_an_older_attempt_is_dropped(bench: Bench) -> None:
    future = bench.submit(retries=1, backoff=1.0)
    assert bench.claims()
    record = bench.record(future)
    stale = record.word
    bench.fails(future, ValueError())
    bench.pump.failed.append((record, stale, KeyError("stale")))
    bench.passes(1.0)
    assert record.failures.times == 1
    assert bench.claims()
    assert not future.done()


class AddNoteError(Exception):
    def add_note(self, key: str, value: str) -> None:  # type: ignore[override]
        """The program's own."""


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    number: int = 1


class NotedError(Exception):
    def __init__(self) -> None:
        self.__notes__ = "mine"


@pytest.mark.parametrize(("kind", "notes"), [(AddNoteError, 2), (FrozenError, 2), (NotedError, len("mine"))])
def test_exceptions_that_make_notes_hard_are_errors_like_others(
    bench: Bench, caplog: pytest.LogCaptureFixture, kind: type[Exception], notes: int
) -> None:
    future = bench.submit(retries=1, backoff=0.0)
    for _ in range(2):
        bench.passes(0.001)
        assert bench.claims()
        bench.fails(future, kind())
    error = future.exception(0)
    assert type(error) is kind
    assert len(error.__notes__) == notes
    assert len(caplog.records) == (kind is NotedError)


def test_cancelled_while_it_waits_for_another_attempt(bench: Bench) -> None:
    future = bench.submit(retries=1, backoff=1.0)
    assert bench.claims()
    bench.fails(future, ValueError())
    assert bench.pump.take_back(future)
    bench.attempts.look()
    assert not bench.pump.ledger.records
    bench.passes(2.0)
    assert not bench.claims()


def test_cancelled_before_it_is_known_whether_there_is_another_attempt(bench: Bench) -> None:
    future = bench.submit(retries=1, backoff=1.0)
    assert bench.claims()
    record = bench.record(future)
    bench.pump.failed.append((record, record.word, ValueError()))
    assert bench.pump.take_back(future)
    bench.attempts.look()
    assert future._state == "CANCELLED"
    assert not bench.pump.ledger.records
    bench.passes(2.0)
    assert not bench.claims()


@pytest.mark.parametrize("retries", [0, 1])
def test_stopped_while_its_answer_is_on_the_way(bench: Bench, retries: int) -> None:
    """A failure that may be followed by another attempt is no end yet."""
    future = bench.submit(retries=retries, timeout=60.0)
    assert bench.claims()
    row, record = bench.board.rows[0], bench.record(future)
    body = encode_outcome(caught(ValueError()))
    assert isinstance(body, bytes)
    assert bench.board.outboxes[0].put(record.word, ANSWER, body)
    bench.board.words[row.claim] = 0
    assert not bench.pump.take_back(future)
    assert bench.pump.stop(future, bench.nursery.kill) == bool(retries)
    bench.attempts.look()
    assert not bench.pump.ledger.records
    assert bench.nursery.acts == []


def test_cancelled_while_others_are_being_forgotten(bench: Bench) -> None:
    """Right after it was looked at: it is forgotten with the next look."""
    first, second = bench.submit(retries=1, backoff=1.0), bench.submit(retries=1, backoff=2.0)
    for at, future in enumerate((first, second)):
        assert bench.claims(at)
        bench.fails(future, ValueError())
    assert bench.pump.take_back(second)
    forget = bench.pump.forget

    def forget_and_cancel(record: TaskRecord, event: TaskEvent) -> None:
        forget(record, event)
        assert first.mark_cancelled()
        bench.pump.retry_cancelled = True

    bench.pump.forget = forget_and_cancel  # type: ignore[method-assign]
    bench.attempts.look()
    bench.pump.forget = forget  # type: ignore[method-assign]
    bench.attempts.look()
    assert not bench.pump.ledger.records


def test_nobody_waits_for_the_room_of_a_task_in_its_back_off(bench: Bench) -> None:
    future = bench.submit(b"x" * 100_000, retries=1, backoff=600.0)
    assert bench.claims()
    assert bench.pump.placed == {future.task_id}
    room: Future[Any] = Future()
    bench.pump.room.append(room)
    bench.fails(future, ValueError())
    assert not bench.pump.placed
    assert room.done()  # who waits looks again
    bench.passes(600.0)
    assert bench.pump.placed == {future.task_id}
    assert bench.claims()


def test_a_time_out_asks_for_the_stack_and_kills(bench: Bench) -> None:
    future = bench.submit(timeout=3.0, name="stuck")
    assert bench.claims()
    bench.passes(2.999)
    assert bench.nursery.acts == []
    bench.passes(0.001)
    assert bench.nursery.acts == [("dump", 0)]
    bench.passes(0.2)  # it does not answer
    assert bench.nursery.acts == [("dump", 0), ("kill", 0)]
    bench.dies(0)
    error = future.exception(0)
    assert isinstance(error, TaskTimeout)
    assert "'stuck'" in str(error)


def test_stacks_that_come_late_are_not_those_of_another(bench: Bench) -> None:
    """Those of a member that was stopped, say, and goes on when it is asked no more."""
    stopped, other = (bench.submit(timeout=3.0, name=name) for name in ("stopped", "other"))
    assert bench.claims(0)
    assert bench.claims(1)
    bench.passes(3.0)
    assert bench.nursery.acts == [("dump", 0), ("dump", 1)]
    for _ in range(2):
        os.write(bench.stacks[0].fd, b"in stopped")
    os.write(bench.stacks[1].fd, b"in other")
    bench.passes(0.003)
    bench.passes(0.003)
    assert sorted(bench.nursery.acts[2:]) == [("kill", 0), ("kill", 1)]
    errors = {}
    for at, future in enumerate((stopped, other)):
        bench.dies(at)
        errors[at] = future.exception(0)
        assert isinstance(errors[at], TaskTimeout)
    told = {error.task: error.stack for error in errors.values() if isinstance(error, TaskTimeout)}
    assert told == {"stopped": "in stopped" * 2, "other": "in other"}


@pytest.mark.parametrize("options", [{}, {"retries": 2, "retry_on": ()}], ids=["once", "with retries"])
def test_what_a_task_raises_in_its_grace_is_the_cause_of_the_time_out(
    bench: Bench, options: dict[str, Any]
) -> None:
    """Its handler of SIGTERM leaves that way."""
    future = bench.submit(timeout=3.0, grace=2.0, **options)
    assert bench.claims()
    bench.passes(3.0)
    bench.passes(0.2)
    assert bench.nursery.acts[-1] == ("terminate", 0)
    bench.answers(0, SystemExit("cleaned up"))
    bench.attempts.look()
    error = future.exception(0)
    assert isinstance(error, TaskTimeout)
    assert isinstance(error.__cause__, SystemExit)


@pytest.mark.parametrize("again", [True, False], ids=["is tried again", "is not"])
def test_a_death_after_the_answer_changes_nothing(bench: Bench, again: bool) -> None:
    future = bench.submit(retries=1, backoff=1.0, retry_on=KeyError if again else OSError)
    assert bench.claims()
    bench.answers(0, KeyError("mine"))
    bench.dies(0)
    if again:
        bench.passes(1.0)
        assert [type(failure.error) for failure in bench.record(future).failures.last] == [KeyError]
        assert bench.claims()
        bench.answers(0, KeyError("mine"))
        bench.attempts.look()
    error = future.exception(0)
    assert isinstance(error, KeyError)
    assert isinstance(error.__cause__, RemoteTraceback)


def test_a_back_off_function_is_called_without_the_mutex(bench: Bench) -> None:
    free: list[bool] = []

    def try_it() -> None:
        free.append(bench.pump.mutex.acquire(blocking=False))
        if free[0]:
            bench.pump.mutex.release()

    def backoff(_: int) -> float:
        threads = Threads()
        threads.start(try_it)
        threads.join()
        return 1.0

    future = bench.submit(retries=1, backoff=backoff)
    assert bench.claims()
    bench.fails(future, ValueError())
    assert free == [True]


@pytest.mark.parametrize("raised", [SystemExit(1), ZeroDivisionError()])
def test_what_a_back_off_function_raises_keeps_the_tasks_error(bench: Bench, raised: BaseException) -> None:
    def backoff(_: int) -> float:
        raise raised

    future = bench.submit(retries=1, backoff=backoff)
    assert bench.claims()
    own = ValueError("mine")
    bench.fails(future, own)
    error = future.exception(0)
    assert error is raised
    assert error.__cause__ is own


def test_no_other_attempt_once_all_are_to_be_cancelled(bench: Bench) -> None:
    failing, dying = bench.submit(retries=5), bench.submit(idempotent=True)
    assert bench.claims(0)
    assert bench.claims(1)
    bench.attempts.giving_up = True
    bench.fails(failing, ValueError())
    bench.dies(1)
    assert isinstance(failing.exception(0), ValueError)
    assert isinstance(dying.exception(0), WorkerDied)


def test_a_future_whose_worker_was_killed_for_it_is_told_without_the_mutex(bench: Bench) -> None:
    future = bench.submit()
    assert bench.claims()
    told: list[object] = []
    future.add_done_callback(told.append)
    bench.record(future).stopped = CANCELLED
    bench.dies(0)
    assert future.cancelled()
    assert not told
    assert list(bench.pump.due) == [(future, None, CANCELLED)]


def test_what_fails_in_a_look_at_one_task_costs_that_task(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    future, other = bench.submit(memory_limit=1 << 30), bench.submit(timeout=60.0)
    assert bench.claims(0)
    assert bench.claims(1)
    monkeypatch.setattr("repartir.attempts.own_bytes", lambda pid: 1 // 0)
    bench.passes(0.3)
    bench.passes(0.2)
    assert bench.nursery.acts == [("dump", 0), ("kill", 0)]
    bench.dies(0)
    assert isinstance(future.exception(0), ZeroDivisionError)
    assert not other.done()


def test_pieces_of_an_answer_go_with_its_attempt(bench: Bench) -> None:
    future = bench.submit(retries=1, backoff=1.0)
    assert bench.claims()
    word = bench.record(future).word
    assert bench.board.outboxes[0].put(word, ANSWER_PIECE, PIECE.pack(0, 2) + b"E")
    bench.pump.pump()
    assert bench.pump.pieces
    bench.dies(0)
    assert bench.record(future).word != word
    assert not bench.pump.pieces


def test_of_many_attempts_the_last_are_kept(bench: Bench) -> None:
    future = bench.submit(retries=30, backoff=0.0)
    for nth in range(31):
        bench.passes(0.001)
        assert bench.claims()
        if nth == 30:
            assert len(bench.record(future).failures.last) == KEPT_FAILURES == 10
        bench.fails(future, ValueError(nth))
    error = future.exception(0)
    assert isinstance(error, ValueError)
    first, second, *_, last = error.__notes__
    assert first == "20 attempts of 31 before these failed, too"
    assert second == "attempt 21 of 31 failed with ValueError: 20"
    assert last == "attempt 31 of 31 failed with this error"
    assert len(error.__notes__) == 12


def test_of_many_deaths_too(bench: Bench) -> None:
    future = bench.submit(idempotent=True, backoff=0, poison_limit=12)
    for _ in range(12):
        bench.passes(0.001)
        assert bench.claims()
        bench.dies(0, -11)
    assert "killed 12 workers (…, signal SIGSEGV, " in str(future.exception(0))
    assert str(future.exception(0)).count("SIGSEGV") == 11


def test_a_grace_is_waited_for_between_two_signals(bench: Bench) -> None:
    bench.submit(timeout=3.0, grace=2.0)
    assert bench.claims()
    bench.passes(3.0)
    bench.passes(0.2)
    assert bench.nursery.acts[-1] == ("terminate", 0)
    bench.passes(1.9)
    assert bench.nursery.acts[-1] == ("terminate", 0)
    bench.passes(0.2)
    assert bench.nursery.acts[-1] == ("kill", 0)


def test_a_task_that_ends_in_its_grace_costs_no_kill(bench: Bench) -> None:
    bench.submit(timeout=3.0, grace=2.0)
    assert bench.claims()
    bench.passes(3.0)
    bench.passes(0.2)
    bench.dies(0, -15)
    bench.passes(5.0)
    assert bench.nursery.acts[-1] == ("terminate", 0)


def test_deaths_of_an_idempotent_task_add_up_to_poison(bench: Bench) -> None:
    future = bench.submit(idempotent=True, backoff=0, poison_limit=3)
    for _ in range(3):
        bench.passes(0.001)
        assert bench.claims()
        bench.dies(0, -11)
    error = future.exception(0)
    assert isinstance(error, PoisonTask)
    assert "killed 3 workers" in str(error)


def test_without_retries_a_death_is_the_end(bench: Bench) -> None:
    future = bench.submit(timeout=60.0)
    assert bench.claims()
    bench.dies(0, 3)
    error = future.exception(0)
    assert type(error) is WorkerDied
    assert error.exit_code == 3


@pytest.mark.parametrize(
    ("after", "told"),
    [(30.0, "Within the last 30 s the kernel"), (7260.0, "Within the last 7260 s the kernel")],
)
def test_a_kill_for_want_of_memory_is_as_old_as_it_may_be(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, after: float, told: str
) -> None:
    kills = iter([4, 5, 5])
    monkeypatch.setattr("repartir.attempts.oom_kills", lambda: next(kills))
    bench.attempts.begin()
    bench.passes(after)
    messages = []
    for _ in range(2):
        future = bench.submit()
        assert bench.claims()
        bench.dies(0)
        messages.append(str(future.exception(0)))
    assert told in messages[0]
    assert ("most likely this one" if after < 60 else "perhaps this one") in messages[0]
    assert "kernel" not in messages[1]


def test_times_in_words(bench: Bench) -> None:
    future = bench.submit(timeout=7200)
    assert bench.claims()
    bench.passes(7234.5)
    bench.passes(0.2)
    bench.dies(0)
    assert "after 7234 s: its time-out is 7200 s." in str(future.exception(0))
    assert [in_seconds(seconds) for seconds in (0.25, 0.12345, 59.94, 1e6)] == [
        "0.25 s",
        "0.123 s",
        "59.9 s",
        "1000000 s",
    ]


def test_the_next_look_is_when_the_first_limit_is_due(bench: Bench) -> None:
    bench.submit(timeout=7.0)
    bench.submit(warn_after=2.0)
    assert bench.claims(0)
    assert bench.claims(1)
    bench.attempts.look()
    assert bench.pump.next_look == pytest.approx(bench.now + 2.0)
    bench.passes(2.0)
    assert bench.pump.next_look == pytest.approx(bench.now + 2.0)  # another may be posted meanwhile
    bench.passes(2.0)
    bench.passes(2.0)
    assert bench.pump.next_look == pytest.approx(bench.now + 1.0)


@pytest.mark.parametrize("condemned", [True, False])
def test_only_a_death_of_its_own_counts_against_a_task_that_had_not_begun(
    bench: Bench, condemned: bool
) -> None:
    """Not that of a member which answered after it was condemned, and then had claimed this task."""
    members = Members(bench.pump, bench.nursery, bench.attempts, lambda error: None)  # type: ignore[arg-type]
    future = bench.submit()
    for _ in range(MAX_REPOSTS + 1):
        assert bench.claims()
        row, words = bench.board.rows[0], bench.board.words
        words[row.started] = 0
        words[row.condemned] = 77 << 16 | 1 if condemned else 0
        members._member_exited(MemberExited(0, 1, 0))
        bench.pump.pump()
    assert isinstance(future._exception, PoisonTask) == (not condemned)
    assert bench.claims() == condemned


def test_a_task_that_comes_during_a_look_calls_for_another(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The look has begun without it, and takes its time: a handler of the log is slow."""
    bench.submit(warn_after=2.0)
    assert bench.claims()
    bench.attempts.look()
    rung: list[int] = []

    class Slow(logging.Handler):
        def emit(self, _: object) -> None:
            before = bench.rings
            bench.submit(timeout=2.5)
            rung.append(bench.rings - before)

    log, handler = logging.getLogger("repartir"), Slow()
    log.addHandler(handler)
    try:
        bench.passes(2.0)
    finally:
        log.removeHandler(handler)
    assert rung == [1]


def test_a_handler_that_raises_ends_nothing(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    class Down(logging.Handler):
        def emit(self, _: object) -> None:
            raise SystemExit("the collector is down")

    log, handler = logging.getLogger("repartir"), Down()
    log.addHandler(handler)
    try:
        bench.submit(warn_after=2.0)
        assert bench.claims()
        bench.passes(2.0)
        bench.passes(2.0)
    finally:
        log.removeHandler(handler)
    assert capsys.readouterr().err.count("SystemExit: the collector is down") == 1


def test_a_shorter_limit_is_kept_whoever_notes_at_the_same_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread submits between any two steps of a submit; and the older task ends before the look."""
    bench.attempts.look()
    shorter: list[Future[Any]] = []

    class Watched(set[int]):
        def add(self, task_id: int) -> None:
            if not self and not shorter:
                shorter.append(Future())
                shorter[0] = bench.submit(timeout=1.0)
            super().add(task_id)

        def __len__(self) -> int:
            size = super().__len__()
            if not shorter:
                shorter.append(Future())
                shorter[0] = bench.submit(timeout=1.0)
            return size

    monkeypatch.setattr(bench.pump, "watched", Watched())
    bench.submit(timeout=5.0)
    bench.attempts.look()
    assert bench.pump.look_after == 1.0


def test_a_limit_that_nobody_has_any_more_is_forgotten(bench: Bench) -> None:
    short = bench.submit(timeout=1.0)
    bench.attempts.look()
    assert bench.pump.look_after == 1.0
    with bench.pump.mutex:
        bench.pump.settle(bench.record(short), None, None, TaskEvent.ANSWER)
    bench.submit(timeout=5.0)
    bench.attempts.look()
    bench.attempts.look()
    assert bench.pump.look_after <= 5.0
    for record in list(bench.pump.ledger.records.values()):
        with bench.pump.mutex:
            bench.pump.settle(record, None, None, TaskEvent.ANSWER)
    bench.attempts.look()
    assert bench.pump.look_after == float("inf")
