"""One map, as the client sees it: which items are answered, what came back and is not taken yet, who waits for what."""

from __future__ import annotations

import concurrent.futures
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from repartir.batches import Failed
from repartir.future import Driver, Future
from repartir.ledger import Record

Run = tuple[int, int]
Runs = tuple[Run, ...]
"""Disjoint runs of items in their order, each as its first and its end."""

_END = (1 << 62,)


class Folded:
    """What ``count`` items were folded to."""

    __slots__ = ("count", "value")

    def __init__(self, value: Any, count: int) -> None:
        self.value = value
        self.count = count


Outcome = list[Any] | Failed | Folded


def count_of(outcome: Outcome) -> int:
    """How many items an outcome is for."""
    return len(outcome) if isinstance(outcome, list) else outcome.count


def with_run(runs: Runs, first: int, end: int) -> Runs:
    """The runs and all items from ``first`` to ``end``, of which none is in them."""
    at = bisect_right(runs, (first, *_END))
    low, high = at, at
    if at and runs[at - 1][1] == first:
        low, first = at - 1, runs[at - 1][0]
    if at < len(runs) and runs[at][0] == end:
        high, end = at + 1, runs[at][1]
    return (*runs[:low], (first, end), *runs[high:])


def end_of_run(runs: Runs, index: int) -> int:
    """The first item from ``index`` on that is in none of them."""
    at = bisect_right(runs, (index, *_END)) - 1
    return max(index, runs[at][1]) if at >= 0 else index


def without(spans: Runs, first: int, end: int) -> Runs:
    """What is left of the spans without the items from ``first`` to ``end``."""
    left = []
    for begins, ends in spans:
        left += [
            (low, high) for low, high in ((begins, min(ends, first)), (max(begins, end), ends)) if low < high
        ]
    return tuple(left)


class Poster(Protocol):
    """What a job needs of the pump."""

    def take_back(self, future: Future[Any]) -> bool: ...

    def give_up(self, job: MapJob, *, running: bool) -> None: ...

    def wake(self, future: Future[Any]) -> None: ...


class MapJob:
    """What is known of one map.  Members answer in any order; the consumer takes outcomes in order, or as they come.

    What changes it happens under the pump's mutex, and each step may be repeated after an interruption.
    """

    def __init__(self, pump: Poster, driver: Driver, *, ordered: bool = True) -> None:
        self.records: dict[int, Record[Any]] = {}
        """Those that are not over, by task id."""
        self.cancelled = False
        self.driver = driver
        self._pump = pump
        self._ordered = ordered
        self._shared: set[Any] = set()
        """Blocks that more than one record has had."""
        self._answered: Runs = ()
        self._arrived: dict[int, Outcome | None] = {}
        """By first item; None once it is taken."""
        self._ready: deque[int] = deque()
        """In an unordered map, the first items of what has come, some of them twice."""
        self._taken: deque[int] = deque()
        self._turn: tuple[int, Future[None]] | None = None

    # ---- for the pump

    def enter(self, record: Record[Any], first: int, count: int) -> None:
        """A record for ``count`` items from ``first`` on is about to be posted."""
        record.job, record.base, record.spans = self, first, ((first, first + count),)
        self.records[record.task_id] = record

    def give(self, first: int, outcome: Outcome) -> None:
        """An outcome has come.  May come again, and what came before may come again with more."""
        end = first + count_of(outcome)
        known = end_of_run(self._answered, first)
        if known < end:
            if known > first and isinstance(outcome, list):
                outcome, first = type(outcome)(outcome[known - first :]), known
            if not self.cancelled:
                self._arrived.setdefault(first, outcome)
                if not self._ordered:
                    self._ready.append(first)
            self._answered = with_run(self._answered, first, end)
        turn = self._turn
        if turn is not None and (not self._ordered or turn[0] == first):
            self._pump.wake(turn[1])

    def first_open(self, index: int) -> int:
        """The first item from ``index`` on that has no outcome."""
        return end_of_run(self._answered, index)

    def enter_rest(self, rest: Record[Any], of: Record[Any], first: int, end: int) -> None:
        """A record that takes over the items from ``first`` to ``end`` of another, and shares its block."""
        self.enter(rest, first, end - first)
        rest.base = of.base
        self._shared.add(of.block)
        of.spans = without(of.spans, first, end)

    def is_over(self, record: Record[Any]) -> bool:
        """Whether all items of a record have outcomes."""
        return all(end_of_run(self._answered, first) >= end for first, end in record.spans)

    def open_items(self, first: int, end: int) -> int:
        """How many items from ``first`` to ``end`` have no outcome."""
        overlaps = (min(end, ends) - max(first, begins) for begins, ends in self._answered)
        return end - first - sum(overlap for overlap in overlaps if overlap > 0)

    def fail(self, record: Record[Any], make_error: Callable[[], BaseException]) -> None:
        """All items of a record that have no outcome get an error."""
        for first, end in record.spans:
            at = first
            while (at := self.first_open(at)) < end:
                until = min([begins for begins, _ in self._answered if begins > at] + [end])
                self.give(at, Failed(make_error(), until - at))

    def leave(self, record: Record[Any]) -> bool:
        """The record is over; whether no other has its block."""
        self.records.pop(record.task_id, None)
        if record.block not in self._shared:
            return True
        return not any(other.block == record.block for other in list(self.records.values()))

    # ---- for the consumer

    def take(self, index: int, until: float | None) -> tuple[int, Outcome]:
        """The outcome that begins with item ``index``, or in an unordered map any; its first item, and itself.

        Raises ``TimeoutError`` when it is not here by ``until`` on the monotonic clock.
        """
        while True:
            found = self._find(index)
            if found is None:
                turn: Future[None] = Future(self.driver)
                self._turn = index, turn
                found = self._find(index)
                if found is None:
                    turn.result(None if until is None else until - time.monotonic())
                    continue
            self._turn = None
            first, outcome = found
            self._arrived[first] = None
            self._taken.append(first)
            self._forget_taken()
            return first, outcome

    def _find(self, index: int) -> tuple[int, Outcome] | None:
        if self._ordered:
            outcome = self._arrived.get(index)
            return None if outcome is None else (index, outcome)
        while self._ready:
            first = self._ready.popleft()
            outcome = self._arrived.get(first)
            if outcome is not None:
                return first, outcome
        return None

    def _forget_taken(self) -> None:
        """One that may come again must be found as taken, so it is forgotten only when it counts as answered."""
        while self._taken and self.first_open(self._taken[0]) != self._taken[0]:
            self._arrived.pop(self._taken.popleft(), None)

    def cancel(self, *, running: bool = False) -> None:
        """Nobody takes outcomes any more: what has not begun never will; with ``running`` what runs is stopped."""
        self.cancelled = True
        self._arrived.clear()
        for record in list(self.records.values()):
            self._pump.take_back(record.future)
        if self.records:
            self._pump.give_up(self, running=running)


def cancelled() -> BaseException:
    """The error of items that nobody wants any more."""
    return concurrent.futures.CancelledError()
