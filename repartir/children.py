"""Tasks that a task submits: a member's children, from their submit to their result, and those of others that it runs.

A child goes into the member's own spawn deque.  Whoever waits for one drives `Nest`: it runs its own newest child, else
looks whether results have come, else takes the oldest child of another member, first of the one that has its child,
and sleeps when there is nothing of all this.  ``shm/README.md`` argues why no wait can last for ever.
"""

from __future__ import annotations

import os
import pickle
import random
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures._base import PENDING
from typing import Any

from repartir.codec import ATOMS, PROTOCOL, Encoded, Part, decode, encode_call, parts_of, raw
from repartir.errors import (
    InternalError,
    NestingTooDeep,
    PoisonTask,
    SharedMemoryFull,
    TaskNotSerializable,
    WorkerDied,
)
from repartir.functions import FunctionCache, FunctionRef, FunctionTable
from repartir.future import Future
from repartir.inherited import InheritedArrays
from repartir.outcome import Error, Value, capture, caught, decode_outcome, encode_outcome
from repartir.payloads import FUNCTION, HEAD_BYTES
from repartir.policy import MAX_REPOSTS, NO_POLICY, Policy
from repartir.portable import add_note
from repartir.shm.arena import RESULT, Handle
from repartir.shm.board import Board, MemberState
from repartir.shm.cells import Ending
from repartir.shm.deque import Entry, TaskDeque
from repartir.shm.layout import (
    CELL_DIED,
    CELL_IN_BLOCK,
    CELL_NEVER_BEGUN,
    CELL_NO_ROOM,
    CELL_PAYLOAD_BYTES,
    CELL_SHIFT,
    CELL_VALUE,
    DEPTH_MASK,
    DEPTH_SHIFT,
    IN_BLOCK,
    NO_CELL,
    SLOT_PAYLOAD_BYTES,
    cell_of,
    child_word,
    owner_of_arguments,
    owner_of_functions,
    spawner_of,
)

SPIN_S = 60e-6
FRAMES_A_LEVEL = 12
"""Python frames of ours between the call of a task and that of a child which is run while the task waits for it."""
RAISE_EVERY = 8
"""The recursion limit is raised for so many levels at a time."""
_PARK_S = 60.0  # a backstop; wakes are the mechanism
_ELSEWHERE_S = 0.01
_MOST_INTERRUPTIONS = 100  # more are no interruptions, but an error of ours
_are_atoms = ATOMS.issuperset
_dumps = pickle.dumps
_INTERRUPTED = bytes(8) + b"an interruption"

PRIVATE, QUEUED, RUNNING, LATER, ENDED = range(5)


class Level:
    """A task on this process's stack: the word that it claimed, and what its children are to know of it."""

    __slots__ = ("depth", "fn", "head", "index", "key", "open", "origin", "word")

    def __init__(self, word: int, origin: int, index: int, depth: int, head: bytes) -> None:
        self.word = word
        self.origin = origin
        """The word of the nearest task on the stack that this process did not submit itself."""
        self.index = index
        """How many tasks wait for it below on the stack."""
        self.depth = depth
        """How many tasks stand above it in the tree."""
        self.head = head
        """What each call of its function begins with."""
        self.key = 0
        self.fn: Any = None
        self.open: dict[Child, None] = {}
        """Its children that are not settled."""


class ChildFuture(Future[Any]):
    """The result of a child; waiting for it, by whatever means, makes the waiting member work."""

    child: Child | None = None

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        made = self._made_condition
        if made is None:
            made = super()._condition
            with made:
                if type(self._waiters) is list:
                    nest = self._driver
                    assert isinstance(nest, Nest)
                    self._waiters = _Waiters(self._waiters)
                    self._waiters.nest = nest
        return made

    def result(self, timeout: float | None = None) -> Any:
        """The child's result, or its exception raised; ``TimeoutError`` after ``timeout`` seconds, or when what this
        member runs meanwhile has ended.
        """
        try:
            if self._state == PENDING and timeout is None:
                nest = self._driver
                assert isinstance(nest, Nest)
                while nest.own_is_next() and self._state == PENDING:
                    nest.run_own()
            return super().result(timeout)
        finally:
            self = None  # type: ignore[assignment]  # break the cycle through the traceback

    def done(self) -> bool:
        """Whether the child has ended.  Nobody begins it for being asked: a program that only asks should wait."""
        nest = self._driver
        if self._state == PENDING and isinstance(nest, Nest):
            nest.hear()
        return super().done()

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call ``fn`` when the child has ended, for which this waits: nobody else would notice."""
        if self._driver is not None and not self.done():
            self._driver.wait_for(self, None)
        super().add_done_callback(fn)


class _Waiters(list[Any]):
    """Waiters of the standard library's `wait` and `as_completed`: their events make the member work."""

    nest: Nest

    def append(self, waiter: Any) -> None:
        event = getattr(waiter, "event", None)
        if isinstance(event, threading.Event) and not isinstance(event, _WorkingEvent):
            waiter.event = _WorkingEvent(self.nest)
            if event.is_set():
                waiter.event.set()
        super().append(waiter)


