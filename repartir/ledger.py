"""The ledger: one record for every task that is not settled.  Events go in, actions come out.

It knows no process, clock, lock or socket, and it touches a future only to hand it back.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, Generic, NamedTuple, TypeVar

from repartir.policy import MAX_REPOSTS, NO_POLICY, Policy
from repartir.shm.layout import ATTEMPT_BITS, ATTEMPT_MASK, task_word
from repartir.states import FINAL, TRANSITIONS, TaskEvent, TaskState, after

F = TypeVar("F")

_LONGEST_NAME = 200


KEPT_FAILURES = 10
"""Of a task that is tried more often the errors before these are let go."""


class Failure(NamedTuple):
    """An attempt that is followed by another: its error, and the exit code if that was its worker's death."""

    error: BaseException
    exit_code: int | None


class Failures(NamedTuple):
    """All of them of one task: how many, how many of these were deaths, and the last."""

    times: int = 0
    deaths: int = 0
    last: tuple[Failure, ...] = ()

    def and_then(self, failure: Failure) -> Failures:
        died = failure.exit_code is not None
        return Failures(self.times + 1, self.deaths + died, (*self.last, failure)[-KEPT_FAILURES:])


_NONE_YET = Failures()


class Record(Generic[F]):
    """One task: what is posted for it, where, and which future waits for it.

    ``word`` is id and attempt as shared memory has them, ``payload`` and ``flags`` are what the slot carries; ``keep``
    holds what must live as long as the task (the function's reference); ``block`` is the arena block of its
    arguments, if it has one.  ``failures`` are the attempts that began and failed, ``reposts`` counts the workers that died
    of themselves before they began it, ``stopped`` is the error for which its worker is being killed.

    A task that is part of a map has its ``job``, and answers for the items in ``spans``; those in its block count from
    ``base``.
    """

    __slots__ = (
        "__dict__",
        "attempt",
        "flags",
        "future",
        "keep",
        "lane",
        "name",
        "payload",
        "policy",
        "position",
        "state",
        "task_id",
        "word",
    )

    # Few tasks have anything else than these: it costs a dictionary each.
    block: Any = None
    failures = _NONE_YET
    reposts = 0
    stopped: BaseException | None = None
    job: Any = None
    base = 0
    spans: tuple[tuple[int, int], ...] = ()

    def __init__(
        self,
        task_id: int,
        future: F,
        payload: Any,
        flags: int,
        keep: Any,
        name: object,
        policy: Policy = NO_POLICY,
    ) -> None:
        self.task_id = task_id
        self.attempt = 1
        self.word = task_word(task_id, 1)
        self.future = future
        self.payload = payload
        self.flags = flags
        self.keep = keep
        self.name = name
        self.lane = -1
        self.position = -1
        self.state = TaskState.PENDING
        self.policy = policy

    @property
    def title(self) -> str:
        """What messages call the task."""
        return self.policy.name or name_of(self.name)

    def is_poison(self) -> bool:
        """Whether a worker that dies in it now is as many as it may kill, where it may be run again."""
        limit = self.policy.poison_limit
        return self.policy.may_repeat and limit is not None and self.failures.deaths + 1 >= limit

    def may_retry(self, error: BaseException, *, died: bool) -> bool:
        """Whether an attempt that ended with this error (``died``: its worker's end) is followed by another."""
        if self.attempt >= ATTEMPT_MASK or (died and self.is_poison()):
            return False
        if died and self.policy.idempotent:
            return True
        return self.policy.retries_after(error, self.failures.times + 1)


def name_of(function: object) -> str:
    """A short name, whatever the program called.  Not its ``repr``, which may be large, or raise: it is the user's code."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None)
    except Exception:  # noqa: BLE001 - of the user's `__getattr__`
        name = None
    return name[:_LONGEST_NAME] if isinstance(name, str) else type(function).__qualname__


class Repost(NamedTuple, Generic[F]):
    """Put the task into a deque again."""

    record: Record[F]


class Died(NamedTuple, Generic[F]):
    """Its member died in the task (``begun``), or for the last time before it."""

    record: Record[F]
    begun: bool


Action = Repost[F] | Died[F]


_POST = {old: new for (old, event), new in TRANSITIONS.items() if event is TaskEvent.POST}


class Ledger(Generic[F]):
    """Records by task id, and how many answers came late."""

    __slots__ = ("late", "records")

    def __init__(self) -> None:
        self.records: dict[int, Record[F]] = {}
        self.late = 0

    def __len__(self) -> int:
        return len(self.records)

    def enter(self, record: Record[F]) -> None:
        """The task is about to be posted.  May be repeated."""
        state = record.state
        record.state = _POST.get(state) or after(state, TaskEvent.POST)
        self.records[record.task_id] = record

    def claimant(self, word: int) -> Record[F] | None:
        """The record whose current attempt ``word`` names; None for a settled task or an older attempt."""
        record = self.records.get(word >> ATTEMPT_BITS)
        if record is None or record.attempt != word & ATTEMPT_MASK:
            return None
        return record

    def answered(self, word: int) -> Record[F] | None:
        """An answer arrived: the record to settle, or None (and counted) when it is late or the second."""
        record = self.records.get(word >> ATTEMPT_BITS)
        if record is None or record.word != word:
            self.late += 1
            return None
        return record

    def close(self, record: Record[F], event: TaskEvent) -> None:
        """The record's future is settled or cancelled: forget it.  May be repeated."""
        state = record.state
        if state not in FINAL:
            record.state = TRANSITIONS.get((state, event)) or after(state, event)
        self.records.pop(record.task_id, None)

    def member_died(self, claims: Iterable[int], started: int, *, expected: bool = False) -> list[Action[F]]:
        """A member died with these claims; ``started`` is the newest task that it had begun to decode.

        A task that was claimed and not begun goes back: at most ``MAX_REPOSTS`` times, unless the death was ``expected``,
        which says nothing of the task.  What becomes of one that was begun depends on the error, see `Record.may_retry`.
        """
        actions: list[Action[F]] = []
        for word in claims:
            record = self.claimant(word)
            if record is None:
                continue
            if word == started:
                actions.append(Died(record, begun=True))
            elif record.attempt >= ATTEMPT_MASK or (record.reposts >= MAX_REPOSTS and not expected):
                actions.append(Died(record, begun=False))
            else:
                actions.append(Repost(record))
        return actions

    def repost(self, record: Record[F], *, lost: bool = False) -> None:
        """The next attempt of a task; ``lost``: a worker died of itself before it began this one."""
        if lost:
            record.reposts += 1
        record.state = after(record.state, TaskEvent.REPOST)
        record.attempt += 1
        record.word = task_word(record.task_id, record.attempt)
        record.lane = record.position = -1
        if record.stopped is not None:
            record.stopped = None
