"""A member that is killed for one task costs no other: condemned, it begins nothing else, and it is killed only where it was
still at that task when everybody who claims later sees that it is condemned."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest

from repartir.shm.board import Board
from repartir.shm.layout import task_word
from tests.interleave.explorer import Plan, ScheduleError, World, explore
from tests.interleave.ring import DIED, Client, RingWorker, make_board, on_fake_parts

OVERDUE = 1
TASKS = (OVERDUE, 3)


@pytest.fixture(autouse=True)
def fake_parts() -> Iterator[None]:
    with on_fake_parts():
        yield


def condemns(board: Board) -> bool:
    return board.condemn(0, task_word(OVERDUE, 1))


def only_looks(board: Board) -> bool:
    """Without the condemning."""
    return bool(board.words[board.rows[0].claim] == task_word(OVERDUE, 1))


def stopping(world: World, decide: Callable[[Board], bool] = condemns) -> Plan:
    """The victim runs two tasks; it may die anywhere, and what counts are the deaths after the decision to kill it."""
    board = make_board(world, 1)
    client, ran = Client(board), list[int]()
    for task in TASKS:
        client.enter(task)
    client.post(0)
    victim = RingWorker(board, 0, ran)
    killed = []

    def stop() -> None:
        if decide(board) and not world.gone("victim"):
            killed.append(True)

    def check() -> None:
        died = world.gone("victim")
        if died and not killed:
            return
        client.recover(0)
        client.finish([RingWorker(board, 0, ran)])
        for task, results in client.futures.items():
            assert len(results) == 1
            assert ran.count(task) <= 1
            assert task == OVERDUE or results != [DIED], f"task {task} paid for another"

    return Plan({"victim": lambda: victim.serve(len(TASKS)), "stopper": stop}, check, mortal=["victim"])


def test_only_the_task_that_was_to_be_stopped_fails() -> None:
    assert explore(stopping, preemptions=2, faults=1) > 1000


def test_to_look_only_costs_an_innocent_task() -> None:
    with pytest.raises(ScheduleError, match="paid for another"):
        explore(functools.partial(stopping, decide=only_looks), preemptions=2, faults=1)
