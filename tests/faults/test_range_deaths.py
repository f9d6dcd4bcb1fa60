"""A worker dies before each access to a shared word while it has items of a map in hand, as their owner and as a thief.

Each item has one outcome: its value, or WorkerDied for the one that the victim was in.  None runs twice, nothing is left.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repartir import WorkerDied, mapping
from tests.faults.conftest import Make
from tests.faults.mortal import Fact, Facts, Fate, bring_up, run
from tests.faults.waits import LIMIT_S, check_goes_on, until_lost

ITEMS = 12
BEYOND = 1 << 60


def integer(item: int) -> Any:
    return item * item


def text(item: int) -> Any:
    return str(item)


def structure(item: int) -> Any:
    return {"item": item, "square": (item * item,)}


def block(item: int) -> Any:
    return np.full(9000, float(item))


def mixed(item: int) -> Any:
    return (integer, text, structure, block)[item % 4](item)


def run_item(facts: Facts, value: Any, item: int) -> Any:
    facts[Fact.RUNS + item] += 1
    time.sleep(0.0005)
    return value(item)


def check_items(facts: Facts, results: list[Any], value: Any) -> int:
    """Each item ran at most once, and came back unless its worker died in it; how many did not."""
    died = 0
    for item, result in enumerate(results):
        assert facts.runs(item) <= 1, f"item {item} ran {facts.runs(item)} times"
        if isinstance(result, BaseException):
            assert type(result) is WorkerDied, result
            died += 1
        else:
            assert facts.runs(item) == 1
            assert np.array_equal(result, value(item))
    return died


def play(make: Make, folder: Path, k: int, value: Any, *, thief: bool) -> int:
    """One executor whose victim dies before its access number `k`; how many it had, all checked."""
    facts = Facts(folder / f"facts-{k}")
    with make(2, initializer=bring_up, initargs=(Fate(facts, k, thief=thief),)) as ex:
        if thief:
            ex.run_on_all(abs, -1)  # both are there, so one will take from the other
        call = functools.partial(run_item, facts, value)
        results = list(ex.map(call, range(ITEMS), timeout=LIMIT_S, return_exceptions=True))
        assert len(results) == ITEMS
        died = check_items(facts, results, value)
        assert died <= facts[Fact.DIED] <= 1
        results.clear()
        count = facts[Fact.COUNT]
        facts[Fact.COUNT] = BEYOND  # it came less far than usual: it need not die any more
        if facts[Fact.DIED]:
            until_lost(ex, 1)
        check_goes_on(ex)
    return count


def play_between(make: Make, folder: Path, k: int, *, resumes: bool) -> int:
    """The same with high tasks that begin between the items, so that ranges are laid aside."""
    facts = Facts(folder / f"facts-{k}")
    with make(2, initializer=bring_up, initargs=(Fate(facts, k, resumes=resumes),)) as ex:
        call = functools.partial(run_item, facts, mixed)
        results = ex.map(call, range(ITEMS), timeout=LIMIT_S, return_exceptions=True)
        high = ex.options(priority="high")
        tasks, got = range(ITEMS, ITEMS + 8), []
        futures = []
        for task in tasks:
            futures.append(high.submit(run, facts, task, task))
            got.append(next(results))
        got += results
        died = check_items(facts, got, mixed)
        for task, future in zip(tasks, futures, strict=True):
            error = future.exception(LIMIT_S)
            assert facts.runs(task) <= 1, f"task {task} ran {facts.runs(task)} times"
            died += isinstance(error, WorkerDied)
            assert error is None or isinstance(error, WorkerDied)
        assert len(got) == ITEMS
        assert died <= facts[Fact.DIED] <= 1
        got.clear()
        del results
        count = facts[Fact.COUNT]
        facts[Fact.COUNT] = BEYOND
        if facts[Fact.DIED]:
            until_lost(ex, 1)
        check_goes_on(ex)
    return count


@pytest.mark.parametrize("resumes", [False, True], ids=["from its claim on", "from its resumption on"])
def test_with_high_tasks_between_the_items(make: Make, tmp_path: Path, resumes: bool) -> None:
    for k in range(1, 60, 9):
        play_between(make, tmp_path, k, resumes=resumes)


@pytest.mark.slow
@pytest.mark.parametrize("resumes", [False, True], ids=["from its claim on", "from its resumption on"])
def test_with_high_tasks_between_the_items_at_every_access(make: Make, tmp_path: Path, resumes: bool) -> None:
    for k in range(1, 150):
        play_between(make, tmp_path, k, resumes=resumes)


def deaths_at(make: Make, folder: Path, value: Any, *, thief: bool, step: int, offset: int = 1) -> None:
    last = play(make, folder, BEYOND - 1, value, thief=thief)
    assert last > 15
    for k in range(offset, last + 1, step):
        try:
            play(make, folder, k, value, thief=thief)
        except AssertionError as error:
            error.add_note(f"the victim died before access {k} of {last}")
            raise


@pytest.fixture(autouse=True)
def one_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is one range, so that there is something to steal."""
    post = mapping.Feed.post

    def post_one_range(self: mapping.Feed, items: Any) -> None:
        engine = self._engine
        self._engine = engine._replace(workers=1)
        post(self, items)
        self._engine = engine

    monkeypatch.setattr(mapping, "RANGES_A_WORKER", 1)
    monkeypatch.setattr(mapping.Feed, "post", post_one_range)


@pytest.mark.parametrize("thief", [False, True], ids=["owner", "thief"])
def test_at_some_accesses(make: Make, tmp_path: Path, thief: bool) -> None:
    deaths_at(make, tmp_path, mixed, thief=thief, step=23)


@pytest.mark.slow
@pytest.mark.parametrize("thief", [False, True], ids=["owner", "thief"])
@pytest.mark.parametrize("value", [integer, text, structure, block, mixed])
def test_at_every_access(make: Make, tmp_path: Path, value: Any, thief: bool) -> None:
    deaths_at(make, tmp_path, value, thief=thief, step=1)
