"""What a task submits to: an executor whose calls become children of the task, see ``children.py``."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, ParamSpec, TypeVar

from repartir import chunks, worker
from repartir.children import Nest
from repartir.chunks import Stopped
from repartir.future import Future
from repartir.ledger import name_of
from repartir.policy import NO_POLICY
from repartir.progress import Reporter, Told, reporter
from repartir.serial import Running, SerialExecutor, running_in
from repartir.shm.layout import CALL_EACH, CALL_MANY

P = ParamSpec("P")
T = TypeVar("T")


_NOT_FOR_CHILDREN = (
    "limit and priority are for tasks that the client submits: what a task submits is its own worker's to run. "
    "Give them to the task itself, executor.options(priority=…).submit(…)"
)


class NestedExecutor(SerialExecutor):
    """Posts calls for the workers of the executor that runs the task.  Waiting for one runs others meanwhile.

    In another thread than the task's own, and in processes that the task forks, calls run in place.
    """

    def __init__(self, nest: Nest, workers: int) -> None:
        self.name = None
        self._shut = False
        self._policy = NO_POLICY
        self._nest = nest
        self._workers = workers

    def __repr__(self) -> str:
        return f"<NestedExecutor of {self._workers} workers>"

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have this worker or another call ``fn(*args, **kwargs)``; the task ends when it has ended.

        Raises ``NestingTooDeep`` in a task that stands too deep in the tree of tasks.
        """
        nest = self._nest
        if nest.is_here():
            return nest.submit(fn, args, kwargs, self._policy)
        return super().submit(fn, *args, **kwargs)

    def _results(
        self,
        fn: Callable[..., T],
        iterables: tuple[Iterable[Any], ...],
        until: float | None,
        chunksize: int | None,
        buffersize: int | None,
        progress: bool | Told,
        *,
        return_exceptions: bool,
    ) -> Iterator[T]:
        """Items travel in chunks, those that have retries or return their exceptions one by one."""
        nest, policy = self._nest, self._policy
        if not nest.is_here():
            return super()._results(
                fn, iterables, until, chunksize, buffersize, progress, return_exceptions=return_exceptions
            )
        if policy.one_by_one and chunksize not in (None, 1):
            raise ValueError(
                f"with retries each item is a task of its own: chunksize must be None, not {chunksize}"
            )
        one_by_one = policy.one_by_one or (return_exceptions and chunksize in (None, 1))
        as_they_are = len(iterables) == 1 and not one_by_one
        items: Iterable[Any] = iterables[0] if as_they_are else zip(*iterables, strict=False)
        total = None
        if buffersize is None:
            items = list(items)
            total = len(items)
        flag, source = 0, iter(items)
        if not one_by_one:
            flag = CALL_EACH if as_they_are else CALL_MANY
            source = chunks.cut(items, chunks.chunk_sizes(items, chunksize, self._workers))
        shown = reporter(progress, policy.name or name_of(fn), total)

        def post(chunk: tuple[Any, ...]) -> _Posted:
            return _Posted(nest.submit(fn, chunk, {}, policy, flag), 1 if one_by_one else len(chunk))

        pending = deque(map(post, itertools.islice(source, buffersize)))
        return _results(
            pending,
            map(post, source),
            until,
            shown,
            one_by_one=one_by_one,
            return_exceptions=return_exceptions,
        )

    def options(self, **options: Any) -> SerialExecutor:
        """As `Executor.options`, but for limits and priorities: only what the client submits can be stopped or held back."""
        changed = super().options(**options)
        if changed._policy.flag:
            raise ValueError(_NOT_FOR_CHILDREN)
        if changed._policy.is_watched:
            raise ValueError(
                "timeout, memory_limit and warn_after are for tasks that the client submits, with all that they submit in "
                "turn: give them to the task itself, executor.options(timeout=…).submit(…)"
            )
        return changed

    def _admit(self, limit: tuple[str, int]) -> None:
        raise ValueError(_NOT_FOR_CHILDREN)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """With ``wait`` return when what the task has submitted has ended.  The executor goes on."""
        if self._nest.is_here():
            self._nest.end_children(wait=wait, cancel=cancel_futures)

    def terminate_workers(self) -> None:
        """Not a task's to do."""
        raise RuntimeError("a task cannot end the workers of the executor that runs it")

    kill_workers = terminate_workers

    def _running(self, attempt: int) -> Running | None:
        running = running_in.get()
        return None if running is None else running._replace(attempt=attempt)


class _Posted(NamedTuple):
    """A child, and of how many items."""

    future: Future[Any]
    items: int


def _results(
    pending: deque[_Posted],
    more: Iterator[_Posted],
    until: float | None,
    shown: Reporter,
    *,
    one_by_one: bool,
    return_exceptions: bool,
) -> Iterator[Any]:
    """Yield what the children return, in order; a next one is posted for each that is used up.

    The first exception, unless it is to be returned, the time-out or the death of the iterator cancels what is pending.
    """
    try:
        while pending:
            future, count = pending[0]
            error: BaseException | None = None
            try:
                values = future.result(None if until is None else until - time.monotonic())
            except BaseException as exc:
                if not (return_exceptions and _is_the_outcome_of(future, exc)):
                    raise
                error, values = exc, []
            pending.popleft()
            del future
            if isinstance(values, Stopped):
                error, values = values.exception(), values.values
            elif one_by_one and error is None:
                values = [values]
            if error is None or return_exceptions:
                pending.extend(itertools.islice(more, 1))
            shown.step(count)
            count -= len(values)
            values.reverse()
            while values:
                yield values.pop()
            if error is not None and not return_exceptions:
                try:
                    raise error
                finally:
                    error = None
            if error is not None:
                yield from [error] * count
    finally:
        for posted in pending:
            posted.future.cancel()
        shown.close()


def _is_the_outcome_of(future: Future[Any], exc: BaseException) -> bool:
    """Whether an exception is what the child raised, not what happened while it was waited for."""
    return future.done() and not future.cancelled() and future.exception() is exc


_executors: list[NestedExecutor] = []


def current_executor() -> NestedExecutor:
    """In a task: the executor that runs it, for calls of its own.  Elsewhere: ``RuntimeError``."""
    member = worker.current()
    if member is None:
        raise RuntimeError(
            "current_executor() works in tasks only, and a pickled Executor means the current one: "
            "outside a task make an Executor, or pass the one you have"
        )
    if not _executors:
        _executors.append(NestedExecutor(member.nest, member.colleagues))
    return _executors[0]
