"""The worker that has submitted children, or one that has taken a child, dies before each access to a shared word.

Who waits gets each child's value or is told that its worker died; no child runs twice; a task whose own worker died fails
alone; the pool goes on, and nothing is left in cells, deques and memory.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repartir
from repartir import WorkerDied, current_executor
from repartir.worker import current
from tests.faults.conftest import Make
from tests.faults.mortal import ArenaWords, Fact, Facts, Fate, Mortal, RingWords
from tests.faults.waits import LIMIT_S, check_goes_on, until, until_lost

FAMILIES, CHILDREN = 2, 3
BEYOND = 1 << 60
TAKEN_S = 0.02


class MortalThief(Mortal):
    """The victim is who takes another's child."""

    @staticmethod
    def _claims_something(words: Any) -> bool:
        frame = sys._getframe(3)
        worker = current()
        assert worker is not None
        deque = frame.f_locals.get("self")
        return (
            frame.f_code.co_name == "pop_head"
            and deque in worker._board.spawns
            and bool(words[deque.tail_word] != words[deque.head_word])
        )


def bring_up(fate: Fate, kind: type[Mortal]) -> None:
    """As an initializer: from now on this worker is mortal, its nest included."""
    worker = current()
    assert worker is not None
    board, mortal = worker._board, kind(worker, fate)
    ring: Any = RingWords(board.words, mortal)
    worker._words = board.words = board.parking._words = worker.nest._words = ring
    board.blocks.arenas[0]._words = ArenaWords(board.blocks.arenas[0]._words, mortal)  # type: ignore[assignment]
    for structure in (*board.lanes, *board.spawns, *board.outboxes, *board.cells, *board.stacks):
        structure._words = ring


def small(task: int) -> Any:
    return task * task


def large(task: int) -> Any:
    """Arguments and results in arena blocks."""
    return np.full(9000, float(task))


def child(facts: Facts, task: int, value: Any) -> Any:
    facts[Fact.RUNS + task] += 1
    return value


def family(facts: Facts, first: int, value: Callable[[int], Any]) -> int:
    """How many children were lost with their workers; the first is left to be taken for a moment."""
    executor, lost = current_executor(), 0
    tasks = range(first, first + CHILDREN)
    futures = [executor.submit(child, facts, task, value(task)) for task in tasks]
    until_s = time.monotonic() + TAKEN_S
    while not futures[0].running() and time.monotonic() < until_s:
        time.sleep(0.001)
    for task, future in zip(tasks, futures, strict=True):
        try:
            assert np.array_equal(future.result(), value(task))
        except WorkerDied:
            lost += 1
    return lost


def play(make: Make, folder: Path, k: int, value: Callable[[int], Any], kind: type[Mortal]) -> Facts:
    """One executor whose victim dies before its access number `k`; the facts, checked."""
    facts = Facts(folder / f"facts-{k}")
    with make(2, initializer=bring_up, initargs=(Fate(facts, k), kind)) as ex:
        futures = [ex.submit(family, facts, CHILDREN * n, value) for n in range(FAMILIES)]
        failed = 0
        for future in futures:
            error = future.exception(LIMIT_S)
            if error is None:
                failed += future.result(0)
            else:
                assert isinstance(error, WorkerDied), error
                failed += 1
        for task in range(FAMILIES * CHILDREN):
            assert facts.runs(task) <= 1, f"child {task} ran {facts.runs(task)} times"
        assert failed <= 2 * facts[Fact.DIED], f"{failed} told of one death"
        if facts[Fact.DIED]:
            until_lost(ex, 1)
        check_no_family(ex)
        check_goes_on(ex)
        if facts[Fact.DIED]:
            until_lost(ex, 1)
    return facts


def check_no_family(ex: repartir.Executor) -> None:
    board = ex._broker.board
    until(lambda: not any(stack.tasks() for stack in board.stacks), "somebody still runs something")
    for cells, spawn in zip(board.cells, board.spawns, strict=True):
        cells.check()
        assert spawn.is_empty()
    memory, spilled = board.blocks.usage()
    assert memory.results[0] == spilled.results[0] == 0


def deaths_at(
    make: Make, folder: Path, value: Callable[[int], Any], kind: type[Mortal], first: int, step: int
) -> None:
    """A death before every so many accesses; ``step`` 0: at six of them."""
    last = max(play(make, folder, BEYOND + n, value, kind)[Fact.COUNT] for n in range(3))
    assert last > 15
    for k in range(first, last + 1, step or last // 6):
        try:
            play(make, folder, k, value, kind)
        except AssertionError as error:
            error.add_note(f"the victim died before access {k} of {last}")
            raise


@pytest.mark.parametrize("kind", [Mortal, MortalThief])
@pytest.mark.parametrize("value", [small, large])
def test_at_some_accesses(
    make: Make, tmp_path: Path, value: Callable[[int], Any], kind: type[Mortal]
) -> None:
    deaths_at(make, tmp_path, value, kind, 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, 6))
@pytest.mark.parametrize("kind", [Mortal, MortalThief])
@pytest.mark.parametrize("value", [small, large])
def test_at_every_access(
    make: Make, tmp_path: Path, value: Callable[[int], Any], kind: type[Mortal], first: int
) -> None:
    """In five parts, since a test has its time."""
    deaths_at(make, tmp_path, value, kind, first, 5)
