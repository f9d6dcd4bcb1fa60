"""What a task submits to: an executor whose calls become children of the task, see ``children.py``."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

from repartir import mapping, worker
from repartir.children import Nest
from repartir.future import Future
from repartir.policy import NO_POLICY
from repartir.serial import SerialExecutor
from repartir.shm.layout import CALL_EACH, CALL_MANY

P = ParamSpec("P")
T = TypeVar("T")


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

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """As `Executor.map`; while it waits for a result, this worker runs what no other has begun."""
        nest, policy = self._nest, self._policy
        if not nest.is_here():
            return super().map(fn, *iterables, timeout=timeout, chunksize=chunksize, buffersize=buffersize)
        mapping.check_arguments(chunksize, buffersize)
        one_by_one = policy.one_by_one
        if one_by_one and chunksize not in (None, 1):
            raise ValueError(
                f"with retries each item is a task of its own: chunksize must be None, not {chunksize}"
            )
        until = mapping.deadline(timeout)
        as_they_are = len(iterables) == 1 and not one_by_one
        items: Iterable[Any] = iterables[0] if as_they_are else zip(*iterables, strict=False)
        if buffersize is None:
            items = list(items)
        flag, source = 0, iter(items)
        if not one_by_one:
            flag = CALL_EACH if as_they_are else CALL_MANY
            sizes: Iterable[int] = itertools.repeat(chunksize or 1)
            if chunksize is None and isinstance(items, list):
                sizes = mapping.guided_sizes(len(items), self._workers)
            source = mapping.chunks(items, sizes)
        pending: deque[Future[Any]] = deque(
            nest.submit(fn, chunk, {}, policy, flag) for chunk in itertools.islice(source, buffersize)
        )

        def more() -> Future[Any] | None:
            chunk = next(source, None)
            return None if chunk is None else nest.submit(fn, chunk, {}, policy, flag)

        return mapping.results(pending, more, until, one_by_one=one_by_one)

    def options(self, **options: Any) -> SerialExecutor:
        """As `Executor.options`, but for limits: only what the client submits can be stopped by itself."""
        changed = super().options(**options)
        if changed._policy.is_watched:
            raise ValueError(
                "timeout, memory_limit and warn_after are for tasks that the client submits, with all that they submit in "
                "turn: give them to the task itself, executor.options(timeout=…).submit(…)"
            )
        return changed

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """With ``wait`` return when what the task has submitted has ended.  The executor goes on."""
        if self._nest.is_here():
            self._nest.end_children(wait=wait, cancel=cancel_futures)

    def terminate_workers(self) -> None:
        """Not a task's to do."""
        raise RuntimeError("a task cannot end the workers of the executor that runs it")

    kill_workers = terminate_workers


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
