"""Named limits: how many tasks of one name may be under way at a time, and which of them wait for that.

What waits here is posted to no deque, so nobody waits in a worker.  A place is held from just before the post until the
task is over, or rests before another attempt; who is interrupted in the middle of a post holds its place already, and is
the next.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from repartir.ledger import Record
from repartir.policy import ORDERS, TURNS
from repartir.shm.layout import LEVELS, level_of

Queue = deque[Record[Any]]


class Limit:
    """At most ``most`` tasks of one name are under way."""

    __slots__ = ("held", "most", "stuck", "turn", "waiting")

    def __init__(self, most: int) -> None:
        self.most = most
        self.held: set[int] = set()
        """Ids of the tasks that have a place; negative ones of tasks that are over, whose member is being killed."""
        self.waiting: tuple[Queue, ...] = tuple(deque() for _ in LEVELS)
        """By priority, those that have none."""
        self.turn = 0
        self.stuck = False
        """The next one waits for room."""

    def next(self) -> Queue | None:
        """The queue whose first task is the next to be posted; None when there is no place or nobody waits."""
        for queue in self.waiting:
            if queue and queue[0].task_id in self.held:
                return queue
        if len(self.held) < self.most:
            for level in ORDERS[(self.turn + 1) % TURNS]:
                if self.waiting[level]:
                    return self.waiting[level]
        return None

    def may_post(self) -> bool:
        """A hint, without the pump's mutex: a task may be posted now."""
        return not self.stuck and len(self.held) < self.most and any(self.waiting)


class Limits:
    """The limits of one executor, by name."""

    def __init__(self) -> None:
        self._limits: dict[str, Limit] = {}

    def admit(self, limit: tuple[str, int]) -> Limit:
        """The limit of this name, made if it is new.  ``ValueError`` when it has another number."""
        name, most = limit
        admitted = self._limits.get(name) or self._limits.setdefault(name, Limit(most))
        if admitted.most != most:
            raise ValueError(
                f"limit {name!r} is {admitted.most} in this executor already, so it cannot be {most}: "
                "give every use of one name the same number, or take another name"
            )
        return admitted

    def all(self) -> list[Limit]:
        return list(self._limits.values())

    def queues(self) -> list[Queue]:
        """Where tasks wait."""
        return [queue for limit in self.all() for queue in limit.waiting]

    def queue_of(self, record: Record[Any]) -> Queue:
        """Where a task waits for its place."""
        return self._of(record).waiting[level_of(record.flags)]

    def hold(self, record: Record[Any]) -> None:
        """The task is about to be posted."""
        self._of(record).held.add(record.task_id)

    def hold_until_dead(self, record: Record[Any]) -> int:
        """The task is to be over before its member is dead; a token for `let_go`."""
        self._of(record).held.add(-record.task_id)
        return -record.task_id

    def let_go(self, record: Record[Any], token: int) -> bool:
        """The task, or what holds this token for it, is no more under way; whether another waits for the place."""
        limit = self._of(record)
        limit.held.discard(token)
        return any(limit.waiting)

    def _of(self, record: Record[Any]) -> Limit:
        return self.admit(record.policy.limit)  # type: ignore[arg-type]
