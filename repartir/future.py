"""A Future that makes its condition only when somebody needs one.

Most futures are settled before anyone waits on them, and a ``threading.Condition`` costs several times what the rest of
a future does.  State and condition change under one module-wide lock: once a condition exists, the standard library's
path is taken, so ``concurrent.futures.wait`` and ``as_completed`` never see half a state.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
from concurrent.futures._base import (
    CANCELLED,
    CANCELLED_AND_NOTIFIED,
    FINISHED,
    LOGGER,
    PENDING,
    RUNNING,
)
from typing import Any, NoReturn, Protocol, TypeVar

from repartir.diagnosis import is_interruption

T = TypeVar("T")

LEAKED_LOCK_S = 0.1
"""A condition's lock that is held for so long is never let go."""
_DONE = frozenset((CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED))
_lock = threading.Lock()
os.register_at_fork(after_in_child=_lock._at_fork_reinit)  # type: ignore[attr-defined]


class Driver(Protocol):
    """What a future needs of the broker that will settle it."""

    def wait_for(self, future: Future[Any], timeout: float | None) -> None:
        """Return when ``future`` is done or ``timeout`` seconds have passed."""

    def take_back(self, future: Future[Any]) -> bool:
        """Remove the future's task from the ring if nobody has begun it."""

    def stop(self, future: Future[Any]) -> bool:
        """Stop the future's task while a member runs it."""

    def is_running(self, future: Future[Any]) -> bool:
        """Whether a member has taken the future's task."""


class _Condition(threading.Condition):
    """Enters and leaves in one call into C: inside a method in Python, a signal handler may raise with the lock taken."""

    __slots__ = ("__enter__", "__exit__")

    def __init__(self) -> None:
        lock = threading.RLock()
        super().__init__(lock)
        self.__enter__ = lock.__enter__  # type: ignore[method-assign]
        self.__exit__ = lock.__exit__  # type: ignore[method-assign]


