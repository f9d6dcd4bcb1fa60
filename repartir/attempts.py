"""Attempts that end badly: time-outs, deaths, errors; and whether there is another one, and when.

All of it in the broker's thread, which no signal handler interrupts.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import logging
import random
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence

from repartir import logs
from repartir.diagnosis import describe
from repartir.environment import oom_kills
from repartir.errors import MemoryLimitExceeded, PoisonTask, TaskTimeout, WorkerDied
from repartir.ledger import Failure, Failures
from repartir.policy import MEMORY_LOOK_S
from repartir.portable import ATTEMPTS, add_note, set_attribute, set_cause, without_outermost_frame
from repartir.pump import CANCELLED, Pump, TaskRecord
from repartir.residence import own_bytes
from repartir.stacks import CHECK_S, StackFile
from repartir.states import TaskEvent
from repartir.stats import in_seconds, in_words
from repartir.supervisor import Supervisor, describe_exit

_STACK_S = 0.1
"""How long a member that is to be killed may take to write its stacks."""
_LEAST_LOOK_S = 0.001
_RECENT_S = 60.0
_WARNED = 10_000
"""So many attempts that were warned of are remembered, lest they be warned of again."""


class _Overdue:
    """A task over its limit, whose member is asked for its stacks before it is told to end."""

    __slots__ = ("asked_at", "elapsed", "record", "row", "word")

    def __init__(self, record: TaskRecord, row: int, word: int, elapsed: float, asked_at: float) -> None:
        self.record = record
        self.row = row
        self.word = word
        self.elapsed = elapsed
        self.asked_at = asked_at


class Attempts:
    """Retries and time-outs of one executor's tasks; ``clock`` gives seconds as ``time.monotonic`` does in the members."""

    def __init__(
        self,
        pump: Pump,
        supervisor: Supervisor,
        stacks: Sequence[StackFile],
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._pump = pump
        self._board = pump.board
        self._supervisor = supervisor
        self._stacks = stacks
        self._clock = clock
        self._rng = rng or random.Random()
        self.giving_up = False
        """No task is tried again: somebody asked that all be cancelled."""
        self._deaths: deque[tuple[TaskRecord, int, BaseException, int | None]] = deque()
        """Tasks whose member died, with their words, errors, and exit codes where the death is the error."""
        self._later: list[tuple[float, int, TaskRecord]] = []
        self._order = itertools.count()
        self._overdue: list[_Overdue] = []
        self._graces: list[tuple[float, int, int]] = []
        self._warned: dict[int, None] = {}
        """Attempts that were warned of, by their words."""
        self._oom_kills = 0
        self._oom_asked_at = 0.0

    def begin(self) -> None:
        """The executor has begun, and what takes a moment holds up nobody."""
        self._oom_kills, self._oom_asked_at = oom_kills(), self._clock()

    def look(self) -> bool:
        """Do what is due, and tell the pump when to look again; whether something was settled."""
        pump = self._pump
        pump.next_look = float("inf")  # a task that is noted from here on calls for another look
        pump.heed_notes()
        settled = bool(pump.failed or self._deaths)
        while pump.failed:
            self._ended(*pump.failed[0], None)
            pump.failed.popleft()
        while self._deaths:
            self._ended(*self._deaths.popleft())
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
        if waits:
            pump.next_look = self._clock() + max(min(waits), _LEAST_LOOK_S)
        return settled

    def died(self, record: TaskRecord, exit_code: int, *, begun: bool) -> None:
        """The task's member died in it, or for the last time before it.  Under the pump's mutex; a look does the rest."""
        pump, word = self._pump, record.word
        if pump.has_failed(record):
            return
        if record.stopped is CANCELLED:
            pump.withdrawn(record)
            pump.tell_cancelled(record.future)
        elif record.stopped is not None:
            self._deaths.append((record, word, record.stopped, None))
        elif begun:
            error = _died(record, exit_code, self._killed_for_memory(exit_code))
            self._deaths.append((record, word, error, exit_code))
        else:
            pump.settle(record, None, _never_begun(record, exit_code), TaskEvent.FAIL)

    def death_in_items(self, record: TaskRecord, exit_code: int) -> BaseException:
        """The error of the item of a map in which its member died."""
        return _died(record, exit_code, self._killed_for_memory(exit_code))

    def never_begun(self, record: TaskRecord, exit_code: int) -> BaseException:
        """The error of items of a map before whose beginning members died too often."""
        return _never_begun(record, exit_code)

    def _killed_for_memory(self, exit_code: int) -> float | None:
        """If the kernel has killed for want of memory since this was asked last: how many seconds that is ago."""
        if exit_code != -signal.SIGKILL:
            return None
        before, asked_at = self._oom_kills, self._oom_asked_at
        self._oom_kills, self._oom_asked_at = oom_kills(), self._clock()
        return self._oom_asked_at - asked_at if self._oom_kills > before else None

    def _ended(self, record: TaskRecord, word: int, error: BaseException, exit_code: int | None) -> None:
        """An attempt ended with this error: another one, or the end of the task.

        Here the user's code runs (a back-off function, the class of the error), so not under the mutex; what it raises fails
        the task.
        """
        pump, delay = self._pump, None
        if not self._is_current(record, word):
            return
        died = exit_code is not None
        try:
            if not self.giving_up and record.may_retry(error, died=died):
                delay = record.policy.delay(record.failures.times + 1, self._rng)
            else:
                error = _last_error(record, error, exit_code)
        except BaseException as exc:  # noqa: BLE001 - `sys.exit()` there ends no thread of ours
            without_outermost_frame(exc)
            set_cause(exc, error)
            error = exc
        with pump.mutex:
            if not self._is_current(record, word):
                return
            if record.future.done():
                pump.forget(record, TaskEvent.CANCEL)
            elif delay is None:
                pump.settle(record, None, error, TaskEvent.FAIL)
            else:
                record.failures = record.failures.and_then(Failure(error, exit_code))
                pump.rests(record)
                heapq.heappush(self._later, (self._clock() + delay, next(self._order), record))

    def _is_current(self, record: TaskRecord, word: int) -> bool:
        """Whether the task is still at this attempt."""
        return record.word == word and record.task_id in self._pump.ledger.records

    def _forget_cancelled(self) -> None:
        """Each is looked at once: what is cancelled meanwhile is forgotten the next time."""
        still = []
        with self._pump.mutex:
            for later in self._later:
                if later[2].future.done():
                    self._pump.forget(later[2], TaskEvent.CANCEL)
                else:
                    still.append(later)
        heapq.heapify(still)
        self._later = still

    def _post_due(self) -> float:
        """Post tasks whose back-off is over; seconds until the next."""
        pump, now = self._pump, self._clock()
        with pump.mutex:
            while self._later and self._later[0][0] <= now:
                record = heapq.heappop(self._later)[2]
                if record.future.done():
                    pump.forget(record, TaskEvent.CANCEL)
                else:
                    pump.resumes(record)
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
            try:
                error, next_in = self._judge(record, elapsed, pid, words[row.baseline])
            except Exception as exc:  # noqa: BLE001 - whatever it is costs this task, not the executor
                error, next_in = exc, float("inf")
            wait = min(wait, next_in)
            if error is None:
                continue
            with pump.mutex:
                if not (pump.ledger.claimant(word) is record and board.condemn(row.index, word)):
                    continue
                record.stopped = error
            self._overdue.append(_Overdue(record, row.index, word, elapsed, now))
            self._stacks[row.index].ask(functools.partial(self._supervisor.dump, row.index))
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
                logs.tell(
                    logging.WARNING,
                    "task %r has been running for %.3g s in worker %d",
                    record.title,
                    elapsed,
                    pid,
                )
                while len(self._warned) > _WARNED:
                    del self._warned[next(iter(self._warned))]
            else:
                wait = min(wait, policy.warn_after - elapsed)
        return None, wait

    def _stop_overdue(self) -> float:
        """End members that have written their stacks, or had time to; seconds until the next step."""
        now, asked = self._clock(), []
        for overdue in self._overdue:
            record, row, file = overdue.record, overdue.row, self._stacks[overdue.row]
            if not self._is_at(row, overdue.word):
                continue
            if not file.is_written() and now - overdue.asked_at < _STACK_S:
                asked.append(overdue)
                continue
            if isinstance(record.stopped, TaskTimeout):
                record.stopped = _timeout(record, overdue.elapsed, file.text())
            if record.policy.grace:
                self._supervisor.terminate(row)
                self._graces.append((now + record.policy.grace, row, overdue.word))
            else:
                self._supervisor.kill(row)
        self._overdue = asked
        return CHECK_S if asked else float("inf")

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


def _last_error(record: TaskRecord, error: BaseException, exit_code: int | None) -> BaseException:
    """The error of a task whose last attempt ended with this one."""
    if exit_code is not None and record.is_poison():
        return _poison(record, exit_code)
    if record.failures.times:
        set_attribute(error, ATTEMPTS, record.failures.times + 1)
        try:
            _note_attempts(record.failures, error)
        except Exception:  # noqa: BLE001 - the class has made something else of its notes
            logs.tell(logging.WARNING, "the attempts of task %r cannot be noted", record.title, exc_info=True)
    return error


def _note_attempts(failures: Failures, error: BaseException) -> None:
    attempts = failures.times + 1
    left_out = failures.times - len(failures.last)
    if left_out:
        add_note(error, f"{left_out} attempts of {attempts} before these failed, too")
    for nth, earlier in enumerate(failures.last, left_out + 1):
        add_note(error, f"attempt {nth} of {attempts} failed with {describe(earlier.error)}")
    add_note(error, f"attempt {attempts} of {attempts} failed with this error")


def _timeout(record: TaskRecord, elapsed: float, stack: str) -> TaskTimeout:
    told = f" It was at:\n{stack}" if stack else ""
    limit = record.policy.timeout or 0.0
    return TaskTimeout(
        f"task {record.title!r} was stopped after {in_seconds(elapsed)}: its time-out is {in_seconds(limit)}. "
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


def _died(record: TaskRecord, code: int, out_of_memory_s: float | None) -> WorkerDied:
    why = ""
    if out_of_memory_s is not None:
        likely = "most likely" if out_of_memory_s < _RECENT_S else "perhaps"
        why = (
            f" Within the last {in_seconds(out_of_memory_s)} the kernel has killed a process because memory ran out, "
            f"{likely} this one: give tasks less to do at a time, or use fewer workers."
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
        f"{record.reposts + 1} workers died before they could begin task {record.title!r} "
        f"(last: {describe_exit(code)})",
        record,
        code,
    )


def _poison(record: TaskRecord, last_code: int) -> WorkerDied:
    deaths = record.failures.deaths + 1
    codes = [failure.exit_code for failure in record.failures.last if failure.exit_code is not None]
    told = ", ".join([*(["…"] if len(codes) + 1 < deaths else []), *map(describe_exit, [*codes, last_code])])
    return _death(
        PoisonTask,
        f"task {record.title!r} killed {deaths} workers ({told}) and is given up: poison_limit={deaths}",
        record,
        last_code,
    )


def _death(kind: type[WorkerDied], message: str, record: TaskRecord, code: int) -> WorkerDied:
    exit_code, number = (code, None) if code >= 0 else (None, -code)
    return kind(message, exit_code=exit_code, signal=number, task=record.title)
