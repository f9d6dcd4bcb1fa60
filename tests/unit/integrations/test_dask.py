"""An executor as dask's scheduler: nothing but `dask.config.set(scheduler=executor)`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

dask = pytest.importorskip("dask")
array = pytest.importorskip("dask.array")
bag = pytest.importorskip("dask.bag")

from repartir import Executor, SerialExecutor, TaskTimeout, WorkerDied  # noqa: E402


@pytest.fixture
def ex() -> Iterator[Executor]:
    with Executor(2, "fork") as executor:
        yield executor


def own_pid(_item: object) -> int:
    return os.getpid()


def forever(_item: object) -> None:
    while True:
        pass


def test_an_array(ex: Executor) -> None:
    numbers = np.arange(250_000, dtype=float).reshape(500, 500)
    with dask.config.set(scheduler=ex):
        blocks = array.from_array(numbers, chunks=(100, 250))
        assert (blocks @ blocks.T).sum().compute() == pytest.approx((numbers @ numbers.T).sum())
        assert ((blocks - blocks.mean(axis=0)) ** 2).max().compute() == pytest.approx(
            ((numbers - numbers.mean(axis=0)) ** 2).max()
        )
    assert ex.stats().queued == 0


def test_a_bag(ex: Executor) -> None:
    with dask.config.set(scheduler=ex):
        words = bag.from_sequence(["one", "two", "three", "two"] * 50, npartitions=8)
        assert dict(words.frequencies().compute()) == {"one": 50, "two": 100, "three": 50}
        evens = bag.range(1000, npartitions=10).filter(lambda n: n % 2 == 0)
        assert evens.map(lambda n: n * n).sum().compute() == sum(n * n for n in range(0, 1000, 2))


def test_it_runs_in_the_workers(ex: Executor) -> None:
    with dask.config.set(scheduler=ex):
        pids = set(bag.from_sequence(range(20), npartitions=10).map(own_pid).compute())
    assert pids <= {int(ex._broker.board.words[row.pid]) for row in ex._broker.board.rows}


def test_a_scheduler_for_one_computation(ex: Executor) -> None:
    assert dask.delayed(pow)(dask.delayed(sum)([1, 2]), 4).compute(scheduler=ex) == 81


def test_in_place() -> None:
    with dask.config.set(scheduler=SerialExecutor()):
        assert set(bag.from_sequence(range(4)).map(own_pid).compute()) == {os.getpid()}


def test_an_exception_and_a_death_are_the_computation_s(ex: Executor) -> None:
    with dask.config.set(scheduler=ex):
        with pytest.raises(ZeroDivisionError):
            bag.from_sequence([1, 0], npartitions=2).map(lambda n: 1 / n).compute()
        with pytest.raises(WorkerDied):
            bag.from_sequence([3], npartitions=1).map(os._exit).compute()
        assert bag.from_sequence([1, 2], npartitions=2).sum().compute() == 3


def test_options_hold_for_its_tasks(ex: Executor) -> None:
    with dask.config.set(scheduler=ex.options(timeout=0.1)), pytest.raises(TaskTimeout):
        bag.from_sequence([1], npartitions=1).map(forever).compute()
