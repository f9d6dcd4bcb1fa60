"""joblib on Repartir's workers: importing this module registers the backend "repartir".

    import joblib
    import repartir.integrations.joblib

    with joblib.parallel_config("repartir", executor=executor):
        cross_val_score(model, X, y)

Without ``executor`` all calls of one process share an executor, made when it is first needed.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from joblib import register_parallel_backend
from joblib.parallel import AutoBatchingMixin, FallbackToBackend, ParallelBackendBase, SequentialBackend

from repartir import worker
from repartir.environment import default_workers
from repartir.executor import Executor, ExecutorWithOptions
from repartir.future import Future
from repartir.serial import SerialExecutor

__all__ = ["RepartirBackend", "shutdown"]

AnyExecutor = Executor | ExecutorWithOptions | SerialExecutor
Batch = Callable[[], list[Any]]
Callback = Callable[[Future[list[Any]]], object]

_NEEDLESS = frozenset({"context", "max_nbytes", "mmap_mode", "prefer", "require", "temp_folder", "verbose"})
"""What joblib tells every backend and this one has no use for: its arrays travel in shared memory."""


def joblib_batch(batch: Batch) -> list[Any]:
    """In a worker: the calls of one batch."""
    _without_pools()
    return batch()


class _InPlace(SequentialBackend):  # type: ignore[misc]
    """What "loky" and "multiprocessing" mean in a task."""

    supports_inner_max_num_threads = True


@functools.cache
def _without_pools() -> None:
    """Pools of processes that a task would make: a forked worker hangs on what it inherits of the client's, and cannot end
    before its own have been idle for minutes."""
    for name in ("loky", "multiprocessing"):
        register_parallel_backend(name, _InPlace)


class RepartirBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Runs the batches of `joblib.Parallel` as tasks of an executor.

    Args:
        executor: the `Executor`, or what its `options` returned; None: the one that this process's calls share.

    ``n_jobs`` counts as joblib says, from the workers of ``executor`` or else the cores, and None means all.  A call with
    fewer jobs than workers has at most so many batches with the executor at a time.
    """

    supports_retrieve_callback = True
    default_n_jobs = -1
    MIN_IDEAL_BATCH_DURATION = 0.05

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        executor: AnyExecutor | None = None,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self.parallel: Any = None
        self._given = _checked(executor)
        self._n_jobs = 1
        self._call = _Call(None, 0)

    @property
    def supports_inner_max_num_threads(self) -> bool:
        """Only where the workers are the backend's own."""
        return self._given is None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many calls can run at a time: 1 inside a task, where calls run in place."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if worker.current() is not None or isinstance(self._given, SerialExecutor):
            return 1
        wanted: int = self.default_n_jobs if n_jobs is None else n_jobs
        if self._given is None:
            return wanted if wanted > 0 else max(default_workers() + 1 + wanted, 1)
        workers = self._given._max_workers
        return min(wanted, workers) if wanted > 0 else max(workers + 1 + wanted, 1)

    def configure(
        self,
        n_jobs: int | None = 1,
        parallel: Any = None,
        executor: AnyExecutor | None = None,
        **settings: Any,
    ) -> int:
        """Prepare for the calls of ``parallel`` and tell how many of its tasks run at a time."""
        if unknown := sorted(settings.keys() - _NEEDLESS):
            raise TypeError(f"the repartir backend takes executor=, not {unknown[0]}=")
        if self.parallel is not parallel:
            # Several Parallel at work at a time may have got this backend from one `parallel_config`.
            chosen = self._given if executor is None else executor
            own = type(self)(self.nesting_level, self.inner_max_num_threads, chosen)
            own.parallel = parallel
            raise FallbackToBackend(own)
        self._n_jobs = self.effective_n_jobs(n_jobs)
        if self._n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        return self._n_jobs

    def start_call(self) -> None:
        """A call of Parallel begins."""
        executor = self._given or _shared.get(self._n_jobs, self.inner_max_num_threads)
        self._call = _Call(executor, self._n_jobs)

    def submit(self, func: Batch, callback: Callback) -> None:
        """Have ``func`` called and then ``callback`` with the future: all that joblib looks at."""
        self._call.submit(func, callback)

    apply_async = submit  # its name up to joblib 1.4

    def retrieve_result_callback(self, future: Future[list[Any]]) -> list[Any]:
        """What the callback was called for."""
        return future.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Stop the batches of this call, also those that run; others of the executor go on."""
        self._call.stop()

    def stop_call(self) -> None:
        """A call of Parallel has ended."""
        self._call.stop()

    def terminate(self) -> None:
        """Forget what was learnt of the last call's batches.  The workers stay for the next."""
        self.reset_batch_stats()


