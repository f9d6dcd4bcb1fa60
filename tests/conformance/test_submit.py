"""submit: what goes in, what comes out, in which numbers."""

from __future__ import annotations

import concurrent.futures
from concurrent.futures import Executor
from typing import Any

import pytest

from . import tasks
from .conftest import Make
from .kinds import Kind, ours, processes
from .sync import LIMIT_S, BellKeeper, GateKeeper


def test_returns_the_value(ex: Executor) -> None:
    assert ex.submit(pow, 2, 5).result(LIMIT_S) == 32


def test_returns_a_stdlib_future(ex: Executor) -> None:
    future = ex.submit(pow, 2, 5)
    assert isinstance(future, concurrent.futures.Future)
    future.result(LIMIT_S)


@ours
def test_is_a_stdlib_executor_with_our_future(ex: Executor) -> None:
    import repartir

    assert isinstance(ex, concurrent.futures.Executor)
    future = ex.submit(pow, 2, 5)
    assert isinstance(future, repartir.Future)
    future.result(LIMIT_S)


def test_passes_positional_and_keyword_arguments(ex: Executor) -> None:
    assert ex.submit(tasks.signature, 1, "two", key=[3]).result(LIMIT_S) == ((1, "two"), {"key": [3]})


def test_keyword_arguments_may_be_called_self_and_fn(ex: Executor) -> None:
    future = ex.submit(tasks.signature, 1, self=2, fn=3, args=4, kwargs=5, timeout=6)
    assert future.result(LIMIT_S) == ((1,), {"self": 2, "fn": 3, "args": 4, "kwargs": 5, "timeout": 6})


def test_submit_without_a_function_is_a_type_error(ex: Executor) -> None:
    with pytest.raises(TypeError, match="fn"):
        ex.submit()  # type: ignore[call-arg]


def test_fn_cannot_be_given_as_a_keyword(ex: Executor) -> None:
    with pytest.raises(TypeError):
        ex.submit(fn=pow)  # type: ignore[call-arg]


def test_a_thing_that_cannot_be_called_fails_in_its_future(ex: Executor) -> None:
    future = ex.submit(5)  # type: ignore[arg-type, var-annotated]
    with pytest.raises(TypeError, match="not callable"):
        future.result(LIMIT_S)


@pytest.mark.parametrize(
    "value",
    [None, False, 0, "", (), {"a": [1, 2.5, b"x"]}, {1, 2}, 1 << 200, float("inf"), "é\ud800", range(3), ...],
    ids=repr,
)
def test_values_survive_the_journey(ex: Executor, value: Any) -> None:
    result = ex.submit(tasks.echo, value).result(LIMIT_S)
    assert result == value
    assert type(result) is type(value)


def test_arguments_keep_their_shared_identity(ex: Executor) -> None:
    inner = [1]
    first, second = ex.submit(tasks.echo, (inner, inner)).result(LIMIT_S)
    assert first is second


@processes
def test_tasks_run_in_other_processes(ex: Executor) -> None:
    import os

    assert ex.submit(tasks.pid).result(LIMIT_S) != os.getpid()


@processes
def test_tasks_run_side_by_side(ex: Executor, bell: BellKeeper, gate: GateKeeper) -> None:
    futures = [ex.submit(tasks.ring_and_wait, bell.bell, gate.gate, n) for n in range(2)]
    pids = {bell.hear(), bell.hear()}
    gate.open()
    assert [f.result(LIMIT_S) for f in futures] == [0, 1]
    assert len(pids) == 2


@processes
def test_never_more_tasks_at_once_than_workers(ex: Executor, bell: BellKeeper, gate: GateKeeper) -> None:
    futures = [ex.submit(tasks.ring_and_wait, bell.bell, gate.gate) for _ in range(6)]
    bell.hear(), bell.hear()
    with pytest.raises(TimeoutError):
        bell.hear(0.2)
    gate.open()
    concurrent.futures.wait(futures, timeout=LIMIT_S)
    assert all(f.done() for f in futures)


@processes
def test_one_worker_runs_tasks_in_the_order_of_submits(make: Make, bell: BellKeeper) -> None:
    with make(1) as ex:
        futures = [ex.submit(tasks.ring, bell.bell, n) for n in range(50)]
        concurrent.futures.wait(futures, timeout=LIMIT_S)
        assert [int(line) for line in bell.hear_all()] == list(range(50))


def test_two_thousand_submits_before_the_first_result(ex: Executor) -> None:
    futures = [ex.submit(pow, n, 2) for n in range(2000)]
    assert [f.result(LIMIT_S) for f in futures] == [n * n for n in range(2000)]


@processes
def test_submit_never_waits_for_workers(make: Make, bell: BellKeeper, gate: GateKeeper, kind: Kind) -> None:
    """All submits return while the only worker is held; a bounded queue would stop here (or lose tasks)."""
    ex = make(1)
    held = ex.submit(tasks.ring_and_wait, bell.bell, gate.gate)
    bell.hear()
    futures = [ex.submit(pow, n, 2) for n in range(3000 if kind.is_control else 20_000)]
    assert not held.done()
    gate.open()
    assert sum(f.result(LIMIT_S) for f in futures) == sum(n * n for n in range(len(futures)))
    ex.shutdown()


def test_work_goes_on_after_a_pause(ex: Executor) -> None:
    """Parked workers wake for a later task, many times over."""
    assert [ex.submit(pow, n, 2).result(LIMIT_S) for n in range(100)] == [n * n for n in range(100)]
