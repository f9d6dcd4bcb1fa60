"""Which executor runs the tasks of a call that may have been given none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from repartir import worker
from repartir.executor import Executor, ExecutorWithOptions
from repartir.nested import current_executor
from repartir.serial import SerialExecutor, running_in

AnyExecutor = Executor | ExecutorWithOptions | SerialExecutor


def check_executor(given: object) -> None:
    """Raise ``TypeError`` for what is none."""
    if given is not None and not isinstance(given, AnyExecutor):
        raise TypeError(
            f"executor must be a repartir.Executor or SerialExecutor, or None, not {type(given).__name__}"
        )


@contextmanager
def executor_for(given: AnyExecutor | None) -> Iterator[AnyExecutor]:
    """``given``, or where it is None the one that runs the present task, or outside of tasks one made for the call."""
    if given is not None:
        yield given
    elif worker.current() is not None:
        yield current_executor()
    elif running_in.get() is not None:
        yield SerialExecutor()
    else:
        with Executor() as own:
            yield own
