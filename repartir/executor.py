"""``Executor``: the drop-in for ``concurrent.futures.ProcessPoolExecutor``."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import operator
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TextIO, TypeVar

from repartir import logs, mapping
from repartir.broker import Broker
from repartir.codec import OUT_OF_BAND_BYTES, encode_call
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
from repartir.nested import current_executor
from repartir.policy import NO_POLICY, UNSET, Backoff, Policy
from repartir.serial import SerialExecutor, share
from repartir.shm.board import BoardClosed
from repartir.shm.layout import CALL_EACH, CALL_MANY, MAX_ROWS
from repartir.stats import ExecutorStats, in_words
from repartir.worker import MemberSettings

P = ParamSpec("P")
T = TypeVar("T")

_engines: weakref.WeakSet[Broker] = weakref.WeakSet()
_interpreter_ends = threading.Event()
_LEAST_LIMIT = 1 << 20


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
    ) -> ExecutorWithOptions:
        """This executor, with other rules for the tasks that are submitted through what is returned.

        Args:
            timeout: seconds that one attempt of a task may take, counted from the call of the function.  Then its worker
                is killed and replaced, and the task fails with ``TaskTimeout``.
            grace: seconds between a SIGTERM and the SIGKILL; 0: SIGKILL at once.
            retries: how often a task that failed is run again.
            retry_on: the exceptions that are worth it.  ``WorkerDied`` and ``TaskTimeout`` are exceptions, too.
            backoff: seconds before the first retry, doubled for each further one up to a minute, and varied by half; or a
                function of the number of failures that returns the seconds.
            idempotent: whether a task whose worker died in it may be run again without counting as a retry.
            poison_limit: a task that may be run again and killed so many workers fails with ``PoisonTask``; None: no limit.
            memory_limit: bytes (or "3GiB") of memory that the worker may have taken since it was ready, shared memory not
                counted.  It is looked at four times a second; a worker that has more is killed and
                replaced, and the task fails with ``MemoryLimitExceeded``.
            warn_after: seconds after which a task that still runs is logged as a warning.
            name: what messages call the task; None: the function's name.

        With a time-out, another limit or retries each item of a ``map`` is a task of its own.
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
        )
        return ExecutorWithOptions(self, policy)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Results of ``fn`` over the items of the iterables, in order.

        Args:
            timeout: seconds from this call until ``TimeoutError``; it stops the waiting, not the tasks.
            chunksize: items a task; None: large chunks first, small ones at the end.
            buffersize: pull from the iterables only so many chunks ahead of the results (they may then be infinite).
        """
        mapping.check_arguments(chunksize, buffersize)
        if self._policy.one_by_one and chunksize not in (None, 1):
            raise ValueError(
                f"with a time-out or retries each item is a task of its own: chunksize must be None, not {chunksize}"
            )
        until = mapping.deadline(timeout)
        if self._broker.closing or self._broker.broken is not None:
            self._refuse()
        as_they_are = len(iterables) == 1 and not self._policy.one_by_one
        items: Iterable[Any] = iterables[0] if as_they_are else zip(*iterables, strict=False)
        if buffersize is None:
            items = list(items)
        if self._policy.one_by_one:
            flag, source = 0, iter(items)
        else:
            flag = CALL_EACH if as_they_are else CALL_MANY
            if chunksize is None and isinstance(items, list):
                sizes: Iterable[int] = mapping.guided_sizes(len(items), self._max_workers)
            else:
                sizes = itertools.repeat(chunksize or 1)
            source = mapping.chunks(items, sizes)
        try:
            ref = self._functions.encode(fn)
        except TaskNotSerializable as exc:
            failed: Future[Any] = Future()
            failed.set_exception(exc)
            return mapping.results(deque([failed]), lambda: None, until)
        held = ref.hold()
        pending = deque(
            self._submit_chunk(fn, ref, flag, chunk) for chunk in itertools.islice(source, buffersize)
        )

        def more(held: object = held) -> Future[Any] | None:
            chunk = next(source, None)
            return None if chunk is None else self._submit_chunk(fn, ref, flag, chunk)

        return mapping.results(pending, more, until, one_by_one=self._policy.one_by_one)

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
        name: shown in ``repr``.
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
    ) -> None:
        if max_workers is None:
            max_workers = default_workers()
        elif max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        elif operator.index(max_workers) > MAX_ROWS:
            raise ValueError(f"max_workers must be <= {MAX_ROWS}")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        self._threshold = size_in_bytes(out_of_band, "out_of_band")
        limit = None if shm_limit is None else max(size_in_bytes(shm_limit, "shm_limit"), _LEAST_LIMIT)
        if shm_timeout is not None:
            check_seconds("shm_timeout", shm_timeout)
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
            self._broker.thread.join()

    def terminate_workers(self) -> None:
        """End all workers by SIGTERM; the executor is of no use afterwards."""
        self._stop(terminate=True)

    def kill_workers(self) -> None:
        """End all workers by SIGKILL; the executor is of no use afterwards."""
        self._stop(terminate=False)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit):
            self.kill_workers()
        self.shutdown()

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
        broker.thread.join()


def _forget_parents_executors() -> None:
    """In a forked child: the parent's executors are not the child's to use or to end."""
    for broker in list(_engines):
        broker.disown()
    _engines.clear()


threading._register_atexit(_at_interpreter_exit)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_forget_parents_executors)

__all__ = ["Executor", "SerialExecutor"]