class _Call:
    """The batches of one call of Parallel, at most ``limit`` of them with the executor at a time."""

    def __init__(self, executor: Any, limit: int) -> None:
        self._executor = executor
        self._limit = limit if executor is not None and limit < executor._max_workers else float("inf")
        # A garbage collection inside may finalize the generator of this call.
        self._lock = threading.RLock()
        self._placed = 0
        self._running: set[Future[list[Any]]] = set()
        self._waiting: deque[tuple[Batch, Callback]] = deque()

    def submit(self, batch: Batch, callback: Callback) -> None:
        with self._lock:
            if self._placed >= self._limit:
                self._waiting.append((batch, callback))
                return
            self._placed += 1
        self._place(batch, callback)

    def stop(self) -> None:
        """Cancel what waits and stop what runs, for good."""
        with self._lock:
            self._executor = None
            self._waiting.clear()
            running = list(self._running)
        for future in running:
            future.cancel(running=True)

    def _place(self, batch: Batch, callback: Callback) -> None:
        executor = self._executor
        if executor is None:
            return
        try:
            future: Future[list[Any]] = executor.submit(joblib_batch, batch)
        except (
            RuntimeError
        ) as exc:  # shut down or broken; raised in a callback it would leave Parallel waiting
            future = Future()
            future.set_exception(exc)
        with self._lock:
            self._running.add(future)
            stopped = self._executor is None
        if stopped:
            future.cancel(running=True)
        future.add_done_callback(functools.partial(self._done, callback))

    def _done(self, callback: Callback, future: Future[list[Any]]) -> None:
        with self._lock:
            self._running.discard(future)
            following = self._waiting.popleft() if self._waiting else None
            if following is None:
                self._placed -= 1
        if future.cancelled() or future.exception() is not None:
            callback(future)
            self.stop()  # as Parallel does, once it looks
        else:
            if following is not None:
                self._place(*following)
            callback(future)


class _Shared:
    """The executor that all calls share which bring none."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a forked child: the parent's is of no use here."""
        self._lock = threading.Lock()
        self._executor: Executor | None = None
        self._threads: int | None = None

    def get(self, workers: int, threads: int | None) -> Executor:
        """One that works, has so many workers or more, and lets libraries have ``threads`` threads a worker.

        None: a share of the cores.  One that does not suit is left to the calls that use it, and ends with the last.
        """
        with self._lock:
            executor = self._executor
            if (
                executor is None
                or executor._broker.closing
                or executor._broker.broken is not None
                or executor._max_workers < workers
                or self._threads != threads
            ):
                self._executor = None
                executor = Executor(workers, threads_per_worker=threads or "auto", name="joblib")
                self._executor, self._threads = executor, threads
            return executor

    def shutdown(self) -> None:
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()


def shutdown() -> None:
    """End the executor that calls share which bring none, when its tasks are done.  The next such call makes another."""
    _shared.shutdown()


def _checked(executor: Any) -> AnyExecutor | None:
    if executor is not None and not isinstance(executor, AnyExecutor):
        raise TypeError(f"executor must be a repartir.Executor, not {type(executor).__name__}")
    return executor


_shared = _Shared()
os.register_at_fork(after_in_child=_shared.forget)
register_parallel_backend("repartir", RepartirBackend)
