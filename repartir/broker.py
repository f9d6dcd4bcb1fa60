"""The broker: decides which thread sleeps until news come, and ends the executor.

Three roles, each with a lock or a thread of its own:

*pumping* (``pump.py``): short; any thread that submits or waits does it.

*watching* (``_watch``): the right to sleep until news come, on the wake pipe.  One thread at a time: the broker's own, or
a thread in ``result()`` that drives the broker itself.  The broker's thread leaves watching to others for some
milliseconds after the last of them left, so that a submit-result loop pays no hand-over between threads.

*housekeeping*: deaths of members (``members.py``), futures that somebody else waits on, callbacks, the end.  The broker's
thread alone, which no signal handler interrupts.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool

from repartir import logs, stacks
from repartir.attempts import Attempts
from repartir.codec import Part
from repartir.errors import InternalError, SharedMemoryFull
from repartir.future import Future
from repartir.members import Members
from repartir.pump import CANCELLED, Pump, TaskFuture, TaskRecord
from repartir.shm.blocks import NOTHING
from repartir.shm.board import Board, BoardClosed, ClientSleep, Kind
from repartir.shm.layout import CHILD
from repartir.shm.segment import freed_listeners
from repartir.stacks import StackFile
from repartir.stats import ExecutorStats, shared_bytes
from repartir.supervisor import EVERY_ROW, Supervisor
from repartir.worker import MemberSettings

SPIN_S = 50e-6
YIELD_S = 0.005
"""How long after a waiter's last visit the broker's thread leaves the watching to waiters."""
NAP_MS = (1, 4)
"""Under backlog, with every core at work, the client sleeps at least and at most so long, whatever is answered meanwhile."""
NAP_ANSWERS = (16, 64)
"""A nap that brought fewer answers makes the next one longer, one that brought more makes it shorter."""
_START_CHECK_S = 1.0
_LEFT_CHECK_S = 1.0  # a backstop
_STACK_S = 0.5
"""How long a member may take to write its stacks."""
TRIM_AFTER_S = 5.0
"""How long an executor without tasks keeps memory for the next."""
TRIM_BYTES = 1 << 28
"""Given back at a time, between looks for news."""
WORTH_TRIMMING = 8 << 20
"""With fewer bytes in large free blocks nobody is woken for them."""
LONGEST_S = 3600.0
"""Nobody sleeps longer without a look: more than 24 days are too much for ``poll``, and years for a lock."""
HANDLER_CHECK_S = 0.001
"""How often a wait inside a signal handler looks for its answer."""


def _tasks_of(record: TaskRecord) -> int:
    """How many tasks a record stands for: of a range, the items without an answer."""
    if not record.spans:
        return 1
    return sum(record.job.open_items(first, end) for first, end in record.spans)


class Bell:
    """An event that finalizers and signal handlers may set: a lock that is free when the bell has rung.

    Not a ``SimpleQueue``: woken by a signal after its deadline, its ``get`` waits without limit (CPython up to 3.12).
    """

    __slots__ = ("_silent",)

    def __init__(self) -> None:
        self._silent = threading.Lock()
        self._silent.acquire()

    def set(self) -> None:
        try:
            self._silent.release()
        except RuntimeError:
            pass  # it has rung already

    def is_set(self) -> bool:
        return not self._silent.locked()

    def clear(self) -> None:
        self._silent.acquire(blocking=False)

    def wait(self, timeout: float | None = None) -> bool:
        """True when set, False after ``timeout`` seconds.  Clears the bell."""
        return self._silent.acquire(timeout=-1 if timeout is None else timeout)


class Broker:
    """The engine behind one executor.  Holds no reference to the executor itself."""

    def __init__(
        self,
        rows: int,
        start_method: str,
        members: MemberSettings,
        cores: int,
        shm_limit: int | None = None,
        room_timeout: float | None = None,
    ) -> None:
        self.board: Board
        self.pump: Pump
        self.members: Members
        self.broken: BrokenProcessPool | None = None
        self.closing = False
        self.thread = threading.Thread(target=self._live, name="repartir-broker")
        self._start_method = start_method
        self._settings = members
        self._cores = cores
        self._shm_limit = shm_limit
        self._room_timeout = room_timeout
        self._rows = rows
        self._made = Bell()
        self._gone = False
        self._went = Bell()
        self._failure: BaseException | None = None
        self._begun = False
        self._trim_at: float | None = None
        self._seen_idle = (0, 0)
        self._watch = threading.RLock()
        self._rouse = Bell()
        self._sleepers: set[int] = set()
        self._driven_at = 0.0
        self._broker_watches = False
        self._broker_dozes = False
        self._reports_due = False
        self._nap_ms = 0
        self._answered_before = 0
        self._aborting = False
        self._ended = False
        self._shared_freed = False

    # ---- the beginning

    def begin(self) -> None:
        """Start the broker's thread, which makes all that the executor consists of, and the nursery.

        A signal handler may raise here at any moment; ``close_soon`` then ends whatever there is.  What must not be lost is
        made by that thread, for handlers run in the main thread only, even while it blocks signals, if another thread
        received one.  This thread forks, since the workers are to have its thread-local state.
        """
        self.thread.start()
        self._made.wait()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if self._start_method == "fork":
            self._supervisor.start()
        self._begun = True
        self._rouse.set()

    def _make(self, undo: contextlib.ExitStack) -> None:
        self.board = board = Board.create(self._rows, self._shm_limit)
        undo.callback(board.close)
        for row in board.rows:
            board.words[row.kind] = Kind.CPU
        self._wake_r, wake_w = self._wake_fds = os.pipe()
        for fd in self._wake_fds:
            undo.callback(os.close, fd)
            os.set_blocking(fd, False)
        # A file object, since closing it is atomic: a finalizer never writes to a descriptor that is another's by now.
        self._wake_w = open(wake_w, "wb", buffering=0, closefd=False)
        self._stacks = [StackFile() for _ in board.rows]
        undo.callback(self._stacks.clear)
        stacks_fds = [file.fd for file in self._stacks]
        self._supervisor = Supervisor(board, self._start_method, self._settings, wake_w, stacks_fds)
        self._supervisor.connect()
        undo.callback(self._supervisor.close)
        if self._start_method != "fork":
            self._supervisor.start()
        self.pump = Pump(board, self._on_news)
        self.pump.on_full = self._place_when_there_is_room
        self.pump.kill = self._supervisor.kill
        self._attempts = Attempts(self.pump, self._supervisor, self._stacks)
        self.members = Members(self.pump, self._supervisor, self._attempts, self._break)
        freed_listeners.add(self)
        self._poll = select.poll()
        self._poll.register(self._wake_r, select.POLLIN)
        self._poll_all = self._poll_with_reports()

    # ---- for other threads: submit, cancel, look, end

    def take_back(self, future: TaskFuture) -> bool:
        """Cancel the task of ``future`` if nobody has begun it."""
        return not self._ended and self.pump.take_back(future)

    def stop(self, future: TaskFuture) -> bool:
        """Cancel the task of ``future`` that a member runs: the member is killed and replaced."""
        return not self._ended and self.pump.stop(future, self._supervisor.kill)

    def is_running(self, future: TaskFuture) -> bool:
        """Whether a member has taken the task of ``future``."""
        return not self._ended and self.pump.is_taken(future)

    def counts(self) -> tuple[int, int]:
        """Tasks that run now, one a member, and tasks that wait, those among them that tasks have submitted."""
        try:
            words = self.board.words
            claims = [claim for row in self.board.rows if (claim := words[row.claim])]
            nested = sum(max(0, spawn.size_hint()) for spawn in self.board.spawns)
        except BoardClosed:
            claims, nested = [], 0
        ours = sum(not claim & CHILD for claim in claims)
        return len(claims), nested + max(0, sum(map(_tasks_of, self.pump.unsettled())) - ours)

    def held(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Blocks in use and the bytes in them: in shared memory, and in a file.

        None are told after the end, and to a signal handler that came while its thread holds the arena.
        """
        try:
            memory, spilled = self.board.blocks.usage()
        except InternalError:
            return (0, 0), (0, 0)
        return (memory.blocks, memory.bytes), (spilled.blocks, spilled.bytes)

    def stats(self) -> ExecutorStats:
        """What is going on, and what it takes."""
        self.pump.pump()
        running, queued = self.counts()
        limit = backed = 0
        memory = spilled = NOTHING
        with contextlib.suppress(BoardClosed):
            blocks = self.board.blocks
            memory, spilled = blocks.usage()
            limit, backed = blocks.limit, blocks.arenas[0].backed()
        return ExecutorStats(
            workers=self._rows,
            queued=queued,
            running=running,
            lost=self.members.lost,
            blocks=memory.blocks,
            arena_bytes=memory.bytes,
            arena_limit=limit,
            backed_bytes=backed,
            spills=spilled.blocks,
            spilled_bytes=spilled.bytes,
            viewed_bytes=self.pump.views.bytes,
            kept_bytes=memory.kept[1] + spilled.kept[1],
            shared_bytes=shared_bytes(),
        )

    def dump_stacks(self, write: Callable[[str], object]) -> None:
        """Tell ``write`` the Python stacks of this process and of each member."""
        write(stacks.told_of_client())
        for row, file in enumerate(list(self._stacks)):
            with contextlib.suppress(BoardClosed):
                words, places = self.board.words, self.board.rows[row]
                claim = words[places.claim]
                if not words[places.pid]:
                    write(f"\nworker {row}: it has no process now\n")
                    continue
                record = self.pump.ledger.claimant(claim)
                task = "at a task of a task" if claim & CHILD else "without a task"
                if record is not None:
                    task = f"at task {record.title!r}"
                told = file.of_member(functools.partial(self._supervisor.dump, row), _STACK_S)
                write(
                    f"\nworker {row}, process {words[places.pid]}, {task}:\n{told or 'it does not answer'}\n"
                )

    def on_shared_freed(self) -> None:
        """Something shared was freed: members that sleep let go of it.  For finalizers, so without locks."""
        self._shared_freed = True
        self._on_news()

    def close_soon(self) -> None:
        """The executor is garbage.  For a finalizer, so without locks."""
        if not self._ended:
            self.closing = True
            self._on_news()

    def close(self, *, cancel: bool) -> None:
        """No task comes any more: end when all are settled."""
        if self._ended:
            return
        self.closing = True
        if cancel:
            self._cancel_all()
        self._hand_over()
        self._poke()

    def abort(self, *, terminate: bool = False) -> None:
        """Kill all members; tasks that they had begun fail, all others are cancelled."""
        if self._ended:
            return
        self.closing = True
        self._cancel_all()
        self._stop_members(terminate=terminate)
        self._hand_over()
        self._poke()

    def join(self) -> None:
        """Return when the broker's thread has done all it does.  May be repeated after an interruption.

        ``Thread.join`` may not: interrupted, it takes the thread for one that has ended (CPython up to 3.12).
        """
        while not self._gone and self.thread.ident != threading.get_ident():
            self._went.wait(_LEFT_CHECK_S)
            if self._gone:
                self._went.set()  # for others that wait
        self.thread.join()

    def disown(self) -> None:
        """In a forked child: nothing of this broker works here."""
        self._gone = True
        if self._ended:
            return  # its descriptors are others' by now
        self._ended = True
        self.broken = BrokenProcessPool(
            "this executor belongs to the parent process; make one of your own after os.fork"
        )
        if not self._supervisor.forking:  # else this child is the executor's own nursery
            self.pump.let_go()
            self._supervisor.control.close()
            self._close()

    def _cancel_all(self) -> None:
        self._attempts.giving_up = True
        for record in self.pump.unsettled():
            record.future.cancel()
        self.pump.drop_ranges()

    def _stop_members(self, *, terminate: bool) -> None:
        self._aborting = self.members.retiring = self.closing = True
        if terminate:
            self._supervisor.terminate(EVERY_ROW)
        else:
            self._supervisor.kill(EVERY_ROW)
        self._supervisor.quit()

    def _break(self, error: BrokenProcessPool) -> None:
        """The executor cannot go on: no task is taken any more, those that are there fail with ``error``."""
        if self.broken is None:
            self.broken = error
        self.members.retiring = True
        self._rouse.set()

    def _on_news(self) -> None:
        """Something is due for the broker's thread.  Takes no lock."""
        self._rouse.set()
        if self._broker_watches and threading.get_ident() != self.thread.ident:
            self._poke()

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

    # ---- waiting: a thread in result() drives the broker

    def wait_for(self, future: TaskFuture, timeout: float | None) -> None:
        """Return when ``future`` is done or ``timeout`` seconds have passed; drive the broker meanwhile."""
        until = None if timeout is None else time.monotonic() + timeout
        me = threading.get_ident()
        if self.pump.mutex._is_owned() or self.thread.ident == me:  # type: ignore[attr-defined]
            return future.wait_on_condition(timeout if timeout is not None else self._never_in_here())
        watch = self._watch
        if watch._is_owned():  # type: ignore[attr-defined]
            return self._wait_in_handler(future, until)
        while not future.done():
            if self._ended and not future.done():
                raise _copy_of(self.broken or BrokenProcessPool("the executor has ended"))
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return None
            if future._made_condition is not None:
                self._hand_over()
                future.wait_on_condition(left)
                continue
            try:
                try:
                    if watch.acquire(blocking=False):
                        self._drive(future, until)
                    else:
                        self._sleepers.add(me)
                        self._wait_for_watch(future, left)
                finally:
                    try:
                        watch.release()  # the first call here: after any other a signal handler may raise
                    except RuntimeError:
                        pass  # another thread has it
                self._driven_at = time.monotonic()
                self._sleepers.discard(me)
                if self._sleepers or self._broker_dozes or self.pump.due:
                    self._hand_over()
            except BaseException:
                self._sleepers.discard(me)
                self._hand_over()
                raise
        return None

    def _place_when_there_is_room(self, record: TaskRecord, parts: Sequence[Part]) -> None:
        """Shared memory is full: wait while enough tasks are under way that will give some back; else spill.

        Raises ``SharedMemoryFull`` after the time-out.
        """
        pump = self.pump
        until = None if self._room_timeout is None else time.monotonic() + self._room_timeout
        while not self.must_not_wait():
            with pump.mutex:
                if pump.ended or pump.place_in_memory(record, parts):
                    return
                if not pump.room_is_coming():
                    break
                room: TaskFuture = Future()
                pump.room.append(room)
            self.wait_for(room, None if until is None else until - time.monotonic())
            if not room.done():
                error = pump.no_room(sum(map(len, parts)), in_file_too=False)
                raise SharedMemoryFull(f"after {self._room_timeout} s there is still {error}")
        pump.place(record, parts)

    def must_not_wait(self) -> bool:
        """Whether this thread delivers answers: in a callback, in a signal handler, in a finalizer."""
        owned = self.pump.mutex._is_owned() or self._watch._is_owned()  # type: ignore[attr-defined]
        return owned or self.thread.ident == threading.get_ident()

    def _wait_in_handler(self, future: TaskFuture, until: float | None) -> None:
        """In a signal handler that interrupted this thread's own sleep, which cannot be slept a second time."""
        try:
            while not future.done() and (until is None or time.monotonic() < until):
                self.pump.pump()
                time.sleep(HANDLER_CHECK_S)
        finally:
            self._poke()  # the sleep that was interrupted looks for what came meanwhile

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
        else:
            future.wait_on_condition(left)

    def _drive(self, future: TaskFuture, until: float | None) -> None:
        pump, has_news, clock = self.pump, self.pump.has_news, time.perf_counter
        while True:
            pump.pump()
            if future._state != "PENDING" or future._made_condition is not None:
                return
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return
            self._driven_at = time.monotonic()
            end = clock() + SPIN_S if self._a_core_is_free() else 0.0
            while clock() < end:
                if has_news():
                    break
            else:
                self._park(left, self._poll if self._reports_due else self._poll_all)

    def _a_core_is_free(self) -> bool:
        """Spinning must not take a core from a member that works."""
        words = self.board.words
        busy = 1
        for row in self.board.rows:
            if words[row.claim]:
                busy += 1
        return busy <= self._cores

    def _park(self, timeout: float | None, poll: select.poll) -> None:
        """Sleep until a member, another thread or the nursery has news.  The watcher only."""
        board, pump = self.board, self.pump
        if self.members.starting:
            timeout = _START_CHECK_S if timeout is None else min(timeout, _START_CHECK_S)
        if (left := pump.collect(time.monotonic())) is not None:
            timeout = left if timeout is None else min(timeout, left)
        wait_ms = None if timeout is None else max(0.0, min(timeout, LONGEST_S) * 1000)
        nap = self._choose_nap()
        board.set_client_sleep(ClientSleep.NAPS if nap else ClientSleep.PARKED)
        try:
            if not nap and pump.has_news_for_sure():
                return
            if (self._broker_watches and self._rouse.is_set()) or pump.can_post():
                return
            ready = poll.poll(nap if nap and (wait_ms is None or wait_ms > nap) else wait_ms)
            for fd, _ in ready:
                if fd == self._wake_r:
                    os.read(self._wake_r, 65536)
                else:
                    self._reports_due = True
                    self._rouse.set()
            if not ready and self.members.starting:
                self._rouse.set()
        finally:
            board.set_client_sleep(ClientSleep.AWAKE)

    def _choose_nap(self) -> int:
        """How many milliseconds to nap; 0: sleep until the first answer.

        No nap after one that brought nothing: answers are rare then, and each is worth a wake.
        """
        pump, last = self.pump, self._nap_ms
        got, self._answered_before = pump.answered - self._answered_before, pump.answered
        if (last and not got) or self._a_core_is_free() or not self._is_backlogged():
            self._nap_ms = 0
        elif not last or got > NAP_ANSWERS[1]:
            self._nap_ms = max(last // 2, NAP_MS[0])
        elif got < NAP_ANSWERS[0]:
            self._nap_ms = min(last * 2, NAP_MS[1])
        return self._nap_ms

    def _is_backlogged(self) -> bool:
        """Whether so many tasks are under way, items of maps among them, that no member runs dry during a nap."""
        words, missing = self.board.words, self.pump.backlog - len(self.pump.ledger.records)
        for hand in self.board.hands:
            if missing <= 0:
                break
            missing -= words[hand.end_word] - words[hand.next_word]
        return missing <= 0

    def _poll_with_reports(self) -> select.poll:
        poll = select.poll()
        poll.register(self._wake_r, select.POLLIN)
        poll.register(self._supervisor.fileno(), select.POLLIN)
        return poll

    # ---- the broker's thread

    def _live(self) -> None:
        try:
            self._make_and_run()
        finally:
            self._gone = True
            self._went.set()

    def _make_and_run(self) -> None:
        try:
            with contextlib.ExitStack() as undo:
                self._make(undo)
                undo.pop_all()
        except BaseException as exc:  # noqa: BLE001 - raised by `begin`, in the thread that waits for it
            self._failure = exc
            self._ended = True
            return
        finally:
            self._made.set()
        while not (self._begun or self.closing):
            self._rouse.wait()
        if self._begun:
            self._run()
        else:
            self._end()

    def _run(self) -> None:
        try:
            self._attempts.begin()
            while not self.members.nursery_gone:
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
        except BaseException as exc:
            failed = BrokenProcessPool(
                "the broker's thread failed, which is a bug in Repartir: please report it"
            )
            failed.__cause__ = exc
            self._break(failed)
            raise
        finally:
            self._end()

    def _watch_once(self) -> None:
        self.pump.pump_surely()
        if not (self.pump.due or self._rouse.is_set() or self._finish_if_due()):
            self._park(self._until_look(self._until_trim()), self._poll_all)

    def _until_trim(self) -> float | None:
        """Seconds until idle memory goes back to the system, which happens here when they are over."""
        if self.pump.ledger.records or self.pump.anything_waits():
            self._trim_at = None
            return None
        now, blocks = time.monotonic(), self.board.blocks
        idle = self.pump.answered, blocks.free_bytes
        if idle != self._seen_idle:
            self._seen_idle = idle
            self._trim_at = now + TRIM_AFTER_S if blocks.free_bytes > WORTH_TRIMMING else None
        if self._trim_at is None:
            return None
        if now < self._trim_at:
            return self._trim_at - now
        if blocks.trim(TRIM_BYTES):
            return 0.0
        self._trim_at = None
        self._seen_idle = self.pump.answered, blocks.free_bytes
        return None

    def _until_look(self, seconds: float | None = None) -> float | None:
        """Seconds until time-outs and retries want to be looked after, or these if they are fewer."""
        look = self.pump.next_look
        if look == float("inf"):
            return seconds
        left = max(0.0, min(look - time.monotonic(), LONGEST_S))
        return left if seconds is None else min(left, seconds)

    def _give_way(self) -> None:
        """Leave the watching to waiters until the last of them has been gone for a moment."""
        seen = -1.0
        while not self._rouse.wait(self._until_look(YIELD_S)) and time.monotonic() < self.pump.next_look:
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
            self._rouse.wait(self._until_look())
        finally:
            self._broker_dozes = False

    def _keep_house(self) -> None:
        members, pump = self.members, self.pump
        if self._reports_due or pump.said or members.starting or self._aborting or self.closing:
            were_due, self._reports_due = self._reports_due, False
            if members.listen() or were_due:
                self._poke()  # a waiter that drives listens for reports again, though these were heard before
        if members.starting and members.check_start():
            self._poll_all = self._poll_with_reports()
        if self.broken is not None and not self._aborting:
            self._stop_members(terminate=False)
        if self._attempts.look():
            self._poke()  # a waiter that drives may wait for what was settled here
        if pump.doubtful:  # after the look: a task whose worker died in it was not taken back
            pump.resolve_doubtful()
        if self._shared_freed:
            self._shared_freed = False
            self.board.parking.wake_all()
        if pump.place_free:
            pump.pump_surely()
        if pump.due:
            self._deliver()
            self._poke()

    def _deliver(self) -> None:
        due = self.pump.due
        while due:
            future, value, error = due[0]
            try:
                if error is CANCELLED:
                    future.notify_cancelled()
                else:
                    future.settle_fully(value, error)
            except BaseException:  # noqa: BLE001 - of a callback: sys.exit() there ends no thread of ours
                logs.tell(logging.ERROR, "a callback of %r raised", future, exc_info=True)
            due.popleft()

    def _finish_if_due(self) -> bool:
        """Tell members and nursery to end once nothing is left to do."""
        pump, board = self.pump, self.board
        if not self.closing or pump.due or board.closing:
            return False
        with pump.mutex:
            if pump.anything_waits() or pump.ledger.records:
                return False
            pump.ended = True  # a submit that comes now is refused
        board.set_closing()
        board.parking.wake_all()
        self._supervisor.quit()
        return True

    def _end(self) -> None:
        self.closing = True
        reason = self.broken or BrokenProcessPool("the executor was stopped")
        self.pump.end(lambda: _copy_of(reason))
        self.members.deliver_logs()
        self._deliver()
        self._supervisor.close(kill=not self.members.nursery_gone)
        self.pump.keep_views_only()
        self._ended = True
        self._poke()
        with self._watch:  # the waiter that watched has left: its future is done
            self._close()

    def _close(self) -> None:
        self._wake_w.close()
        for fd in self._wake_fds:
            os.close(fd)
        self._stacks.clear()
        self.board.close()


def _copy_of(error: BrokenProcessPool) -> BrokenProcessPool:
    """One for each future: raising adds a traceback to it."""
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy
