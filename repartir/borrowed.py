"""Which executor runs the tasks of a call that may have been given none, and rows on any executor."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from repartir import worker
from repartir.executor import Executor, ExecutorWithOptions
from repartir.nested import current_executor
from repartir.serial import SerialExecutor, running_in


def check_executor(given: object) -> None:
    """Raise ``TypeError`` for what is none."""
    if given is not None and not isinstance(given, concurrent.futures.Executor):
        kind = type(given).__name__
        raise TypeError(f"executor must be a repartir.Executor, or another of concurrent.futures, not {kind}")


@contextmanager
def executor_for(
    given: concurrent.futures.Executor | None, **options: Any
) -> Iterator[concurrent.futures.Executor]:
    """``given``, or where it is None the one that runs the present task, or outside of tasks one made for the call.

    ``options``: of the one that is made.
    """
    if given is not None:
        yield given
    elif worker.current() is not None:
        yield current_executor()
    elif running_in.get() is not None:
        yield SerialExecutor()
    else:
        with Executor(**options) as own:
            yield own


def numbered(
    executor: concurrent.futures.Executor, fn: Callable[[Any], Any], items: Sequence[Any]
) -> Generator[tuple[int, Any], None, None]:
    """The number of each item with the result of ``fn``, or the error that it ended in, as they come.

    However the iterator ends, nothing of the items goes on, but on other executors than ours what runs.
    """
    if isinstance(executor, Executor | ExecutorWithOptions | SerialExecutor):
        yield from executor._numbered(fn, items)
        return
    futures = {executor.submit(fn, item): number for number, item in enumerate(items)}
    try:
        for future in concurrent.futures.as_completed(futures):
            error = future.exception()
            yield futures[future], future.result() if error is None else error
    finally:
        for future in futures:
            future.cancel()
