"""The same interface in this process: for debuggers, coverage and a serial baseline."""

from __future__ import annotations

import concurrent.futures
import copy
import dataclasses
import functools
import itertools
import random
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, ParamSpec, TextIO, TypeVar

from repartir import mapping, optional, stacks, worker
from repartir.codec import Encoded, encode_value, parts_of
from repartir.cores import AUTO, share_of_cores
from repartir.future import Future
from repartir.ledger import name_of
from repartir.limits import Limits
from repartir.policy import NO_POLICY, Policy
from repartir.progress import Reporter, Told, reporter
from repartir.stats import ExecutorStats, shared_bytes
from repartir.streams import Seeded, Seedlike, in_stream, no_stream

P = ParamSpec("P")
T = TypeVar("T")


class Running(NamedTuple):
    """That a serial executor runs a task, in which process (a fork has it too), what its initializer returned, and at which
    of the task's attempts it is."""

    member: worker.Worker | None
    state: Any
    attempt: int


running_in: ContextVar[Running | None] = ContextVar("running", default=None)


class SerialExecutor(concurrent.futures.Executor):
    """Runs every call at once, in the calling thread; nothing is pickled.

    Takes the arguments and options of ``Executor``; those that concern processes, such as time-outs, have no effect.
    """

    _executor: SerialExecutor | None = None
    """The one whose options these are."""

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        name: str | None = None,
        out_of_band: int | str | None = None,
        shm_limit: int | str | None = None,
        shm_timeout: float | None = None,
        max_rss_growth: int | str | None = None,
        address_space_limit: int | str | None = None,
        forward_logs: bool = True,
        threads_per_worker: int | str | None = AUTO,
        pin: bool = False,
        **options: Any,
    ) -> None:
        share_of_cores(threads_per_worker, pin, workers=1, cores=1)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self.name = name
        self._shut = False
        self._policy = _changed(NO_POLICY, "SerialExecutor", options)
        self._limits = Limits()
        self._worker_state = None if initializer is None else initializer(*initargs)

    def __repr__(self) -> str:
        return f"<SerialExecutor{' shut down' if self._shut else ''}>"

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call ``fn`` now; the future that comes back is done."""
        self._check_open()
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        try:
            value = self._call(fn, args, kwargs)
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # noqa: BLE001 - the future carries all that a task raises
            future.set_exception(exc)
        else:
            future.set_result(value)
        return future

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
        """Results of ``fn`` over the items in order, each computed when it is asked for.

        The items are taken at the call; with ``buffersize`` only so many chunks, and then one item for each result.
        """
        self._check_open()
        mapping.check_arguments(chunksize, buffersize)
        mapping.check_reduce(reduce, chunksize, buffersize, return_exceptions=return_exceptions)
        until = mapping.deadline(timeout)
        results = self._results(
            fn, iterables, until, chunksize, buffersize, progress, return_exceptions=return_exceptions
        )
        return results if reduce is None else mapping.fold(reduce, results)

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
        # A generator, since an exhausted zip would take more of its longer iterables when asked again.
        items = (args for args in zip(*iterables, strict=False))
        ahead = None if buffersize is None else min(buffersize * (chunksize or 1), sys.maxsize)
        taken = deque(itertools.islice(items, ahead))
        shown = reporter(progress, self._policy.name or name_of(fn), len(taken) if ahead is None else None)
        return self._each(fn, taken, items, until, shown, return_exceptions=return_exceptions)

    def map_unordered(self, fn: Callable[..., T], *iterables: Iterable[Any], **options: Any) -> Iterator[T]:
        """As `map`: nothing comes out of order."""
        return self.map(fn, *iterables, **options)  # type: ignore[no-any-return]

    def starmap(self, fn: Callable[..., T], iterable: Iterable[Iterable[Any]], **options: Any) -> Iterator[T]:
        """As `map`, over tuples of arguments."""
        return self.map(functools.partial(_apply, fn), iterable, **options)  # type: ignore[no-any-return]

    def map_seeded(
        self, fn: Callable[..., T], items: Iterable[Any], *, seed: Seedlike = None, **options: Any
    ) -> Any:
        """As `Executor.map_seeded`: the same bits."""
        return self.map(Seeded(fn, seed), itertools.count(), items, **options)

    def options(self, **options: Any) -> SerialExecutor:
        """As `Executor.options`: failed calls are tried again, in place; a call cannot be stopped, sent away, held back."""
        changed = copy.copy(self)
        changed._executor = self
        changed._policy = _changed(self._policy, "SerialExecutor.options", options)
        if changed._policy.limit is not None:
            changed._admit(changed._policy.limit)
        return changed

    async def asubmit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `Executor.asubmit`; the call holds up the event loop."""
        return self.submit(fn, *args, **kwargs).result()

    def amap(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> AsyncGenerator[T, None]:
        """As `Executor.amap`, each result computed when it is asked for; the call holds up the event loop."""
        from repartir import aio

        self._check_open()
        mapping.check_arguments(chunksize, buffersize)
        if any(isinstance(each, AsyncIterable) for each in iterables):
            return aio.each(lambda args: self._call(fn, args, {}), aio.zipped(iterables))
        return aio.given(self.map(fn, *iterables, chunksize=chunksize, buffersize=buffersize))  # type: ignore[arg-type]

    def run_on_all(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """As `Executor.run_on_all`: one call, here."""
        return mapping.of_all_workers([self.submit(fn, *args, **kwargs)])

    def share(self, value: Any, *, writable: bool = False) -> Any:
        """As `Executor.share`: for any executor."""
        return share(value, writable=writable)

    def stats(self) -> ExecutorStats:
        """As `Executor.stats`: nothing runs elsewhere, and only what was shared takes shared memory."""
        return ExecutorStats(shared_bytes=shared_bytes())

    def dump_stacks(self, file: TextIO | None = None) -> None:
        """As `Executor.dump_stacks`: the stacks of this process, in whose threads the calls run."""
        (sys.stderr if file is None else file).write(stacks.told_of_client())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; none is ever pending.  What `options` returned ends nothing."""
        if self._executor is None:
            self._shut = True

    def terminate_workers(self) -> None:
        """Take no more calls; there are no workers."""
        self.shutdown()

    def kill_workers(self) -> None:
        """Take no more calls; there are no workers."""
        self.shutdown()

    def _admit(self, limit: tuple[str, int]) -> None:
        self._limits.admit(limit)

    def _check_open(self) -> None:
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self._executor is not None:
            self._executor._check_open()

    def _call(self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        policy = self._policy
        for failures in itertools.count(1):
            token = running_in.set(self._running(failures))
            try:
                if in_stream():
                    with no_stream():
                        return call(fn, args, kwargs)
                return call(fn, args, kwargs)
            except KeyboardInterrupt:
                raise
            except BaseException as exc:
                if not policy.retries_after(exc, failures):
                    raise
            finally:
                running_in.reset(token)
            time.sleep(policy.delay(failures, random.Random()))
        raise AssertionError("unreachable")

    def _running(self, attempt: int) -> Running | None:
        return Running(worker.current(), self._worker_state, attempt)

    def _numbered(
        self, fn: Callable[[Any], T], items: Sequence[Any]
    ) -> Generator[tuple[int, Any], None, None]:
        """As `Executor._numbered`, in order."""
        yield from enumerate(self.map(fn, items, return_exceptions=True))

    def _each(
        self,
        fn: Callable[..., T],
        taken: deque[tuple[Any, ...]],
        items: Iterator[tuple[Any, ...]],
        until: float | None,
        shown: Reporter,
        *,
        return_exceptions: bool,
    ) -> Iterator[T]:
        with shown:
            while taken:
                if until is not None and time.monotonic() > until:
                    raise TimeoutError
                try:
                    value: Any = self._call(fn, taken.popleft(), {})
                except KeyboardInterrupt:
                    raise
                except BaseException as exc:
                    if not return_exceptions:
                        raise
                    value = exc
                taken.extend(itertools.islice(items, 1))
                shown.step()
                try:
                    yield value
                finally:
                    del value  # an error, perhaps, whose traceback leads here


def _apply(fn: Callable[..., T], args: Iterable[Any]) -> T:
    return fn(*args)


def _changed(policy: Policy, what: str, options: dict[str, Any]) -> Policy:
    """The policy with these options; ``TypeError`` of ``what`` for one that there is not."""
    for name in options.keys() - {field.name for field in dataclasses.fields(Policy)}:
        raise TypeError(f"{what}() got an unexpected keyword argument {name!r}")
    return policy.changed(**options)


def call(fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    """A call whose arguments may be handles of shared objects: it gets the objects, as in a worker."""
    shared = optional.shared
    if shared is not None:
        args = tuple(map(shared.resolved, args))
        kwargs = {name: shared.resolved(value) for name, value in kwargs.items()}
    return fn(*args, **kwargs)


def share(value: Any, *, writable: bool = False) -> Any:
    """A `SharedArray` or `SharedObject` of ``value``; see `Executor.share`."""
    from repartir import shared

    if shared.is_plain_array(value):
        return shared.from_array(value, writable=writable)
    if writable:
        raise TypeError(f"only arrays can be shared writable, not {type(value).__qualname__}")
    if isinstance(value, shared.SharedObject):
        return value
    encoded = encode_value(value, what="the object to share")
    needs = encoded.keep if isinstance(encoded, Encoded) else ()
    return shared.share_object(value, parts_of(encoded), needs)


def attempt_of_task() -> int:
    """In a task: which attempt it is, from 1 on."""
    member, running = worker.current(), running_in.get()
    if running is not None and running.member is member:
        return running.attempt
    return 1 if member is None else member.attempt


def worker_state() -> Any:
    """In a task: what the executor's ``initializer`` returned in this worker, None without one.

    For what tasks share that cannot be sent or is dear to make: a model, a connection.  Elsewhere: ``RuntimeError``.
    """
    member, running = worker.current(), running_in.get()
    if running is not None and running.member is member:
        return running.state
    if member is None:
        raise RuntimeError(
            "worker_state() works in tasks only: it is what the executor's initializer returned in the worker. "
            "Call it in a function that is submitted"
        )
    return member.state
