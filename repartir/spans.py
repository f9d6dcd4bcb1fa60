"""Which batches of a `monte_carlo` one task runs, and how many tasks are under way.

What is measured decides here, and here only: it has no part in the result.

A span is a run of consecutive batches that takes about 50 ms.  Two spans a worker are under way, which keeps workers busy
and is all that a stop may waste.  Results are given out in the order of batches.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterator
from typing import NamedTuple

from repartir.draws import Drawn
from repartir.environment import usable_cores
from repartir.future import Future
from repartir.points import Plan

SPAN_S = 0.05
_UNDER_WAY = 2
_AHEAD = 16
"""So many finished spans a worker wait at most for one before them."""


class Span(NamedTuple):
    """Batches ``first`` to ``end``, with ``samples`` in all."""

    first: int
    end: int
    samples: int


class Spans:
    """Has the executor run ``draw(first, end, samples)`` for all batches up to ``end``, or for ever.

    Args:
        samples: how many all batches have; the last one may be cut.  None with ``end``.
        cuts: batches at which spans end in any case, since somebody looks there.
    """

    def __init__(
        self,
        executor: concurrent.futures.Executor,
        draw: Callable[[int, int, int], Drawn],
        plan: Plan,
        end: int | None,
        samples: int | None,
        cuts: Iterator[int] | None,
    ) -> None:
        self._executor = executor
        self._draw = draw
        self._plan = plan
        self._end = end
        self._samples = samples
        self._cuts = cuts
        self._cut = 0
        self._workers = _workers_of(executor)
        self._posted = 0
        self._taken = 0
        self._pending: dict[concurrent.futures.Future[Drawn], Span] = {}
        self._ready: dict[int, tuple[Span, concurrent.futures.Future[Drawn]]] = {}
        self._speed = 0.0
        """Samples a second, as the last span had it."""
        self._has_failed = False
        self.raised: BaseException | None = None
        """The batches' own error, which may be a ``KeyboardInterrupt`` that is no Ctrl-C."""

    def take(self) -> tuple[Span, Drawn] | None:
        """The next span, None after the last.  Raises what its batches did."""
        if self._taken == self._end:
            return None
        while True:
            self._post()
            if self._taken in self._ready:
                break
            self._wait()
        span, future = self._ready.pop(self._taken)
        self._taken = span.end
        self.raised = future.exception()
        try:
            return span, future.result()
        finally:
            del future  # the traceback of what it raises leads here

    def close(self, *, running: bool = False) -> None:
        """No more are wanted; with ``running`` those that run are stopped."""
        for future in self._pending:
            if isinstance(future, Future):
                future.cancel(running=running)
            else:
                future.cancel()
        self._pending.clear()
        self._ready.clear()
        self.raised = None  # its traceback leads back here

    def _post(self) -> None:
        """Post what keeps the workers busy; of an executor that runs calls at once, what is to be taken next."""
        while (
            self._posted != self._end
            and not self._has_failed
            and len(self._pending) < _UNDER_WAY * self._workers
            and len(self._ready) < _AHEAD * self._workers
        ):
            span = self._next()
            future = self._executor.submit(self._draw, *span)
            self._pending[future] = span
            self._posted = span.end
            if future.done():
                self._settle(future)
                if self._taken in self._ready:
                    break

    def _wait(self) -> None:
        done, _ = concurrent.futures.wait(self._pending, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in done:
            self._settle(future)

    def _settle(self, future: concurrent.futures.Future[Drawn]) -> None:
        span = self._pending.pop(future)
        self._ready[span.first] = span, future
        if future.exception() is not None:
            self._has_failed = True
        else:
            self._speed = span.samples / max(future.result().seconds, 1e-9)

    def _next(self) -> Span:
        first, plan = self._posted, self._plan
        if self._cuts is not None:
            while self._cut <= first:
                self._cut = next(self._cuts)
        limits = [self._end, None if self._cuts is None else self._cut]
        limit = min(limit for limit in limits if limit is not None)
        begin = plan.start(first)
        wanted = self._speed * SPAN_S
        if self._samples is not None:
            wanted = min(wanted, (self._samples - begin) / (_UNDER_WAY * self._workers))
        end = first + 1
        step = 1
        while end < limit and plan.start(min(end + step, limit)) - begin <= wanted:
            end, step = min(end + step, limit), 2 * step
        stop = plan.start(end)
        return Span(first, end, (stop if self._samples is None else min(stop, self._samples)) - begin)


def _workers_of(executor: concurrent.futures.Executor) -> int:
    for name in ("_max_workers", "_workers"):
        if isinstance(count := getattr(executor, name, None), int):
            return count
    return usable_cores()
