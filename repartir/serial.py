"""The same interface in this process: for debuggers, coverage and a serial baseline."""

from __future__ import annotations

import concurrent.futures
import copy
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

from repartir import mapping, optional
from repartir.codec import Encoded, encode_value, parts_of
from repartir.future import Future
from repartir.policy import NO_POLICY
from repartir.stats import ExecutorStats, shared_bytes

P = ParamSpec("P")
T = TypeVar("T")


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
        **options: Any,
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self.name = name
        self._shut = False
        self._policy = NO_POLICY.changed(**options)
        if initializer is not None:
            initializer(*initargs)

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
    ) -> Iterator[T]:
        """Results of ``fn`` over the items in order, each computed when it is asked for.

        The items are taken at the call; with ``buffersize`` only so many chunks, and then one item for each result.
        """
        self._check_open()
        mapping.check_arguments(chunksize, buffersize)
        until = mapping.deadline(timeout)
        # A generator, since an exhausted zip would take more of its longer iterables when asked again.
        items = (args for args in zip(*iterables, strict=False))
        ahead = None if buffersize is None else buffersize * (chunksize or 1)
        return self._each(fn, deque(itertools.islice(items, ahead)), items, until)

    def options(self, **options: Any) -> SerialExecutor:
        """As `Executor.options`: failed calls are tried again, in place; a call cannot be stopped."""
        changed = copy.copy(self)
        changed._executor = self
        changed._policy = self._policy.changed(**options)
        return changed

    def share(self, value: Any, *, writable: bool = False) -> Any:
        """As `Executor.share`: for any executor."""
        return share(value, writable=writable)

    def stats(self) -> ExecutorStats:
        """As `Executor.stats`: nothing runs elsewhere, and only what was shared takes shared memory."""
        return ExecutorStats(shared_bytes=shared_bytes())

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

    def _check_open(self) -> None:
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self._executor is not None:
            self._executor._check_open()

    def _call(self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        policy = self._policy
        for failures in itertools.count(1):
            try:
                return call(fn, args, kwargs)
            except BaseException as exc:
                if not policy.retries_after(exc, failures):
                    raise
            time.sleep(policy.delay(failures, random.Random()))
        raise AssertionError("unreachable")

    def _each(
        self,
        fn: Callable[..., T],
        taken: deque[tuple[Any, ...]],
        items: Iterator[tuple[Any, ...]],
        until: float | None,
    ) -> Iterator[T]:
        while taken:
            if until is not None and time.monotonic() > until:
                raise TimeoutError
            value = self._call(fn, taken.popleft(), {})
            taken.extend(itertools.islice(items, 1))
            yield value
            del value


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