class _WorkingEvent(threading.Event):
    def __init__(self, nest: Nest) -> None:
        super().__init__()
        self._nest = nest

    def set(self) -> None:
        super().set()
        self._nest.rouse()

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set():
            self._nest.wait_until(self.is_set, None if timeout is None else time.monotonic() + timeout)
        return self.is_set()


class Child:
    """A task that a task of this process has submitted, until it is settled.

    What most children never change is the class's, which makes one in half the time.
    """

    word = 0
    position = -1
    state = PRIVATE
    key = 0
    keep: object = None
    args: tuple[Any, ...] | None = None
    """The arguments themselves, where a copy is the same."""
    payload = b""
    block: Handle | None = None
    reposts = 0
    failures: tuple[BaseException, ...] = ()
    heard: Value | Error | None = None
    """What has come from elsewhere, until the child is settled with it."""

    def __init__(self, future: ChildFuture, level: Level, flags: int, policy: Policy, name: object) -> None:
        self.future = future
        self.level = level
        self.flags = flags
        self.policy = policy
        self.name = name

    @property
    def title(self) -> str:
        return self.policy.name or getattr(self.name, "__qualname__", None) or repr(self.name)


class Nest:
    """The children of the member of row ``index``.  ``calls``: by flag, how the calls of a map's chunk are made.

    All of it is the main thread's; what another thread does with a child goes through `wait_elsewhere`.
    """

    def __init__(
        self,
        board: Board,
        index: int,
        functions: FunctionCache,
        inherited: InheritedArrays | None,
        threshold: int,
        calls: dict[int, Callable[..., Any]],
    ) -> None:
        self.level: Level | None = None
        """The task that runs now; None while it has submitted nothing and is at the bottom of the stack."""
        self.called = b""
        """The payload of the task at the bottom."""
        self._at_once = 0
        """So many children run in the midst of their submit, on no level of their own."""
        self._board = board
        self._index = index
        self._row = board.rows[index]
        self._words = board.words
        self._cells = board.cells[index]
        self._spawn = board.spawns[index]
        self._functions = functions
        self._inherited = inherited
        self._threshold = threshold
        self._calls = calls
        self._table: FunctionTable | None = None
        self._garbage: deque[Handle] = deque()
        self._main = threading.get_ident()
        self._free = list(range(self._cells.count))
        self._queued: dict[int, Child] = {}
        """Children that others can have, by word, until they are settled or taken back."""
        self._overflow: deque[Child] = deque()
        """Children for which there was no room, the oldest first."""
        self._later: list[tuple[float, Child]] = []
        """Children that are tried again at some time."""
        self._lock = threading.RLock()
        """Held while what has come is settled: by the main thread, or another that waits."""
        self._ended_word = self._cells.ended_word
        self._counter = self._cells.counter
        self._first_word = child_word(index, 0, 0)
        self._seen = 0
        self._owes = False
        """Somebody woke this member for a child that it has not taken."""
        self._others: list[TaskDeque] = []
        self._roused = False
        self.max_depth = board.shape.depth // 2
        """Deeper than this in the tree no task may submit."""
        self._steal_below = board.shape.depth // 4
        """A stack that is higher takes own children only, each deeper in the tree: so it stays within its words."""

    def is_here(self) -> bool:
        """Whether a task runs in this thread that can have children."""
        return threading.get_ident() == self._main and (
            self.level is not None or self._words[self._row.claim] != 0
        )

    def depth(self) -> int:
        """How many tasks wait below on the stack for the one that runs."""
        return (0 if self.level is None else self.level.index) + self._at_once

    def disown(self) -> None:
        """In a process that a task has forked: its calls run in place."""
        self._main = -1

    # ---- submit

    def submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        policy: Policy = NO_POLICY,
        flags: int = 0,
    ) -> ChildFuture:
        """Post a child; a call that cannot be pickled fails in the future."""
        level = self.level or self._bottom()
        if level.depth >= self.max_depth:
            raise NestingTooDeep(
                f"a task {level.depth} levels deep submitted another: tasks may be nested {self.max_depth} deep. "
                "Call the function instead of submitting it from some depth on, or submit from fewer levels."
            )
        future = ChildFuture(self)
        future.child = child = Child(future, level, flags, policy, fn)
        try:
            if fn is level.fn:
                child.key, head = level.key, level.head
            else:
                ref = self._encoded(fn)
                child.key, head = ref.key, ref.head
                child.keep = (ref, ref.hold()) if ref.needs else ref
            call: bytes | Encoded
            if not kwargs and not flags and _are_atoms(map(type, args)):
                child.args = args
                call = _dumps((args, kwargs), PROTOCOL)
            else:
                call = encode_call(args, kwargs, self._inherited, self._threshold)
            if type(call) is bytes and len(call) <= SLOT_PAYLOAD_BYTES - HEAD_BYTES:
                child.payload = head + call
            elif not self._place(child, head, parts_of(call)):
                return self._run_at_once(child, head, call)
        except (TaskNotSerializable, SharedMemoryFull) as exc:
            future.child = None
            future.settle_alone(None, exc)
            return future
        self._enter(child)
        return future

    def _enter(self, child: Child) -> None:
        """Take a child up, and post it if there is room."""
        child.level.open[child] = None
        if self._overflow or not self._post(child):
            self._overflow.append(child)
            self._refill()

    def _bottom(self) -> Level:
        """The level of the task that the worker has taken, made when it submits for the first time."""
        word = self._words[self._row.claim]
        self.level = level = Level(word, word, 0, 0, self.called[:HEAD_BYTES])
        if level.head:
            level.key, _ = FUNCTION.unpack(level.head)
            level.fn = self._functions.get(level.key)
        return level

    def _encoded(self, fn: Callable[..., Any]) -> FunctionRef:
        """A function that is not the running one, in a block of this member's."""
        table = self._table
        if table is None:
            table = self._table = FunctionTable(self._inherited)
        ref = table.encode(fn)
        if not ref.head:
            parts = parts_of(ref.blob)
            handle = self._board.blocks.store(parts, owner_of_functions(self._index))
            if handle is None:
                raise SharedMemoryFull(
                    f"no room in shared memory for function {getattr(fn, '__qualname__', fn)!r}"
                )
            weakref.finalize(ref, self._garbage.append, handle).atexit = False
            ref.head = FUNCTION.pack(ref.key, handle.pack())
        return ref

    def _place(self, child: Child, head: bytes, parts: Sequence[Part]) -> bool:
        """Copy large arguments into a block; False if there is no room."""
        handle = self._board.blocks.store(parts, owner_of_arguments(self._index))
        if handle is None:
            return False
        child.block = handle
        child.payload = head + handle.pack()
        child.flags |= IN_BLOCK
        return True

    def _run_at_once(self, child: Child, head: bytes, call: bytes | Encoded) -> ChildFuture:
        """There is no room for its arguments, so nobody else can have it."""
        meta, *buffers = parts_of(call)
        result: Value | Error
        try:
            fn = self._function(child.key, head)
            args, kwargs = decode(raw(meta), [bytearray(raw(buffer)) for buffer in buffers])
        except BaseException as exc:  # noqa: BLE001 - unpickling runs the user's code
            result = caught(exc)
        else:
            self._at_once += 1
            try:
                result = self._apply(fn, args, kwargs, child.flags)
            finally:
                self._at_once -= 1
        child.policy = NO_POLICY
        self._settle(child, _copied(result, self._threshold))
        return child.future

    def _post(self, child: Child) -> bool:
        """Put a child where others find it; False if there is no room."""
        free, spawn, words, cells = self._free, self._spawn, self._words, self._cells
        if not free and not (self._collect() and free):
            return False
        position = words[spawn.tail_word]
        level = child.level
        cell = free.pop()
        child.word = word = self._new_word(cell)
        cells.take(cell, word, level.origin)
        child.position = position
        child.state = QUEUED
        self._queued[word] = child
        try:
            entry = word, child.payload, child.flags | level.depth + 1 << DEPTH_SHIFT
            pushed = spawn.push_tail((entry,))
        except BaseException:
            if words[spawn.tail_word] == position:
                self._withdraw(child)
                self._overflow.append(child)
            raise
        if not pushed:
            self._withdraw(child)
            return False
        if self._board.parking.anyone_helps():
            self._board.parking.wake_helper()
        return True

    def _new_word(self, cell: int) -> int:
        words, counter = self._words, self._counter
        words[counter] = count = words[counter] + 1
        return self._first_word | cell << CELL_SHIFT | count

    def _withdraw(self, child: Child) -> None:
        """Nobody else has this child or will have it."""
        if child.word in self._queued:
            with self._lock:
                if child.word in self._queued:
                    cell = cell_of(child.word)
                    self._cells.release(cell)
                    del self._queued[child.word]
                    self._free.append(cell)
        child.state = PRIVATE

    def _refill(self) -> None:
        """Post what has waited longest for room."""
        while (
            threading.get_ident() == self._main
            and self._overflow
            and self._spawn.room()
            and self._post(self._overflow[0])
        ):
            self._overflow.popleft()

    # ---- wait

    def wait_for(self, future: Future[Any], timeout: float | None) -> None:
        """Return when ``future`` is done or ``timeout`` seconds have passed; work meanwhile."""
        until = None if timeout is None else time.monotonic() + timeout
        if threading.get_ident() != self._main:
            assert isinstance(future, ChildFuture)
            return self._wait_elsewhere(future.done, until, future)
        while future._state == PENDING:
            if until is not None and time.monotonic() >= until:
                self.hear()
                break
            if not self._work(future):
                self._pause(future, until)
        if self._owes:
            self.pass_on()
        return None

    def own_is_next(self) -> bool:
        """Whether what the main thread, if this is it, has to do next is an own child in the deque."""
        words, level = self._words, self.level
        return (
            words[self._spawn.head_word] != words[self._spawn.tail_word]
            and words[self._ended_word] == self._seen
            and level is not None
            and level.index < self._steal_below
            and threading.get_ident() == self._main
        )

    def wait_until(self, done: Callable[[], bool], until: float | None) -> None:
        """The same for a condition that a child's end makes true."""
        if threading.get_ident() != self._main:
            return self._wait_elsewhere(done, until, None)
        while not done():
            if until is not None and time.monotonic() >= until:
                self.hear()
                break
            if not self._work(None):
                self._pause(None, until)
        if self._owes:
            self.pass_on()
        return None

    def hear(self) -> None:
        """Settle what has come, without waiting for anything."""
        if threading.get_ident() == self._main and self._words[self._ended_word] != self._seen:
            self._collect()

    def rouse(self) -> None:
        """Something has happened that the main thread may wait for."""
        if threading.get_ident() != self._main:
            self._roused = True
            self._board.semaphores[self._index].post()

    def _work(self, future: Future[Any] | None) -> bool:
        """Do one thing: settle what has come, run an own child, run another's; False if there is nothing to do."""
        words, spawn = self._words, self._spawn
        if words[self._ended_word] != self._seen and self._collect():
            return True
        if self._later and self._post_due():
            return True
        level = self.level or self._bottom()
        claim = self._cells.claims + level.index
        is_high = level.index >= self._steal_below
        if is_high:
            child = self._take_back_own(level)
            if child is not None:
                return self.run_own(child)
        elif words[spawn.head_word] != words[spawn.tail_word] and self.run_own():
            return True
        child = self._newest_private(level, is_high=is_high)
        if child is not None:
            self.run_own(child)
            self._refill()
            return True
        if is_high or words[self._row.condemned]:
            return False
        try:
            entry = self._steal(future, claim)
            if entry is not None:
                self._run_stolen(entry, level, claim)
        except BaseException:
            self._give_back(claim)
            raise
        return entry is not None

    def _take_back_own(self, level: Level) -> Child | None:
        """On a high stack: the newest child of this very task that nobody has begun, out of the deque."""
        for child in reversed(level.open):
            if child.state == QUEUED and self._spawn.remove(child.position, child.word):
                self._withdraw(child)
                self._overflow.append(child)
                return child
        return None

    def _newest_private(self, level: Level, *, is_high: bool) -> Child | None:
        """The newest of the children that found no room; on a high stack of this very task's."""
        for child in reversed(self._overflow):
            if not is_high or child.level is level:
                return child
        return None

    def _give_back(self, claim: int) -> None:
        """An exception came between a claim and its child's beginning."""
        words = self._words
        word = words[claim]
        if not word or word == words[self._row.started]:
            return
        child = self._queued.get(word)
        if child is not None:
            self._withdraw(child)
            self._overflow.append(child)
        elif spawner_of(word) != self._index:
            self._tell(word, CELL_NEVER_BEGUN, _INTERRUPTED)
        words[claim] = 0

    def _steal(self, future: Future[Any] | None, claim: int) -> Entry | None:
        """The oldest child of who has our own child, else of anybody."""
        words = self._words
        if future is not None and (child := getattr(future, "child", None)) is not None:
            thief = self._claimant(child.word)
            if thief >= 0 and thief != self._index:
                spawn = self._board.spawns[thief]
                if words[spawn.head_word] != words[spawn.tail_word] and (entry := spawn.pop_head(claim)):
                    return entry
        for spawn in self._others or self._find_others():
            if words[spawn.head_word] != words[spawn.tail_word] and (entry := spawn.pop_head(claim)):
                return entry
        return None

    def _claimant(self, word: int) -> int:
        """The row of the member that has claimed this word; -1 if none shows it.  A hint."""
        for row, stack in enumerate(self._board.stacks):
            if word in stack.tasks():
                return row
        return -1

    def _find_others(self) -> list[TaskDeque]:
        board, count = self._board, len(self._board.rows)
        kind = self._words[self._row.kind]
        rows = [(self._index + step) % count for step in range(1, count)]
        self._others = [board.spawns[at] for at in rows if self._words[board.rows[at].kind] == kind]
        return self._others

    def _pause(self, future: Future[Any] | None, until: float | None) -> None:
        """There was nothing to do: look for a moment, then sleep until there is."""
        words, clock, give_way = self._words, time.perf_counter, os.sched_yield
        end = clock() + SPIN_S
        while clock() < end:
            if words[self._ended_word] != self._seen or self._is_hinted():
                return
            give_way()
        self._sweep()
        if self.level is not None:
            self._find_lost(self.level)
        parking, row = self._board.parking, self._index
        parking.start_waiting(row)
        try:
            if not self._is_something_there(future):
                self._check_for_cycle(future)
                times = [_PARK_S]
                if until is not None:
                    times.append(until - time.monotonic())
                if self._later:
                    times.append(min(due for due, _ in self._later) - time.monotonic())
                self._board.semaphores[row].wait(max(0.0, min(times)))
        finally:
            if not parking.stop_waiting(row):
                self._owes = True

    def _may_steal(self) -> bool:
        return (self.level is None or self.level.index < self._steal_below) and not self._words[
            self._row.condemned
        ]

    def _is_hinted(self) -> bool:
        words = self._words
        return self._may_steal() and any(
            words[spawn.head_word] != words[spawn.tail_word] for spawn in self._others or self._find_others()
        )

    def _is_something_there(self, future: Future[Any] | None) -> bool:
        """Under the locks, so that whoever comes after this finds the announcement."""
        if self._roused or (future is not None and future._state != PENDING):
            self._roused = False
            return True
        level = self.level
        if self._cells.ended() != self._seen or (
            level is not None and self._newest_private(level, is_high=level.index >= self._steal_below)
        ):
            return True
        return self._may_steal() and any(
            not spawn.is_empty() for spawn in self._others or self._find_others()
        )

    def _check_for_cycle(self, future: Future[Any] | None) -> None:
        child = getattr(future, "child", None)
        if (
            child is not None
            and child.state == RUNNING
            and child.word in self._board.stacks[self._index].tasks()
        ):
            raise RuntimeError(
                f"task {child.title!r} waits for itself: its future was left where it finds it"
            )

    def pass_on(self) -> None:
        """Whoever was woken for a child and goes on without it, or took one of several, wakes the next."""
        self._owes = False
        others = self._others or self._find_others()
        if self._board.parking.anyone_helps() and any(spawn.size_hint() for spawn in others):
            self._board.parking.wake_helper()

    def _wait_elsewhere(
        self, done: Callable[[], bool], until: float | None, future: ChildFuture | None
    ) -> None:
        """In another thread than the main one: take back the child and run it here, or else look now and then.

        The main thread need not be waiting for anything, so nobody might hear that a child has ended.
        """
        if self._main < 0:
            raise RuntimeError("a child of a task can be waited for in the task's own process only")
        while not done() and (until is None or time.monotonic() < until):
            child = None if future is None else future.child
            candidates = [child] if child is not None else list(self._queued.values())
            if not any(self._run_elsewhere(candidate) for candidate in candidates):
                self._collect()
                self._post_due()
                if not done():
                    time.sleep(_ELSEWHERE_S)

    def _run_elsewhere(self, child: Child) -> bool:
        """Run a child that nobody has begun in this thread, where what it submits runs in place."""
        if child.state == QUEUED:
            if not self._spawn.remove(child.position, child.word):
                return False
        else:
            try:
                self._overflow.remove(child)
            except ValueError:
                return False
        child.state = RUNNING
        self._settle(child, _copied(self._call(child.payload, child.flags), self._threshold))
        self.rouse()
        return True

    # ---- run

    def run_own(self, child: Child | None = None) -> bool:
        """Run a child of this process's own, the newest one in the deque or one that nobody else can have; False if there
        is none.

        One frame for all, since CPython is slow at certain depths of the stack: the fewer frames, the rarer.
        """
        words = self._words
        level = self.level or self._bottom()
        claim = self._cells.claims + level.index
        try:
            if child is None:
                entry = self._spawn.pop_tail(claim)
                if entry is None:
                    return False
                child = self._queued[entry[0]]
                words[self._row.started] = word = child.word
                cell = word >> CELL_SHIFT & NO_CELL
                self._cells.release(cell)
                del self._queued[word]
                self._free.append(cell)
            else:
                child.word = words[claim] = self._new_word(NO_CELL)
                words[self._row.started] = child.word
                self._overflow.remove(child)
            child.state = RUNNING
            self.level = mine = Level(
                child.word, level.origin, level.index + 1, child.level.depth + 1, child.payload[:HEAD_BYTES]
            )
            frames = 0 if mine.index % RAISE_EVERY else RAISE_EVERY * FRAMES_A_LEVEL
            if frames:
                sys.setrecursionlimit(sys.getrecursionlimit() + frames)
            result: Value | Error
            try:
                if child.args is None:
                    result = self._call(child.payload, child.flags, mine)
                else:
                    mine.key = child.key
                    mine.fn = self._functions.get(child.key) or self._function(child.key, mine.head)
                    result = Value(mine.fn(*child.args))
            except BaseException as exc:  # noqa: BLE001 - the future carries all that a task raises
                exc.__traceback__ = exc.__traceback__ and exc.__traceback__.tb_next
                result = caught(exc)
            finally:
                if frames:
                    sys.setrecursionlimit(sys.getrecursionlimit() - frames)
            if self._main < 0:
                os._exit(0)  # the child has forked, and this is what it has forked
            if mine.open:
                result = self._join_all(mine, result)
            if type(result) is not Value or type(result.value) not in ATOMS:
                result = _copied(result, self._threshold)
            if type(result) is Value and child.future.settle_alone(result.value, None):
                self._forget(child)
            else:
                self._settle(child, result)
            return True
        except BaseException as exc:
            if child is not None and child.state != ENDED:
                self._interrupted(child, exc)
            raise
        finally:
            self.level = level
            if words[claim]:
                self._let_go(level, claim)

    def _interrupted(self, child: Child, error: BaseException) -> None:
        """An exception in code of ours has ended a child, or kept it from beginning."""
        if child.state == RUNNING:
            child.policy = NO_POLICY
            self._settle(child, caught(error))
        else:
            self._withdraw(child)
            self._find_lost(child.level)

    def _find_lost(self, level: Level) -> None:
        """Take up again what an exception has lost between two places."""
        later = [child for _, child in self._later]
        for child in list(level.open):
            if child.future._state != PENDING:
                self._forget(child)
            elif child.state in (PRIVATE, LATER) and child not in later and child not in self._overflow:
                child.state = PRIVATE
                self._overflow.append(child)

    def _let_go(self, level: Level, claim: int) -> None:
        """The child that is claimed has ended, or an exception has come before it began."""
        words = self._words
        if words[claim] != words[self._row.started]:
            self._give_back(claim)
        words[self._row.started] = level.word
        words[claim] = 0

    def run_stolen(self, entry: Entry) -> None:
        """Run another member's child at the bottom of the stack."""
        self._run_stolen(entry, None, self._row.claim)

    def _run_stolen(self, entry: Entry, below: Level | None, claim: int) -> None:
        word, payload, flags = entry
        words, row = self._words, self._row
        if below is not None:
            if words[row.condemned]:
                words[row.state] = MemberState.RETIRED
                os._exit(0)  # the child is not begun, so it is given to another
            words[row.steals] += 1
            if self._owes:
                self.pass_on()
        words[row.started] = word
        frames = 0 if below is None else FRAMES_A_LEVEL
        index = 0 if below is None else below.index + 1
        try:
            depth = flags >> DEPTH_SHIFT & DEPTH_MASK
            self.level = mine = Level(word, word, index, depth, payload[:HEAD_BYTES])
            sys.setrecursionlimit(sys.getrecursionlimit() + frames)
            try:
                result = self._call(payload, flags, mine)
                if self._main < 0:
                    os._exit(0)
                result = self._join_all(mine, result)
            finally:
                sys.setrecursionlimit(sys.getrecursionlimit() - frames)
            self.answer(word, result)
            words[row.runs] += 1
        except BaseException as exc:
            if self._board.cells[spawner_of(word)].read(cell_of(word), word) is None:
                self._board.blocks.free_owned(word | RESULT)
            self.answer(word, caught(exc))
            raise
        finally:
            self.level = below
            if below is not None:
                words[row.started] = below.word
            words[claim] = 0

    def end_bottom(self, result: Value | Error) -> Value | Error:
        """The task at the bottom has returned or raised: so do its children."""
        level = self.level
        if level is not None:
            result = self._join_all(level, result)
            self.level = None
            self._sweep()
            if not self._queued:
                self._free = list(range(self._cells.count))  # also those that an exception has cost
        return result

    def end_children(self, *, wait: bool, cancel: bool) -> None:
        """Cancel the running task's children, unless somebody has begun them, or wait for them, or both."""
        if self.level is not None:
            self._end_children(self.level, wait=wait, cancel=cancel)

    def _end_children(self, level: Level, *, wait: bool, cancel: bool) -> None:
        self._find_lost(level)
        futures = [child.future for child in level.open]
        if cancel:
            for future in futures:
                future.cancel()
        if wait:
            for future in futures:
                self.wait_for(future, None)

    def _join_all(self, level: Level, result: Value | Error) -> Value | Error:
        """The task of ``level`` has returned or raised.  It ends when its children have: after an error they are
        cancelled, unless somebody has begun them."""
        interruptions = 0
        while level.open:
            try:
                self._end_children(level, wait=True, cancel=isinstance(result, Error))
            except InternalError:
                raise
            except BaseException as exc:  # what a signal handler raises ends the task
                interruptions += 1
                if interruptions > _MOST_INTERRUPTIONS:
                    raise InternalError("the children of a task cannot be ended") from exc
                result = caught(exc)
        return result

    def _call(self, payload: bytes, flags: int, level: Level | None = None) -> Value | Error:
        """Call what a payload says, on private copies of the arguments."""
        try:
            head = payload[:HEAD_BYTES]
            key, _ = FUNCTION.unpack(head)
            fn = self._functions.get(key) or self._function(key, head)
            if level is not None:
                level.key, level.fn = key, fn
            if flags & IN_BLOCK:
                meta, *buffers = self._load(Handle.unpack(payload[HEAD_BYTES:]))
                args, kwargs = decode(meta, buffers)
            else:
                args, kwargs = decode(payload[HEAD_BYTES:])
        except BaseException as exc:  # noqa: BLE001 - unpickling runs the user's code
            return caught(exc)
        return self._apply(fn, args, kwargs, flags)

    def _apply(self, fn: Any, args: Any, kwargs: Any, flags: int) -> Value | Error:
        for flag, call in self._calls.items():
            if flags & flag:
                return capture(call, (fn, args), {})
        return capture(fn, args, kwargs)

    def _function(self, key: int, head: bytes) -> Any:
        fn = self._functions.get(key)
        if fn is None:
            _, block = FUNCTION.unpack(head)
            meta, *parts = self._load(Handle.unpack(block))
            fn = self._functions.put(key, bytes(meta), parts)
        return fn

    def _load(self, handle: Handle) -> list[bytearray]:
        """Copies of a block's parts, whole for certain: its owner may have died meanwhile."""
        blocks = self._board.blocks
        parts = blocks.load(handle)
        if not blocks.holds(handle):
            raise InternalError("the memory of a child was given back: the task that submitted it has ended")
        return parts

    # ---- answer and settle

    def answer(self, word: int, result: Value | Error) -> None:
        """Publish the outcome of another member's child, or drop it if nobody waits for it any more."""
        body = encode_outcome(result, self._threshold)
        result.forget()
        if type(body) is bytes and len(body) <= CELL_PAYLOAD_BYTES:
            self._tell(word, CELL_VALUE, body)
            return
        handle = self._board.blocks.store(parts_of(body), word | RESULT)
        if handle is None:
            self._tell(word, CELL_NO_ROOM, b"")
        elif not self._tell(word, CELL_IN_BLOCK, handle.pack()):
            self._board.blocks.free(handle)

    def _tell(self, word: int, status: int, payload: bytes) -> bool:
        row = spawner_of(word)
        told = self._board.cells[row].put(cell_of(word), word, status, payload)
        if told and self._board.parking.is_waiting(row):
            self._board.parking.wake_waiter(row)
        return told

    def _collect(self) -> bool:
        """Settle the children that have ended elsewhere; whether there were any."""
        words, cells, found = self._words, self._cells, False
        with self._lock:
            seen = cells.ended()
            for word, child in list(self._queued.items()):
                cell = cell_of(word)
                if words[cells.status_word(cell)] and (ending := cells.read(cell, word)) is not None:
                    found = True
                    self._hear(child, ending)
            self._seen = seen
        return found

    def _hear(self, child: Child, ending: Ending) -> None:
        """A child of ours has ended elsewhere.  Interrupted anywhere, this may be repeated.

        A result's block is given back before its cell: a death in between finds the handle in the cell, once more.
        """
        handle = Handle.unpack(ending.payload) if ending.status == CELL_IN_BLOCK else None
        if child.heard is not None:
            pass
        elif handle is not None:
            meta, *buffers = self._board.blocks.load(handle)
            child.heard = decode_outcome(meta, buffers)
        elif ending.status == CELL_VALUE:
            child.heard = decode_outcome(ending.payload)
        elif ending.status == CELL_NEVER_BEGUN and child.reposts < MAX_REPOSTS:
            self._withdraw(child)
            child.reposts += 1
            self._overflow.append(child)
            self._refill()
            return
        else:
            child.heard = Error(_error_of(child, ending), "")
        if handle is not None:
            self._board.blocks.free(handle)
        self._settle(child, child.heard, died=ending.status == CELL_DIED)

    def _settle(self, child: Child, result: Value | Error, *, died: bool = False) -> None:
        """Give the future its outcome, unless the child is to be tried again."""
        value = error = None
        if isinstance(result, Value):
            value = result.value
        else:
            error = result.exception
            if child.policy is not NO_POLICY and self._is_tried_again(child, error, died=died):
                return
            if child.failures:
                add_note(error, f"this is the last of {len(child.failures) + 1} attempts that failed")
        future = child.future
        if not future.settle_alone(value, error):
            future.settle_fully(value, error)
        self._forget(child)

    def _is_tried_again(self, child: Child, error: BaseException, *, died: bool) -> bool:
        policy, failures = child.policy, len(child.failures) + 1
        limit = policy.poison_limit
        deaths = sum(isinstance(failure, WorkerDied) for failure in child.failures) + died
        if died and limit is not None and deaths >= limit:
            return False
        if not (died and policy.idempotent) and not policy.retries_after(error, failures):
            return False
        delay = policy.delay(failures, random.Random())
        with self._lock:
            self._withdraw(child)
            child.failures = (*child.failures, error)
            child.heard = None
            child.state = LATER
            self._later.append((time.monotonic() + delay, child))
        return True

    def _post_due(self) -> bool:
        """Give those their next try whose time has come; whether there were any."""
        with self._lock:
            now = time.monotonic()
            due = [child for at, child in self._later if at <= now]
            self._later = [later for later in self._later if later[0] > now]
            for child in due:
                child.state = PRIVATE
                self._overflow.append(child)
        self._refill()
        return bool(due)

    def _forget(self, child: Child) -> None:
        """The child is settled or cancelled: give back what it had.  May be repeated."""
        if child.block is not None:
            self._board.blocks.free(child.block)
            child.block = None
        if child.word in self._queued:
            self._withdraw(child)
        child.state = ENDED
        child.level.open.pop(child, None)
        child.future.child = None
        child.keep = child.args = child.heard = None

    def _sweep(self) -> None:
        """Give back the blocks of functions that are garbage."""
        while self._garbage:
            self._board.blocks.free(self._garbage[0])
            self._garbage.popleft()

    # ---- what a future asks of its driver

    def take_back(self, future: Future[Any]) -> bool:
        """Cancel a child that nobody has begun."""
        child = getattr(future, "child", None)
        if child is None:
            return False
        if child.state == QUEUED:
            try:
                if not self._spawn.remove(child.position, child.word):
                    return False
            except BaseException:
                if not self._spawn.holds(child.position, child.word) and self._claimant(child.word) < 0:
                    self._cancelled(child)
                raise
        elif child.state == LATER:
            with self._lock:
                self._later = [later for later in self._later if later[1] is not child]
        elif child.state == PRIVATE:
            try:
                self._overflow.remove(child)
            except ValueError:
                return False
        else:
            return False
        return self._cancelled(child)

    def stop(self, future: Future[Any]) -> bool:
        """Want the result of a child no more that another member runs; it runs on, since only the client ends members."""
        child = getattr(future, "child", None)
        if child is None or child.state != QUEUED or not self._cells.abandon(cell_of(child.word), child.word):
            return False
        return self._cancelled(child)

    def is_running(self, future: Future[Any]) -> bool:
        """Whether somebody has begun the child of ``future``."""
        child = getattr(future, "child", None)
        if child is None or child.state != QUEUED:
            return child is not None and child.state == RUNNING
        return not self._spawn.holds(child.position, child.word)

    def _cancelled(self, child: Child) -> bool:
        marked = child.future.mark_cancelled()
        self._forget(child)
        return marked


def _copied(result: Value | Error, threshold: int) -> Value | Error:
    """The outcome as if it came from another process."""
    meta, *buffers = parts_of(encode_outcome(result, threshold))
    result.forget()
    return decode_outcome(raw(meta), [bytearray(raw(buffer)) for buffer in buffers])


def _error_of(child: Child, ending: Ending) -> BaseException:
    """Why there is no result."""
    if ending.status == CELL_NO_ROOM:
        return SharedMemoryFull(f"task {child.title!r} has ended, but there is no room for its result")
    code = int.from_bytes(ending.payload[:8], "little", signed=True)
    how = ending.payload[8:].decode(errors="replace")
    exit_code, number = (code, None) if code >= 0 else (None, -code)
    if ending.status == CELL_DIED:
        return WorkerDied(
            f"the worker that ran task {child.title!r} died ({how}). The task may have run in part; "
            "the task that submitted it is not affected.",
            exit_code=exit_code,
            signal=number,
            task=child.title,
        )
    return PoisonTask(
        f"{MAX_REPOSTS + 1} workers in a row died before they could begin task {child.title!r} (last: {how})",
        exit_code=exit_code,
        signal=number,
        task=child.title,
    )
