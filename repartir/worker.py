"""A member of kind CPU: find a task, run it, answer.

The claim protocol (why a death at any point neither loses nor repeats a task) is in ``shm/README.md``.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import weakref
from collections import deque as Deque  # noqa: N812 - `deque` means a task deque here
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from repartir import optional, outcome, stacks
from repartir.bindings import publish
from repartir.children import Nest
from repartir.chunks import call_each, call_many
from repartir.codec import OUT_OF_BAND_BYTES, Part, decode, join_parts, parts_of
from repartir.cores import UNLIMITED, CoreShare
from repartir.functions import FunctionCache, function_of
from repartir.heap import FreedMemory
from repartir.hygiene import take_ctrl_c
from repartir.inherited import InheritedArrays
from repartir.logs import Forwarder, set_levels
from repartir.payloads import FUNCTION, HEAD_BYTES, pieces_of
from repartir.policy import ORDERS, TURNS
from repartir.rangeloop import RangeLoop
from repartir.residence import limit_address_space, own_bytes
from repartir.shm.arena import RESULT, Handle
from repartir.shm.blocks import BlockRef, watch
from repartir.shm.board import Board, ClientSleep, Kind, MemberState
from repartir.shm.deque import Entry, TaskDeque
from repartir.shm.hands import is_there_a_rest
from repartir.shm.layout import (
    AGAIN,
    ANSWER,
    ANSWER_IN_BLOCK,
    ANSWER_PIECE,
    AT_HIGH,
    AT_LOW,
    AT_NORMAL,
    ATTEMPT_MASK,
    CALL_EACH,
    CALL_MANY,
    CAPPED,
    CHILD,
    DEPTH_MASK,
    DEPTH_SHIFT,
    H_CLIENT_SLEEP,
    IN_BLOCK,
    LEVELS,
    MEMBER_BROKEN,
    MEMBER_LOG,
    MEMBER_READY,
    RANGE,
    TIMED,
    level_of,
)

SPIN_S = 60e-6
_PARK_S = 60.0  # a backstop; wakes are the mechanism
_KEEP_S = 5.0
"""How long a member without a task keeps freed memory for the next."""
_BLOCKED_S = 1.0  # the same, for a full outbox
_LOOK_S = 0.002  # for a full outbox, in threads that have no semaphore
_NO_PLAIN_TASK = RANGE | DEPTH_MASK << DEPTH_SHIFT
"""A range, or a child: these have a depth."""
_LOG_RECORDS = 4
"""A log record may be so many times as large as an answer: there is no arena for it."""


class MemberSettings(NamedTuple):
    """What every member of an executor is told."""

    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    owned_names: frozenset[str]
    """Globals that the initializer sets up: tasks see them, and do not bring their own."""
    max_tasks: int | None
    spinners: int
    """How many members may look for work awake at a time."""
    inherited: InheritedArrays | None
    """Arrays that members have by fork: held here, so that references to them resolve."""
    max_rss_growth: int | None = None
    """A member that has grown by more bytes of memory of its own than this between tasks gives way to another."""
    address_space: int | None = None
    """Bytes of address space that a member may map beyond those that it has when it is ready."""
    log_levels: dict[str, int] | None = None
    """What members log goes to the client, whose levels these are; None: nowhere but to their own handlers."""
    out_of_band: int = OUT_OF_BAND_BYTES
    """Bytes from which on a buffer of a result travels beside the pickle."""
    cores: CoreShare = UNLIMITED
    """What a member may use of the cores."""


class Worker:
    """The loop of one CPU member, on row ``index`` of the board."""

    def __init__(
        self,
        board: Board,
        index: int,
        wake_fd: int,
        settings: MemberSettings,
        stacks_fds: Sequence[int] = (),
    ) -> None:
        self._board = board
        self._index = index
        self._row = board.rows[index]
        self._words = board.words
        self._wake_fd = wake_fd
        self._stacks_fds = stacks_fds
        self._settings = settings
        self._functions = FunctionCache()
        self._lane = board.lanes[index]
        self._spawn = board.spawns[index]
        self._mailbox = board.mailboxes[index]
        self._mail_tail = self._mailbox.tail_word
        self._mail_taken = self._words[self._mailbox.head_word]
        """The mailbox's head, which nobody else moves: it is empty while its tail is the same."""
        self._outbox = board.outboxes[index]
        self._largest_bytes = self._outbox.largest_bytes
        same = self._others(Kind.CPU)
        self._victims = [deque for at in same for deque in (board.lanes[at], board.spawns[at])]
        self._shared = board.high, board.low
        self._queues: list[list[TaskDeque]] = [[self._lane, *self._victims], [board.high], [board.low]]
        """By priority, where tasks lie that this member may take; not its own children."""
        self._hands = board.hands_of(index)
        """By priority, what this member has in hand."""
        others = [board.hands_of(at) for at in same]
        self._others_hands = [[hands[level] for hands in others] for level in LEVELS]
        """By priority, what others have."""
        self._stealable = [
            (hand, self._hands[level])
            for level in (AT_HIGH, AT_NORMAL, AT_LOW)
            for hand in self._others_hands[level]
        ]
        self._high_tail, self._low_tail = board.high.tail_word, board.low.tail_word
        self._high_seen = self._low_seen = 0
        """Their tails when nothing of another priority than normal waited: while they are the same nothing does."""
        self._turn = 0
        """How often this member has chosen among priorities, see ``policy.ORDERS``."""
        calls = {CALL_MANY: call_many, CALL_EACH: call_each}
        self.nest = Nest(board, index, self._functions, settings.inherited, settings.out_of_band, calls)
        """What tasks of this member submit, and children of others."""
        self._open_to_all = [self._lane, self._spawn, *self._victims, *self._shared]
        self._ends = [(deque.head_word, deque.tail_word) for deque in self._open_to_all] + [
            (hand.next_word, hand.end_word) for hand, _ in self._stealable
        ]
        self._spin_ends = [(self._mailbox.head_word, self._mail_tail), *self._ends]
        self._ranges = [
            RangeLoop(board, index, level, self, settings.out_of_band, self._largest_bytes)
            for level in LEVELS
        ]
        self._pid = os.getpid()
        self.state: Any = None
        """What the initializer has returned."""
        self._forwarder: Forwarder | None = None
        self._opened: tuple[Handle, weakref.ref[Any]] | None = None
        """The block in which the arguments of the task lie, and what their arrays keep alive."""
        self._kept: dict[Handle, BlockRef] = {}
        """Blocks whose arrays outlived their task."""
        self._dead: Deque[BlockRef] = Deque()
        """Those of them whose last array has died."""
        self._may_be_cycles = False
        """Something was kept since the garbage collector was last asked: perhaps only by an exception and its frame."""
        self._has_forked = False
        """Some task has forked a child, which has the arrays that this process had then."""
        self.is_copy = False
        """This process is such a child, and nobody's worker."""
        self._leaves = False
        """It has answered for a part of a range only, and ends."""
        self._freed = FreedMemory(keeps=settings.max_rss_growth is None)
        self._largest: int | None = None
        """So much memory of its own it may have between two tasks."""

    def run(self) -> None:
        """Serve tasks until the executor closes or this worker has run its share."""
        global _current
        _current = self
        if self._stacks_fds:
            stacks.answer_signals(self._stacks_fds, self._index)
        if self._settings.log_levels is not None:
            set_levels(self._settings.log_levels)
            self._forwarder = Forwarder(
                f"worker-{self._index}", _LOG_RECORDS * self._largest_bytes, self._send_log
            )
            self._forwarder.install()
        self._settings.cores.pin(self._index)
        self._freed.begin()
        self._words[self._row.state] = MemberState.INITIALIZING
        if not self._initialize():
            return
        baseline = self._freed.ready(after_initializer=self._settings.initializer is not None)
        self._words[self._row.baseline] = baseline
        if self._settings.address_space is not None:
            limit_address_space(self._settings.address_space)
        self._words[self._row.state] = MemberState.READY
        self.send(0, MEMBER_READY, b"")
        left = self._settings.max_tasks or -1
        if self._settings.max_rss_growth is not None:
            self._largest = baseline + self._settings.max_rss_growth
        while left and not self._words[self._row.condemned]:
            entry = self.find_work() or self._rest()
            if entry is None or self._words[self._row.condemned]:
                break  # a claim that was not begun is given to another
            done = self.run_one(entry, left)
            self._freed.is_used = True
            del entry
            if self._dead:
                self._free_dead()
            if self._forwarder is not None and self._forwarder.pending:
                self._forwarder.flush()
            left -= done
            if self._leaves or (self._largest is not None and not self.goes_on()):
                break  # what is left of a range is given to others
        self._words[self._row.state] = MemberState.RETIRED

    @property
    def colleagues(self) -> int:
        """How many members of its kind there are, this one included."""
        return len(self._victims) // 2 + 1

    @property
    def number(self) -> int:
        """Which worker of the executor it is, from 0 on."""
        return self._index

    @property
    def attempt(self) -> int:
        """Which attempt at the task it is that the client submitted, from 1 on."""
        return self._words[self._row.claim] & ATTEMPT_MASK

    def find_work(self) -> Entry | None:
        """Claim a task: what is for this member alone, the newest of the own spawn deque, the oldest of the high lane,
        of the own lane, of another's, of the low lane."""
        claim, words = self._row.claim, self._words
        if words[self._mail_tail] != self._mail_taken and (entry := self._take_mail()):
            return entry
        spawn, lane = self._spawn, self._lane
        if words[spawn.head_word] != words[spawn.tail_word] and (entry := spawn.pop_tail(claim)):
            return entry
        if (
            words[self._high_tail] != self._high_seen or words[self._low_tail] != self._low_seen
        ) and self._priorities_wait():
            return self._find_by_priority()
        if words[lane.head_word] != words[lane.tail_word] and (entry := lane.pop_head(claim)):
            return entry
        for victim in self._victims:
            if words[victim.head_word] != words[victim.tail_word] and (entry := victim.pop_head(claim)):
                words[self._row.steals] += 1
                return entry
        for hand, own in self._stealable:
            if words[hand.next_word] != words[hand.end_word] and (entry := own.steal(hand)):
                words[self._row.steals] += 1
                return entry
        return None

    def _find_by_priority(self) -> Entry | None:
        self._turn += 1
        for level in ORDERS[self._turn % TURNS]:
            if entry := self._take(level):
                return entry
        return None

    def _take(self, level: int) -> Entry | None:
        """Claim a task of this priority: what was laid aside, what waits, what another member has in hand.

        Another's range comes into the own hand, so only when nothing is laid aside there.
        """
        claim, words, own = self._row.claim, self._words, self._hands[level]
        if words[own.task_word] and (entry := own.resume()):
            return entry
        for deque in self._queues[level]:
            if words[deque.head_word] != words[deque.tail_word] and (entry := deque.pop_head(claim)):
                words[self._row.steals] += deque is not self._lane and level == AT_NORMAL
                return entry
        for hand in self._others_hands[level]:
            if words[hand.next_word] != words[hand.end_word] and (entry := own.steal(hand)):
                words[self._row.steals] += 1
                return entry
        return None

    def _priorities_wait(self) -> bool:
        """Whether this member has to choose among priorities: there is something high or low, or a range laid aside."""
        words = self._words
        high, low = words[self._high_tail], words[self._low_tail]
        if words[self._hands[AT_NORMAL].task_word] or self._waits(AT_HIGH) or self._waits(AT_LOW):
            return True
        self._high_seen, self._low_seen, self._turn = high, low, 0
        return False

    def _waits(self, level: int) -> bool:
        """A hint: something of this priority can be taken."""
        words = self._words
        if words[self._hands[level].task_word]:
            return True
        for deque in self._queues[level]:
            if words[deque.head_word] != words[deque.tail_word]:
                return True
        for hand in self._others_hands[level]:
            if words[hand.next_word] != words[hand.end_word]:
                return True
        return False

    def gives_way(self, level: int) -> bool:
        """Between two items of a range of this priority: whether there is mail, or something of another one has its turn."""
        if self._words[self._mail_tail] != self._mail_taken:
            self._high_seen = -1
            return True
        high, low = self._words[self._high_tail], self._words[self._low_tail]
        if level == AT_NORMAL and high == self._high_seen and low == self._low_seen:
            return False
        waiting = [other for other in LEVELS if other != level and self._waits(other)]
        if waiting:
            first = next(it for it in ORDERS[(self._turn + 1) % TURNS] if it == level or it in waiting)
            if first != level:
                self._high_seen = -1  # it has to choose as long as something is laid aside
                return True
            self._turn += 1
        elif level == AT_NORMAL:
            self._high_seen, self._low_seen, self._turn = high, low, 0
        return False

    def _take_mail(self) -> Entry | None:
        entry = self._mailbox.pop_head(self._row.claim)
        self._mail_taken = self._words[self._mailbox.head_word]
        return entry

    def goes_on(self) -> bool:
        """Between two items: whether this worker may begin one more."""
        if self._forwarder is not None and self._forwarder.pending:
            self._forwarder.flush()
        if self._words[self._row.condemned]:
            return False
        return self._largest is None or own_bytes(self._pid) <= self._largest

    def run_one(self, entry: Entry, most: int = 1) -> int:
        """Run a claimed task and answer, or of a range at most so many items (-1: all); how many were run."""
        word, payload, flags = entry
        words, row = self._words, self._row
        if flags & _NO_PLAIN_TASK:
            if word & CHILD:
                self.nest.run_stolen(entry)
                return 1
            done = self._ranges[level_of(flags)].run(entry, most if most > 0 else 1 << 62)
            self._leaves = words[row.claim] != 0
            words[row.runs] += done
            return done
        words[row.started] = word
        result = self._call(payload, flags)
        if os.getpid() != self._pid:
            os._exit(0)
        if self.nest.level is not None:
            result = self.nest.end_bottom(result)
        self.answer(word, result, flags & TIMED)
        words[row.runs] += 1
        return 1

    def answer(self, word: int, result: outcome.Value | outcome.Error, timed: int = 0) -> None:
        """Publish a task's outcome, then let go of the claim.  Encoding it is part of a ``timed`` task."""
        body = outcome.encode_outcome(result, self._settings.out_of_band)
        if timed:
            self._words[self._row.began] = 0
        result.forget()  # the caller still has it; its arrays may lie in the block of the arguments
        if type(body) is bytes and len(body) <= self._largest_bytes:
            self._close_arguments()
            self.send(word, ANSWER, body)
        else:
            parts = parts_of(body)
            del body
            self._send_large(word, parts)
        self._words[self._row.claim] = 0

    def _close_arguments(self) -> None:
        """Before the answer, which gives the client the block back: keep it if an array in it is still in use."""
        if self._opened is None:
            return
        (handle, ref), self._opened = self._opened, None
        exporter = ref()
        if self._has_forked:
            self._board.blocks.keep(handle, self._index)  # until this process ends
        elif exporter is not None:
            self._board.blocks.keep(handle, self._index)
            self._kept[handle] = watch(exporter, handle, self._dead)
            self._may_be_cycles = True

    def _free_dead(self) -> None:
        """Give back what was kept, unless a child process that a task has forked may still use it."""
        while self._dead:
            ref = self._dead[0]
            if not self._has_forked:
                self._board.blocks.free(ref.handle, kept=True)
            self._kept.pop(ref.handle, None)
            self._dead.popleft()

    def _call(self, payload: bytes, flags: int) -> outcome.Value | outcome.Error:
        self.nest.called = payload
        try:
            fn = self.function(payload)
            if flags & IN_BLOCK:
                args, kwargs = self._decode_in_place(Handle.unpack(payload[HEAD_BYTES:]), flags)
            else:
                args, kwargs = decode(payload[HEAD_BYTES:])
        except BaseException as exc:  # noqa: BLE001 - unpickling runs the user's code
            return outcome.caught(exc)
        if flags & CAPPED:
            self._freed.keep_none()
        if flags & TIMED:
            self._words[self._row.began] = time.monotonic_ns()
        if flags & CALL_MANY:
            return outcome.capture(call_many, (fn, args), {})
        if flags & CALL_EACH:
            return outcome.capture(call_each, (fn, args), {})
        return outcome.capture(fn, args, kwargs)

    def function(self, payload: bytes) -> Callable[..., Any]:
        """The function that a payload names.  Raises what unpickling raises."""
        key, block = FUNCTION.unpack_from(payload)
        fn = self._functions.get(key)
        if fn is None:
            meta, *parts = self._board.blocks.load(Handle.unpack(block))
            fn = self._functions.put(key, bytes(meta), parts)
        return fn

    def _decode_in_place(self, handle: Handle, flags: int) -> Any:
        """The arguments in a block: no other task has it, so their arrays lie there and are this task's own to write.

        Where there may be another attempt they are copied, and in a process whose tasks fork children, lest each such
        task costs a block.
        """
        if self._has_forked or flags & AGAIN:
            copy, *buffers = self._board.blocks.load(handle)
            return decode(copy, buffers)
        opened = self._board.blocks.open(handle)
        if opened.exporter is not None:
            self._opened = handle, weakref.ref(opened.exporter)
        return decode(opened.meta, opened.buffers)

    def _send_large(self, word: int, parts: list[Part]) -> None:
        """Publish a block; in pieces through the outbox where no block is to be had, so that nobody waits for room.

        Empties `parts`.
        """
        handle = self._board.blocks.store(parts, word | RESULT)
        whole = b"" if handle is not None else join_parts(parts)
        parts.clear()
        self._close_arguments()
        if handle is not None:
            return self.send(word, ANSWER_IN_BLOCK, handle.pack())
        for piece in pieces_of(whole, self._largest_bytes):
            self.send(word, ANSWER_PIECE, piece)

    def send(self, word: int, status: int, body: bytes) -> None:
        """Publish a record; waits while the outbox has no room for it."""
        while not self._outbox.put(word, status, body):
            self._words[self._row.blocked] = 1
            if self._outbox.put(word, status, body):
                break
            self._wait_for_client()
        sleep = self._words[H_CLIENT_SLEEP]
        if sleep and (sleep == ClientSleep.PARKED or self._runs_dry()):
            self._wake_client()

    def _runs_dry(self) -> bool:
        """A hint: nothing is left for this member to take, nor to go on with."""
        words = self._words
        return not self._hinted() and all(
            words[hand.next_word] == words[hand.end_word] for hand in self._hands
        )

    def _send_log(self, data: bytes) -> None:
        if os.getpid() == self._pid:  # what a child of a task logs is lost
            self.send(0, MEMBER_LOG, data)

    def _wait_for_client(self) -> None:
        """The client holds up what this member wants to publish: sleep until it made room.

        A thread of a task's that logs leaves the semaphore to the main thread, which may sleep there for want of work.
        """
        self._words[self._row.blocked] = 1
        self._wake_client()
        if threading.current_thread() is threading.main_thread():
            self._board.semaphores[self._index].wait(_BLOCKED_S)
        else:
            time.sleep(_LOOK_S)

    def _wake_client(self) -> None:
        try:
            os.write(self._wake_fd, b"\0")
        except BlockingIOError:
            pass  # the pipe is full of wakes already
        except BrokenPipeError:
            pass  # the client is dead, and the nursery is about to end this process
        except OSError:
            # A task has closed this process's descriptors. The exit is reported, and what was answered is in the outbox.
            self._words[self._row.state] = MemberState.RETIRED
            os._exit(0)

    def _rest(self) -> Entry | None:
        """Spin for a moment, then sleep, until there is work; None when the executor closes."""
        board, parking, index = self._board, self._board.parking, self._index
        others_hands = [hand for hand, _ in self._stealable]
        while True:
            if parking.start_spinning(index, self._settings.spinners):
                entry = self._spin()
                if entry is not None:
                    parking.stop_spinning(index)
                    self.pass_on()
                    return entry
            self._tidy()
            parking.announce(index)
            if (
                any(not deque.is_empty() for deque in (self._mailbox, *self._open_to_all))
                or is_there_a_rest(others_hands)
                or board.closing
                or (optional.shared is not None and optional.shared.is_something_freed())
            ):
                parking.retract(index)
            elif not self._sleep() or parking.is_idle(index):
                # Idle though awake: the post was for an earlier announcement, or for a full outbox.
                parking.retract(index)
            entry = self.find_work()
            if entry is not None or board.closing:
                self.pass_on()
                return entry

    def _sleep(self) -> bool:
        """Until somebody posts, or a minute has passed: False.  After some seconds freed memory is given back."""
        semaphore = self._board.semaphores[self._index]
        if self._freed.is_used:
            if semaphore.wait(_KEEP_S):
                return True
            self._freed.give_back()
        return semaphore.wait(_PARK_S)

    def _tidy(self) -> None:
        """Before sleep: keep nothing that others wait for."""
        if self._may_be_cycles:
            self._may_be_cycles = False
            gc.collect()
        self._free_dead()
        shared = optional.shared
        if shared is not None:
            dropped = shared.drop_freed()
            if dropped and self._functions.forget(dropped):
                gc.collect()  # a function and its globals refer to each other

    def pass_on(self) -> None:
        """Wake another member if there is more to do.

        A poster wakes nobody for a task that a spinning member is to find, and that member takes but one: whoever leaves its
        rest with a task wakes the next for what is left.
        """
        parking = self._board.parking
        if parking.anyone_idle():
            if self._hinted():
                parking.wake()
        elif parking.anyone_waits():
            self.nest.pass_on()

    def _spin(self) -> Entry | None:
        clock, give_way, words, ends = time.perf_counter, os.sched_yield, self._words, self._spin_ends
        until = clock() + SPIN_S
        while clock() < until:
            for head, tail in ends:
                if words[head] != words[tail]:
                    entry = self.find_work()
                    if entry is not None:
                        return entry
            give_way()
        return None

    def _hinted(self) -> bool:
        words = self._words
        for head, tail in self._ends:
            if words[head] != words[tail]:
                return True
        return False

    def _others(self, kind: Kind) -> list[int]:
        """The rows of all other members of this kind, beginning behind the own."""
        board, count = self._board, len(self._board.rows)
        indices = [(self._index + step) % count for step in range(1, count)]
        return [index for index in indices if self._words[board.rows[index].kind] == kind]

    def before_fork(self) -> None:
        """A task forks a child, which has the arrays of this process: the blocks in which they lie are not used again."""
        self._has_forked = True

    def after_fork(self) -> None:
        """In that child: what it writes stays its own, and Ctrl-C ends it."""
        self.is_copy = True
        self.nest.disown()
        take_ctrl_c()
        self._board.blocks.make_private()

    def _initialize(self) -> bool:
        if self._settings.initializer is None:
            return True
        result = outcome.capture(self._settings.initializer, self._settings.initargs, {})
        if isinstance(result, outcome.Value):
            self.state = result.value
            first = function_of(self._settings.initializer)
            if first is not None and self._settings.owned_names:
                publish(first.__globals__, self._settings.owned_names)
            return True
        sys.stderr.write(result.traceback)
        text, most = result.traceback.encode(), self._outbox.largest_bytes
        if len(text) > most:
            text = text[: most // 2 - 8] + "\n…\n".encode() + text[-most // 2 :]
        self.send(0, MEMBER_BROKEN, text)
        return False


_current: Worker | None = None


def _before_fork() -> None:
    if _current is not None:
        _current.before_fork()


def _after_fork() -> None:
    if _current is not None:
        _current.after_fork()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def current() -> Worker | None:
    """The worker that this process is, None in a process of the user's."""
    return _current
