"""The members of one executor, as the broker's thread sees them: starts, exits, recovery, successors."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool

from repartir import logs, outcome
from repartir.attempts import Attempts
from repartir.batches import Failed, batch_bytes
from repartir.ledger import Repost
from repartir.payloads import items_of
from repartir.policy import MAX_REPOSTS
from repartir.pump import Pump, TaskRecord
from repartir.recovery import condemn_descendants, has_begun, judge_children, orphan_children
from repartir.shm.arena import KEPT, RESULT, UNSENT
from repartir.shm.board import MemberState
from repartir.shm.layout import (
    ATTEMPT_BITS,
    CHILD,
    FOLD,
    MEMBER_BROKEN,
    MEMBER_LOG,
    MEMBER_READY,
    RANGE,
    SIZE_MASK,
    level_of,
)
from repartir.supervisor import STARTS, MemberExited, Supervisor, describe_exit

MOST_STARTS = 20
"""So often the member of one row is started, where somebody else may have killed those before."""


class Members:
    """Hears the nursery's reports and acts on them.  All of it in the broker's thread.

    ``on_broken`` is told why the executor cannot go on.
    """

    def __init__(
        self,
        pump: Pump,
        supervisor: Supervisor,
        attempts: Attempts,
        on_broken: Callable[[BrokenProcessPool], None],
    ) -> None:
        rows = len(pump.board.rows)
        self.starting = True
        """Some member may still be on its way."""
        self.retiring = False
        """No successor is forked any more, and an exit is no loss."""
        self.nursery_gone = False
        self.lost = 0
        self._pump = pump
        self._board = pump.board
        self._supervisor = supervisor
        self._attempts = attempts
        self._on_broken = on_broken
        self._ready = [False] * rows
        self._early_deaths = [0] * rows
        """How often the member of a row died in a row before it was ready."""
        self._recent_deaths = [0] * rows
        """The same, since any member was ready: somebody may kill workers at random, which is no reason to give up."""
        self._hung: set[int] = set()
        """Rows whose member was killed because it did not begin in time."""
        self._logged: deque[bytes] = deque()
        self._last_logged = [0] * rows

    def listen(self) -> bool:
        """Hear what members said and what the nursery reported; True if the nursery had reports."""
        self._hear_members()
        reports = self._supervisor.reports()
        for report in reports:
            if isinstance(report, MemberExited):
                with self._pump.mutex:
                    self._member_exited(report)
            elif not self.nursery_gone:
                self._nursery_exited()
        self.deliver_logs()
        return bool(reports)

    def deliver_logs(self) -> None:
        """Hand what members logged to this process's logging.  It calls user code, so not under the pump's mutex."""
        self._hear_members()
        while self._logged:
            logs.deliver(self._logged.popleft())

    def check_start(self) -> bool:
        """Look after members that hang before they run code of ours; True if the nursery was replaced."""
        late = self._supervisor.late_starters()
        if late is None:
            return False
        if not late:
            self.starting = False
        elif self._supervisor.restart_hung_nursery():
            return True
        else:
            for at in late:
                self._supervisor.kill(at)
                self._hung.add(at)
            self._supervisor.extend_deadlines(late)
        return False

    def _hear_members(self) -> None:
        said = self._pump.said
        while said:
            at, status, payload = said.popleft()
            if status == MEMBER_READY:
                self._ready[at] = True
                self._early_deaths[at] = 0
                self._recent_deaths = [0] * len(self._recent_deaths)
            elif status == MEMBER_LOG:
                (number,) = logs.SEQUENCE.unpack_from(payload)
                if number > self._last_logged[at]:
                    self._last_logged[at] = number
                    self._logged.append(payload)
            elif status == MEMBER_BROKEN:
                text = payload.decode(errors="replace")
                reason = text.strip().rpartition("\n")[2]
                error = BrokenProcessPool(
                    f"the initializer of a worker failed ({reason}), so the executor cannot be used"
                )
                error.__cause__ = outcome.RemoteTraceback(text)
                self._on_broken(error)

    def _member_exited(self, exited: MemberExited) -> None:
        """Recover what a dead member left, in the order that shm/README.md argues for, then have it replaced."""
        at = exited.row
        if exited.pid == 0:
            self._on_broken(BrokenProcessPool(f"cannot fork a worker: {os.strerror(exited.status)}"))
            return
        self._pump.drain_row(at)
        self._hear_members()
        self._board.lock_and_unlock_all()
        self._judge_claims(at, exited.exit_code)
        self._count_exit(at, exited.exit_code)
        self._board.reset_row(at)
        if not (self.retiring or self._board.closing):
            self.starting = True
            self._supervisor.fork(at)
        self._board.parking.wake_all()

    def _judge_claims(self, at: int, exit_code: int) -> None:
        """A task that had not begun goes back into a deque; one that had begun fails or is tried again."""
        board, pump = self._board, self._pump
        row = board.rows[at]
        claims, started = board.stacks[at].tasks(), board.words[row.started]
        if claims and board.words[row.condemned] == claims[0]:
            for other in condemn_descendants(board, at, claims[0]):
                self._supervisor.kill(other)
        judge_children(board, at, claims, started, exit_code, describe_exit(exit_code))
        orphan_children(board, at)
        expected = self._is_expected(at)
        claim = claims[0] if claims else 0
        begun = claim if claims and has_begun(claims, 0, started) else 0
        held = None if claim & CHILD else pump.ledger.records.get(claim >> ATTEMPT_BITS)
        if held is not None and held.flags & RANGE:
            self._judge_range(at, held, begun=begun == claim, expected=expected, exit_code=exit_code)
            claim = 0
        self._post_laid_aside(at)
        for action in pump.ledger.member_died([claim], begun, expected=expected):
            if isinstance(action, Repost):
                pump.repost(action.record, lost=not expected)
            else:
                self._attempts.died(action.record, exit_code, begun=action.begun)
        if claim and not claim & CHILD and not pump.views.has_one_of(claim):
            board.blocks.free_owned(claim | RESULT)
        board.blocks.free_owned(KEPT | at)
        board.blocks.free_owned(UNSENT | at)
        pump.bury_orphans(at)

    def _judge_range(
        self, at: int, record: TaskRecord, *, begun: bool, expected: bool, exit_code: int
    ) -> None:
        """A member died with items of a map in hand: what it answered counts, the item that it was in fails, the rest is
        posted anew."""
        pump, job, base = self._pump, record.job, record.base
        hand, words = self._board.hands_of(at)[level_of(record.flags)], self._board.words
        if words[hand.task_word] == record.word:
            first, field, batch = hand.answers(batch_bytes)
            if field & SIZE_MASK:
                pump.hear_batch(record, first, field, batch)
            open_from = job.first_open(base + first) - base
            reserved, end = hand.take_rest()
            if begun and open_from < reserved:
                fails_to = reserved if record.flags & FOLD else open_from + 1
                error = self._attempts.death_in_items(record, exit_code)
                job.give(base + open_from, Failed(error, fails_to - open_from))
                open_from = fails_to
        else:
            open_from, end = items_of(record.payload)
        reposts = 0 if begun else record.reposts + (not expected)
        if open_from < end and reposts > MAX_REPOSTS:
            error = self._attempts.never_begun(record, exit_code)
            job.give(base + open_from, Failed(error, end - open_from))
        elif open_from < end:
            pump.post_rest(record, open_from, end, reposts=reposts)
        pump.end_if_over(record)

    def _post_laid_aside(self, at: int) -> None:
        """The rests of ranges that a dead member had begun and was to go on with: all that it had reserved is answered."""
        pump = self._pump
        for hand in self._board.hands_of(at):
            record = pump.ledger.records.get(self._board.words[hand.task_word] >> ATTEMPT_BITS)
            if record is not None:
                first, end = hand.take_rest()
                if first < end:
                    pump.post_rest(record, first, end, reposts=record.reposts)
                pump.end_if_over(record)

    def _is_expected(self, at: int) -> bool:
        """Whether the member of this row ended of its own will or was killed for a task."""
        row, words = self._board.rows[at], self._board.words
        return words[row.state] == MemberState.RETIRED or bool(words[row.condemned])

    def _count_exit(self, at: int, exit_code: int) -> None:
        if not (self._is_expected(at) or self.retiring):
            self.lost += 1
            if not self._ready[at]:
                self._early_deaths[at] += 1
                self._recent_deaths[at] += 1
        self._ready[at] = False
        self._last_logged[at] = 0
        killed = exit_code in (-signal.SIGKILL, -signal.SIGTERM) and at not in self._hung
        self._hung.discard(at)
        most = MOST_STARTS if killed else STARTS
        if self._recent_deaths[at] >= most or self._early_deaths[at] >= MOST_STARTS:
            times = self._early_deaths[at]
            self._on_broken(
                BrokenProcessPool(
                    f"workers die before they are ready ({describe_exit(exit_code)}), {times} in a row"
                )
            )

    def _nursery_exited(self) -> None:
        self.nursery_gone = True
        if not (self.retiring or self._board.closing):
            self._on_broken(
                BrokenProcessPool("the process that forks the workers died, so the executor cannot go on")
            )