class Future(concurrent.futures.Future[T]):
    """The result of a task that is still to come: a ``concurrent.futures.Future``."""

    _state = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _made_condition: threading.Condition | None = None
    _driver: Driver | None = None
    task_id: int = 0

    def __init__(self, driver: Driver | None = None, task_id: int = 0) -> None:
        if driver is not None:
            self._driver = driver
            self.task_id = task_id

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        made = self._made_condition
        if made is None:
            # Made before the lock is taken: where nothing is called and nothing allocated, no finalizer and no signal
            # handler runs, which may need a condition themselves.
            waiters: list[Any] = []
            callbacks: list[Any] = []
            new = _Condition()
            with _lock:
                made = self._made_condition
                if made is None:
                    self._waiters = waiters
                    self._done_callbacks = callbacks
                    self._made_condition = made = new
        return made

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot pickle a Future: it is settled in the process that made it; pass its result")

    def __repr__(self) -> str:
        self._condition  # noqa: B018 - the standard repr reads the lists that go with it
        return super().__repr__()

    def done(self) -> bool:
        return self._state in _DONE

    def cancelled(self) -> bool:
        return self._state in (CANCELLED, CANCELLED_AND_NOTIFIED)

    def running(self) -> bool:
        """Whether a worker has begun the task (and has not answered yet)."""
        if self._state == RUNNING:
            return True
        return self._state == PENDING and self._driver is not None and self._driver.is_running(self)

    def cancel(self, running: bool = False) -> bool:
        """Cancel the task if no worker has begun it; True if it will never run (to its end).

        With ``running`` a task that a worker runs is stopped: the worker is killed and replaced.
        """
        driver = self._driver
        if driver is None:
            return super().cancel()
        if self._state == PENDING and not (driver.take_back(self) or (running and driver.stop(self))):
            return False
        if self._state == CANCELLED:
            self.notify_cancelled()
        return self.cancelled()

    def notify_cancelled(self) -> None:
        """Tell waiters and callbacks of a future that is marked as cancelled; once."""
        with self._condition:
            if self._state != CANCELLED:
                return
            self._state = CANCELLED_AND_NOTIFIED
            for waiter in self._waiters:
                if _listens(waiter):
                    waiter.add_cancelled(self)
            self._condition.notify_all()
        self._call_back()

    def mark_cancelled(self) -> bool:
        """For the broker, under its lock: nobody will run this task; False if it is settled already."""
        with _lock:
            if self._state == PENDING:
                self._state = CANCELLED
            return self._state != FINISHED

    def result(self, timeout: float | None = None) -> T:
        """The task's result, or its exception raised; ``TimeoutError`` after ``timeout`` seconds."""
        try:
            if self._settled_by_now(timeout):
                if self._exception is not None:
                    raise self._exception
                return self._result  # type: ignore[no-any-return]
            return super().result(0 if self._driver is not None else timeout)
        finally:
            self = None  # type: ignore[assignment]  # break the cycle through the traceback

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The task's exception or None; ``TimeoutError`` after ``timeout`` seconds."""
        if self._settled_by_now(timeout):
            return self._exception
        return super().exception(0 if self._driver is not None else timeout)

    def _settled_by_now(self, timeout: float | None) -> bool:
        """Whether the outcome is here, after waiting for it if there is a driver; makes no condition."""
        if self._state != FINISHED and self._driver is not None and self._state not in _DONE:
            self._driver.wait_for(self, timeout)
        return self._state == FINISHED

    def wait_on_condition(self, timeout: float | None) -> None:
        """Sleep until somebody else settles this future, at most ``timeout`` seconds."""
        with self._condition:
            if self._state not in _DONE:
                self._condition.wait(None if timeout is None else min(timeout, threading.TIMEOUT_MAX))

    def settle_alone(self, result: Any, exception: BaseException | None) -> bool:
        """Set the outcome if nobody ever asked for the condition; may be repeated after an interruption.

        False: there is a condition, so ``settle_fully`` is due, in the broker's thread, which no signal interrupts.
        """
        with _lock:
            if self._made_condition is not None:
                return False
            if self._state in (PENDING, RUNNING):
                self._result = result
                self._exception = exception
                self._state = FINISHED
            return True

    def settle_fully(self, result: Any, exception: BaseException | None) -> None:
        """Set the outcome, tell waiters, call callbacks; nothing of it if the future is done already."""
        condition = self._condition
        # The standard library's `wait` leaves the locks taken that it has when a signal handler raises in it. Nobody
        # can wait there any more, and others must not wait for it.
        taken = condition.acquire(timeout=LEAKED_LOCK_S)
        try:
            if self._state not in (PENDING, RUNNING):
                return
            self._result = result
            self._exception = exception
            self._state = FINISHED
            for waiter in self._waiters:
                if not _listens(waiter):
                    continue
                if exception is None:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
            if taken:
                condition.notify_all()
        finally:
            if taken:
                condition.release()
        self._call_back()

    def _call_back(self) -> None:
        callbacks = self._done_callbacks
        while callbacks:
            callback = callbacks.pop(0)
            try:
                callback(self)
            except BaseException as exc:
                if is_interruption(exc):
                    raise
                LOGGER.exception("exception calling callback for %r", self)

    def set_result(self, result: T) -> None:
        self._condition  # noqa: B018 - the standard library's path works on the made condition
        super().set_result(result)

    def set_exception(self, exception: BaseException | None) -> None:
        self._condition  # noqa: B018
        super().set_exception(exception)

    def set_running_or_notify_cancel(self) -> bool:
        self._condition  # noqa: B018
        return super().set_running_or_notify_cancel()


def _listens(waiter: Any) -> bool:
    """Whether a waiter of the standard library can still be told: an interrupted `wait` may have left its event's lock
    taken, and then nobody sleeps there any more."""
    condition = getattr(getattr(waiter, "event", None), "_cond", None)
    if condition is None:
        return True
    if not condition.acquire(timeout=LEAKED_LOCK_S):
        return False
    condition.release()
    return True
