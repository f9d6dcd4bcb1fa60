"""Never run: mypy --strict checks that what users write is typed as they expect."""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

import numpy as np

import repartir
from repartir import (
    Estimate,
    Executor,
    Future,
    PoisonTask,
    Priority,
    RepartirError,
    SerialExecutor,
    SharedArray,
    SharedMemoryFull,
    SweepResult,
    SweepRow,
    TaskNotSerializable,
    WorkerDied,
    current_executor,
    grid,
    halving,
    latin_hypercube,
    monte_carlo,
    rng,
    sampled,
    shared,
    sweep,
    task_rng,
    worker_state,
    zipped,
)
from repartir.compat import AsyncResult, Pool


def double(value: int) -> float:
    return 2.0 * value


def join(left: str, right: str, *, times: int = 1) -> str:
    return (left + right) * times


def prepare(path: str, size: int) -> None: ...


def submit() -> None:
    with Executor() as executor:
        assert_type(executor, Executor)
        assert_type(executor.submit(double, 1), Future[float])
        assert_type(executor.submit(double, 1).result(timeout=1.5), float)
        assert_type(executor.submit(join, "a", "b", times=2).result(), str)
        executor.submit(double, "one")  # type: ignore[arg-type]
        executor.submit(join, "a")  # type: ignore[call-arg]


def every_argument() -> None:
    Executor(
        4,
        multiprocessing.get_context("spawn"),
        prepare,
        ("path", 1),
        max_tasks_per_child=100,
    ).shutdown(wait=False, cancel_futures=True)


def shared_arrays(executor: Executor) -> None:
    with shared.from_array([1, 2], writable=True) as array:
        assert_type(array, SharedArray)
        executor.submit(double, array[0])
    assert_type(shared.zeros((2, 3), "f4", order="F"), SharedArray)
    assert_type(shared.full(3, 1.5), SharedArray)
    with executor.share({"a": 1}) as index:
        executor.submit(len, index)


def workers(executor: Executor, serial: SerialExecutor) -> None:
    Executor(2, threads_per_worker=2, pin=True).shutdown()
    assert_type(executor.run_on_all(double, 1), list[float])
    assert_type(serial.run_on_all(join, "a", "b", times=2), list[str])
    assert_type(executor.options(worker=1).submit(double, 1), Future[float])
    executor.run_on_all(double, "one")  # type: ignore[arg-type]
    assert worker_state() is None


def priorities(executor: Executor) -> None:
    assert_type(executor.options(priority=Priority.HIGH).submit(double, 1), Future[float])
    assert_type(executor.options(priority="low", limit=("licence", 2)).map(double, [1]), Iterator[float])
    executor.options(limit=("licence", "two"))  # type: ignore[arg-type]


def maps(executor: Executor) -> None:
    assert_type(executor.map(double, [1, 2]), Iterator[float])
    assert_type(executor.map(join, ["a"], ["b"], timeout=1.5, chunksize=3, buffersize=10), Iterator[str])


def noisy(value: int, rng: np.random.Generator) -> float:
    return value + rng.standard_normal()


def uniform(rng: np.random.Generator, n: int) -> Any:
    return rng.random(n)


def streams(executor: Executor, serial: SerialExecutor) -> None:
    assert_type(rng(7, 1), np.random.Generator)
    assert_type(rng([1, 2]), np.random.Generator)
    assert_type(task_rng(), np.random.Generator)
    assert_type(executor.map_seeded(noisy, [1, 2], seed=np.random.SeedSequence(7)), Iterator[float])
    assert_type(executor.options(retries=1).map_seeded(noisy, [1], seed=7, reduce=max), float)
    serial.map_seeded(noisy, [1, 2], seed=7)
    executor.map_seeded(noisy, [1, 2], seed="seven")  # type: ignore[arg-type]


def estimates(executor: Executor) -> None:
    est = monte_carlo(uniform, 1000, seed=7, executor=executor, quantiles=[0.5], histogram=(10, (0, 1)))
    assert_type(est, Estimate)
    assert_type(est.samples, int)
    assert_type(est["call"], Estimate)
    monte_carlo(uniform, tol=0.1, control={"spot": 100.0})
    monte_carlo(uniform, "many")  # type: ignore[arg-type]


def is_a_standard_executor(executor: Executor, serial: SerialExecutor) -> None:
    standard: list[concurrent.futures.Executor] = [executor, serial]
    futures: list[concurrent.futures.Future[float]] = [executor.submit(double, 1), serial.submit(double, 1)]
    done, _ = concurrent.futures.wait(futures)
    assert_type(done, set[concurrent.futures.Future[float]])
    assert standard


async def coming() -> AsyncIterator[str]:
    yield "a"


async def with_asyncio(executor: Executor, serial: SerialExecutor) -> None:
    loop = asyncio.get_running_loop()
    assert_type(await loop.run_in_executor(executor, double, 1), float)
    assert_type(await asyncio.wrap_future(executor.submit(double, 1)), float)
    assert_type(await executor.asubmit(double, 1), float)
    assert_type(await serial.asubmit(join, "a", "b", times=2), str)
    assert_type(await executor.options(timeout=3).asubmit(double, 1), float)
    await executor.asubmit(double, "one")  # type: ignore[arg-type]
    async for value in executor.amap(double, [1, 2], buffersize=3):
        assert_type(value, float)
    assert_type([text async for text in serial.amap(join, coming(), ["b"], chunksize=2)], list[str])


def sweeps(executor: Executor) -> None:
    space = grid(lr=[0.1, 1], model={"a": double}) * zipped(n=[1, 2]) + sampled(3, lr=[1]) * latin_hypercube(
        2, n=[1]
    )
    found = sweep(
        double, space, repeats=2, seed=[1, 2], executor=executor.options(timeout=3), on_error="keep"
    )
    assert_type(found, SweepResult)
    assert_type(found.rows, tuple[SweepRow, ...])
    assert_type(found.best("loss", mode="max").mean, float)
    assert_type([row.seconds for row in found], list[float])
    sweep(double, [{"value": 1}], executor=SerialExecutor(), journal="run.db", rungs=halving("n", [1, 2]))


def pools() -> None:
    with Pool(2, prepare, ("path", 1), maxtasksperchild=5) as pool:
        assert_type(pool.apply(double, (1,)), float)
        assert_type(pool.map(double, [1, 2], chunksize=2), list[float])
        assert_type(pool.starmap_async(join, [("a", "b")]).get(timeout=1), list[str])
        assert_type(pool.apply_async(double, (1,), callback=print), AsyncResult[float])


def stop(executor: Executor) -> None:
    executor.terminate_workers()
    executor.kill_workers()


def errors(future: Future[int]) -> int | None:
    try:
        return future.result()
    except PoisonTask as error:
        assert_type(error.signal, int | None)
    except WorkerDied as error:
        assert_type(error.exit_code, int | None)
    except (TaskNotSerializable, SharedMemoryFull, RepartirError):
        return None
    return None


def resume(step: int) -> object:
    repartir.checkpoint({"step": step})
    return repartir.restored()


def nested() -> concurrent.futures.Executor:
    return current_executor()


assert_type(repartir.__version__, str)
