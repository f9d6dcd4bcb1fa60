"""Attempts that end badly: time-outs, deaths, errors; and whether there is another one, and when.

All of it in the broker's thread, which no signal handler interrupts.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import random
import signal
import time
from collections import deque
from collections.abc import Callable

from repartir.diagnosis import describe
from repartir.environment import oom_kills
from repartir.errors import MemoryLimitExceeded, PoisonTask, TaskTimeout, WorkerDied
from repartir.ledger import MAX_REPOSTS, Failure
from repartir.policy import MEMORY_LOOK_S
from repartir.pump import CANCELLED, Pump, TaskRecord
from repartir.residence import own_bytes
from repartir.stacks import CHECK_S, StackFile
from repartir.states import TaskEvent
from repartir.stats import in_words
from repartir.supervisor import Supervisor, describe_exit

_STACK_S = 0.1
"""How long a member that is to be killed may take to write its stacks."""
_LEAST_LOOK_S = 0.001
_WARNED = 10_000
"""So many attempts that were warned of are remembered, lest they be warned of again."""
_log = logging.getLogger("repartir")


class _Overdue:
    """A task over its limit, until its member is told to end."""

    __slots__ = ("asked_at", "elapsed", "record", "row", "word")

    def __init__(self, record: TaskRecord, row: int, word: int, elapsed: float) -> None:
        self.record = record
        self.row = row
        self.word = word
        self.elapsed = elapsed
        self.asked_at: float | None = None


class Attempts:
    """Retries and time-outs of one executor's tasks; ``clock`` gives seconds as ``time.monotonic`` does in the members."""

    def __init__(
        self,
        pump: Pump,
        supervisor: Supervisor,
        stacks: StackFile,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._pump = pump
        self._board = pump.board
        self._supervisor = supervisor
        self._stacks = stacks
        self._clock = clock
        self._rng = rng or random.Random()
        self._later: list[tuple[float, int, TaskRecord]] = []
        self._order = itertools.count()
        self._overdue: deque[_Overdue] = deque()
        self._graces: list[tuple[float, int, int]] = []
        self._warned: dict[int, None] = {}
        """Attempts that were warned of, by their words."""
        self._oom_kills = 0

    def begin(self) -> None:
        """The executor has begun, and what takes a moment holds up nobody."""
        self._oom_kills = oom_kills()

    def look(self) -> bool:
        """Do what is due, and tell the pump when to look again; whether something was settled."""
        pump = self._pump
        settled = bool(pump.failed)
        while pump.failed:
            record, word, error = pump.failed[0]
            with pump.mutex:
                if record.word == word and record.task_id in pump.ledger.records:
                    self._ended(record, error, died=False)
            pump.failed.popleft()
        if pump.retry_cancelled:
            pump.retry_cancelled = False
            self._forget_cancelled()
        waits = []
        if self._later:
            waits.append(self._post_due())
        if pump.watched:
            waits.append(self._watch())
        if self._overdue:
            waits.append(self._stop_overdue())
        if self._graces:
            waits.append(self._end_graces())
        pump.next_look = self._clock() + max(min(waits), _LEAST_LOOK_S) if waits else float("inf")
        return settled

    def end(self) -> None:
        """Nothing is looked after any more: others may have the file for stacks."""
        while self._overdue:
            self._done_with_first()

    def died(self, record: TaskRecord, exit_code: int, *, begun: bool) -> None:
        """The task's member died in it, or for the last time before it.  Under the pump's mutex."""
        if record.stopped is CANCELLED:
            self._pump.withdrawn(record)
            record.future.notify_cancelled()
        elif record.stopped is not None:
            self._ended(record, record.stopped, died=False)
        elif begun:
            out_of_memory = self._killed_for_memory(exit_code)
            self._ended(record, _died(record, exit_code, out_of_memory=out_of_memory), died=True)
        else:
            self._pump.settle(record, None, _never_begun(record, exit_code), TaskEvent.FAIL)

    def _killed_for_memory(self, exit_code: int) -> bool:
        """Whether the kernel has killed for want of memory since this was asked last."""
        if exit_code != -signal.SIGKILL:
            return False
        before, self._oom_kills = self._oom_kills, oom_kills()
        return self._oom_kills > before

    def _ended(self, record: TaskRecord, error: BaseException, *, died: bool) -> None:
        """An attempt ended with this error: another one, or the end of the task."""
        pump = self._pump
        if record.future.done():
            return pump.forget(record, TaskEvent.CANCEL)
        if record.may_retry(error, died=died):
            record.failures = (*record.failures, Failure(error, died))
            try:
                delay = record.policy.delay(len(record.failures), self._rng)
            except Exception as exc:  # noqa: BLE001 - of the user's back-off function
                return pump.settle(record, None, exc, TaskEvent.FAIL)
            pump.ledger.repost(record)
            heapq.heappush(self._later, (self._clock() + delay, next(self._order), record))
            return None
        if died and record.is_poison():
            error = _poison(record, error)
        elif record.failures:
            attempts = len(record.failures) + 1
            for nth, earlier in enumerate(record.failures, 1):
                error.add_note(f"attempt {nth} of {attempts} failed with {describe(earlier.error)}")
            error.add_note(f"attempt {attempts} of {attempts} failed with this error")
        return pump.settle(record, None, error, TaskEvent.FAIL)

    def _forget_cancelled(self) -> None:
        with self._pump.mutex:
            for _, _, record in self._later:
                if record.future.done():
                    self._pump.forget(record, TaskEvent.CANCEL)
        self._later = [later for later in self._later if not later[2].future.done()]
        heapq.heapify(self._later)

    def _post_due(self) -> float:
        """Post tasks whose back-off is over; seconds until the next."""
        pump, now = self._pump, self._clock()
        with pump.mutex:
            while self._later and self._later[0][0] <= now:
                record = heapq.heappop(self._later)[2]
                if record.future.done():
                    pump.forget(record, TaskEvent.CANCEL)
                else:
                    pump.post_again(record)
        pump.pump_surely()
        return self._later[0][0] - now if self._later else float("inf")

    def _watch(self) -> float:
        """Condemn members whose task is over a limit; seconds until the next might be."""
        pump, board, words = self._pump, self._board, self._board.words
        now = self._clock()
        wait = pump.look_after
        for row in board.rows:
            word = words[row.claim]
            record = pump.ledger.claimant(word)
            if record is None or not record.policy.is_watched or record.stopped is not None:
                continue
            began, pid = words[row.began], words[row.pid]
            if not began or words[row.claim] != word:
                continue
            elapsed = now - began / 1e9
            error, next_in = self._judge(record, elapsed, pid, words[row.baseline])
            wait = min(wait, next_in)
            if error is None:
                continue
            with pump.mutex:
                if pump.ledger.claimant(word) is record and board.condemn(row.index, word):
                    record.stopped = error
                    self._overdue.append(_Overdue(record, row.index, word, elapsed))
        return wait

    def _judge(
        self, record: TaskRecord, elapsed: float, pid: int, baseline: int
    ) -> tuple[BaseException | None, float]:
        """Why the task is to be stopped, if it is; else seconds until there is something to look for."""
        policy, wait = record.policy, float("inf")
        if policy.timeout is not None:
            if elapsed >= policy.timeout:
                return _timeout(record, elapsed, ""), wait
            wait = policy.timeout - elapsed
        if policy.memory_limit is not None:
            used = own_bytes(pid) - baseline
            if used > policy.memory_limit:
                return _over_memory(record, used, policy.memory_limit), wait
            wait = min(wait, MEMORY_LOOK_S)
        if policy.warn_after is not None and record.word not in self._warned:
            if elapsed >= policy.warn_after:
                self._warned[record.word] = None
                _log.warning("task %r has been running for %.3g s in worker %d", record.title, elapsed, pid)
                while len(self._warned) > _WARNED:
                    del self._warned[next(iter(self._warned))]
            else:
                wait = min(wait, policy.warn_after - elapsed)
        return None, wait

    def _stop_overdue(self) -> float:
        """Have the first overdue member write its stacks, then end it; seconds until the next step."""
        while self._overdue:
            first = self._overdue[0]
            now = self._clock()
            if not self._is_at(first.row, first.word):
                self._done_with_first()
                continue
            if first.asked_at is None:
                if not self._stacks.lock.acquire(blocking=False):
                    return CHECK_S
                self._stacks.rewind()
                self._supervisor.dump(first.row)
                first.asked_at = now
                return CHECK_S
            if not self._stacks.is_written() and now - first.asked_at < _STACK_S:
                return CHECK_S
            record = first.record
            if isinstance(record.stopped, TaskTimeout):
                record.stopped = _timeout(record, first.elapsed, self._stacks.text())
            if record.policy.grace:
                self._supervisor.terminate(first.row)
                self._graces.append((now + record.policy.grace, first.row, first.word))
            else:
                self._supervisor.kill(first.row)
            self._done_with_first()
        return float("inf")

    def _done_with_first(self) -> None:
        if self._overdue.popleft().asked_at is not None:
            self._stacks.lock.release()

    def _end_graces(self) -> float:
        now = self._clock()
        for _, row, word in [grace for grace in self._graces if grace[0] <= now]:
            if self._is_at(row, word):
                self._supervisor.kill(row)
        self._graces = [grace for grace in self._graces if grace[0] > now]
        return min((when for when, _, _ in self._graces), default=float("inf")) - now

    def _is_at(self, row: int, word: int) -> bool:
        """Whether the member that was condemned for this task is still alive."""
        return bool(self._board.words[self._board.rows[row].condemned] == word)


def _timeout(record: TaskRecord, elapsed: float, stack: str) -> TaskTimeout:
    told = f" It was at:\n{stack}" if stack else ""
    return TaskTimeout(
        f"task {record.title!r} was stopped after {elapsed:.3g} s: its time-out is {record.policy.timeout:g} s. "
        f"Its worker was replaced; other tasks are not affected.{told}",
        task=record.title,
        elapsed=elapsed,
        stack=stack,
    )


def _over_memory(record: TaskRecord, used: int, limit: int) -> MemoryLimitExceeded:
    return MemoryLimitExceeded(
        f"task {record.title!r} was stopped: its worker had taken {in_words(used)} of memory since it was ready, and its "
        f"memory_limit is {in_words(limit)}. The worker was replaced; other tasks are not affected.",
        task=record.title,
        used=used,
        limit=limit,
    )


def _died(record: TaskRecord, code: int, *, out_of_memory: bool) -> WorkerDied:
    why = (
        " The kernel has just killed a process because memory ran out, most likely this one: "
        "give tasks less to do at a time, or use fewer workers."
        if out_of_memory
        else ""
    )
    return _death(
        WorkerDied,
        f"the worker that ran task {record.title!r} died ({describe_exit(code)}). The task may have run in part; "
        f"other tasks are not affected.{why}",
        record,
        code,
    )


def _never_begun(record: TaskRecord, code: int) -> WorkerDied:
    return _death(
        PoisonTask,
        f"{MAX_REPOSTS + 1} workers in a row died before they could begin task {record.title!r} "
        f"(last: {describe_exit(code)})",
        record,
        code,
    )


def _poison(record: TaskRecord, last: BaseException) -> WorkerDied:
    deaths = [*(failure.error for failure in record.failures if failure.died), last]
    codes = [_code_of(death) for death in deaths]
    return _death(
        PoisonTask,
        f"task {record.title!r} killed {len(deaths)} workers ({', '.join(map(describe_exit, codes))}) and is given up: "
        f"poison_limit={len(deaths)}",
        record,
        codes[-1],
    )


def _death(kind: type[WorkerDied], message: str, record: TaskRecord, code: int) -> WorkerDied:
    exit_code, number = (code, None) if code >= 0 else (None, -code)
    return kind(message, exit_code=exit_code, signal=number, task=record.title)


def _code_of(death: BaseException) -> int:
    """The exit code that `_death` was given."""
    assert isinstance(death, WorkerDied)
    return death.exit_code if death.signal is None else -death.signal  # type: ignore[return-value]
