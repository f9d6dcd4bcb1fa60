"""The exceptions of Repartir.

    RepartirError
    ├── WorkerDied                  also BrokenProcessPool (so also BrokenExecutor, RuntimeError)
    │   └── PoisonTask              a task that killed every worker that took it up
    ├── TaskTimeout                 also TimeoutError: a task was stopped, not only waited for too long
    ├── MemoryLimitExceeded         also MemoryError: a task was stopped because its worker took too much memory
    ├── NestingTooDeep              also RecursionError: tasks submitted tasks that submitted tasks, and so on
    ├── SharedMemoryFull            also MemoryError
    ├── TaskNotSerializable         also pickle.PicklingError, TypeError
    │   └── UseAfterFreeError       also ValueError: a task refers to something shared that was freed
    ├── JournalError                also OSError: the file of a journal is no journal, is broken, in use or cannot be written
    ├── JournalMismatch             also ValueError: a journal holds results of another function or another seed
    └── InternalError               a bug of ours: please report it
    KeyboardInterrupt
    └── Interrupted                 Ctrl-C in a sweep or a Monte Carlo, with what there is so far
    ValueError
    └── FreedError                  something shared was used after it was freed, as a closed file

Each is also what users of `concurrent.futures` already catch, and survives pickling with its attributes.
"""

from __future__ import annotations

import pickle
from concurrent.futures.process import BrokenProcessPool
from typing import Any

__all__ = [
    "FreedError",
    "InternalError",
    "Interrupted",
    "JournalError",
    "JournalMismatch",
    "MemoryLimitExceeded",
    "NestingTooDeep",
    "PoisonTask",
    "RepartirError",
    "SharedMemoryFull",
    "TaskNotSerializable",
    "TaskTimeout",
    "UseAfterFreeError",
    "WorkerDied",
]


class RepartirError(Exception):
    """Base of all exceptions that Repartir raises of its own accord."""


class WorkerDied(RepartirError, BrokenProcessPool):
    """The worker that ran the task ended before it answered; the pool goes on with a new worker.

    `exit_code`: the status that the worker exited with, None if a signal ended it or it is unknown.
    `signal`: the number of the signal that ended it, else None.
    `task`: what identifies the task in messages, None where no single task is to blame.
    """

    def __init__(
        self,
        *args: object,
        exit_code: int | None = None,
        signal: int | None = None,
        task: object = None,
    ) -> None:
        super().__init__(*args)
        self.exit_code = exit_code
        self.signal = signal
        self.task = task


class PoisonTask(WorkerDied):
    """The task killed as many workers as its ``poison_limit`` allows, or each died before it could begin the task."""


class TaskTimeout(RepartirError, TimeoutError):
    """The task ran longer than its ``timeout`` and was stopped: its worker was killed and replaced.

    `task`: what identifies it in messages. `elapsed`: seconds since its call. `stack`: the Python stacks of the worker's
    threads when it was stopped, "" where the worker could not tell.
    """

    def __init__(self, *args: object, task: object = None, elapsed: float = 0.0, stack: str = "") -> None:
        super().__init__(*args)
        self.task = task
        self.elapsed = elapsed
        self.stack = stack


class MemoryLimitExceeded(RepartirError, MemoryError):
    """The worker took more memory than the task's ``memory_limit`` and was killed and replaced.

    `task`: what identifies the task in messages. `used`, `limit`: bytes, beyond those of the worker when it was ready.
    """

    def __init__(self, *args: object, task: object = None, used: int = 0, limit: int = 0) -> None:
        super().__init__(*args)
        self.task = task
        self.used = used
        self.limit = limit


class NestingTooDeep(RepartirError, RecursionError):
    """A task that stands as deep in a tree of tasks as is possible submitted another."""


class SharedMemoryFull(RepartirError, MemoryError):
    """The file system that holds shared memory (usually /dev/shm) is missing, full or too small."""


class TaskNotSerializable(RepartirError, pickle.PicklingError, TypeError):
    """A task, its result or its exception cannot travel between processes; the message names the part."""


class UseAfterFreeError(TaskNotSerializable, ValueError):
    """A task refers to a shared array or object that was freed."""


class FreedError(ValueError):
    """What is shared was freed before it was used."""


class JournalError(RepartirError, OSError):
    """The file of a journal is no journal, is broken, is held by another run, or cannot be written; it is left as it was."""


class JournalMismatch(RepartirError, ValueError):
    """The journal holds results of another function, version or seed than this run's; the message tells the difference."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C stopped a `sweep` or a `monte_carlo`.  `partial`: the result of what had finished."""

    def __init__(self, *args: object, partial: Any = None) -> None:
        super().__init__(*args)
        self.partial = partial


class InternalError(RepartirError):
    """Repartir broke a promise that it makes to itself: a bug in Repartir, never in the caller's program."""
