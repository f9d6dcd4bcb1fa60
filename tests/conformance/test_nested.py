"""Tasks that submit tasks: values, waiting by every means, ends, cancellation, deaths, limits."""

from __future__ import annotations

import concurrent.futures
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest

import repartir

from . import nested_tasks as tasks
from .conftest import Make
from .kinds import only_fork, workers
from .sync import LIMIT_S, BellKeeper, GateKeeper, wait_for_end

pytestmark = workers


def run(ex: Executor, fn: Callable[..., Any], *args: Any) -> Any:
    """The task's result; afterwards nothing of it is left."""
    result = ex.submit(fn, *args).result(LIMIT_S)
    assert isinstance(ex, repartir.Executor)
    check_nothing_left(ex)
    return result


def check_nothing_left(ex: repartir.Executor) -> None:
    until = time.monotonic() + LIMIT_S
    while ex.stats().running and time.monotonic() < until:
        time.sleep(0.001)
    board = ex._broker.board
    for cells, spawn in zip(board.cells, board.spawns, strict=True):
        cells.check()
        assert spawn.is_empty()
    assert (ex.stats().queued, ex.stats().running) == (0, 0)


@pytest.mark.parametrize(
    ("fn", "args", "expected"),
    [
        (tasks.fib, (12,), 144),
        (tasks.deep, (60,), 60),
        (tasks.wide, (10,), 55),
        (tasks.wide, (1000,), 500500),
        (tasks.tree, (4, 4), 256),
        (tasks.with_as_completed, (20,), list(range(20))),
        (tasks.with_map, (50, None), list(range(0, 100, 2))),
        (tasks.with_map, (50, 3), list(range(0, 100, 2))),
        (tasks.map_squares, (30,), [n * n for n in range(30)]),
        (tasks.catches_error, (), ("child", True)),
        (tasks.arrays_are_copies, (10,), [7, 1, 2, 2]),
        (tasks.arrays_are_copies, (100_000,), [7, 1, 2, 2]),
        (tasks.lists_are_copies, (), ([], [1])),
        (tasks.closure_is_a_copy, (), ([], 3)),
        (tasks.with_callback, (5,), [1, 2, 3, 4, 5]),
        (tasks.in_asyncio, (5,), [1, 2, 3, 4, 5, 2]),
        (tasks.in_thread, (), (3, True, 1)),
        (tasks.forks, (), (23, 2)),
        (tasks.in_with, (), [True] * 6),
        (tasks.exits_in_child, (), "exit 5"),
        (tasks.large_error, (), 5000),
    ],
    ids=lambda value: getattr(value, "__name__", None) and value.__name__,
)
def test_a_task_submits_tasks(ex: Executor, fn: Callable[..., Any], args: Any, expected: object) -> None:
    assert run(ex, fn, *args) == expected


@pytest.mark.parametrize("how", ["FIRST_COMPLETED", "FIRST_EXCEPTION", "ALL_COMPLETED"])
def test_wait(ex: Executor, how: str) -> None:
    assert run(ex, tasks.with_wait, 40, how) == list(range(0, 80, 2))


def test_both_workers_take_part(ex: Executor) -> None:
    assert len(run(ex, tasks.pids, 20)) == 2


def test_an_error_in_a_map_is_the_items_own(ex: Executor) -> None:
    with pytest.raises(ZeroDivisionError):
        run(ex, tasks.error_in_map)


def test_what_cannot_be_pickled_fails_in_the_future(ex: Executor) -> None:
    assert "argument 0 (lock)" in run(ex, tasks.not_picklable)


def test_a_task_ends_when_its_children_have(ex: Executor, tmp_path: Path) -> None:
    assert run(ex, tasks.not_waited_for, str(tmp_path), 20) == "returned"
    assert len(os.listdir(tmp_path)) == 20


@pytest.mark.parametrize("count", [1, 2])
def test_depth_200_on_few_workers(make: Make, count: int) -> None:
    assert make(count).submit(tasks.deep, 200).result(LIMIT_S) == 200


def test_too_deep_is_an_error(ex: Executor) -> None:
    with pytest.raises(repartir.NestingTooDeep, match="256"):
        run(ex, tasks.deep, 300)


