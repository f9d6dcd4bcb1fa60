"""All that a long night brings, for minutes or an hour: arrays, errors, deaths, time-outs, retries, stopping what runs,
sweeps.

Each task settles with what it must.  After a warm-up nothing grows: descriptors, threads, processes, resident memory of the
client, shared memory.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import repartir
from repartir.residence import own_bytes

LIMIT_S = 60.0
WARM_UP = 0.25
GROWTH_BYTES = 24 << 20


def double(array: Any) -> Any:
    array *= 2
    return array


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(n: int) -> None:
    raise KeyError(n)


def sometimes(seed: int) -> int:
    """Fails, dies or succeeds, by chance of its own."""
    chance = random.random()
    if chance < 0.3:
        raise ValueError(seed)
    if chance < 0.35:
        die()
    return seed


def tree(depth: int) -> int:
    """As many leaves as a binary tree has, half of them children's."""
    if depth == 0:
        return 1
    child = repartir.current_executor().submit(tree, depth - 1)
    return tree(depth - 1) + child.result()


def uniform(rng: np.random.Generator, n: int) -> Any:
    return rng.random(n)


def dies_or_not(n: int) -> int:
    if n % 50 == 7:
        die()
    return tree(2) + n if n % 10 == 0 else n


class Look(NamedTuple):
    descriptors: int
    threads: int
    processes: int
    own: int
    backed: int


def look(ex: Any) -> Look:
    gc.collect()
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        children = len(file.read().split())
    return Look(
        len(os.listdir("/proc/self/fd")),
        threading.active_count(),
        children,
        own_bytes(os.getpid()),
        ex.stats().backed_bytes,
    )


def arrays(ex: Any, rng: random.Random) -> None:
    sizes = [rng.choice((10, 1_000, 20_000, 200_000)) for _ in range(20)]
    futures = [ex.submit(double, np.full(size, 1.5)) for size in sizes]
    for size, future in zip(sizes, futures, strict=True):
        result = future.result(LIMIT_S)
        assert result.shape == (size,)
        assert result[0] == result[-1] == 3.0


def shared(ex: Any, rng: random.Random) -> None:
    with ex.share(np.arange(100_000.0)) as array:
        futures = [ex.submit(np.sum, array[n:]) for n in range(10)]
        assert [future.result(LIMIT_S) for future in futures] == [array[n:].sum() for n in range(10)]


def many(ex: Any, rng: random.Random) -> None:
    count = rng.randrange(1, 3_000)
    assert list(ex.map(abs, range(-count, 0))) == list(range(count, 0, -1))


def nested(ex: Any, rng: random.Random) -> None:
    futures = [ex.submit(tree, rng.randrange(1, 6)) for _ in range(5)]
    assert all(future.result(LIMIT_S) in (2, 4, 8, 16, 32) for future in futures)
    assert ex.run_on_all(abs, -1) == [1, 1]


def maps(ex: Any, rng: random.Random) -> None:
    """Each item has one outcome, whatever dies in others, and whoever submits from one."""
    count = rng.randrange(1, 120)
    results = list(ex.map(dies_or_not, range(count), return_exceptions=True))
    expected = [n + 4 * (n % 10 == 0) for n in range(count)]
    assert [n for n in range(count) if isinstance(results[n], repartir.WorkerDied)] == list(
        range(7, count, 50)
    )
    assert all(result == expected[n] for n, result in enumerate(results) if n % 50 != 7)
    assert ex.map(abs, range(1000), reduce=max) == 999
    early = ex.map(time.sleep, [0.001] * 1000)
    next(early)
    early.close()


def errors(ex: Any, rng: random.Random) -> None:
    for n, future in enumerate([ex.submit(fail, n) for n in range(20)]):
        assert future.exception(LIMIT_S).args == (n,)


def deaths(ex: Any, rng: random.Random) -> None:
    doomed = ex.submit(die)
    behind = [ex.submit(pow, n, 2) for n in range(20)]
    assert type(doomed.exception(LIMIT_S)) is repartir.WorkerDied
    assert [future.result(LIMIT_S) for future in behind] == [n * n for n in range(20)]


def time_outs(ex: Any, rng: random.Random) -> None:
    limited = ex.options(timeout=0.05)
    slow, quick = limited.submit(time.sleep, 30), [limited.submit(pow, n, 2) for n in range(10)]
    assert isinstance(slow.exception(LIMIT_S), repartir.TaskTimeout)
    assert [future.result(LIMIT_S) for future in quick] == [n * n for n in range(10)]


def retries(ex: Any, rng: random.Random) -> None:
    again = ex.options(retries=40, backoff=0, poison_limit=None)
    assert list(again.map(sometimes, range(20))) == list(range(20))


def stops(ex: Any, rng: random.Random) -> None:
    futures = [ex.submit(time.sleep, 30) for _ in range(4)]
    time.sleep(rng.random() * 0.02)
    for future in futures:
        while not future.cancel(running=True):
            time.sleep(0.001)
    assert all(future.cancelled() for future in futures)


def sweeps(ex: Any, rng: random.Random) -> None:
    """Rows that die cost themselves; what is random does not depend on who computes."""
    count = rng.randrange(1, 60)
    found = repartir.sweep(dies_or_not, repartir.grid(n=range(count)), executor=ex, on_error="keep")
    assert [row.result for row in found] == [
        None if n % 50 == 7 else n + 4 * (n % 10 == 0) for n in range(count)
    ]
    samples = rng.randrange(1, 200_000)
    estimates = [
        repartir.monte_carlo(uniform, samples, seed=7, executor=each)
        for each in (ex, repartir.SerialExecutor())
    ]
    assert estimates[0].mean == estimates[1].mean


def own_executor(ex: Any, rng: random.Random) -> None:
    with repartir.Executor(2, "fork") as other:
        assert other.submit(pow, 2, 5).result(LIMIT_S) == 32


SCENES: tuple[Callable[[Any, random.Random], None], ...] = (
    arrays,
    shared,
    many,
    nested,
    maps,
    errors,
    deaths,
    time_outs,
    retries,
    stops,
    sweeps,
    own_executor,
)


def mix(seconds: float, seed: int) -> None:
    rng, began = random.Random(seed), time.monotonic()
    with repartir.Executor(2, "fork") as ex:
        before = None
        while (passed := time.monotonic() - began) < seconds:
            for scene in rng.sample(SCENES, len(SCENES)):
                scene(ex, rng)
            if before is None and passed > WARM_UP * seconds:
                before = look(ex)
        ex.submit(pow, 2, 5).result(LIMIT_S)
        assert before is not None
        deadline = time.monotonic() + LIMIT_S
        while (after := look(ex))[:3] != before[:3] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert after[:3] == before[:3], (before, after)
        assert after.own < before.own + GROWTH_BYTES, (before, after)
        assert after.backed < before.backed + GROWTH_BYTES, (before, after)
        while ex.stats().running and time.monotonic() < deadline:
            time.sleep(0.01)  # a worker lets go of a task after its answer, or with its end
        assert ex.stats().queued == ex.stats().running == 0


def test_for_seconds() -> None:
    mix(1.0, 1)


@pytest.mark.soak
def test_for_two_minutes() -> None:
    mix(120.0, 2)


@pytest.mark.soak
def test_for_an_hour() -> None:
    mix(3600.0, 3)
