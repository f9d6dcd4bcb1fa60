"""The constructor: what it takes, and the stdlib's exceptions for what it does not."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import groupby
from typing import Any

import pytest

from . import tasks
from .conftest import Make
from .kinds import Kind, every_start, only_fork, processes, workers
from .sync import LIMIT_S, BellKeeper, GateKeeper


@processes
@pytest.mark.parametrize("count", [0, -1])
def test_max_workers_below_one(make: Make, count: int) -> None:
    with pytest.raises(ValueError, match=r"^max_workers must be greater than 0$"):
        make(count)


@processes
@pytest.mark.parametrize("count", [1.5, 2.0, "2", [2], {}])
def test_max_workers_of_another_type(make: Make, count: Any) -> None:
    with pytest.raises(TypeError):
        make(count)


@only_fork
@pytest.mark.parametrize(
    "arguments",
    [
        *({"max_workers": value} for value in (0, -1, False, 1.5, 2.0, float("nan"), "2", [2], 2j)),
        *({"initializer": value} for value in (5, "text", ())),
        *({"max_tasks_per_child": value} for value in (0, -1, False, 1.5, "2", [])),
    ],
    ids=str,
)
def test_wrong_arguments_raise_what_the_stdlib_raises(kind: Kind, arguments: dict[str, Any]) -> None:
    """The same type with the same text."""
    arguments = {"max_workers": 1, "mp_context": multiprocessing.get_context("spawn")} | arguments
    with pytest.raises((TypeError, ValueError)) as theirs:
        ProcessPoolExecutor(**arguments)
    with pytest.raises(theirs.type) as ours:
        from repartir import Executor

        Executor(**arguments)
    assert (type(ours.value), str(ours.value)) == (type(theirs.value), str(theirs.value))


@only_fork
def test_true_workers_are_one_as_in_the_stdlib(make: Make, bell: BellKeeper, gate: GateKeeper) -> None:
    ex = make(True)
    assert _side_by_side(ex, bell, gate) == 1
    ex.shutdown()


@only_fork
@pytest.mark.parametrize("count", [1025, 100_000, 10**20])
def test_more_workers_than_can_be(make: Make, count: int) -> None:
    with pytest.raises(ValueError, match=r"^max_workers must be <= 1024$"):
        make(count)


@only_fork
@pytest.mark.parametrize("context", [5, object(), ["fork"]])
def test_something_that_is_no_context(kind: Kind, context: Any) -> None:
    """The stdlib says that it has no attribute `get_start_method`."""
    from repartir import Executor

    with pytest.raises(TypeError, match="mp_context must be a multiprocessing context"):
        Executor(1, context)


@workers
def test_initargs_that_cannot_be_unpacked_break_the_pool(make: Make) -> None:
    ex = make(1, initializer=tasks.initialise, initargs=5)
    with pytest.raises(BrokenProcessPool):
        ex.submit(pow, 2, 2).result(LIMIT_S)


@processes
def test_an_initializer_that_cannot_be_called(make: Make) -> None:
    with pytest.raises(TypeError, match=r"^initializer must be a callable$"):
        make(1, initializer="text")


@workers
@pytest.mark.parametrize("count", [0, -1])
def test_max_tasks_per_child_below_one(make: Make, count: int) -> None:
    with pytest.raises(ValueError, match=r"^max_tasks_per_child must be >= 1$"):
        make(1, max_tasks_per_child=count)


@workers
@pytest.mark.parametrize("count", ["2", 2.0])
def test_max_tasks_per_child_of_another_type(make: Make, count: Any) -> None:
    with pytest.raises(TypeError, match=r"^max_tasks_per_child must be an integer$"):
        make(1, max_tasks_per_child=count)


@processes
def test_an_unknown_option(make: Make) -> None:
    with pytest.raises(TypeError, match="no_such_option"):
        make(1, no_such_option=1)


@only_fork
def test_a_wrong_argument_leaves_no_process(kind: Kind) -> None:
    """The guard around every test looks for it; here nothing else is made that could hide it."""
    with pytest.raises(ValueError, match="max_workers"):
        kind.make(0)


@only_fork
def test_positional_order_is_the_stdlibs(kind: Kind) -> None:
    from repartir import Executor

    with Executor(1, multiprocessing.get_context("fork"), tasks.initialise, ("given",)) as ex:
        assert ex.submit(tasks.get_initialised).result(LIMIT_S) == ["given"]


class TestInitializer:
    @every_start
    @processes
    def test_runs_in_every_worker_before_its_first_task(
        self, make: Make, bell: BellKeeper, gate: GateKeeper
    ) -> None:
        ex = make(2, initializer=tasks.initialise, initargs=({"a": 1},))
        futures = [ex.submit(_initialised_pid, bell.bell, gate.gate) for _ in range(2)]
        bell.hear(), bell.hear()
        gate.open()
        results = [f.result(LIMIT_S) for f in futures]
        ex.shutdown()
        assert len({pid for pid, _ in results}) == 2
        assert [values for _, values in results] == [[{"a": 1}], [{"a": 1}]]

    @processes
    def test_runs_once_in_a_worker(self, make: Make) -> None:
        with make(1, initializer=tasks.initialise, initargs=(5,)) as ex:
            assert [ex.submit(tasks.get_initialised).result(LIMIT_S) for _ in range(5)] == [[5]] * 5

    @workers
    def test_may_be_a_lambda_with_any_arguments(self, make: Make) -> None:
        with make(1, initializer=lambda value: tasks.initialise(value()), initargs=(lambda: 7,)) as ex:
            assert ex.submit(tasks.get_initialised).result(LIMIT_S) == [7]


def _initialised_pid(bell: Any, gate: Any) -> tuple[int, list[Any]]:
    bell.ring()
    gate.wait()
    return os.getpid(), tasks.get_initialised()


class TestMaxTasksPerChild:
    """The stdlib refuses it with fork; here it works with every start method."""

    @every_start
    @workers
    def test_a_worker_ends_after_so_many_tasks(self, make: Make) -> None:
        with make(1, max_tasks_per_child=3) as ex:
            pids = [ex.submit(tasks.pid).result(LIMIT_S) for _ in range(9)]
        assert [len(list(group)) for _, group in groupby(pids)] == [3, 3, 3]

    @workers
    def test_with_a_backlog_all_tasks_are_done(self, make: Make) -> None:
        with make(2, max_tasks_per_child=5) as ex:
            pids = [f.result(LIMIT_S) for f in [ex.submit(tasks.pid) for _ in range(50)]]
        assert max(Counter(pids).values()) <= 5

    @workers
    def test_tasks_that_fail_count(self, make: Make) -> None:
        with make(1, max_tasks_per_child=2) as ex:
            first = ex.submit(tasks.pid).result(LIMIT_S)
            ex.submit(tasks.fail, "counted").exception(LIMIT_S)
            assert ex.submit(tasks.pid).result(LIMIT_S) != first

    @workers
    def test_the_next_worker_is_initialised(self, make: Make) -> None:
        with make(1, max_tasks_per_child=1, initializer=tasks.initialise, initargs=(5,)) as ex:
            assert [ex.submit(tasks.get_initialised).result(LIMIT_S) for _ in range(3)] == [[5]] * 3


class TestContext:
    """These tests choose the start method themselves, so they run once, not for each kind."""

    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_may_be_a_name(self, method: str) -> None:
        from repartir import Executor

        with Executor(1, mp_context=method) as ex:
            assert ex.submit(pow, 2, 5).result(LIMIT_S) == 32

    def test_an_unknown_name(self) -> None:
        from repartir import Executor

        with pytest.raises(ValueError, match="nosuch"):
            Executor(1, mp_context="nosuch")

    def test_defaults_to_fork_on_linux(self) -> None:
        from repartir import Executor

        marker = tasks.initialised
        marker.append("inherited")
        try:
            with Executor(1) as ex:
                assert ex.submit(tasks.get_initialised).result(LIMIT_S) == ["inherited"]
        finally:
            marker.clear()


class TestWorkerCount:
    """max_workers=None: the cores that this process may use. Measured by how many tasks run side by side."""

    @pytest.fixture
    def one_core(self) -> Iterator[None]:
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
        yield
        os.sched_setaffinity(0, cores)

    @only_fork
    def test_one_core_by_affinity(
        self, one_core: None, make: Make, bell: BellKeeper, gate: GateKeeper
    ) -> None:
        ex = make(None)
        assert _side_by_side(ex, bell, gate) == 1
        ex.shutdown()

    @only_fork
    def test_the_environment_decides_below_arguments(
        self, make: Make, bell: BellKeeper, gate: GateKeeper, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REPARTIR_MAX_WORKERS", "3")
        ex = make(None)
        assert _side_by_side(ex, bell, gate) == 3
        ex.shutdown()

    @only_fork
    def test_arguments_decide_above_the_environment(
        self, make: Make, bell: BellKeeper, gate: GateKeeper, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REPARTIR_MAX_WORKERS", "3")
        ex = make(1)
        assert _side_by_side(ex, bell, gate) == 1
        ex.shutdown()


def _side_by_side(ex: Any, bell: BellKeeper, gate: GateKeeper) -> int:
    """Return how many of ten held tasks start."""
    futures = [ex.submit(tasks.ring_and_wait, bell.bell, gate.gate) for _ in range(10)]
    bell.hear()
    count = 1
    with suppress(TimeoutError):
        while True:
            bell.hear(0.3)
            count += 1
    gate.open()
    assert [f.result(LIMIT_S) for f in futures] == [None] * 10
    return count
