"""The ledger: events in, actions out; each task is settled once."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from repartir.errors import InternalError
from repartir.ledger import Died, Ledger, Record, Repost
from repartir.policy import MAX_REPOSTS, Policy
from repartir.shm.layout import ATTEMPT_BITS, ATTEMPT_MASK, task_word
from repartir.states import TaskEvent, TaskState

NOTHING = 0
"""A claim or started word of a member that has none."""


def record_of(task_id: int = 1) -> Record[str]:
    return Record(task_id, f"future {task_id}", b"payload", 0, None, "name")


def entered(task_id: int = 1) -> tuple[Ledger[str], Record[str]]:
    ledger: Ledger[str] = Ledger()
    record = record_of(task_id)
    ledger.enter(record)
    return ledger, record


def test_a_record_starts_pending_with_its_first_attempt_and_no_place() -> None:
    record = record_of(7)
    assert (record.state, record.attempt, record.lane, record.position, record.block) == (
        TaskState.PENDING,
        1,
        -1,
        -1,
        None,
    )
    assert record.word == task_word(7, 1)


def test_enter_makes_it_posted_and_known() -> None:
    ledger, record = entered()
    assert record.state is TaskState.POSTED
    assert len(ledger) == 1
    assert ledger.claimant(record.word) is record


def test_enter_may_be_repeated() -> None:
    """An interrupted post is begun again."""
    ledger, record = entered()
    ledger.enter(record)
    assert record.state is TaskState.POSTED
    assert len(ledger) == 1


def test_a_settled_task_cannot_be_entered() -> None:
    ledger, record = entered()
    ledger.close(record, TaskEvent.ANSWER)
    with pytest.raises(InternalError):
        ledger.enter(record)


def test_an_answer_finds_its_record() -> None:
    ledger, record = entered()
    assert ledger.answered(record.word) is record
    assert ledger.late == 0


def test_a_second_answer_is_dropped_and_counted() -> None:
    ledger, record = entered()
    ledger.close(record, TaskEvent.ANSWER)
    assert ledger.answered(record.word) is None
    assert ledger.late == 1


def test_an_answer_of_a_task_that_nobody_entered_is_dropped_and_counted() -> None:
    ledger, _ = entered(1)
    assert ledger.answered(task_word(2, 1)) is None
    assert ledger.late == 1


@pytest.mark.parametrize("reposts", [1, 2, MAX_REPOSTS])
def test_answers_of_older_attempts_are_fenced_off(reposts: int) -> None:
    ledger, record = entered()
    older = []
    for _ in range(reposts):
        older.append(record.word)
        ledger.repost(record)
        ledger.enter(record)
    assert [ledger.answered(word) for word in older] == [None] * reposts
    assert ledger.late == reposts
    assert ledger.answered(record.word) is record


def test_an_answer_of_an_attempt_to_come_is_fenced_off() -> None:
    ledger, record = entered()
    assert ledger.answered(task_word(record.task_id, 2)) is None
    assert ledger.answered(task_word(record.task_id, ATTEMPT_MASK)) is None


def test_close_forgets_the_record() -> None:
    ledger, record = entered()
    ledger.close(record, TaskEvent.ANSWER)
    assert (len(ledger), record.state) == (0, TaskState.SETTLED)


def test_close_may_be_repeated_and_the_first_one_counts() -> None:
    """An interrupted round of settling is begun again; a cancel may meet an answer."""
    ledger, record = entered()
    ledger.close(record, TaskEvent.CANCEL)
    ledger.close(record, TaskEvent.ANSWER)
    assert (len(ledger), record.state) == (0, TaskState.CANCELLED)


def test_close_of_a_task_that_was_never_entered() -> None:
    ledger: Ledger[str] = Ledger()
    record = record_of()
    ledger.close(record, TaskEvent.CANCEL)
    assert (len(ledger), record.state) == (0, TaskState.CANCELLED)


def test_a_task_that_was_never_posted_cannot_be_answered() -> None:
    with pytest.raises(InternalError):
        Ledger[str]().close(record_of(), TaskEvent.ANSWER)


class TestMemberDied:
    def test_claimed_and_not_started_is_posted_again(self) -> None:
        ledger, record = entered()
        assert ledger.member_died([record.word], NOTHING) == [Repost(record)]
        assert record.state is TaskState.POSTED, "deciding changes nothing"

    def test_the_word_of_an_earlier_task_does_not_make_it_started(self) -> None:
        ledger, record = entered(2)
        assert ledger.member_died([record.word], task_word(1, 1)) == [Repost(record)]

    def test_the_word_of_an_earlier_attempt_does_not_make_it_started(self) -> None:
        ledger, record = entered()
        before = record.word
        ledger.repost(record)
        ledger.enter(record)
        assert ledger.member_died([record.word], before) == [Repost(record)]

    def test_started_fails(self) -> None:
        ledger, record = entered()
        assert ledger.member_died([record.word], record.word) == [Died(record, begun=True)]

    def test_no_claim_is_nothing(self) -> None:
        ledger, record = entered()
        assert ledger.member_died([NOTHING], NOTHING) == []
        assert ledger.member_died([], record.word) == []

    def test_settled_already_is_nothing(self) -> None:
        """The answer lay in the outbox; the member died before it let go of the claim."""
        ledger, record = entered()
        ledger.close(record, TaskEvent.ANSWER)
        assert ledger.member_died([record.word], record.word) == []
        assert ledger.member_died([record.word], NOTHING) == []

    def test_a_claim_of_an_older_attempt_is_nothing(self) -> None:
        ledger, record = entered()
        old = record.word
        ledger.repost(record)
        ledger.enter(record)
        assert ledger.member_died([old], old) == []

    def test_death_after_death_it_is_posted_again_so_often_and_then_it_is_poison(self) -> None:
        ledger, record = entered()
        for attempt in range(1, MAX_REPOSTS + 1):
            assert record.attempt == attempt
            assert ledger.member_died([record.word], NOTHING) == [Repost(record)]
            ledger.repost(record, lost=True)
            ledger.enter(record)
        assert ledger.member_died([record.word], NOTHING) == [Died(record, begun=False)]

    def test_a_death_that_was_meant_for_another_task_says_nothing_of_this_one(self) -> None:
        ledger, record = entered()
        for _ in range(3 * MAX_REPOSTS):
            assert ledger.member_died([record.word], NOTHING, expected=True) == [Repost(record)]
            ledger.repost(record)
            ledger.enter(record)
        assert record.reposts == 0
        assert ledger.member_died([record.word], NOTHING) == [Repost(record)]

    def test_attempts_end_with_the_bits_for_them(self) -> None:
        """One more would be the word of another task."""
        ledger, record = entered()
        record.attempt, record.word = ATTEMPT_MASK, task_word(record.task_id, ATTEMPT_MASK)
        assert ledger.member_died([record.word], NOTHING, expected=True) == [Died(record, begun=False)]

    def test_begun_at_the_last_attempt_it_is_no_poison(self) -> None:
        ledger, record = entered()
        for _ in range(MAX_REPOSTS):
            ledger.repost(record, lost=True)
            ledger.enter(record)
        assert ledger.member_died([record.word], record.word) == [Died(record, begun=True)]

    def test_a_stack_of_claims_is_judged_one_by_one(self) -> None:
        ledger, settled = entered(1)
        begun, claimed = record_of(2), record_of(3)
        ledger.enter(begun)
        ledger.enter(claimed)
        ledger.close(settled, TaskEvent.ANSWER)
        words = [settled.word, begun.word, claimed.word]
        assert ledger.member_died(words, begun.word) == [Died(begun, begun=True), Repost(claimed)]


def test_repost_is_a_new_attempt_without_a_place() -> None:
    ledger, record = entered()
    record.lane, record.position = 1, 5
    word = record.word
    ledger.repost(record)
    assert (record.state, record.attempt, record.lane, record.position) == (TaskState.PENDING, 2, -1, -1)
    assert record.word != word
    assert ledger.claimant(word) is None


def test_a_settled_task_cannot_be_reposted() -> None:
    ledger, record = entered()
    ledger.close(record, TaskEvent.ANSWER)
    with pytest.raises(InternalError):
        ledger.repost(record)


@dataclass
class Task:
    """What the plain model knows of one task."""

    record: Record[str]
    attempt: int = 1
    posted: bool = False
    settled: int = 0


class LedgerMachine(RuleBasedStateMachine):
    """Tasks, answers that come late or twice, and deaths in any order: every task is settled exactly once.

    The machine plays the broker: it carries out what the ledger returns.
    """

    tasks = Bundle("tasks")
    words = Bundle("words")

    @initialize()
    def begin(self) -> None:
        self.ledger: Ledger[str] = Ledger()
        self.model: dict[int, Task] = {}
        self.late = 0

    @rule(target=tasks)
    def submit(self) -> int:
        task_id = len(self.model) + 1
        self.model[task_id] = Task(record_of(task_id))
        return task_id

    @rule(target=words, task_id=tasks)
    def post(self, task_id: int) -> int:
        task = self.model[task_id]
        if task.settled:
            with pytest.raises(InternalError):
                self.ledger.enter(task.record)
        else:
            self.ledger.enter(task.record)
            task.posted = True
        return task.record.word

    @rule(word=words)
    def answer(self, word: int) -> None:
        task = self.model[word >> ATTEMPT_BITS]
        record = self.ledger.answered(word)
        current = word == task_word(word >> ATTEMPT_BITS, task.attempt)
        if not (current and task.posted and not task.settled):
            assert record is None
            self.late += 1
            return
        assert record is task.record
        self.settle(task, TaskEvent.ANSWER)

    @rule(task_id=tasks)
    def cancel(self, task_id: int) -> None:
        task = self.model[task_id]
        if not task.settled:
            self.settle(task, TaskEvent.CANCEL)

    @rule(claimed=st.lists(words, max_size=3, unique=True), begun=st.integers(0, 3))
    def member_dies(self, claimed: list[int], begun: int) -> None:
        started = claimed[begun] if begun < len(claimed) else NOTHING
        actions = self.ledger.member_died(claimed, started)
        expected = []
        for word in claimed:
            task = self.model[word >> ATTEMPT_BITS]
            if task.settled or not task.posted or word != task_word(word >> ATTEMPT_BITS, task.attempt):
                continue
            if word == started:
                expected.append(Died(task.record, begun=True))
            elif task.attempt > MAX_REPOSTS:
                expected.append(Died(task.record, begun=False))
            else:
                expected.append(Repost(task.record))
        assert actions == expected
        for action in actions:
            task = self.model[action.record.task_id]
            if isinstance(action, Repost):
                self.ledger.repost(action.record, lost=True)
                task.attempt += 1
            else:
                self.settle(task, TaskEvent.FAIL)

    @rule(task_id=tasks)
    def close_again(self, task_id: int) -> None:
        """What an interrupted round repeats changes nothing."""
        task = self.model[task_id]
        if task.settled:
            state = task.record.state
            self.ledger.close(task.record, TaskEvent.ANSWER)
            assert task.record.state is state

    def settle(self, task: Task, event: TaskEvent) -> None:
        self.ledger.close(task.record, event)
        task.settled += 1

    @invariant()
    def each_is_settled_at_most_once_and_known_until_then(self) -> None:
        for task_id, task in self.model.items():
            assert task.settled <= 1
            known = self.ledger.records.get(task_id)
            assert known is (task.record if task.posted and not task.settled else None)
            assert task.record.attempt == task.attempt
        assert self.ledger.late == self.late
        assert len(self.ledger) == sum(task.posted and not task.settled for task in self.model.values())

    def teardown(self) -> None:
        """A pool that breaks fails what is left: then nothing is open."""
        for task in self.model.values():
            if not task.settled:
                self.settle(task, TaskEvent.FAIL)
        self.each_is_settled_at_most_once_and_known_until_then()
        assert len(self.ledger) == 0
        assert all(task.settled == 1 for task in self.model.values())


TestLedgerMachine = LedgerMachine.TestCase


class _Rude:
    def __call__(self) -> None: ...

    def __repr__(self) -> str:
        raise ValueError("no repr")

    def __getattr__(self, name: str) -> Any:
        raise ValueError(f"no {name}")


class _Mocking:
    def __getattr__(self, name: str) -> Any:
        return self


@pytest.mark.parametrize(
    ("called", "title"),
    [
        (len, "len"),
        (str.upper, "str.upper"),
        (functools.partial(functools.partial(len, list(range(1000)))), "len"),
        (functools.partial(_Rude()), "_Rude"),
        (_Rude(), "_Rude"),
        (_Mocking(), "_Mocking"),
        (type("C" * 1000, (), {}), "C" * 200),
    ],
    ids=["function", "method", "partial", "partial of an object", "object", "mock", "long"],
)
def test_a_task_has_a_short_title_whatever_is_called(called: object, title: str) -> None:
    assert Record(1, None, b"", 0, None, called).title == title
    assert Record(1, None, b"", 0, None, called, Policy(name="fit")).title == "fit"