def test_after_an_error_children_that_nobody_has_begun_are_cancelled(
    ex: Executor, bell: BellKeeper, gate: GateKeeper, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    future = ex.submit(tasks.raises_with_children, bell.bell, gate.gate, str(marks))
    bell.hear()
    time.sleep(0.02)
    assert not future.done()
    gate.open()
    with pytest.raises(KeyError):
        future.result(LIMIT_S)
    assert len(os.listdir(marks)) == 0
    assert isinstance(ex, repartir.Executor)
    check_nothing_left(ex)


def test_cancel(make: Make) -> None:
    ex = make(1)
    assert run(ex, tasks.cancels) == (True, True, False, 0)


def test_time_out_of_waiting_and_cancel_of_what_runs(
    ex: Executor, bell: BellKeeper, gate: GateKeeper
) -> None:
    future = ex.submit(tasks.times_out, bell.bell, gate.gate)
    bell.hear()
    assert future.result(LIMIT_S)
    gate.open()
    assert isinstance(ex, repartir.Executor)
    check_nothing_left(ex)


def test_a_childs_death_is_told_to_who_waits(make: Make) -> None:
    ex = make(2)
    message, signal = run(ex, tasks.child_dies)
    assert "die_when_stolen" in message
    assert signal == 9


def test_a_child_whose_worker_died_is_tried_again(make: Make, tmp_path: Path) -> None:
    assert run(make(2), tasks.child_is_retried, str(tmp_path)) == 1


def test_retries(ex: Executor, tmp_path: Path) -> None:
    assert run(ex, tasks.retries, str(tmp_path)) == 2


def test_limits_are_refused(ex: Executor) -> None:
    assert "give them to the task itself" in run(ex, tasks.refuses_timeout)


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_stopping_a_task_stops_its_children(make: Make, bell: BellKeeper, gate: GateKeeper, how: str) -> None:
    ex: Any = make(2)
    limited = ex.options(timeout=LIMIT_S)
    future = limited.submit(tasks.hangs_with_children, bell.bell, gate.gate)
    bell.hear()
    board = ex._broker.board
    pids = [board.words[row.pid] for row in board.rows]
    if how == "cancel":
        assert future.cancel(running=True)
    else:
        (began,) = (row.began for row in board.rows if board.words[row.began])
        board.words[began] -= int(LIMIT_S * 1e9)  # as if it had begun so much earlier
        ex._broker._on_news()
        with pytest.raises(repartir.TaskTimeout):
            future.result(LIMIT_S)
    assert all(wait_for_end(pid) for pid in pids)
    assert ex.submit(tasks.fib, 10).result(LIMIT_S) == 55
    assert ex._broker.members.lost == 0
    check_nothing_left(ex)


def test_items_of_a_map_that_share_an_object_do_not(ex: Executor) -> None:
    assert run(ex, tasks.maps_one_list) == {2}


@only_fork
def test_a_future_that_is_left_where_its_task_finds_it(make: Make) -> None:
    assert "waits for itself" in run(make(1), tasks.waits_for_itself)


def test_workers_that_retire_lose_no_children(make: Make) -> None:
    ex = make(2, max_tasks_per_child=1)
    assert [future.result(LIMIT_S) for future in [ex.submit(tasks.fib, 9) for _ in range(6)]] == [34] * 6


def test_shutdown_waits_for_children(make: Make) -> None:
    ex = make(2)
    future = ex.submit(tasks.tree, 3, 4)
    ex.shutdown()
    assert future.result(0) == 64


def test_terminate_ends_all(make: Make, bell: BellKeeper, gate: GateKeeper) -> None:
    ex: Any = make(2)
    future = ex.submit(tasks.hangs_with_children, bell.bell, gate.gate)
    bell.hear()
    ex.kill_workers()
    with pytest.raises((repartir.WorkerDied, concurrent.futures.BrokenExecutor)):
        future.result(LIMIT_S)


def test_what_is_queued_and_runs_is_told(ex: Executor, bell: BellKeeper, gate: GateKeeper) -> None:
    """The one task has children in both workers; another task of the client's waits."""
    future = ex.submit(tasks.hangs_with_children, bell.bell, gate.gate)
    bell.hear()
    waiting = ex.submit(tasks.add, 1, 1)
    assert isinstance(ex, repartir.Executor)
    assert (ex.stats().running, ex.stats().queued) == (2, 1)
    gate.open()
    assert future.result(LIMIT_S) is None
    assert waiting.result(LIMIT_S) == 2


@workers
def test_a_map_returns_exits_as_exceptions(ex: Executor) -> None:
    assert ex.submit(tasks.map_of_exits).result(LIMIT_S) == ["SystemExit(3)", "SystemExit(4)"]
