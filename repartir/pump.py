"""The pump: moves tasks from the inbox to the deques, and answers from the outboxes to their futures.

Any thread that submits or waits pumps, one at a time.  Each step may be interrupted by a signal handler's exception and
is then repeated by whoever pumps next: a task leaves the inbox only after it is in a deque, and an answer is consumed
only after its future has it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from repartir import batches, outcome, pages
from repartir.batches import Failed
from repartir.codec import Encoded, Part, parts_of, split_parts
from repartir.errors import InternalError, SharedMemoryFull
from repartir.functions import FunctionRef
from repartir.future import Future
from repartir.ledger import Ledger, Record
from repartir.limits import Limits
from repartir.mapjob import Folded, MapJob, Outcome, cancelled
from repartir.payloads import FUNCTION, HEAD_BYTES, PIECE, RANGE, SPAN
from repartir.policy import NO_POLICY, Policy
from repartir.shm.arena import FUNCTION_OWNER, RESULT, Handle
from repartir.shm.board import Board, BoardClosed
from repartir.shm.deque import TaskDeque
from repartir.shm.layout import (
    AGAIN,
    ANSWER,
    ANSWER_IN_BLOCK,
    AT_HIGH,
    AT_LOW,
    AT_NORMAL,
    ATTEMPT_BITS,
    CAPPED,
    FOLD,
    HIGH,
    IN_BLOCK,
    ITEM,
    ITEM_IN_BLOCK,
    ITEMS,
    LEVELS,
    LOW,
    MEMBER_READY,
    SIZE_MASK,
    SLOT_PAYLOAD_BYTES,
    TIMED,
    level_of,
)
from repartir.shm.layout import RANGE as IS_RANGE
from repartir.shm.outbox import records
from repartir.states import TaskEvent, TaskState
from repartir.views import Views

DEFER = 64
"""Under backlog so many submits are posted together."""
_MOST_AT_ONCE = 256
_PLACED_A_ROW = 2
KEPT_S = 0.25
"""What a member has kept for so long is looked at there."""
CANCELLED = concurrent.futures.CancelledError()
"""Why a task's member is killed, where the user cancelled the task."""

TaskFuture = Future[Any]
TaskRecord = Record[TaskFuture]


def _nobody_to_kill(row: int) -> None:
    """There are no members."""


