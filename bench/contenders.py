"""One face for the executors under test: open a pool, submit, take a result, map, close.

`Pool.submit` and `Pool.take` are the library's own bound methods wherever it has them with this shape, so
that no adapter is timed with the library.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import multiprocessing
import operator
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

OURS = "repartir"
STDLIB = "stdlib"
RAY_STORE_BYTES = 1 << 30


def _itself(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class Pool:
    """An open pool.  `map(fn, items, chunksize)` returns when all is done; None: the default size.

    `share(value)` is what to give to many tasks in place of the value, by the library's own means.
    """

    submit: Callable[..., Any]
    take: Callable[[Any], Any]
    map: Callable[[Callable[[Any], Any], Sequence[Any], int | None], None]
    share: Callable[[Any], Any] = _itself


@dataclass(frozen=True, slots=True)
class Contender:
    """A library: the module that must be importable for it to run, and how to open a pool of n workers."""

    name: str
    module: str
    open: Callable[[int], AbstractContextManager[Pool]]

    @property
    def installed(self) -> bool:
        try:
            return importlib.util.find_spec(self.module) is not None
        except ModuleNotFoundError:
            return False


def _futures_pool(executor: Any, share: Callable[[Any], Any] = _itself) -> Pool:
    def map_all(fn: Callable[[Any], Any], items: Sequence[Any], chunksize: int | None) -> None:
        chosen = {} if chunksize is None else {"chunksize": chunksize}
        for _ in executor.map(fn, items, **chosen):
            pass

    return Pool(executor.submit, operator.methodcaller("result"), map_all, share)


@contextmanager
def _open_ours(workers: int) -> Iterator[Pool]:
    executor_class = importlib.import_module("repartir").Executor
    with executor_class(workers, multiprocessing.get_context("fork")) as executor:
        yield _futures_pool(executor, executor.share)


@contextmanager
def _open_stdlib(workers: int) -> Iterator[Pool]:
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as executor:
        yield _futures_pool(executor)


@contextmanager
def _open_loky(workers: int) -> Iterator[Pool]:
    executor = importlib.import_module("loky").ProcessPoolExecutor(workers)
    try:
        yield _futures_pool(executor)
    finally:
        executor.shutdown(wait=True)


@contextmanager
def _open_pebble(workers: int) -> Iterator[Pool]:
    pool = importlib.import_module("pebble").ProcessPool(workers, context=multiprocessing.get_context("fork"))

    def submit(fn: Callable[..., Any], *args: Any) -> Any:
        return pool.submit(fn, None, *args)

    def map_all(fn: Callable[[Any], Any], items: Sequence[Any], chunksize: int | None) -> None:
        chosen = {} if chunksize is None else {"chunksize": chunksize}
        for _ in pool.map(fn, items, **chosen).result():
            pass

    try:
        yield Pool(submit, operator.methodcaller("result"), map_all)
    finally:
        pool.close()
        pool.join()


@contextmanager
def _open_mpire(workers: int) -> Iterator[Pool]:
    pool = importlib.import_module("mpire").WorkerPool(workers, start_method="fork", keep_alive=True)

    def submit(fn: Callable[..., Any], *args: Any) -> Any:
        return pool.apply_async(fn, args)

    def map_all(fn: Callable[[Any], Any], items: Sequence[Any], chunksize: int | None) -> None:
        pool.map(fn, items, chunk_size=chunksize)

    try:
        yield Pool(submit, operator.methodcaller("get"), map_all)
    finally:
        pool.stop_and_join()


@contextmanager
def _open_joblib(workers: int) -> Iterator[Pool]:
    """joblib has no futures: a call that was submitted runs when its result is taken."""
    joblib = importlib.import_module("joblib")
    with joblib.Parallel(n_jobs=workers) as parallel:

        def map_all(fn: Callable[[Any], Any], items: Sequence[Any], chunksize: int | None) -> None:
            call = joblib.delayed(fn)
            parallel(call(item) for item in items)

        yield Pool(lambda fn, *args: joblib.delayed(fn)(*args), lambda call: parallel([call])[0], map_all)


@contextmanager
def _open_ray(workers: int) -> Iterator[Pool]:
    ray = importlib.import_module("ray")
    remote = functools.cache(ray.remote)

    def map_all(fn: Callable[[Any], Any], items: Sequence[Any], chunksize: int | None) -> None:
        ray.get([remote(fn).remote(item) for item in items])

    ray.init(
        num_cpus=workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=RAY_STORE_BYTES,
    )
    try:
        yield Pool(lambda fn, *args: remote(fn).remote(*args), ray.get, map_all, ray.put)
    finally:
        ray.shutdown()


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(OURS, "repartir.executor", _open_ours),
        Contender(STDLIB, "concurrent.futures", _open_stdlib),
        Contender("loky", "loky", _open_loky),
        Contender("pebble", "pebble", _open_pebble),
        Contender("mpire", "mpire", _open_mpire),
    )
}

ARRAY_CONTENDERS = {
    **CONTENDERS,
    "joblib": Contender("joblib", "joblib", _open_joblib),
    "ray": Contender("ray", "ray", _open_ray),
}
"""The same, and what moves large arrays through files or shared memory."""
