"""The broker: carries tasks to the ring and answers back, in whichever thread has a use for it.

Three roles, each with a lock of its own:

*pumping* (``_mutex``): move tasks from the inbox to the deques, answers from the outboxes to their futures.  Short; any
thread that submits or waits does it.  Every step may be interrupted and repeated: see ``_flush`` and ``_drain``.

*watching* (``_watch``): the right to sleep until news come, on the wake pipe.  One thread at a time: the broker's own, or
a thread in ``result()`` that drives the broker itself.  The broker's thread leaves watching to others for some
milliseconds after the last of them left, so that a submit-result loop pays no hand-over between threads.

*housekeeping*: deaths of members, futures that somebody else waits on, callbacks, the end.  The broker's thread alone,
which no signal handler interrupts.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from repartir import outcome
from repartir.codec import Encoded
from repartir.errors import InternalError, PoisonTask, SharedMemoryFull, WorkerDied
from repartir.functions import FunctionRef
from repartir.future import Future
from repartir.ledger import MAX_REPOSTS, Ledger, Record, Repost
from repartir.shm.arena import FUNCTION_OWNER, RESULT, Handle
from repartir.shm.board import Board, MemberState
from repartir.shm.layout import (
    ANSWER_IN_BLOCK,
    ATTEMPT_BITS,
    IN_BLOCK,
    MEMBER_BROKEN,
    MEMBER_READY,
    SLOT_PAYLOAD_BYTES,
)
from repartir.shm.outbox import records
from repartir.states import TaskEvent
from repartir.supervisor import EVERY_ROW, STARTS, MemberExited, Report, Supervisor, describe_exit
from repartir.worker import FUNCTION

SPIN_S = 50e-6
YIELD_S = 0.002
"""How long after a waiter's last visit the broker's thread leaves the watching to waiters."""
DEFER = 64
"""Under backlog so many submits are posted together."""
_START_CHECK_S = 1.0


class Bell:
    """An event that finalizers and signal handlers may set, since ``SimpleQueue.put`` takes no lock that they could hold."""

    __slots__ = ("_rings",)

    def __init__(self) -> None:
        self._rings: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        if self._rings.empty():
            self._rings.put(None)

    def is_set(self) -> bool:
        return not self._rings.empty()

    def clear(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._rings.get_nowait()

    def wait(self, timeout: float | None = None) -> bool:
        """True when set, False after ``timeout`` seconds.  Clears the bell."""
        try:
            self._rings.get(timeout=timeout)
        except queue.Empty:
            return False
        return True


TaskFuture = Future[Any]
TaskRecord = Record[TaskFuture]


class Broker:
    """The engine behind one executor.  Holds no reference to the executor itself."""

    def __init__(
        self,
        board: Board,
        supervisor: Supervisor,
        wake_fds: tuple[int, int],
        cores: int,
        on_end: Callable[[], None],
    ) -> None:
        self.board = board
        self.ledger: Ledger[TaskFuture] = Ledger()
        self.broken: BrokenProcessPool | None = None
        self.closing = False
        self.lost = 0
        self._supervisor = supervisor
        self._wake_r = wake_fds[0]
        # A file object, since closing it is atomic: a finalizer never writes to a descriptor that is another's by now.
        self._wake_w = open(wake_fds[1], "wb", buffering=0)
        self._cores = cores
        self._on_end = on_end
        self._members = len(board.rows)
        self._backlog = 4 * self._members
        self._ids = itertools.count(1)
        self._inbox: deque[TaskRecord] = deque()
        self._due: deque[tuple[TaskFuture, Any, BaseException | None]] = deque()
        self._garbage: deque[Handle] = deque()
        self._mutex = threading.RLock()
        self._watch = threading.RLock()
        self._rouse = Bell()
        self._sleepers: set[int] = set()
        self._driven_at = 0.0
        self._broker_watches = False
        self._broker_dozes = False
        self._reports_due = False
        self._early_deaths = [0] * self._members
        self._ready = [False] * self._members
        self._stuck = False
        self._starting = True
        self._aborting = False
        self._quitting = False
        self._ended = False
        self._poll = select.poll()
        self._poll.register(self._wake_r, select.POLLIN)
        self._poll_all = select.poll()
        self._poll_all.register(self._wake_r, select.POLLIN)
        self._poll_all.register(supervisor.fileno(), select.POLLIN)
        self.thread = threading.Thread(target=self._run, name="repartir-broker")

    # ---- submit, in the caller's thread

    def new_task_id(self) -> int:
        return next(self._ids)

    def post(
        self, future: TaskFuture, ref: FunctionRef, call: bytes | Encoded, flags: int, name: object
    ) -> None:
        """Commit a task by one append, then post it, or leave that to whoever is at work already."""
        block: Any = ref.block
        if block is None:
            block = self._place_function(ref)
        payload: Any = FUNCTION.pack(ref.key, block.pack())
        if type(call) is bytes and len(payload) + len(call) <= SLOT_PAYLOAD_BYTES:
            payload += call
            parts = None
        else:
            parts = [call] if isinstance(call, bytes) else [call.meta, *call.buffers]
        record: TaskRecord = Record(future.task_id, future, payload, flags, ref, name)
        if parts is not None:
            self._place_arguments(record, parts)
        self._inbox.append(record)
        if len(self.ledger.records) >= self._backlog:
            if len(self._inbox) < DEFER:
                return
            self._driven_at = time.monotonic()
        self.pump()

    def _place_function(self, ref: FunctionRef) -> Handle:
        blob = ref.blob
        parts: list[Any] = [blob] if isinstance(blob, bytes) else [blob.meta, *blob.buffers]
        handle = self.board.arena.store(parts, FUNCTION_OWNER)
        if handle is None:
            raise _full(sum(len(part) for part in parts))
        ref.block = handle
        weakref.finalize(ref, self._garbage.append, handle).atexit = False
        return handle

    def _place_arguments(self, record: TaskRecord, parts: list[Any]) -> None:
        """Copy large arguments to the arena; while that is full they stay in private memory."""
        handle = self.board.arena.store(parts, record.word)
        if handle is None:
            record.block = [bytes(part) for part in parts]
            return
        record.block = handle
        record.payload += handle.pack()
        record.flags |= IN_BLOCK

    # ---- pumping

    def pump(self) -> None:
        """Post what can be posted, settle what was answered."""
        mutex = self._mutex
        while not mutex._is_owned():  # type: ignore[attr-defined]
            try:
                if not mutex.acquire(blocking=False):
                    return
                self._flush()
                drained = self._drain()
                if drained and self._inbox:
                    self._flush()
                stuck = self._stuck
            finally:
                if mutex._is_owned():  # type: ignore[attr-defined]
                    mutex.release()
            if stuck or not self._inbox:
                return

    def _flush(self) -> None:
        """Move tasks from the inbox to the lanes.

        A task's place is written before the deque's commit store, and it leaves the inbox after it: whoever comes next
        sees from the deque's tail whether an interrupted attempt was committed.
        """
        inbox = self._inbox
        self._stuck = False
        while inbox:
            lanes = self.board.lanes
            waiting = len(inbox)
            if waiting == 1:
                at = self._best_lane()
                share = 1
            else:
                at = min(range(self._members), key=lambda row: lanes[row].size_hint())
                share = -(-waiting // self._members)
            room = lanes[at].room()
            if not room or not self._fill(at, min(share, room, 256)):
                self._stuck = True
                return

    def _best_lane(self) -> int:
        """Where a lone task is begun soonest: an idle member, one that spins first; else the shortest lane."""
        words, parking = self.board.words, self.board.parking
        free = -1
        for row in self.board.rows:
            if not words[row.claim] and not self.board.lanes[row.index].size_hint():
                if not parking.is_idle(row.index):
                    return row.index
                if free < 0:
                    free = row.index
        if free >= 0:
            return free
        return min(range(self._members), key=lambda at: self.board.lanes[at].size_hint())

    def _fill(self, at: int, count: int) -> bool:
        """Post the first ``count`` tasks of the inbox to lane ``at``; False if nothing more can be posted now."""
        inbox, lane, ledger = self._inbox, self.board.lanes[at], self.ledger
        entries, position = [], lane.tail
        for nth in range(count):
            record = inbox[nth]
            if record.future._state != "PENDING" or record.lane >= 0 or type(record.block) is list:
                break
            record.lane = at
            record.position = position
            ledger.enter(record)
            entries.append((record.word, record.payload, record.flags))
            position += 1
        if entries:
            lane.push_tail(entries)
            for _ in entries:
                inbox.popleft()
            parking = self.board.parking
            if parking.anyone_idle():
                parking.wake(len(entries), at)
            return True
        return self._fix_first()

    def _fix_first(self) -> bool:
        """Deal with a first task of the inbox that is not simply to be posted; False if it must wait."""
        inbox = self._inbox
        record = inbox[0]
        if record.future._state != "PENDING":
            self._forget(record, TaskEvent.CANCEL)
        elif record.lane >= 0:
            if self.board.lanes[record.lane].tail <= record.position:
                record.lane = record.position = -1
                return True
        else:
            parts = record.block
            self._place_arguments(record, parts)
            if type(record.block) is list:
                if self.ledger.records or self._garbage:
                    self._sweep()
                    return False
                self._due.append((record.future, None, _full(sum(len(part) for part in parts))))
                self._rouse.set()
            else:
                return True
        inbox.popleft()
        return True

    def _drain(self) -> bool:
        """Settle every answer that lies in the outboxes."""
        words, found = self.board.words, False
        for row, outbox in zip(self.board.rows, self.board.outboxes, strict=True):
            if outbox.has_news() or words[row.blocked]:
                found = True
                self._drain_row(row.index)
        if self._garbage:
            self._sweep()
        return found

    def _drain_row(self, at: int) -> None:
        """Settle the answers of one member.  Only then are they consumed, so an interrupted round is repeated."""
        board, ledger = self.board, self.ledger
        outbox, row = board.outboxes[at], board.rows[at]
        tasks = ledger.records
        copy = outbox.peek()
        for word, status, payload in records(copy):
            if status > ANSWER_IN_BLOCK:
                self._member_says(at, status, payload)
                continue
            record = tasks.get(word >> ATTEMPT_BITS)
            if record is None or record.word != word:
                ledger.late += 1
                if status == ANSWER_IN_BLOCK:
                    board.arena.free(Handle.unpack(payload))
                continue
            if status == ANSWER_IN_BLOCK:
                handle = Handle.unpack(payload)
                meta, *buffers = board.arena.load(handle)
                result = outcome.decode_outcome(meta, buffers)
                board.arena.free(handle)
            else:
                result = outcome.decode_outcome(payload, ())
            if isinstance(result, outcome.Value):
                self._settle(record, result.value, None, TaskEvent.ANSWER)
            else:
                self._settle(record, None, result.exception, TaskEvent.ANSWER)
        outbox.consumed()
        if board.words[row.blocked]:
            outbox.peek()
            board.words[row.blocked] = 0
            board.semaphores[at].post()

    def _settle(self, record: TaskRecord, value: Any, error: BaseException | None, event: TaskEvent) -> None:
        future = record.future
        if not future.settle_alone(value, error):
            self._due.append((future, value, error))
            self._rouse.set()
            if self._broker_watches and threading.get_ident() != self.thread.ident:
                self._poke()
        self._forget(record, event)

    def _forget(self, record: TaskRecord, event: TaskEvent) -> None:
        if isinstance(record.block, Handle):
            self.board.arena.free(record.block)
        self.ledger.close(record, event)

    def _sweep(self) -> None:
        while self._garbage:
            self.board.arena.free(self._garbage[0])
            self._garbage.popleft()

    def _member_says(self, at: int, status: int, payload: bytes) -> None:
        if status == MEMBER_READY:
            self._ready[at] = True
            self._early_deaths[at] = 0
        elif status == MEMBER_BROKEN and self.broken is None:
            error = BrokenProcessPool("the initializer of a worker failed, so the executor cannot be used")
            error.__cause__ = outcome.RemoteTraceback(payload.decode(errors="replace"))
            self.broken = error
            self._rouse.set()

    # ---- waiting: a thread in result() drives the broker

    def wait_for(self, future: TaskFuture, timeout: float | None) -> None:
        """Return when ``future`` is done or ``timeout`` seconds have passed; drive the broker meanwhile."""
        until = None if timeout is None else time.monotonic() + timeout
        me = threading.get_ident()
        if self._mutex._is_owned() or self.thread.ident == me:  # type: ignore[attr-defined]
            return future.wait_on_condition(timeout if timeout is not None else self._never_in_here())
        watch = self._watch
        while not future.done():
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return None
            if future._made_condition is not None:
                self._hand_over()
                future.wait_on_condition(left)
                continue
            try:
                if watch.acquire(blocking=False):
                    self._drive(future, until)
                else:
                    self._sleepers.add(me)
                    self._wait_for_watch(future, left)
            finally:
                self._driven_at = time.monotonic()
                if watch._is_owned():  # type: ignore[attr-defined]
                    watch.release()
                self._sleepers.discard(me)
                if self._sleepers or self._broker_dozes or self._due or self._inbox:
                    self._hand_over()

    def _never_in_here(self) -> float:
        raise RuntimeError(
            "result() without a time-out, of a task that is not done, called where the answer would be delivered: "
            "in a callback, in a signal handler during submit(), or while a result is unpickled"
        )

    def _wait_for_watch(self, future: TaskFuture, left: float | None) -> None:
        """Another thread watches: the broker's, which gives way, or a waiter, who settles our future or hands over."""
        if self._broker_watches:
            self._driven_at = time.monotonic()
            self._poke()
            self._watch.acquire(timeout=0.05 if left is None else min(left, 0.05))
            if self._watch._is_owned():  # type: ignore[attr-defined]
                self._watch.release()
        else:
            future.wait_on_condition(left)

    def _drive(self, future: TaskFuture, until: float | None) -> None:
        clock = time.perf_counter
        while True:
            self.pump()
            if future._state != "PENDING" or future._made_condition is not None:
                return
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return
            self._driven_at = time.monotonic()
            if self._may_spin():
                end = clock() + SPIN_S
                while clock() < end:
                    if self._has_news():
                        break
                else:
                    self._park(left, self._poll if self._reports_due else self._poll_all)
            else:
                self._park(left, self._poll if self._reports_due else self._poll_all)

    def _may_spin(self) -> bool:
        """Spinning must not take a core from a member that works."""
        words = self.board.words
        busy = 1
        for row in self.board.rows:
            if words[row.claim]:
                busy += 1
        return busy <= self._cores

    def _has_news(self) -> bool:
        for outbox in self.board.outboxes:
            if outbox.has_news():
                return True
        return False

    def _park(self, timeout: float | None, poll: select.poll) -> None:
        """Sleep until a member, another thread or the nursery has news.  The watcher only."""
        board = self.board
        if self._starting:
            timeout = _START_CHECK_S if timeout is None else min(timeout, _START_CHECK_S)
        board.set_client_parked(True)
        try:
            for row, outbox in zip(board.rows, board.outboxes, strict=True):
                if outbox.has_news_for_sure() or board.words[row.blocked]:
                    return
            if self._rouse.is_set() or (self._inbox and not self._stuck):
                return
            ready = poll.poll(None if timeout is None else max(0.0, timeout * 1000))
            for fd, _ in ready:
                if fd == self._wake_r:
                    os.read(self._wake_r, 65536)
                else:
                    self._reports_due = True
                    self._rouse.set()
            if not ready and self._starting:
                self._rouse.set()
        finally:
            board.set_client_parked(False)

    def _poke(self) -> None:
        """Wake the watcher."""
        with contextlib.suppress(ValueError, OSError):  # closed (just now): nobody watches any more
            self._wake_w.write(b"\0")  # None when it is full of wakes already

    def _hand_over(self) -> None:
        """The broker's thread is to do its part now."""
        self._driven_at = 0.0
        self._rouse.set()
        if self._broker_watches:
            self._poke()

    # ---- the broker's thread

    def _run(self) -> None:
        try:
            while not self._quitting:
                self._rouse.clear()
                self._keep_house()
                if time.monotonic() - self._driven_at > YIELD_S and self._watch.acquire(blocking=False):
                    self._broker_watches = True
                    try:
                        self._watch_once()
                    finally:
                        self._broker_watches = False
                        self._watch.release()
                else:
                    self._give_way()
        finally:
            self._end()

    def _watch_once(self) -> None:
        self._pump_surely()
        if not (self._due or self._rouse.is_set() or self._finish_if_due()):
            self._park(None, self._poll_all)

    def _give_way(self) -> None:
        """Leave the watching to waiters until the last of them has been gone for a moment."""
        seen = -1.0
        while not self._rouse.wait(YIELD_S):
            driven = self._driven_at
            if time.monotonic() - driven > YIELD_S:
                if self._watch.acquire(blocking=False):
                    self._watch.release()
                    return
                if driven == seen:
                    self._doze()
                    return
            seen = driven

    def _doze(self) -> None:
        """One waiter has been watching for a while: sleep until it leaves."""
        self._broker_dozes = True
        try:
            if self._watch.acquire(blocking=False):
                self._watch.release()
                return
            self._rouse.wait()
        finally:
            self._broker_dozes = False

    def _pump_surely(self) -> None:
        """Pump, after whoever pumps now."""
        with self._mutex:
            self._flush()
            if self._drain() and self._inbox:
                self._flush()

    def _keep_house(self) -> None:
        if self._reports_due or self._starting or self._aborting or self.closing:
            self._reports_due = False
            reports = self._supervisor.reports()
            for report in reports:
                self._hear(report)
            if reports:
                self._poke()  # a waiter that drives listens for reports again
        if self._starting:
            self._check_start()
        if self.broken is not None and not self._aborting:
            self.abort(self.broken)
        if self._due:
            self._settle_due()
            self._poke()

    def _settle_due(self) -> None:
        while self._due:
            self._due[0][0].settle_fully(*self._due[0][1:])
            self._due.popleft()

    def _hear(self, report: Report) -> None:
        with self._mutex:
            if isinstance(report, MemberExited):
                self._member_exited(report)
            elif not self._quitting:
                self._nursery_exited()

    def _member_exited(self, exited: MemberExited) -> None:
        """Recover what a dead member left, in the order that shm/README.md argues for, then have it replaced."""
        board, at = self.board, exited.row
        row = board.rows[at]
        if exited.pid == 0:
            self.broken = self.broken or BrokenProcessPool(
                f"cannot fork a worker: {os.strerror(exited.status)}"
            )
            return
        self._drain_row(at)
        board.lock_and_unlock_all()
        claim, started = board.words[row.claim], board.words[row.started]
        retired = board.words[row.state] == MemberState.RETIRED
        actions = self.ledger.member_died([claim], started)
        if claim:
            board.arena.free_owned(claim | RESULT)
        board.reset_row(at)
        board.words[row.state] = MemberState.ABSENT
        if not retired and not self._aborting:
            self.lost += 1
            if not self._ready[at]:
                self._early_deaths[at] += 1
        self._ready[at] = False
        for action in actions:
            if isinstance(action, Repost):
                self.ledger.repost(action.record)
                self._inbox.appendleft(action.record)
            else:
                error = _died(action.record, exited.exit_code, poison=action.poison)
                self._settle(action.record, None, error, TaskEvent.FAIL)
        if self._early_deaths[at] >= STARTS and self.broken is None:
            self.broken = BrokenProcessPool(
                f"workers die before they are ready ({describe_exit(exited.exit_code)}), {STARTS} in a row"
            )
        if not self._aborting and self.broken is None and not board.closing:
            self._starting = True
            self._supervisor.extend_deadline()
            self._supervisor.fork(at)
        board.parking.wake_all()

    def _nursery_exited(self) -> None:
        self._quitting = True
        if not (self.closing or self._aborting):
            self.broken = self.broken or BrokenProcessPool(
                "the process that forks the workers died, so the executor cannot go on"
            )
        self._fail_all(self.broken or BrokenProcessPool("the executor was stopped"))

    def _check_start(self) -> None:
        late = self._supervisor.late_starters()
        if late is None:
            return
        if not late:
            self._starting = False
        elif self._supervisor.restart_hung_nursery():
            self._poll_all = select.poll()
            self._poll_all.register(self._wake_r, select.POLLIN)
            self._poll_all.register(self._supervisor.fileno(), select.POLLIN)
        else:
            for at in late:
                self._supervisor.kill(at)
            self._supervisor.extend_deadline()

    def _fail_all(self, error: BrokenProcessPool) -> None:
        with self._mutex:
            pending = list(self.ledger.records.values())
            pending += [record for record in self._inbox if record.task_id not in self.ledger.records]
            self._inbox.clear()
            for record in pending:
                copy = type(error)(*error.args)
                copy.__cause__ = error.__cause__
                self._due.append((record.future, None, copy))
                self._forget(record, TaskEvent.FAIL)

    # ---- the end

    def take_back(self, future: TaskFuture) -> bool:
        """Cancel the task of ``future`` if nobody has begun it."""
        mutex = self._mutex
        if mutex._is_owned():  # type: ignore[attr-defined]
            return False
        with mutex:
            record = self.ledger.records.get(future.task_id)
            if record is not None:
                if record.lane < 0 or not self.board.lanes[record.lane].remove(record.position, record.word):
                    return False
                self._forget(record, TaskEvent.CANCEL)
            marked = future.mark_cancelled()
        self._poke()
        return marked

    def counts(self) -> tuple[int, int]:
        """Tasks that run now, and tasks that wait."""
        running = sum(1 for row in self.board.rows if self.board.words[row.claim]) if not self._ended else 0
        return running, max(0, len(self._inbox) + len(self.ledger) - running)

    def close_soon(self) -> None:
        """The executor is garbage.  For a finalizer, so without locks."""
        if not self._ended:
            self.closing = True
            self._rouse.set()
            self._poke()

    def disown(self) -> None:
        """In a forked child: nothing of this broker works here."""
        self._ended = True
        self.broken = BrokenProcessPool(
            "this executor belongs to the parent process; make one of your own after os.fork"
        )

    def is_running(self, future: TaskFuture) -> bool:
        """Whether a member has taken the task of ``future``."""
        record = self.ledger.records.get(future.task_id)
        return (
            record is not None and record.lane >= 0 and self.board.lanes[record.lane].taken(record.position)
        )

    def close(self, *, cancel: bool) -> None:
        """No task comes any more: end when all are settled."""
        if self._ended:
            return
        self.closing = True
        if cancel:
            for record in [*self._inbox, *self.ledger.records.values()]:
                record.future.cancel()
        self._hand_over()
        self._poke()

    def abort(self, error: BrokenProcessPool | None = None, *, terminate: bool = False) -> None:
        """Kill all members; tasks that they had begun fail, all others are cancelled (or fail with ``error``)."""
        if self._ended:
            return
        self._aborting = True
        self.closing = True
        if error is not None:
            self.broken = error
        else:
            for record in [*self._inbox, *self.ledger.records.values()]:
                record.future.cancel()
        if terminate:
            self._supervisor.terminate(EVERY_ROW)
        else:
            self._supervisor.kill(EVERY_ROW)
        self._supervisor.quit()
        self._hand_over()
        self._poke()

    def _finish_if_due(self) -> bool:
        """Tell members and nursery to end once nothing is left to do."""
        if self.closing and not (self._inbox or self.ledger.records or self._due or self.board.closing):
            self.board.set_closing()
            self.board.parking.wake_all()
            self._supervisor.quit()
            return True
        return False

    def _end(self) -> None:
        self.closing = True
        self._fail_all(self.broken or BrokenProcessPool("the executor has ended"))
        self._settle_due()
        self._poke()
        self._supervisor.reap(kill=not self._quitting)
        self._supervisor.control.close()
        self._ended = True
        os.close(self._wake_r)
        self._wake_w.close()
        self._on_end()


def _full(size: int) -> SharedMemoryFull:
    return SharedMemoryFull(
        f"no room for {size:,} bytes in shared memory. Submit smaller arguments, or give more shared memory "
        "(docker run --shm-size=1g; REPARTIR_SHM_DIR)."
    )


def _died(record: TaskRecord, code: int, *, poison: bool) -> WorkerDied:
    how = describe_exit(code)
    name = getattr(record.name, "__qualname__", None) or repr(record.name)
    ended: dict[str, Any] = {
        "exit_code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
        "task": name,
    }
    if poison:
        text = f"{MAX_REPOSTS + 1} workers in a row died before they could begin task {name!r} (last: {how})"
        return PoisonTask(text, **ended)
    text = (
        f"the worker that ran task {name!r} died ({how}). The task may have run in part; "
        "other tasks are not affected."
    )
    return WorkerDied(text, **ended)


__all__ = ["Broker", "InternalError"]