class Pump:
    """Inbox, ledger and what is due, of one executor.

    ``on_news`` is called when the broker's thread has something to do: from any thread, under ``mutex`` or not, so it
    may only ring a bell.
    """

    def __init__(self, board: Board, on_news: Callable[[], None]) -> None:
        self.board = board
        self.ledger: Ledger[TaskFuture] = Ledger()
        self.inbox: deque[TaskRecord] = deque()
        self.urgent: deque[TaskRecord] = deque()
        self.deferred: deque[TaskRecord] = deque()
        """Inboxes of their own for tasks of high and of low priority."""
        self.limits = Limits()
        self.ranked = False
        """Some task had a priority or a limit: more than the inbox is to be looked at."""
        self.place_free = False
        """A task is over whose limit others wait for."""
        self.dying: dict[int, list[tuple[TaskRecord, int]]] = {}
        """By row, places that cancelled tasks hold until their member is dead."""
        self.due: deque[tuple[TaskFuture, Any, BaseException | None]] = deque()
        """Outcomes, also ``CANCELLED``, for futures that somebody waits on by other means: the broker's thread delivers."""
        self.said: deque[tuple[int, int, bytes]] = deque()
        """What members said of themselves: (row, status, payload)."""
        self.garbage: deque[Handle] = deque()
        """Blocks that finalizers want freed."""
        self.placed: set[int] = set()
        """Ids of the tasks whose arguments lie in a block."""
        self.room: deque[Future[Any]] = deque()
        """Settled when a block was given back."""
        self.on_full: Callable[[TaskRecord, Sequence[Part]], None] = self.place
        """What to do with arguments for which shared memory has no room."""
        self.doubtful: deque[TaskRecord] = deque()
        """Tasks whose cancelling was interrupted: the broker's thread finds out what became of them."""
        self.failed: deque[tuple[TaskRecord, int, BaseException]] = deque()
        """Errors that may be followed by another attempt, and the word of the failed one: the broker's thread decides."""
        self.retry_cancelled = False
        """A task was cancelled that waited for another attempt."""
        self.watched: set[int] = set()
        """Ids of tasks that have a time-out or another limit."""
        self.look_after = float("inf")
        """None of them has anything to look for sooner after its call; the broker's thread alone changes it."""
        self.noted: deque[float] = deque()
        """By tasks for which that is too late, not heeded yet."""
        self.next_look = float("inf")
        """When the broker's thread looks after them and after retries next, on the monotonic clock."""
        self.orphans: dict[int, list[Handle]] = {}
        """By row, arguments of cancelled tasks whose member is being killed and may use them until it is dead."""
        self.pieces: dict[tuple[int, int], dict[int, bytes]] = {}
        """Answers that come in pieces, by row and task word: those that are here."""
        self.views = Views(board, on_news, lambda room=self.room: bool(room))  # type: ignore[misc]
        self.kill: Callable[[int], None] = _nobody_to_kill
        """Ends the member of a row."""
        self.mutex = threading.RLock()
        self.stuck = [False for _ in LEVELS]
        """By priority: the first task of that inbox waits for room."""
        self.answered = 0
        """How many answers came in."""
        self.ended = False
        self.backlog = 4 * len(board.rows)
        """With so many tasks under way no member runs dry while the client takes its time."""
        self._lanes = [
            (row.index, lane.head_word, lane.tail_word, row.claim)
            for row, lane in zip(board.rows, board.lanes, strict=True)
        ]
        """Where tasks go: row, and the words that tell how busy its member is."""
        self._queues: tuple[TaskDeque, ...] = (*board.lanes, *board.mailboxes, board.high, board.low)
        self._shared_at = (-1, len(self._queues) - 2, len(self._queues) - 1)
        """By priority, which of these all members take from."""
        self._sources = [
            (row.index, outbox, outbox.tail_word, row.blocked)
            for row, outbox in zip(board.rows, board.outboxes, strict=True)
        ]
        """Where answers come from: row, outbox, and the words that tell of news."""
        self._unsent: dict[int, tuple[tuple[int, int, int], float]] = {}
        """By row, answers that a member keeps, and since when."""
        self._on_news = on_news
        self._ids = itertools.count(1)
        self.new_task_id = self._ids.__next__

    def post(
        self,
        future: TaskFuture,
        ref: FunctionRef,
        call: bytes | Encoded,
        flags: int,
        name: object,
        policy: Policy = NO_POLICY,
        job: MapJob | None = None,
        item: int = 0,
    ) -> None:
        """Commit a task by one append, then post it, or leave that to whoever is at work already.

        With a ``job`` its outcome is that of the job's item ``item``.

        Raises ``BoardClosed`` when the executor ended meanwhile, ``SharedMemoryFull`` when the function has no room,
        ``RuntimeError`` when too much waits for the only member that may run it.
        """
        head = ref.head or self._place_function(ref)
        keep: object = (ref, ref.hold()) if ref.needs else ref
        if type(call) is not bytes:
            keep = keep, call.keep  # type: ignore[union-attr]
            if not call.buffers:  # type: ignore[union-attr]
                call = call.meta  # type: ignore[union-attr]
        record: TaskRecord = Record(future.task_id, future, head, flags, keep, name, policy)
        try:
            if policy is not NO_POLICY:
                self._note(record)
            if type(call) is bytes and len(head) + len(call) <= SLOT_PAYLOAD_BYTES:
                record.payload = head + call
            else:
                self._place_first(record, parts_of(call))
            if job is not None:
                job.enter(record, item, 1)
            inbox = self.inbox if policy is NO_POLICY else self._inbox_of(record)
            if policy.exclusive:
                self._mail(record)
            else:
                inbox.append(record)
        except BaseException:
            self._withdraw_uncommitted(record)
            raise
        self._after_commit(record, inbox)

    def post_items(
        self,
        job: MapJob,
        first: int,
        count: int,
        ref: FunctionRef,
        parts: Sequence[Part],
        keep: object,
        flags: int,
        name: object,
    ) -> None:
        """Commit ``count`` items of a map, which lie in ``parts`` as ``PagedItems`` has them, as `post` does a task."""
        head = ref.head or self._place_function(ref)
        future: TaskFuture = Future(job.driver, self.new_task_id())
        payload, keep = head + RANGE.pack(0, count), (ref, ref.hold(), keep)
        record: TaskRecord = Record(future.task_id, future, payload, flags | IS_RANGE, keep, name)
        try:
            self.ranked = self.ranked or bool(flags & (HIGH | LOW))
            self._place_first(record, parts)
            job.enter(record, first, count)
            inbox = self._inbox_of(record)
            inbox.append(record)
        except BaseException:
            self._withdraw_uncommitted(record)
            raise
        self._after_commit(record, inbox)

    def _place_first(self, record: TaskRecord, parts: Sequence[Part]) -> None:
        if not self.place_in_memory(record, parts):
            self.on_full(record, parts)

    def _after_commit(self, record: TaskRecord, inbox: deque[TaskRecord]) -> None:
        if self.ended:
            raise BoardClosed
        if len(self.ledger.records) < self.backlog or record.flags & HIGH:
            self.pump(drain=False)
        elif len(inbox) >= DEFER:
            self.pump()

    def _inbox_of(self, record: TaskRecord) -> deque[TaskRecord]:
        """Where a task waits until it is posted."""
        if record.policy.limit is not None:
            return self.limits.queue_of(record)
        if record.flags & (HIGH | LOW):
            return self.urgent if record.flags & HIGH else self.deferred
        return self.inbox

    def _inboxes(self) -> list[deque[TaskRecord]]:
        return [self.urgent, self.inbox, self.deferred, *self.limits.queues()]

    def waiting(self) -> list[TaskRecord]:
        """The tasks that are not posted yet."""
        return [record for inbox in self._inboxes() for record in list(inbox)]

    def anything_waits(self) -> bool:
        """Whether there are such."""
        return bool(self.inbox or (self.ranked and any(self._inboxes())))

    def can_post(self) -> bool:
        """Whether there are some for which there may be room."""
        stuck = self.stuck
        if self.inbox and not stuck[AT_NORMAL]:
            return True
        return self.ranked and bool(
            (self.urgent and not stuck[AT_HIGH])
            or (self.deferred and not stuck[AT_LOW])
            or any(limit.may_post() for limit in self.limits.all())
        )

    def _note(self, record: TaskRecord) -> None:
        """Do what the policy of a task that is about to be posted calls for."""
        policy = record.policy
        record.flags |= policy.flag
        if policy.flag or policy.limit is not None:
            self.ranked = True
        if policy.may_repeat:
            record.flags |= AGAIN
        if not policy.is_watched:
            return
        record.flags |= TIMED if policy.memory_limit is None else TIMED | CAPPED
        after = policy.look_after
        self.watched.add(record.task_id)
        if after < self.look_after:
            self.noted.append(after)
        if time.monotonic() + after < self.next_look:
            self._on_news()

    def heed_notes(self) -> None:
        """Bring ``look_after`` up to date.  For the broker's thread; tasks may be noted at any moment of it."""
        shortest, self.look_after = self.look_after, float("inf")  # from here on all tasks append
        # Asked after that: a task that did not append, since it had read the old one, is in there.
        if not self.watched:
            shortest = float("inf")
        while self.noted:
            shortest = min(shortest, self.noted.popleft())
        self.look_after = shortest

    def _withdraw_uncommitted(self, record: TaskRecord) -> None:
        """An exception came before the task was committed, or right after: in that case it is left alone.

        In this order: who takes it from the inbox has entered it before.
        """
        inbox = self._inbox_of(record)
        if not any(each is record for each in list(inbox)) and record.state is TaskState.PENDING:
            block, record.block = record.block, None
            if type(block) is Handle:
                self.board.blocks.free(block)
            self.placed.discard(record.task_id)
            self.watched.discard(record.task_id)
            if record.job is not None:
                record.job.records.pop(record.task_id, None)

    def _place_function(self, ref: FunctionRef) -> bytes:
        """Put a function where members find it; what comes back begins every call of it."""
        blob = ref.blob
        parts = parts_of(blob)
        handle = self.board.blocks.store(parts, FUNCTION_OWNER)
        if handle is None:
            raise self.no_room(sum(len(part) for part in parts))
        weakref.finalize(ref, self.garbage.append, handle).atexit = False
        ref.head = FUNCTION.pack(ref.key, handle.pack())
        return ref.head

    def place(self, record: TaskRecord, parts: Sequence[Part]) -> None:
        """Copy large arguments to a block; where neither memory nor file has room they stay in private memory.

        May be repeated.
        """
        if not self._place(record, parts, self.board.blocks.store):
            record.block = [bytes(part) for part in parts]

    def place_in_memory(self, record: TaskRecord, parts: Sequence[Part]) -> bool:
        """Copy large arguments to shared memory; False if that is full."""
        return self._place(record, parts, self.board.blocks.store_in_memory)

    def _place(
        self,
        record: TaskRecord,
        parts: Sequence[Part],
        store: Callable[[Sequence[Part], int], Handle | None],
    ) -> bool:
        try:
            handle = store(parts, record.word)
            if handle is None:
                return False
            self.placed.add(record.task_id)
            head = HEAD_BYTES + RANGE.size if record.flags & IS_RANGE else HEAD_BYTES
            record.payload = record.payload[:head] + handle.pack()
            record.flags |= IN_BLOCK
            record.block = handle  # last: until then the record does not count as placed
        except BaseException:
            if type(record.block) is not Handle:
                self.board.blocks.free_owned(record.word)
                self.placed.discard(record.task_id)
            raise
        return True

    def room_is_coming(self) -> bool:
        """Whether so many tasks with blocks are under way that no member idles while another waits for room."""
        return len(self.placed) >= _PLACED_A_ROW * len(self.board.rows)

    def rests(self, record: TaskRecord) -> None:
        """The task waits for another attempt: nobody is to wait for the room that its arguments take.  Under ``mutex``."""
        self._drop_pieces(record.word)
        self._let_go(record, record.task_id)
        self.ledger.repost(record)
        self.placed.discard(record.task_id)
        if self.room:
            self._tell_of_room()

    def resumes(self, record: TaskRecord) -> None:
        """That attempt is due.  Under ``mutex``."""
        if type(record.block) is Handle:
            self.placed.add(record.task_id)
        if record.policy.exclusive:
            self._mail_again(record)
        else:
            self._inbox_of(record).append(record)

    def _let_go(self, record: TaskRecord, token: int) -> None:
        """The task has no place under its limit any more, if it has one.  Under ``mutex``; may be repeated."""
        if record.policy.limit is not None and self.limits.let_go(record, token):
            self.place_free = True
            self._on_news()

    def _tell_of_room(self) -> None:
        """Some block was given back, or will not be soon: who waits looks again.  Under ``mutex``."""
        while self.room:
            if not self.room[0].settle_alone(None, None):
                self._hand_to_broker(self.room[0], None, None)
            self.room.popleft()

    def pump(self, drain: bool = True) -> None:
        """Post what can be posted and, with ``drain``, settle what was answered; nothing if another thread does so now."""
        mutex, inbox = self.mutex, self.inbox
        try:
            while not mutex._is_owned():  # type: ignore[attr-defined]
                try:
                    if not mutex.acquire(blocking=False):
                        return
                    if self.ended:
                        return
                    if inbox or self.ranked:
                        self._flush()
                    if drain and self._drain() and (inbox or self.ranked):
                        self._flush()
                    stuck = self.stuck[AT_NORMAL]
                finally:
                    try:
                        mutex.release()  # the first call here: after any other a signal handler may raise
                    except RuntimeError:
                        pass  # another thread has it
                if (stuck or not inbox) and not (self.ranked and self.can_post()):
                    return
        except BaseException:
            self._on_news()  # interrupted: the broker's thread does the rest
            raise

    def pump_surely(self) -> None:
        """The same, after whoever pumps now; at the end members are still heard.  For the broker's thread."""
        with self.mutex:
            if not self.ended:
                self._flush()
            if self._drain() and not self.ended:
                self._flush()

    # ---- tasks to deques

    def _flush(self) -> None:
        if self.ranked:
            self.place_free = False
            self.stuck = [False for _ in LEVELS]
            self._flush_limited()
            self._flush_shared(AT_HIGH, self.urgent)
        self._flush_inbox()
        if self.ranked:
            self._flush_shared(AT_LOW, self.deferred)

    def _room_at(self, at: int) -> int:
        """Free slots of a deque.  Members tell nobody when they skip what was taken back: here it is skipped if need be."""
        return self._queues[at].room() or self._queues[at].trim()

    def _flush_limited(self) -> None:
        """Post tasks with limits, as many as have places."""
        for limit in self.limits.all():
            limit.stuck = False
            while (queue := limit.next()) is not None:
                record = queue[0]
                level, wish = level_of(record.flags), record.policy.worker
                at = self._shared_at[level]
                if level == AT_NORMAL:
                    at = self._best_lane() if wish is None or not self._queues[wish].room() else wish
                if not (self._room_at(at) and self._fill(queue, at, 1)):
                    limit.stuck = True
                    break
                limit.turn += 1

    def _flush_shared(self, level: int, inbox: deque[TaskRecord]) -> None:
        """Post tasks of a priority to its lane."""
        at = self._shared_at[level]
        while inbox:
            room = self._room_at(at)
            if not room or not self._fill(inbox, at, min(room, len(inbox))):
                self.stuck[level] = True
                return

    def _flush_inbox(self) -> None:
        inbox, lanes = self.inbox, self.board.lanes
        self.stuck[AT_NORMAL] = False
        while inbox:
            waiting, wish = len(inbox), inbox[0].policy.worker
            if wish is not None and lanes[wish].room():
                at, share = wish, 1
            elif waiting == 1:
                at, share = self._best_lane(), 1
            else:
                at = min(range(len(lanes)), key=lambda row: lanes[row].size_hint())
                share = min(-(-waiting // len(lanes)), _MOST_AT_ONCE)
            room = self._room_at(at)
            if not room or not self._fill(inbox, at, min(share, room)):
                self.stuck[AT_NORMAL] = True
                return

    def _best_lane(self) -> int:
        """Where a lone task is begun soonest: a free member, one that spins first; else the shortest lane."""
        words = self.board.words
        free, shortest, least = -1, 0, 1 << 62
        for at, head, tail, claim in self._lanes:
            waiting = words[tail] - words[head]
            if not waiting and not words[claim]:
                if not self.board.parking.is_idle(at):
                    return at
                if free < 0:
                    free = at
            elif waiting < least:
                shortest, least = at, waiting
        return free if free >= 0 else shortest

    def _fill(self, inbox: deque[TaskRecord], at: int, count: int) -> bool:
        """Post the first ``count`` tasks of an inbox to lane ``at``; False if nothing more can be posted now.

        A task's place is written before the deque's commit store, and the task leaves the inbox after it and after the
        wake: from the deque's tail one sees later whether an interrupted attempt was committed.
        """
        board = self.board
        lane, enter = self._queues[at], self.ledger.enter
        entries, position, wanted = [], lane.tail, 0
        for nth in range(count):  # by index, since others append meanwhile
            record = inbox[nth]
            if record.future._state != "PENDING" or record.lane >= 0 or type(record.block) is list:
                break
            if record.policy is not NO_POLICY:
                if nth and record.policy.worker is not None:
                    break
                if record.policy.limit is not None:
                    self.limits.hold(record)
            record.lane = at
            record.position = position
            enter(record)
            entries.append((record.word, record.payload, record.flags))
            wanted += len(board.rows) if record.flags & IS_RANGE else 1
            position += 1
        if not entries:
            return self._fix_first(inbox)
        if not lane.push_tail(entries):
            raise InternalError("a lane had less room than it showed")
        parking = board.parking
        if parking.anyone_idle():
            parking.wake(wanted, at if at < len(board.rows) else None)
        for _ in entries:
            inbox.popleft()
        return True

    def _mail(self, record: TaskRecord) -> None:
        """Post a task to the mailbox of the only member that may run it.  It waits behind no other's.

        Interrupted in the middle, the broker's thread finds out how far it came (`resolve_doubtful`).
        """
        row = record.policy.worker
        assert row is not None
        with self.mutex:
            if self.ended:
                return
            box = self.board.mailboxes[row]
            if not self._room_at(len(self.board.lanes) + row):
                raise RuntimeError(
                    f"{box.size_hint()} tasks for worker {row} alone wait already, behind the one it runs"
                )
            if type(record.block) is list:
                raise self.no_room(sum(len(part) for part in record.block))
            record.lane, record.position = len(self.board.lanes) + row, box.tail
            try:
                self.ledger.enter(record)
                box.push_tail([(record.word, record.payload, record.flags)])
                self.board.parking.wake_row(row)
            except BaseException:
                self.doubtful.append(record)
                self._on_news()
                raise

    def _fix_first(self, inbox: deque[TaskRecord]) -> bool:
        """Deal with a first task of an inbox that is not simply to be posted; False if it must wait."""
        record = inbox[0]
        if record.future._state != "PENDING":
            self.forget(record, TaskEvent.CANCEL)
        elif record.lane >= 0:
            if self._is_uncommitted(record):
                record.lane = record.position = -1
                return True
            self.board.parking.wake()
        elif not self._room_for_arguments(record):
            return False
        elif type(record.block) is not list:
            return True
        inbox.popleft()
        return True

    def _room_for_arguments(self, record: TaskRecord) -> bool:
        """Place what the arena had no room for; when nothing will ever make room the task fails."""
        parts = record.block
        self.place(record, parts)
        if type(record.block) is list:
            if self._sweep():
                return self._room_for_arguments(record)
            if self.ledger.records:
                return False
            self._deliver(record, None, self.no_room(sum(len(part) for part in parts)))
        return True

    # ---- answers to futures

    def _drain(self) -> bool:
        """Settle every answer that lies in the outboxes."""
        words, found = self.board.words, False
        for at, outbox, tail_word, blocked in self._sources:
            if words[tail_word] != outbox.consumed_tail or words[blocked]:
                found = True
                self.drain_row(at)
        if self.garbage or self.views.dead:
            self._sweep()
        return found

    def has_news(self) -> bool:
        """A hint, read without locks: members have answered or wait for room."""
        words = self.board.words
        for _, outbox, tail_word, blocked in self._sources:
            if words[tail_word] != outbox.consumed_tail or words[blocked]:
                return True
        return False

    def has_news_for_sure(self) -> bool:
        """The same under the outboxes' locks: no answer that was published before this call is missed."""
        words = self.board.words
        return any(words[blocked] or outbox.has_news() for _, outbox, _, blocked in self._sources)

    def drain_row(self, at: int) -> None:
        """Settle the answers of one member.  Only then are they consumed, so an interrupted round is repeated."""
        board, ledger = self.board, self.ledger
        outbox, row = board.outboxes[at], board.rows[at]
        for word, status, payload in records(outbox.peek()):
            self.answered += 1
            if status >= MEMBER_READY:
                self.said.append((at, status, payload))
                self._on_news()
                continue
            if status >= ITEMS:
                self._hear_items(at, word, status, payload)
                continue
            record = ledger.answered(word)
            if record is None:
                if status == ANSWER_IN_BLOCK:
                    self.views.free_unless_viewed(Handle.unpack(payload))
                continue
            handle = None
            if status == ANSWER:
                result = outcome.decode_outcome(payload)
            elif status == ANSWER_IN_BLOCK:
                handle = Handle.unpack(payload)
                result = self.views.decode(handle, word)
            elif whole := self._collect(at, word, payload):
                meta, *buffers = split_parts(whole)
                result = outcome.decode_outcome(meta, buffers)
            else:
                continue
            if isinstance(result, outcome.Value):
                self.settle(record, result.value, None, TaskEvent.ANSWER)
            elif record.policy.retries:
                self.failed.append((record, word, _error_of(record, result)))
                self._on_news()
            else:
                self.settle(record, None, _error_of(record, result), TaskEvent.ANSWER)
            if handle is not None:
                self.views.free_unless_viewed(handle)
        outbox.consumed()
        if board.words[row.blocked]:
            outbox.peek()
            try:
                board.words[row.blocked] = 0  # before the post: the member may be blocked anew right after it
                board.semaphores[at].post()
            except BaseException:
                board.words[row.blocked] = 1
                raise

    def _collect(self, at: int, word: int, payload: bytes) -> bytes | None:
        """Keep a piece of an answer, which may come again after an interruption; the whole of it with the last."""
        index, count = PIECE.unpack_from(payload)
        pieces = self.pieces.setdefault((at, word), {})
        pieces[index] = payload[PIECE.size :]
        if index + 1 < count:
            return None
        return b"".join(pieces[nth] for nth in range(count))

    def _drop_pieces(self, word: int) -> None:
        """Of answers that nobody will hear the rest of."""
        for key in [key for key in self.pieces if key[1] == word]:
            del self.pieces[key]

    # ---- answers to items of a map

    def _hear_items(self, at: int, word: int, status: int, payload: bytes) -> None:
        """An answer for some items of a map."""
        record = self.ledger.records.get(word >> ATTEMPT_BITS)
        first, count = SPAN.unpack_from(payload)
        body = payload[SPAN.size :]
        if record is None or record.job.cancelled:
            if status == ITEM_IN_BLOCK:
                self.board.blocks.free(Handle.unpack(body))
            if record is None:
                return
        if status == ITEMS:
            self.hear_batch(record, first, count, body)
        elif status == ITEM:
            self._hear_item(record, first, count, outcome.decode_outcome(body) if body else None)
        elif status == ITEM_IN_BLOCK:
            handle = Handle.unpack(body)
            if record.job.first_open(record.base + first) == record.base + first:
                self.board.blocks.pass_on(handle, word | RESULT)
                result = None if record.job.cancelled else self.views.decode(handle, word)
                self._hear_item(record, first, count, result)
            self.views.settle(handle)
            self.views.free_unless_viewed(handle)
        elif whole := self._collect(at, word, body):
            meta, *buffers = split_parts(whole)
            self._hear_item(record, first, count, outcome.decode_outcome(meta, buffers))

    def collect(self, now: float) -> float | None:
        """Hear the answers that members have kept for long; seconds until others are to be looked at, None without any and
        0 when some were heard.

        A member sends answers before it begins an item only if the items before took long.  One that then takes long
        holds up those before it, which have been in its hand, unchanged, for so long that all can see them.
        """
        words, wait = self.board.words, None
        for hand in self.board.hands:
            field = words[hand.bytes_word]
            if not field & SIZE_MASK:
                continue
            kept, seen = (words[hand.claim], words[hand.first_word], field), self._unsent.get(hand.index)
            if seen is None or seen[0] != kept:
                seen = self._unsent[hand.index] = kept, now
            left = KEPT_S - (now - seen[1])
            if left <= 0 and self.mutex.acquire(blocking=False):
                try:
                    record = self.ledger.records.get(kept[0] >> ATTEMPT_BITS)
                    first, field, batch = hand.answers(batches.batch_bytes)
                    if record is not None and (words[hand.claim], first, field) == kept:
                        self.hear_batch(record, first, field, batch)
                        self._unsent[hand.index] = kept, float("inf")
                        wait = 0.0  # it may be what this thread is about to sleep for
                        continue
                finally:
                    self.mutex.release()
            if left <= 0:
                left = KEPT_S  # another thread pumps, or the member goes on
            if left < float("inf"):
                wait = left if wait is None else min(wait, left)
        return wait

    def hear_batch(self, record: TaskRecord, first: int, mark: int, batch: bytes) -> None:
        """The values of many items, from ``first`` on."""
        self._give(record, first, batches.values_of(mark, batch))

    def _hear_item(
        self, record: TaskRecord, first: int, count: int, result: outcome.Value | outcome.Error | None
    ) -> None:
        if isinstance(result, outcome.Error):
            self._give(record, first, Failed(result.exception, count))
        elif result is None:
            self._give(record, first, Failed(cancelled(), count))
        elif record.flags & FOLD:
            self._give(record, first, Folded(result.value, count))
        else:
            self._give(record, first, [result.value])

    def _give(self, record: TaskRecord, first: int, given: Outcome) -> None:
        record.job.give(record.base + first, given)
        self.end_if_over(record)

    def end_if_over(self, record: TaskRecord) -> None:
        """Forget the record of a range when all its items are answered."""
        if record.job.is_over(record):
            record.future.settle_alone(None, None)
            self.forget(record, TaskEvent.ANSWER)

    def post_rest(self, record: TaskRecord, first: int, end: int, *, reposts: int) -> None:
        """Items that a dead member had in hand and had not begun are posted as a range of their own.  Under ``mutex``."""
        job, base = record.job, record.base
        if job.cancelled:
            job.give(base + first, Failed(cancelled(), end - first))
            return
        future: TaskFuture = Future(job.driver, self.new_task_id())
        payload = (
            record.payload[:HEAD_BYTES] + RANGE.pack(first, end) + record.payload[HEAD_BYTES + RANGE.size :]
        )
        rest: TaskRecord = Record(future.task_id, future, payload, record.flags, record.keep, record.name)
        rest.block, rest.reposts = record.block, reposts
        job.enter_rest(rest, record, base + first, base + end)
        if type(rest.block) is Handle:
            self.placed.add(rest.task_id)
        self._inbox_of(rest).appendleft(rest)

    def give_up(self, job: MapJob, *, running: bool) -> None:
        """Nobody wants what members are still to run of a job; with ``running`` those that run it are stopped."""
        if self.mutex._is_owned():  # type: ignore[attr-defined]
            return
        calls = []
        with self.mutex:
            if self.ended:
                return
            for record in list(job.records.values()):
                if not record.flags & IS_RANGE:
                    calls.append(record.future)
                    continue
                self._drop_range(record)
                for row in self.board.rows if running else ():
                    if self.board.words[row.claim] == record.word and self.board.condemn(
                        row.index, record.word
                    ):
                        self.kill(row.index)
        for future in calls if running else ():
            self.stop(future, self.kill)

    def drop_ranges(self) -> None:
        """What members have not begun of any map is to be cancelled."""
        if not self.mutex._is_owned():  # type: ignore[attr-defined]
            with self.mutex:
                for record in [] if self.ended else self.unsettled():
                    self._drop_range(record)

    def _drop_range(self, record: TaskRecord) -> None:
        if record.flags & IS_RANGE and type(record.block) is Handle:
            pages.cancel(self.board.blocks.peek(record.block)[0])

    def wake(self, turn: Future[None]) -> None:
        """The outcome that the consumer of a map waits for is here."""
        if not turn.settle_alone(None, None):
            self._hand_to_broker(turn, None, None)

    def settle(self, record: TaskRecord, value: Any, error: BaseException | None, event: TaskEvent) -> None:
        """Give a future its outcome and forget the task.  Under ``mutex``."""
        if record.job is not None:
            self._deliver(record, value, error)
        elif not record.future.settle_alone(value, error):
            self._hand_to_broker(record.future, value, error)
        self.forget(record, event)

    def _deliver(self, record: TaskRecord, value: Any, error: BaseException | None) -> None:
        job = record.job
        if job is None:
            if not record.future.settle_alone(value, error):
                self._hand_to_broker(record.future, value, error)
        elif error is None:
            job.give(record.base, [value])
        else:
            job.fail(record, lambda: error)

    def _hand_to_broker(self, future: TaskFuture, value: Any, error: BaseException | None) -> None:
        self.due.append((future, value, error))
        self._on_news()

    def has_failed(self, record: TaskRecord) -> bool:
        """Whether the task was answered by an error with which the broker's thread has not dealt yet.  Under ``mutex``."""
        return any(failed is record and word == record.word for failed, word, _ in list(self.failed))

    def tell_cancelled(self, future: TaskFuture) -> None:
        """Have waiters and callbacks of a future that is marked as cancelled told."""
        self._hand_to_broker(future, None, CANCELLED)

    def forget(self, record: TaskRecord, event: TaskEvent) -> None:
        """The task is over: free its arguments, close its record.  Under ``mutex``."""
        job = record.job
        if job is not None and event is TaskEvent.CANCEL:
            job.fail(record, cancelled)
        if self.pieces:
            self._drop_pieces(record.word)
        if record.policy is not NO_POLICY:
            self.watched.discard(record.task_id)
            self._let_go(record, record.task_id)
        block = record.block
        if job is not None and not job.leave(record):
            block = None
            self.placed.discard(record.task_id)
        if block is not None and type(block) is Handle:
            self.board.blocks.free(block)
            self.placed.discard(record.task_id)
            if self.room:
                self._tell_of_room()
        self.ledger.close(record, event)

    def _sweep(self) -> bool:
        """Give back what finalizers left; whether it was anything."""
        blocks, claimant, freed = self.board.blocks, self.ledger.claimant, bool(self.garbage)
        while self.garbage:
            blocks.free(self.garbage[0])
            self.garbage.popleft()
        if self.views.dead:
            freed = self.views.sweep(lambda word: claimant(word) is None) or freed
        if freed and self.room:
            self._tell_of_room()
        return freed

    def no_room(self, size: int, *, in_file_too: bool = True) -> SharedMemoryFull:
        """The error of a payload of ``size`` bytes for which there is no room; in memory, or ``in_file_too``."""
        memory, spilled = self.board.blocks.usage()
        held = ", ".join(
            f"{what} {memory[nth][1] + spilled[nth][1]:,}"
            for nth, what in enumerate(
                ("arguments of tasks", "results", "arguments that workers kept", "functions")
            )
        )
        nor = " and the folder for temporary files has no room either" if in_file_too else ""
        return SharedMemoryFull(
            f"no room for {size:,} bytes: shared memory may take {self.board.blocks.limit:,} bytes{nor}. "
            f"Held now: {held} (of the results {self.views.bytes:,} by arrays that "
            "this program keeps). Submit smaller arguments, drop results that are not needed, or give more room "
            "(docker run --shm-size=1g; REPARTIR_SHM_DIR; TMPDIR for what spills)."
        )

    # ---- on demand

    def repost(self, record: TaskRecord, *, lost: bool = True) -> None:
        """The member of a task that had not begun died, ``lost`` or told to end: the task is next.  Under ``mutex``."""
        for waiting in self.waiting():
            # What an interrupted attempt left: the position may soon be another task's, and then looks committed.
            if self._is_uncommitted(waiting):
                waiting.lane = waiting.position = -1
        self.ledger.repost(record, lost=lost)
        if record.policy.exclusive:
            self._mail_again(record)
        else:
            self._inbox_of(record).appendleft(record)

    def _mail_again(self, record: TaskRecord) -> None:
        try:
            self._mail(record)
        except (RuntimeError, SharedMemoryFull) as exc:
            self.settle(record, None, exc, TaskEvent.FAIL)

    def _queue_of(self, record: TaskRecord) -> TaskDeque:
        """The deque that a task was posted to."""
        return self._queues[record.lane]

    def take_back(self, future: TaskFuture) -> bool:
        """Cancel the task of ``future`` if nobody has begun it."""
        mutex = self.mutex
        if mutex._is_owned():  # type: ignore[attr-defined]
            return False
        with mutex:
            if self.ended:
                return False
            record = self.ledger.records.get(future.task_id)
            if record is None:
                return future.mark_cancelled()  # who would post it forgets it instead
            if record.state is TaskState.PENDING or self.has_failed(record) or self._is_uncommitted(record):
                self.retry_cancelled = True
                self._on_news()
                return future.mark_cancelled()
            try:
                if record.lane < 0 or not self._queue_of(record).remove(record.position, record.word):
                    return False
                return self.withdrawn(record)
            except BaseException:
                self.doubtful.append(record)
                self._on_news()
                raise

    def _is_uncommitted(self, record: TaskRecord) -> bool:
        """Whether the task is still to be posted: an attempt to do so was interrupted before it was committed."""
        return record.lane >= 0 and self._queue_of(record).tail <= record.position

    def resolve_doubtful(self) -> None:
        """Finish the cancelling that an exception cut short, if it had come far enough.  For the broker's thread.

        A task that is neither in its lane, nor claimed, nor (looked at after the claims) answered was taken back.
        """
        board = self.board
        with self.mutex:
            while self.doubtful:
                record = self.doubtful[0]
                word = record.word
                waits = record.lane < 0 or self._queue_of(record).holds(record.position, word)
                if not waits and not any(board.words[row.claim] == word for row in board.rows):
                    for row in board.rows:
                        self.drain_row(row.index)
                    if not (record.future.done() or self.has_failed(record)):
                        self.withdrawn(record)
                        self.tell_cancelled(record.future)
                self.doubtful.popleft()

    def stop(self, future: TaskFuture, kill: Callable[[int], None]) -> bool:
        """Cancel the task of ``future`` while a member runs it, which ``kill`` ends; or when it has just failed and might be
        tried again.  False if it is neither.
        """
        mutex, board = self.mutex, self.board
        if mutex._is_owned():  # type: ignore[attr-defined]
            return False
        with mutex:
            record = None if self.ended else self.ledger.records.get(future.task_id)
            if record is None:
                return False
            for row in board.rows:
                if board.words[row.claim] == record.word and board.condemn(row.index, record.word):
                    record.stopped = CANCELLED  # if this is interrupted from here on, the death finishes it
                    kill(row.index)
                    self.drain_row(row.index)
                    if future.done():
                        return False
                    if record.policy.limit is not None:
                        token = self.limits.hold_until_dead(record)
                        self.dying.setdefault(row.index, []).append((record, token))
                    if type(record.block) is Handle:
                        self.orphans.setdefault(row.index, []).append(record.block)
                        record.block = None
                        self.placed.discard(record.task_id)
                    return self.withdrawn(record)
            self._drain()
            return self.has_failed(record) and future.mark_cancelled()

    def bury_orphans(self, at: int) -> None:
        """The member of this row is dead: nobody uses the arguments of tasks that it was killed for."""
        for handle in self.orphans.pop(at, ()):
            self.board.blocks.free(handle)
        for record, token in self.dying.pop(at, ()):
            self._let_go(record, token)
        if self.room:
            self._tell_of_room()

    def withdrawn(self, record: TaskRecord) -> bool:
        """Nobody will run the task (any more): forget it.  Under ``mutex``."""
        self.forget(record, TaskEvent.CANCEL)
        marked = record.future.mark_cancelled()
        self._on_news()
        return marked

    def is_taken(self, future: TaskFuture) -> bool:
        """Whether a member has taken the task of ``future``."""
        record = self.ledger.records.get(future.task_id)
        return record is not None and record.lane >= 0 and self._queue_of(record).taken(record.position)

    def unsettled(self) -> list[TaskRecord]:
        """A record for every task that is not settled."""
        entered = self.ledger.records
        return [
            *entered.values(),
            *(record for record in self.waiting() if record.task_id not in entered),
        ]

    def end(self, make_error: Callable[[], BaseException]) -> None:
        """Nothing is pumped any more: hand every task that is not settled an error of its own."""
        with self.mutex:
            with contextlib.suppress(InternalError):  # what cannot be read is lost with the ring
                self._drain()
            self.ended = True
            pending = self.unsettled()
            for inbox in self._inboxes():
                inbox.clear()
            for record in pending:
                if record.job is None:
                    self._hand_to_broker(record.future, None, make_error())
                else:
                    record.job.fail(record, make_error)
                self.forget(record, TaskEvent.FAIL)
            self._tell_of_room()
            self.let_go()

    def keep_views_only(self) -> None:
        """No member lives any more: what arrays of the client lie in stays, all other memory goes."""
        with self.mutex, contextlib.suppress(InternalError):  # what cannot be read goes with the ring
            self._sweep()
            if handles := list(self.views.handles):
                self.board.blocks.keep_only(handles)

    def let_go(self) -> None:
        """Nothing is pumped any more, and nothing here keeps the memory mapped.  Takes no lock."""
        self.ended = self.views.ended = True
        self._sources = []
        self._queues = ()


def _error_of(record: TaskRecord, answer: outcome.Error) -> BaseException:
    """The error of an attempt that ended with this answer: where it was told to end, why it was."""
    why = record.stopped
    if why is None or why is CANCELLED:
        return answer.exception
    why.__cause__ = answer.exception
    return why
