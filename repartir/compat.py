"""``multiprocessing.Pool`` over an ``Executor``: the same methods, for programs that move one line at a time.

What it does differently is listed in docs/howto/from-multiprocessing-pool.md.
"""

from __future__ import annotations

import collections
import concurrent.futures
import enum
import itertools
import logging
import multiprocessing
import operator
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from repartir import chunks, mapping
from repartir.chunks import Chunk, Stopped
from repartir.environment import default_workers
from repartir.errors import TaskNotSerializable
from repartir.executor import Executor
from repartir.future import Future
from repartir.shm.layout import CALL_EACH, CALL_MANY

T = TypeVar("T")

_log = logging.getLogger("repartir")
AHEAD_A_PROCESS = 16
"""So many chunks a process ``imap`` takes from an iterator before their results are taken."""


class State(enum.Enum):
    """What a pool may still do."""

    RUN = "RUN"
    CLOSE = "CLOSE"
    TERMINATE = "TERMINATE"


class AsyncResult(Generic[T]):
    """What `Pool.apply_async` and its like return; ``collect`` makes the value of what the futures hold."""

    def __init__(
        self,
        futures: Sequence[Future[Any]],
        collect: Callable[[list[Any]], T],
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> None:
        self._futures = futures
        self._collect = collect
        self._callback = callback
        self._error_callback = error_callback
        self._outcome: tuple[Any, BaseException | None] | None = None
        self._called_back = threading.Event()
        self._left = len(futures)
        self._lock = threading.Lock()
        if not futures or (callback is None and error_callback is None):
            self._called_back.set()
        else:
            for future in futures:
                future.add_done_callback(self._count)

    def ready(self) -> bool:
        """Whether the call has ended, and its callback, if it has one."""
        return self._called_back.is_set() and all(future.done() for future in self._futures)

    def successful(self) -> bool:
        """Whether it raised nothing; ``ValueError`` before it has ended."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._ended()[1] is None

    def wait(self, timeout: float | None = None) -> None:
        """Return when the call has ended or ``timeout`` seconds have passed."""
        until = mapping.deadline(timeout)
        for future in self._futures:
            if not _wait(future, until):
                return
        self._called_back.wait(_left(until))

    def get(self, timeout: float | None = None) -> T:
        """The value, or the call's exception raised; ``multiprocessing.TimeoutError`` after ``timeout`` seconds.

        Raises ``concurrent.futures.CancelledError`` for what `Pool.terminate` took back before it began.
        """
        self.wait(timeout)
        if not self.ready():
            raise multiprocessing.TimeoutError
        value, error = self._ended()
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]

    def _ended(self) -> tuple[Any, BaseException | None]:
        """Value and error, once all futures are done."""
        with self._lock:
            if self._outcome is None:
                errors = [error for error in map(_error_of, self._futures) if error is not None]
                value = None if errors else self._collect([future.result() for future in self._futures])
                self._outcome = value, errors[0] if errors else None
                self._futures = ()
            return self._outcome

    def _count(self, _: object) -> None:
        with self._lock:
            self._left -= 1
            if self._left:
                return
        try:
            value, error = self._ended()
            if error is None and self._callback is not None:
                self._callback(value)
            elif error is not None and self._error_callback is not None:
                self._error_callback(error)
        except Exception:  # noqa: BLE001 - logged, as the standard library's futures do
            _log.exception("a callback of %r raised", self)
        finally:
            self._called_back.set()


class _Done(Protocol):
    """Futures under way, and the order in which they are given out."""

    def add(self, future: Future[Any]) -> None: ...
    def __len__(self) -> int: ...
    def next(self, until: float | None) -> Future[Any] | None:
        """The next, which is done; None when it is not by then."""


class _InOrder:
    def __init__(self) -> None:
        self._futures: collections.deque[Future[Any]] = collections.deque()

    def __len__(self) -> int:
        return len(self._futures)

    def add(self, future: Future[Any]) -> None:
        self._futures.append(future)

    def next(self, until: float | None) -> Future[Any] | None:
        return self._futures.popleft() if _wait(self._futures[0], until) else None


class _AsTheyCome:
    def __init__(self) -> None:
        self._left = 0
        self._done: queue.Queue[Future[Any]] = queue.Queue()

    def __len__(self) -> int:
        return self._left

    def add(self, future: Future[Any]) -> None:
        self._left += 1
        future.add_done_callback(self._done.put)  # type: ignore[arg-type]

    def next(self, until: float | None) -> Future[Any] | None:
        try:
            future = self._done.get(timeout=_left(until))
        except queue.Empty:
            return None
        self._left -= 1
        return future


class IMapIterator(Generic[T]):
    """What `Pool.imap` returns: after a call that raised, the next results can still be taken."""

    def __init__(
        self, futures: Iterator[Future[Any]], most: int | None, done: _Done, take: Callable[[Any], T]
    ) -> None:
        self._source = futures
        self._most = most
        self._done = done
        self._take = take
        self._lock = threading.Lock()
        self.is_exhausted = False
        self._fill()

    def __iter__(self) -> IMapIterator[T]:
        return self

    def __next__(self) -> T:
        return self.next()

    def next(self, timeout: float | None = None) -> T:
        """The next result; ``multiprocessing.TimeoutError`` when it is not there after ``timeout`` seconds."""
        with self._lock:
            if not self._done:
                raise StopIteration
            future = self._done.next(mapping.deadline(timeout))
            if future is None:
                raise multiprocessing.TimeoutError
            self._fill()
        error = _error_of(future)
        if error is not None:
            raise error
        return self._take(future.result())

    def take_all(self) -> None:
        """Have everything that is left done, whether its results are taken or not."""
        with self._lock:
            self._most = None
            self._fill()

    def _fill(self) -> None:
        while not self.is_exhausted and (self._most is None or len(self._done) < self._most):
            try:
                future = next(self._source, None)
            except Exception as exc:  # noqa: BLE001 - of the user's iterable: raised where its item would be
                future = Future()
                future.set_exception(exc)
            if future is None:
                self.is_exhausted = True
            else:
                self._done.add(future)


class Pool:
    """A ``multiprocessing.Pool`` whose workers are an `Executor`'s.

    Args:
        processes: number of workers; None: the cores that this process may use.
        initializer, initargs: called in each worker before its first task.
        maxtasksperchild: calls or chunks after which a worker is replaced; None: never.
        context: a ``multiprocessing`` context; None: see `Executor`.

    Raises ``ValueError`` and ``TypeError`` as ``multiprocessing.Pool`` does.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
    ) -> None:
        if processes is None:
            processes = default_workers()
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        self._processes = processes
        self._executor = Executor(
            processes, context, initializer, tuple(initargs), max_tasks_per_child=maxtasksperchild
        )
        self._state = State.RUN
        self._lazy: list[IMapIterator[Any]] = []
        """Iterators that have not taken all of their items."""

    def __repr__(self) -> str:
        return f"<repartir.compat.Pool state={self._state.value} pool_size={self._processes}>"

    def __reduce__(self) -> NoReturn:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def apply(
        self, func: Callable[..., T], args: Iterable[Any] = (), kwds: Mapping[str, Any] | None = None
    ) -> T:
        """What ``func(*args, **kwds)`` returns in a worker."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[T]:
        """Have a worker call ``func(*args, **kwds)``; one of the callbacks gets the value or the exception.

        Callbacks run in a thread of the executor, so they must not wait for tasks.  Raises ``ValueError`` after `close`.
        """
        self._check_running()
        future = self._executor.submit(func, *args, **(kwds or {}))
        return AsyncResult([future], lambda values: values[0], callback, error_callback)

    def map(self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int | None = None) -> list[T]:
        """Results of ``func`` over the items, in order."""
        return self.map_async(func, iterable, chunksize).get()

    def map_async(
        self,
        func: Callable[[Any], T],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[list[T]]:
        """`map` that does not wait.  An exception is there once all chunks have ended, the first by their order."""
        return self._map_async(func, CALL_EACH, iterable, chunksize, callback, error_callback)

    def starmap(
        self, func: Callable[..., T], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[T]:
        """`map` whose items are the arguments of one call each."""
        return self.starmap_async(func, iterable, chunksize).get()

    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[list[T]]:
        """`starmap` that does not wait."""
        return self._map_async(func, CALL_MANY, map(tuple, iterable), chunksize, callback, error_callback)

    def imap(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int = 1
    ) -> IMapIterator[T] | Iterator[T]:
        """An iterator of the results, in order.

        Of an iterable without a length items are taken as results are, sixteen chunks a process ahead.
        """
        return self._imap(func, iterable, chunksize, _InOrder())

    def imap_unordered(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int = 1
    ) -> IMapIterator[T] | Iterator[T]:
        """`imap` whose results come as soon as they are there."""
        return self._imap(func, iterable, chunksize, _AsTheyCome())

    def close(self) -> None:
        """Take no more calls; workers end when all is done."""
        if self._state is State.RUN:
            self._state = State.CLOSE
            if all(results.is_exhausted for results in self._lazy):
                self._executor.shutdown(wait=False)

    def terminate(self) -> None:
        """End the workers now: what has begun fails, what has not is cancelled."""
        self._state = State.TERMINATE
        self._lazy.clear()
        self._executor.terminate_workers()
        self._executor.shutdown()

    def join(self) -> None:
        """Wait until all is done and the workers have ended; ``ValueError`` before `close` or `terminate`."""
        if self._state is State.RUN:
            raise ValueError("Pool is still running")
        for results in list(self._lazy):
            results.take_all()
        self._executor.shutdown()

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()

    def _check_running(self) -> None:
        if self._state is not State.RUN:
            raise ValueError("Pool not running")

    def _map_async(
        self,
        func: Callable[..., T],
        flag: int,
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Callable[[list[T]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> AsyncResult[list[T]]:
        self._check_running()
        mapping.check_arguments(chunksize, None)
        items = list(iterable)
        sizes = (
            chunks.guided_sizes(len(items), self._processes)
            if chunksize is None
            else itertools.repeat(chunksize)
        )
        futures = list(self._submitted(func, flag, chunks.cut(items, sizes)))
        return AsyncResult(futures, _flattened, callback, error_callback)

    def _imap(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int, done: _Done
    ) -> IMapIterator[T] | Iterator[T]:
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize}")
        most = None if hasattr(iterable, "__len__") else AHEAD_A_PROCESS * self._processes
        futures = self._submitted(func, CALL_EACH, chunks.cut(iterable, itertools.repeat(chunksize)))
        if chunksize == 1:
            results: IMapIterator[T] = IMapIterator(futures, most, done, operator.itemgetter(0))
            self._note(results)
            return results
        lists: IMapIterator[list[T]] = IMapIterator(futures, most, done, list)
        self._note(lists)
        return itertools.chain.from_iterable(lists)

    def _note(self, results: IMapIterator[Any]) -> None:
        """`join` waits for what these have not taken yet, too."""
        self._lazy = [each for each in (*self._lazy, results) if not each.is_exhausted]

    def _submitted(self, func: Callable[..., Any], flag: int, cut: Iterable[Chunk]) -> Iterator[Future[Any]]:
        """A future for each chunk, submitted when it is asked for."""
        executor = self._executor
        try:
            ref = executor._functions.encode(func)
        except TaskNotSerializable as exc:
            failed: Future[Any] = Future()
            failed.set_exception(exc)
            yield failed
            return
        held = ref.hold()
        for chunk in cut:
            yield executor._submit_chunk(func, ref, flag, chunk)
        del held


def _flattened(lists: list[list[T]]) -> list[T]:
    return list(itertools.chain.from_iterable(lists))


def _error_of(future: Future[Any]) -> BaseException | None:
    """Why a future that is done has no value."""
    try:
        error = future.exception()
    except concurrent.futures.CancelledError as exc:
        return exc
    if error is None and isinstance(value := future.result(), Stopped):
        return value.exception()
    return error


def _wait(future: Future[Any], until: float | None) -> bool:
    """Whether the future is done, now or by then."""
    try:
        future.exception(_left(until))
    except TimeoutError:
        return False
    except concurrent.futures.CancelledError:
        pass
    return True


def _left(until: float | None) -> float | None:
    return None if until is None else max(0.0, until - time.monotonic())
