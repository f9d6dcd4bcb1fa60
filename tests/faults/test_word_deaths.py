"""A worker dies before each access to a shared word, from its claim of a task to the end of its answer.

Each task is settled once: with its value, or with WorkerDied if, and only if, the victim had started it and had not
answered.  None runs twice, the pool goes on, and nothing is left.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repartir import WorkerDied
from tests.faults.conftest import Make
from tests.faults.mortal import Fact, Facts, Fate, bring_up, run
from tests.faults.waits import LIMIT_S, check_goes_on, until_lost

TASKS = 6
BEYOND = 1 << 60


def small(task: int) -> Any:
    return task * task


def large(task: int) -> Any:
    """Arguments and results in arena blocks."""
    return np.full(9000, float(task))


def medium(task: int) -> Any:
    """Results that fit a record of the outbox, arguments that do not fit a slot."""
    return bytes([task]) * 1000


KINDS = [small, medium, large]


def play(make: Make, folder: Path, k: int, value: Callable[[int], Any], **options: Any) -> Facts:
    """One executor whose victim dies before its access number `k`; the facts, checked."""
    facts = Facts(folder / f"facts-{k}")
    with make(2, initializer=bring_up, initargs=(Fate(facts, k),)) as ex:
        chosen = ex.options(**options)
        futures = [chosen.submit(run, facts, task, value(task)) for task in range(TASKS)]
        deaths = 0
        for task, future in enumerate(futures):
            error = future.exception(LIMIT_S)
            if error is None:
                assert np.array_equal(future.result(0), value(task))
                assert facts.runs(task) == 1, f"task {task} ran {facts.runs(task)} times"
            else:
                assert isinstance(error, WorkerDied), error
                assert facts.runs(task) <= 1
                deaths += 1
        expected = facts[Fact.DIED] and facts[Fact.STARTED] and not facts[Fact.ANSWERED]
        assert deaths == bool(expected), f"{deaths} deaths told; started, answered: {facts[2]:x}, {facts[3]}"
        del future
        futures.clear()  # their results lie in blocks
        check_goes_on(ex)
        if facts[Fact.DIED]:
            until_lost(ex, 1)
        assert not any(limit.held for limit in ex._broker.pump.limits.all())
    return facts


def accesses(make: Make, folder: Path, value: Callable[[int], Any], **options: Any) -> int:
    """How many accesses there are from a claim to the end of its answer."""
    return play(make, folder, BEYOND, value, **options)[Fact.COUNT]


def deaths_at(make: Make, folder: Path, value: Callable[[int], Any], step: int, **options: Any) -> None:
    """A death before every access, or every so many."""
    last = accesses(make, folder, value, **options)
    assert 15 < last < 200
    deaths = range(1, last + 1, step)
    survived = 0
    for k in deaths:
        try:
            facts = play(make, folder, k, value, **options)
            if not facts[Fact.DIED]:
                survived += 1
                # The number varies: whether the client sleeps when the answer comes, whether a block is there to reuse.
                assert facts[Fact.COUNT] < k
        except AssertionError as error:
            error.add_note(f"the victim died before access {k} of {last}")
            raise
    assert survived <= len(deaths) // 3


@pytest.mark.parametrize("value", KINDS)
def test_at_some_accesses(make: Make, tmp_path: Path, value: Callable[[int], Any]) -> None:
    deaths_at(make, tmp_path, value, 6)


@pytest.mark.slow
@pytest.mark.parametrize("value", KINDS)
def test_at_every_access(make: Make, tmp_path: Path, value: Callable[[int], Any]) -> None:
    deaths_at(make, tmp_path, value, 1)


@pytest.mark.slow
@pytest.mark.parametrize("value", KINDS)
def test_at_every_access_with_record_locks(
    make: Make, tmp_path: Path, value: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the C library has no robust mutexes."""
    monkeypatch.setattr("repartir.shm.board.robust_mutex_works", lambda: False)
    deaths_at(make, tmp_path, value, 1)


OPTIONS: dict[str, dict[str, Any]] = {
    "high": {"priority": "high"},
    "one low one at a time": {"priority": "low", "limit": ("licence", 1)},
    "two at a time": {"limit": ("licence", 2)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_with_a_priority_or_a_limit(make: Make, tmp_path: Path, name: str) -> None:
    """In the high lane, or while it holds a place that others wait for."""
    deaths_at(make, tmp_path, medium, 9, **OPTIONS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_with_a_priority_or_a_limit_at_every_access(make: Make, tmp_path: Path, name: str) -> None:
    deaths_at(make, tmp_path, medium, 1, **OPTIONS[name])


def test_beyond_its_last_access_nobody_dies(make: Make, tmp_path: Path) -> None:
    facts = play(make, tmp_path, BEYOND, small)
    assert facts[Fact.DIED] == 0
    assert facts[Fact.ANSWERED] == 1


class TestAtBirth:
    """From the end of the initializer on: it says that it is ready, looks for work, spins, announces, parks."""

    def play(self, make: Make, folder: Path, k: int) -> None:
        facts = Facts(folder / f"facts-{k}")
        with make(2, initializer=bring_up, initargs=(Fate(facts, k, from_birth=True),)) as ex:
            told = 0
            for start in range(0, 48, TASKS):
                tasks = range(start, start + TASKS)
                futures = [ex.submit(run, facts, task, task) for task in tasks]
                for task, future in zip(tasks, futures, strict=True):
                    error = future.exception(LIMIT_S)
                    assert error is None or isinstance(error, WorkerDied), error
                    told += error is not None
                    assert facts.runs(task) <= 1
                    assert error is not None or (future.result(0), facts.runs(task)) == (task, 1)
            assert told <= facts[Fact.DIED] <= 1
            if facts[Fact.DIED]:
                check_goes_on(ex)

    @pytest.mark.parametrize("k", range(1, 12, 3))
    def test_some(self, make: Make, tmp_path: Path, k: int) -> None:
        self.play(make, tmp_path, k)

    @pytest.mark.slow
    def test_all(self, make: Make, tmp_path: Path) -> None:
        for k in range(1, 80):
            self.play(make, tmp_path, k)
