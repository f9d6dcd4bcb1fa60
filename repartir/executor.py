"""``Executor``: the drop-in for ``concurrent.futures.ProcessPoolExecutor``."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import itertools
import operator
import os
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, ParamSpec, TextIO, TypeVar, overload

from repartir import logs, mapping
from repartir.broker import Broker
from repartir.codec import OUT_OF_BAND_BYTES, encode_call
from repartir.cores import AUTO, share_of_cores
from repartir.environment import (
    check_seconds,
    choose_start_method,
    default_workers,
    size_in_bytes,
    usable_cores,
)
from repartir.errors import SharedMemoryFull, TaskNotSerializable
from repartir.functions import FunctionRef, FunctionTable, owned_globals
from repartir.future import Future
from repartir.inherited import snapshot_inherited
from repartir.ledger import name_of
from repartir.mapjob import MapJob
from repartir.nested import current_executor
from repartir.policy import NO_POLICY, UNSET, Backoff, Policy, Priority
from repartir.progress import Told, reporter
from repartir.serial import SerialExecutor, share
from repartir.shm.board import BoardClosed
from repartir.shm.layout import CALL_EACH, CALL_MANY, MAX_ROWS
from repartir.stats import ExecutorStats, in_words
from repartir.streams import Seeded, Seedlike
from repartir.worker import MemberSettings

P = ParamSpec("P")
T = TypeVar("T")

_engines: weakref.WeakSet[Broker] = weakref.WeakSet()
_interpreter_ends = threading.Event()
_LEAST_LIMIT = 1 << 20


def _items_of(iterables: tuple[Iterable[Any], ...]) -> Iterable[Any]:
    """The items of a map: those of its one iterable, or tuples of one from each."""
    return iterables[0] if len(iterables) == 1 else zip(*iterables, strict=False)


class _TakesTasks(concurrent.futures.Executor):
    """How tasks get into an executor, for itself and for those that treat its tasks by rules of their own."""

    _broker: Broker
    _functions: FunctionTable
    _max_workers: int
    _threshold: int
    _policy: Policy

    def __reduce__(self) -> tuple[Any, ...]:
        return current_executor, ()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a worker call ``fn(*args, **kwargs)``.

        Large arrays are copied to shared memory before this returns.  While that is full, and two tasks a worker or more
        are under way whose end will give some back, it waits; otherwise, and in callbacks, the copy spills into a file.

        What cannot be pickled shows in the future as ``TaskNotSerializable``.  Raises ``RuntimeError`` after shutdown,
        ``BrokenProcessPool`` when the executor is broken.
        """
        broker = self._broker
        if broker.closing or broker.broken is not None:
            self._refuse()
        future: Future[T] = Future(broker, broker.pump.new_task_id())
        try:
            ref = self._functions.encode(fn)
            call = encode_call(args, kwargs, self._functions.inherited, self._threshold)
            broker.pump.post(future, ref, call, 0, fn, self._policy)
        except (TaskNotSerializable, SharedMemoryFull) as exc:
            future.set_exception(exc)
        except BoardClosed:
            self._refuse()
        except BaseException:
            future.cancel(running=True)  # it may be under way, and nobody will have the future
            raise
        return future

    def options(
        self,
        *,
        timeout: float | None = UNSET,
        grace: float = UNSET,
        retries: int = UNSET,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] = UNSET,
        backoff: Backoff = UNSET,
        idempotent: bool = UNSET,
        poison_limit: int | None = UNSET,
        memory_limit: int | str | None = UNSET,
        warn_after: float | None = UNSET,
        name: str | None = UNSET,
        worker: int | None = UNSET,
        priority: Priority | str = UNSET,
        limit: tuple[str, int] | None = UNSET,
    ) -> ExecutorWithOptions:
        """This executor, with other rules for the tasks that are submitted through what is returned.

        Args:
            timeout: seconds that one attempt of a task may take, counted from the call of the function.  Then its worker
                is killed and replaced, and the task fails with ``TaskTimeout``.
            grace: seconds between a SIGTERM and the SIGKILL; 0: SIGKILL at once.
            retries: how often a task that failed is run again.
            retry_on: the exceptions that are worth it, by default ``Exception``.  ``WorkerDied`` and ``TaskTimeout`` are
                exceptions, too; ``SystemExit`` and ``KeyboardInterrupt`` of a task are none by default.
            backoff: seconds before the first retry, doubled for each further one up to a minute, and varied by half; or a
                function of the number of failures that returns the seconds.
            idempotent: whether a task whose worker died in it may be run again without counting as a retry.
            poison_limit: a task that may be run again and killed so many workers fails with ``PoisonTask``; None: no limit.
            memory_limit: bytes (or "3GiB") of memory that the worker may have taken since it was ready, shared memory not
                counted.  It is looked at four times a second; a worker that has more is killed and
                replaced, and the task fails with ``MemoryLimitExceeded``.
            warn_after: seconds after which a task that still runs is logged as a warning.
            name: what messages call the task; None: the function's name.  The ``name`` of an ``Executor`` is another thing.
            worker: put tasks into the queue of the worker of this number, from 0 on.  A wish: a worker that has nothing to
                do steals them at once.  None: into any.  What must run in every worker is for `run_on_all`.
            priority: "high", "normal" or "low", or a ``Priority``: workers take what is high first, in the order of submits,
                also between two items of a map, and what is low when nothing else waits.  Of 16 tasks that a worker takes
                one is a normal and one a low one, if such wait.  High and low tasks have no ``worker``.  What a task
                submits itself is its worker's to run, whatever the priority.
            limit: a name and a number, ``("licence", 2)``: at most two tasks of that name are under way at a time in this
                executor.  The others wait in this process, by priority and in the order of submits.  A task that waits for a
                retry does not count.  Raises ``ValueError`` for a name that has another number already.

        With a time-out, a limit of any kind or retries each item of a ``map`` is a task of its own.
        """
        policy = self._policy.changed(
            timeout=timeout,
            grace=grace,
            retries=retries,
            retry_on=retry_on,
            backoff=backoff,
            idempotent=idempotent,
            poison_limit=poison_limit,
            memory_limit=memory_limit,
            warn_after=warn_after,
            name=name,
            worker=worker,
            priority=priority,
            limit=limit,
        )
        if policy.worker is not None and policy.worker >= self._max_workers:
            raise ValueError(f"worker must be from 0 to {self._max_workers - 1}, not {policy.worker}")
        if policy.limit is not None:
            self._broker.pump.limits.admit(policy.limit)
        return ExecutorWithOptions(self, policy)

    def run_on_all(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Call ``fn(*args, **kwargs)`` once in every worker; the results, by the workers' numbers.

        A worker that runs a task calls it right after that, before all other tasks that wait.  For what every worker is
        to have or to drop: a cache, a seed, a connection.  A worker that is replaced later has not called it; what all
        are to have from the start is for an ``initializer``.

        When all have ended, the first error is raised, ``WorkerDied`` for a worker that died in it, with a note that says in
        which worker.  Ctrl-C ends the calls.  Raises ``RuntimeError`` after shutdown, in callbacks and signal handlers, and
        when 32 calls wait for a worker already, ``ValueError`` under a limit of `options`, ``BrokenProcessPool`` when the
        executor is broken.
        """
        broker = self._broker
        if broker.must_not_wait():
            raise RuntimeError(
                "run_on_all() waits for workers, so it cannot be called in a callback or a signal handler"
            )
        if broker.closing or broker.broken is not None:
            self._refuse()
        if self._policy.limit is not None:
            raise ValueError("run_on_all() calls in all workers at once, so it goes with no limit")
        ref = self._functions.encode(fn)
        call = encode_call(args, kwargs, self._functions.inherited, self._threshold)
        futures: list[Future[T]] = [
            Future(broker, broker.pump.new_task_id()) for _ in range(self._max_workers)
        ]
        try:
            for row, future in enumerate(futures):
                policy = self._policy.changed(worker=row, exclusive=True, priority=Priority.NORMAL)
                broker.pump.post(future, ref, call, 0, fn, policy)
        except BoardClosed:
            self._refuse()
        except BaseException as exc:
            mapping.cancel_all(futures, exc)
            raise
        return mapping.of_all_workers(futures)

    @overload
    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        return_exceptions: bool = False,
        progress: bool | Told = False,
    ) -> Iterator[T]: ...

    @overload
    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        reduce: Callable[[T, T], T],
        progress: bool | Told = False,
    ) -> T: ...

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        return_exceptions: bool = False,
        reduce: Callable[[T, T], T] | None = None,
        progress: bool | Told = False,
    ) -> Any:
        """Results of ``fn`` over the items of the iterables, in order.

        Workers share the items as they go, one that has nothing to do takes half of what another has not begun, so there
        is no size of chunks to choose.  The first exception ends the iterator and cancels what has not begun.

        Args:
            timeout: seconds from this call until ``TimeoutError``; it stops the waiting, not the tasks.
            chunksize: so many items stay together on one worker; None or 1: none do.
            buffersize: pull from the iterables only so many items (or chunks) ahead of the results; they may then be
                infinite.
            return_exceptions: what an item raised, its time-out or the death of its worker comes in place of its result.
            reduce: an associative function of two results.  Workers fold what they have, in the order of items, and this
                call waits and returns what all results are folded to; floating-point sums may differ in the last bits from
                run to run.  Raises ``TypeError`` without items.
            progress: True shows how far the map has come, in a terminal or a notebook, elsewhere in a log line at most every
                30 s; a callable is told (done, total), total None where it is not known.
        """
        return self._map(
            fn,
            _items_of(iterables),
            len(iterables) != 1,
            timeout,
            chunksize,
            buffersize,
            return_exceptions=return_exceptions,
            reduce=reduce,
            progress=progress,
        )

    def map_unordered(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        return_exceptions: bool = False,
        progress: bool | Told = False,
    ) -> Iterator[T]:
        """As `map`, with the results in the order in which they come."""
        return self._map(  # type: ignore[no-any-return]
            fn,
            _items_of(iterables),
            len(iterables) != 1,
            timeout,
            chunksize,
            buffersize,
            ordered=False,
            return_exceptions=return_exceptions,
            progress=progress,
        )

    def starmap(
        self,
        fn: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        *,
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        return_exceptions: bool = False,
        progress: bool | Told = False,
    ) -> Iterator[T]:
        """As `map`, over tuples of arguments."""
        return self._map(  # type: ignore[no-any-return]
            fn,
            iterable,
            True,
            timeout,
            chunksize,
            buffersize,
            return_exceptions=return_exceptions,
            progress=progress,
        )

    def _numbered(
        self, fn: Callable[[Any], T], items: Sequence[Any]
    ) -> Generator[tuple[int, Any], None, None]:
        """For `sweep`: the number of each item with its result, or with the error that it ended in, as they come.

        However the iterator ends, what of the items has not ended is stopped.
        """
        return self._map(  # type: ignore[no-any-return]
            fn, items, False, None, None, None, ordered=False, return_exceptions=True, numbered=True
        )

    @overload
    def map_seeded(
        self,
        fn: Callable[..., T],
        items: Iterable[Any],
        *,
        seed: Seedlike = None,
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        return_exceptions: bool = False,
        progress: bool | Told = False,
    ) -> Iterator[T]: ...

    @overload
    def map_seeded(
        self,
        fn: Callable[..., T],
        items: Iterable[Any],
        *,
        seed: Seedlike = None,
        timeout: float | None = None,
        reduce: Callable[[T, T], T],
        progress: bool | Told = False,
    ) -> T: ...

    def map_seeded(
        self,
        fn: Callable[..., T],
        items: Iterable[Any],
        *,
        seed: Seedlike = None,
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        return_exceptions: bool = False,
        reduce: Callable[[T, T], T] | None = None,
        progress: bool | Told = False,
    ) -> Any:
        """As `map` over one iterable; item i has random numbers of its own, those of ``repartir.rng(seed, i)``.

        The same for any number of workers, any order, after retries.  ``fn(item, rng=generator)`` is called if ``fn`` names
        a parameter ``rng``, else ``fn(item)``; ``repartir.task_rng()`` returns the same generator in both.

        Args:
            seed: an int, ints or a numpy ``SeedSequence``; None: one is drawn, which the notes of errors name.

        An item's error has a note with the call that makes its stream again.  Raises ``ValueError`` and ``TypeError`` for
        what is no seed, and for a function that cannot be called so.
        """
        return self._map(
            Seeded(fn, seed),
            zip(itertools.count(), items),
            True,
            timeout,
            chunksize,
            buffersize,
            return_exceptions=return_exceptions,
            reduce=reduce,
            progress=progress,
        )

    def _map(
        self,
        fn: Callable[..., T],
        items: Iterable[Any],
        star: bool,
        timeout: float | None,
        chunksize: int | None,
        buffersize: int | None,
        *,
        ordered: bool = True,
        return_exceptions: bool = False,
        reduce: Callable[[T, T], T] | None = None,
        progress: bool | Told = False,
        numbered: bool = False,
    ) -> Any:
        mapping.check_arguments(chunksize, buffersize)
        if self._policy.one_by_one and chunksize not in (None, 1):
            raise ValueError(
                f"with {self._policy.why_one_by_one} each item is a task of its own: "
                f"chunksize must be None or 1, not {chunksize}"
            )
        mapping.check_reduce(reduce, chunksize, buffersize, return_exceptions=return_exceptions)
        until = mapping.deadline(timeout)
        broker = self._broker
        if broker.closing or broker.broken is not None:
            self._refuse()
        total = None
        if buffersize is None:
            if type(items) is not range:
                items = list(items)
            total = len(items)
        shown = reporter(progress, self._policy.name or name_of(fn), total)
        job = MapJob(broker.pump, broker, ordered=ordered)
        engine = mapping.Engine(
            broker.pump,
            broker,
            self._functions.inherited,
            self._threshold,
            self._max_workers,
            self._refuse,
        )
        call: Callable[..., Any] = fn
        fold = reduce is not None and not self._policy.one_by_one
        if reduce is not None and fold:
            call = functools.partial(reduce, fn)  # type: ignore[arg-type]  # for `rangeloop`, which takes it apart
        try:
            ref = self._functions.encode(call)
        except TaskNotSerializable as exc:
            if reduce is not None or numbered:
                raise
            return mapping.failed(exc)
        feed = mapping.Feed(engine, job, fn, ref, self._policy, star=star, fold=fold)
        try:
            if buffersize is not None or (chunksize or 1) > 1:
                feed.post_chunks(items, chunksize or 1, buffersize)
            else:
                feed.post(items)  # type: ignore[arg-type]
        except BoardClosed:
            job.cancel()
            self._refuse()
        except BaseException as exc:
            job.cancel(running=isinstance(exc, KeyboardInterrupt))
            raise
        if numbered:
            return mapping.numbered(feed, job)
        if reduce is None:
            return mapping.results(feed, job, until, shown, return_exceptions=return_exceptions)
        return mapping.folded(job, feed, reduce, until, shown)

    async def asubmit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``fn(*args, **kwargs)`` returns in a worker: `submit` for asyncio.

        When the awaiting task is cancelled, by a time-out for one, the call is stopped; if it runs, by the end of its
        worker, which is replaced.  Raises what `submit` raises, and what the call does.
        """
        from repartir import aio

        return await aio.result_of(self.submit(fn, *args, **kwargs))

    def amap(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> AsyncGenerator[T, None]:
        """Results of ``fn`` over the items of the iterables, in order, for ``async for``: `map` for asyncio.

        Iterables are taken at the call, as by `map`, and the event loop is held up for as long; with ``buffersize`` only so
        many chunks ahead of the results.  An iterable may be asynchronous: it is read by a task of its own while results are
        given out, at most ``buffersize`` chunks ahead, or four a worker.

        The first exception ends it and cancels what has not begun, and so does leaving the loop: soon after, when asyncio
        closes the generator, or at once with ``contextlib.aclosing``.  Cancelling the task that waits for the next result
        also stops calls that run.

        Args:
            chunksize: items a task; None: as `map` chooses, one where the number of items is not known.
            buffersize: chunks that may be taken from the iterables and not given out, at least 1.

        Raises what `map` does, and ``TaskNotSerializable`` for a function that cannot be pickled.
        """
        from repartir import aio

        mapping.check_arguments(chunksize, buffersize)
        one_by_one = self._policy.one_by_one
        if one_by_one and chunksize not in (None, 1):
            raise ValueError(
                f"with {self._policy.why_one_by_one} each item is a task of its own: "
                f"chunksize must be None or 1, not {chunksize}"
            )
        if self._broker.closing or self._broker.broken is not None:
            self._refuse()
        ref = self._functions.encode(fn)
        flag = 0 if one_by_one else CALL_EACH if len(iterables) == 1 else CALL_MANY

        def submit(chunk: tuple[Any, ...], held: object = ref.hold()) -> Future[Any]:
            return self._submit_chunk(fn, ref, flag, chunk)

        plan = aio.Plan(submit, self._max_workers, chunksize, buffersize, one_by_one)
        return aio.results(plan.ahead(iterables), one_by_one=one_by_one)

    def share(self, value: Any, *, writable: bool = False) -> Any:
        """Put an array or any other object into shared memory once, for many tasks.

        An array of numbers becomes a ``SharedArray``: tasks that get it, a slice or a transposed view of it, in whatever
        lists or objects, copy nothing.  They may read it only, unless ``writable``.  Any other object becomes a handle that
        tasks get as the object, unpickled once a worker.  ``with`` or ``free()`` gives the memory back, or the garbage
        collector; it does not depend on this executor.

        Raises ``SharedMemoryFull``, and ``TaskNotSerializable`` for what cannot be pickled.
        """
        return share(value, writable=writable)

    def stats(self) -> ExecutorStats:
        """What the executor is doing, and what it holds, now."""
        return self._broker.stats()

    def _submit_chunk(
        self,
        fn: Callable[..., Any],
        ref: FunctionRef,
        flag: int,
        chunk: tuple[Any, ...],
    ) -> Future[Any]:
        """Post one chunk; without a flag, the arguments of one call."""
        pump = self._broker.pump
        future: Future[Any] = Future(self._broker, pump.new_task_id())
        try:
            call = encode_call(chunk, {}, self._functions.inherited, self._threshold)
            pump.post(future, ref, call, flag, fn, self._policy)
        except (TaskNotSerializable, SharedMemoryFull) as exc:
            future.set_exception(exc)
        except BoardClosed:
            self._refuse()
        except BaseException:
            future.cancel(running=True)
            raise
        return future

    def _refuse(self) -> None:
        if self._broker.broken is not None:
            raise type(self._broker.broken)(*self._broker.broken.args) from self._broker.broken.__cause__
        if _interpreter_ends.is_set():
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        raise RuntimeError("cannot schedule new futures after shutdown")


class Executor(_TakesTasks):
    """Runs calls in worker processes that share their queues in memory and steal from each other.

    Args:
        max_workers: number of workers; None: the cores that this process may use.
        mp_context: a ``multiprocessing`` context or the name of a start method; None: what
            ``multiprocessing.set_start_method`` chose, else fork on Linux where that is safe.
        initializer, initargs: called in each worker before its first task; if it raises, the executor is broken.
        max_tasks_per_child: after so many tasks a worker is replaced by a fresh one (with any start method).
        name: shown in the executor's ``repr``.  Tasks get names by `options`.
        out_of_band: from so many bytes on the elements of an array travel beside the pickle: copied once, not four times.
        shm_limit: how much shared memory arguments and results may take, in bytes or as "2GiB"; None: 80 % of what is
            free. What finds no room waits or spills into a file, see `submit`.
        shm_timeout: seconds that `submit` waits for room in shared memory at most; None: as long as tasks are under way.
        timeout, grace, retries, retry_on, backoff, idempotent, poison_limit, memory_limit, warn_after: for all tasks, see
            `options`.
        max_rss_growth: bytes (or "500MiB") of memory of its own by which a worker may have grown between two tasks since it
            was ready; then a fresh one replaces it.
        address_space_limit: bytes (or "8GiB") that a worker may map beyond those that it has when it is ready.  The
            operating system enforces it (RLIMIT_AS): what goes beyond fails in the task with ``MemoryError``.  Linux only.
        forward_logs: whether log records and warnings of workers go to this process's loggers and filters, under the process
            names "worker-0" and so on; else workers keep the handlers that they inherit.
        threads_per_worker: threads that each BLAS or OpenMP library of a worker uses.  "auto": usable cores ÷ workers, at
            least 1, at most what OMP_NUM_THREADS, OPENBLAS_NUM_THREADS and the like, and the library here, say already.
            None: libraries are left alone.  A task may change it for itself, with threadpoolctl for one.
        pin: bind each worker to one usable core, in turn, those of one NUMA node before those of the next.  "auto" then
            means one thread.  Raises ``ValueError`` where the system has no ``os.sched_setaffinity``.

    Raises ``ValueError`` and ``TypeError`` as the standard library does, ``SharedMemoryFull`` where there is no room.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        name: str | None = None,
        out_of_band: int | str = OUT_OF_BAND_BYTES,
        shm_limit: int | str | None = None,
        shm_timeout: float | None = None,
        timeout: float | None = None,
        grace: float = 0.0,
        retries: int = 0,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] = Exception,
        backoff: Backoff = NO_POLICY.backoff,
        idempotent: bool = False,
        poison_limit: int | None = NO_POLICY.poison_limit,
        memory_limit: int | str | None = None,
        warn_after: float | None = None,
        max_rss_growth: int | str | None = None,
        address_space_limit: int | str | None = None,
        forward_logs: bool = True,
        threads_per_worker: int | str | None = AUTO,
        pin: bool = False,
    ) -> None:
        if max_workers is None:
            max_workers = default_workers()
        elif max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        elif (max_workers := operator.index(max_workers)) > MAX_ROWS:
            raise ValueError(f"max_workers must be <= {MAX_ROWS}")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            try:
                max_tasks_per_child = operator.index(max_tasks_per_child)
            except TypeError:
                raise TypeError("max_tasks_per_child must be an integer") from None
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        self._threshold = size_in_bytes(out_of_band, "out_of_band")
        limit = None if shm_limit is None else max(size_in_bytes(shm_limit, "shm_limit"), _LEAST_LIMIT)
        if shm_timeout is not None:
            shm_timeout = check_seconds("shm_timeout", shm_timeout)
        self._policy = NO_POLICY.changed(
            timeout=timeout,
            grace=grace,
            retries=retries,
            retry_on=retry_on,
            backoff=backoff,
            idempotent=idempotent,
            poison_limit=poison_limit,
            memory_limit=memory_limit,
            warn_after=warn_after,
        )
        growth = None if max_rss_growth is None else size_in_bytes(max_rss_growth, "max_rss_growth")
        space = None
        if address_space_limit is not None:
            if sys.platform != "linux":
                raise ValueError("address_space_limit works on Linux only; memory_limit works everywhere")
            space = size_in_bytes(address_space_limit, "address_space_limit")
        method = choose_start_method(mp_context)
        self.name = name
        self._max_workers = max_workers
        self._start_method = method
        cores = usable_cores()
        inherited = snapshot_inherited() if method == "fork" else None
        owned = None if initializer is None else owned_globals(initializer)
        names = frozenset() if owned is None else owned.names
        members = MemberSettings(
            initializer,
            initargs,
            names,
            max_tasks_per_child,
            max(1, cores - 1),
            inherited,
            max_rss_growth=growth,
            address_space=space,
            log_levels=logs.levels_for(method) if forward_logs else None,
            out_of_band=self._threshold,
            cores=share_of_cores(threads_per_worker, pin, max_workers, cores),
        )
        self._functions = FunctionTable(inherited, owned)
        self._shut = False
        self._broker = Broker(max_workers, method, members, cores, limit, shm_timeout)
        _begin(self, self._broker)
        if inherited is not None:
            inherited.release()

    def __repr__(self) -> str:
        broker = self._broker
        state = "broken" if broker.broken else "shut down" if self._shut else None
        running, queued = broker.counts()
        name = f" {self.name!r}" if self.name else ""
        parts = [state] if state else [f"{queued} queued", f"{running} running"]
        if broker.members.lost:
            parts.append(f"{broker.members.lost} lost")
        for what, (blocks, size) in zip(("arena", "spilled"), broker.held(), strict=True):
            if blocks:
                parts.append(f"{what} {in_words(size)} in {blocks} block{'s' if blocks > 1 else ''}")
        return f"<Executor{name} {self._max_workers} workers: {', '.join(parts)}>"

    def dump_stacks(self, file: TextIO | None = None) -> None:
        """Print the Python stacks of this process and of each worker to ``file``, by default stderr; all of them go on."""
        self._broker.dump_stacks((sys.stderr if file is None else file).write)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; with ``wait`` return when all are settled and every process has gone."""
        self._shut = True
        self._broker.close(cancel=cancel_futures)
        if wait:
            self._broker.join()

    def terminate_workers(self) -> None:
        """End all workers by SIGTERM; the executor is of no use afterwards."""
        self._stop(terminate=True)

    def kill_workers(self) -> None:
        """End all workers by SIGKILL; the executor is of no use afterwards."""
        self._stop(terminate=False)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit):
            self.kill_workers()
        try:
            self.shutdown()
        except (KeyboardInterrupt, SystemExit):
            self.kill_workers()
            self.shutdown()
            raise

    def _stop(self, *, terminate: bool) -> None:
        self._shut = True
        self._broker.abort(terminate=terminate)


class ExecutorWithOptions(_TakesTasks):
    """An executor's tasks under rules of their own, see ``Executor.options``.  Its shutdown, and ``with``, end nothing."""

    def __init__(self, executor: _TakesTasks, policy: Policy) -> None:
        self._executor: _TakesTasks = executor
        if isinstance(executor, ExecutorWithOptions):
            self._executor = executor._executor
        self._broker = executor._broker
        self._functions = executor._functions
        self._max_workers = executor._max_workers
        self._threshold = executor._threshold
        self._policy = policy

    def __repr__(self) -> str:
        changed = ", ".join(
            f"{field.name}={value!r}"
            for field in dataclasses.fields(Policy)
            if (value := getattr(self._policy, field.name)) != field.default
        )
        return f"<{self._executor!r} with {changed or 'no options'}>"

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Does nothing: the executor goes on."""


def _begin(owner: Executor, broker: Broker) -> None:
    """Start the engine of ``owner``, which ends when that dies.  Interrupted or failed, nothing is left of it."""
    weakref.finalize(owner, broker.close_soon).atexit = False
    try:
        broker.begin()
        _engines.add(broker)
    except BaseException as exc:
        broker.close_soon()
        if isinstance(exc, Exception) and broker.thread.ident is not None:
            broker.thread.join()
        raise


def _at_interpreter_exit() -> None:
    """Before threads are joined: end every executor; at once if an unhandled Ctrl-C ended the program.

    An interactive interpreter goes on after a Ctrl-C, so there it says nothing of how the program ended.
    """
    _interpreter_ends.set()
    interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1")
    for broker in list(_engines):
        if interrupted:
            broker.abort()
        else:
            broker.close(cancel=False)
        broker.join()


def _forget_parents_executors() -> None:
    """In a forked child: the parent's executors are not the child's to use or to end."""
    for broker in list(_engines):
        broker.disown()
    _engines.clear()


threading._register_atexit(_at_interpreter_exit)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_forget_parents_executors)

__all__ = ["Executor", "SerialExecutor"]
