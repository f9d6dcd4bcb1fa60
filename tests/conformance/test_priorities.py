"""Priorities, and named limits on how many tasks are under way."""

from __future__ import annotations

import itertools
import operator
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

import repartir
from repartir import Priority, WorkerDied

from . import priority_tasks as tasks
from .conftest import Make
from .kinds import every_start, ours, workers
from .sync import LIMIT_S, BellKeeper, GateKeeper

pytestmark = pytest.mark.any_start


@pytest.fixture
def one(make: Make) -> Any:
    """An executor with one worker: what begins first is what was first."""
    return make(1)


@pytest.fixture
def held(one: Any, bell: BellKeeper, gate: GateKeeper) -> Callable[[], None]:
    """The only worker is busy until this is called."""
    one.submit(tasks.ring_and_wait, bell.bell, gate.gate)
    bell.hear()
    return gate.open


def names(path: Path) -> list[str]:
    return path.read_text().split()


class TestPriority:
    @workers
    @every_start
    def test_high_tasks_first_low_ones_last(self, one: Any, held: Any, tmp_path: Path) -> None:
        said = tmp_path / "said"
        futures = [
            one.options(priority=priority).submit(tasks.note, said, f"{priority}{nth}")
            for nth in range(3)
            for priority in ("low", "normal", "high")
        ]
        held()
        wait(futures, LIMIT_S)
        assert names(said) == [
            f"{priority}{nth}" for priority in ("high", "normal", "low") for nth in range(3)
        ]

    @workers
    def test_a_high_task_overtakes_what_waits_in_the_client(
        self, one: Any, held: Any, tmp_path: Path
    ) -> None:
        """More than the lanes take, of every priority."""
        said = tmp_path / "said"
        many = [one.submit(abs, n) for n in range(3000)]
        lows = [one.options(priority=Priority.LOW).submit(abs, n) for n in range(700)]
        noted = [one.options(priority="high").submit(tasks.note, said, n) for n in range(700)]
        assert "4400 queued" in repr(one)
        held()
        assert noted[0].result(LIMIT_S) == 0
        assert not many[-1].done()
        wait(noted, LIMIT_S)
        assert names(said) == [str(n) for n in range(700)]
        assert [future.result(LIMIT_S) for future in (*many, *lows)] == [*range(3000), *range(700)]

    @workers
    def test_lower_ones_are_taken_while_higher_ones_keep_coming(
        self, one: Any, held: Any, tmp_path: Path
    ) -> None:
        """Of 16 tasks one is a normal and one a low one."""
        said = tmp_path / "said"
        futures = [one.options(priority="high").submit(tasks.note, said, "high") for _ in range(64)]
        futures += [one.submit(tasks.note, said, "normal") for _ in range(64)]
        futures += [one.options(priority="low").submit(tasks.note, said, "low") for _ in range(64)]
        held()
        wait(futures, LIMIT_S)
        order = names(said)
        assert order[:48].count("normal") == order[:48].count("low") == 3
        assert order[80:112].count("low") == 2

    @workers
    def test_of_a_retry_is_that_of_the_task(
        self, one: Any, bell: BellKeeper, gate: GateKeeper, tmp_path: Path
    ) -> None:
        said = tmp_path / "said"
        high = one.options(priority="high", retries=1, backoff=0)
        first = high.submit(tasks.fail_first, said, "x")
        assert first.result(LIMIT_S) == 2
        one.submit(tasks.ring_and_wait, bell.bell, gate.gate)
        bell.hear()
        many = [one.submit(tasks.nap, 0.001) for _ in range(200)]
        again = high.submit(tasks.fail_first, said, "y")
        gate.open()
        assert again.result(LIMIT_S) == 2
        assert not many[-1].done()

    @workers
    def test_a_death_before_it_leaves_it_first(self, one: Any, tmp_path: Path) -> None:
        said = tmp_path / "said"
        with one._broker.pump.mutex:  # nothing is posted before all is there
            died = one.options(priority="high").submit(tasks.die)
            futures = [one.submit(tasks.note, said, "normal")]
            futures.append(one.options(priority="high").submit(tasks.note, said, "high"))
        assert isinstance(died.exception(LIMIT_S), WorkerDied)
        wait(futures, LIMIT_S)
        assert names(said) == ["high", "normal"]

    @workers
    @pytest.mark.parametrize("priority", Priority)
    def test_can_be_cancelled_wherever_it_waits(self, one: Any, held: Any, priority: str) -> None:
        futures = [one.options(priority=priority).submit(abs, n) for n in range(600)]
        cancelled = [0, 100, 300, 599]
        assert all(futures[n].cancel() for n in cancelled)
        held()
        results = [future.result(LIMIT_S) for future in futures if not future.cancelled()]
        assert results == [n for n in range(600) if n not in cancelled]

    @workers
    @pytest.mark.parametrize("priority", Priority)
    def test_cancelled_ones_hold_up_nobody(self, one: Any, held: Any, priority: str) -> None:
        """The lanes are full of them when the last answer has come."""
        futures = [one.options(priority=priority).submit(abs, n) for n in range(700)]
        assert all(future.cancel() for future in futures[:-1])
        held()
        assert futures[-1].result(LIMIT_S) == 699

    @workers
    def test_a_time_out_stops_it(self, make: Make) -> None:
        high = make(2).options(priority="high", timeout=0.1)  # type: ignore[attr-defined]
        assert isinstance(high.submit(time.sleep, 60).exception(LIMIT_S), repartir.TaskTimeout)
        assert high.submit(abs, -1).result(LIMIT_S) == 1

    @workers
    def test_sleepers_are_woken_for_it(self, ex: Any) -> None:
        for priority, pause in itertools.product(("high", "low"), (0.001, 0.05)):
            time.sleep(pause)
            began = time.monotonic()
            assert ex.options(priority=priority).submit(abs, -1).result(LIMIT_S) == 1
            assert time.monotonic() - began < 5

    @workers
    def test_with_a_worker_is_for_any(self, ex: Any) -> None:
        futures = [ex.options(priority="high", worker=1).submit(abs, -n) for n in range(50)]
        assert [future.result(LIMIT_S) for future in futures] == list(range(50))

    @workers
    def test_with_run_on_all(self, ex: Any) -> None:
        assert ex.options(priority="low").run_on_all(abs, -1) == [1, 1]

    @workers
    def test_cancelling_and_shutdown_leave_nothing(self, make: Make) -> None:
        ex: Any = make(2)
        futures = [
            ex.options(priority=priority).submit(time.sleep, 0.01)
            for priority in Priority
            for _ in range(400)
        ]
        ex.shutdown(cancel_futures=True)
        assert all(future.done() for future in futures)

    @ours
    def test_what_it_may_be(self, ex: Any) -> None:
        assert ex.options(priority="low").options(priority=Priority.HIGH).submit(abs, -1).result(LIMIT_S) == 1
        for wrong in ("urgent", 1, None, ["high"]):
            with pytest.raises(ValueError, match="priority must be 'high', 'normal' or 'low'"):
                ex.options(priority=wrong)

    @workers
    def test_is_not_for_children(self, ex: Any) -> None:
        for option in ({"priority": "high"}, {"limit": ("x", 1)}):
            assert "what a task submits" in ex.submit(tasks.options_in_a_task, **option).result(LIMIT_S)


class TestMaps:
    @workers
    @every_start
    def test_a_high_task_begins_between_two_items(self, make: Make) -> None:
        """All workers are in one long map."""
        ex: Any = make(2)
        results = ex.map(tasks.nap, [0.02] * 60)
        next(results)
        for _ in range(4):
            submitted = time.monotonic()
            began = ex.options(priority="high").submit(tasks.now).result(LIMIT_S)
            assert began - submitted < 0.2, "it waited for more than an item"
        began = ex.options(priority="low").submit(tasks.now).result(LIMIT_S)
        *_, last = results
        assert began < last, "the low one waited for the whole map"

    @workers
    def test_a_low_map_gives_way(self, one: Any) -> None:
        low = one.options(priority="low")
        results = low.map(tasks.nap, [0.005] * 100)
        next(results)
        began = [one.submit(tasks.now).result(LIMIT_S) for _ in range(20)]
        high = one.options(priority="high").submit(tasks.now).result(LIMIT_S)
        *_, last = results
        assert max(*began, high) < last

    @workers
    def test_maps_of_all_priorities_at_once(self, ex: Any) -> None:
        """Ranges are laid aside for ranges; each item has its result once."""
        maps = [
            ex.options(priority=priority).map(operator.neg, range(start, start + 20_000))
            for start in (0, 100_000)
            for priority in ("low", "normal", "high")
        ]
        for nth, results in enumerate(maps):
            start = 100_000 * (nth // 3)
            assert list(results) == [-n for n in range(start, start + 20_000)]

    @workers
    def test_one_map_inside_the_other(self, one: Any) -> None:
        slow = one.options(priority="low").map(tasks.nap, [0.002] * 50)
        next(slow)
        middle = one.map(tasks.nap, [0.002] * 50)
        next(middle)
        assert list(one.options(priority="high").map(abs, range(100))) == list(range(100))
        *_, middle_ends = middle
        *_, slow_ends = slow
        assert middle_ends < slow_ends

    @ours
    @pytest.mark.parametrize("priority", ["high", "low"])
    def test_chunks_folds_and_time_outs(self, ex: Any, priority: str) -> None:
        chosen = ex.options(priority=priority)
        assert list(chosen.map(abs, range(-10, 0), chunksize=3)) == list(range(10, 0, -1))
        assert chosen.map(abs, range(1000), reduce=operator.add) == sum(range(1000))
        assert list(chosen.options(timeout=20).map(abs, range(5))) == list(range(5))
        assert sorted(chosen.map_unordered(abs, range(100))) == list(range(100))

    @workers
    def test_a_death_after_a_range_was_laid_aside(self, make: Make) -> None:
        """The worker dies in a high task; of the map that it was in nothing is lost."""
        ex: Any = make(2)
        for reduce in (None, operator.add):
            results = iter([0]) if reduce else ex.map(tasks.nap, [0.002] * 200)
            next(results)
            died = [ex.options(priority="high").submit(tasks.die) for _ in range(3)]
            assert all(isinstance(future.exception(LIMIT_S), WorkerDied) for future in died)
            assert len(list(results)) == (0 if reduce else 199)

    @workers
    def test_a_cancelled_map_that_was_laid_aside(self, one: Any, bell: BellKeeper, gate: GateKeeper) -> None:
        results = one.map(tasks.nap, [0.002] * 2000)
        next(results)
        high = one.options(priority="high").submit(tasks.ring_and_wait, bell.bell, gate.gate)
        bell.hear()
        results.close()
        gate.open()
        assert high.result(LIMIT_S) is None
        began = time.monotonic()
        assert one.submit(abs, -1).result(LIMIT_S) == 1
        assert time.monotonic() - began < 2

    @workers
    def test_with_max_tasks_per_child(self, make: Make) -> None:
        """Workers end with ranges laid aside; others go on with them."""
        ex: Any = make(2, max_tasks_per_child=3)
        results = ex.map(tasks.nap, [0.001] * 60)
        futures = [ex.options(priority="high").submit(abs, n) for n in range(10)]
        assert [future.result(LIMIT_S) for future in futures] == list(range(10))
        assert len(list(results)) == 60


def most_at_once(spans: list[tuple[float, float]]) -> int:
    """How many of these were under way at a time, at most."""
    changes = sorted([(began, 1) for began, _ in spans] + [(ended, -1) for _, ended in spans])
    return max(itertools.accumulate(change for _, change in changes))


class TestLimit:
    @workers
    @every_start
    def test_no_more_at_once(self, make: Make) -> None:
        ex: Any = make(4)
        licence = ex.options(limit=("licence", 2))
        futures = [licence.submit(tasks.span, 0.01) for _ in range(12)]
        others = [ex.submit(abs, n) for n in range(100)]
        assert [future.result(LIMIT_S) for future in others] == list(range(100))
        spans = [future.result(LIMIT_S) for future in futures]
        assert most_at_once(spans) <= 2

    @workers
    def test_they_do_not_take_the_others_workers(
        self, make: Make, bell: BellKeeper, gate: GateKeeper
    ) -> None:
        """What is held back waits in no worker's queue."""
        ex: Any = make(2)
        licence = ex.options(limit=("licence", 1))
        futures = [licence.submit(tasks.ring_and_wait, bell.bell, gate.gate) for _ in range(3)]
        bell.hear()
        assert [ex.submit(abs, n).result(LIMIT_S) for n in range(20)] == list(range(20))
        deadline = time.monotonic() + LIMIT_S
        while ex.stats().running > 1:  # the other's answer is here, and it has not let go of the claim
            assert time.monotonic() < deadline
        assert ex.stats().queued == 2
        assert [future.running() for future in futures] == [True, False, False]
        gate.open()
        assert [future.result(LIMIT_S) for future in futures] == [None] * 3

    @workers
    def test_by_priority_then_in_order(self, one: Any, held: Any, tmp_path: Path) -> None:
        said = tmp_path / "said"
        licence = one.options(limit=("licence", 1))
        futures = [licence.submit(tasks.note, said, "first")]
        futures += [
            licence.options(priority=priority).submit(tasks.note, said, f"{priority}{nth}")
            for nth in range(3)
            for priority in ("low", "normal", "high")
        ]
        held()
        wait(futures, LIMIT_S)
        assert names(said)[1:] == [
            f"{priority}{nth}" for priority in ("high", "normal", "low") for nth in range(3)
        ]

    @workers
    def test_items_of_a_map_are_tasks_of_their_own(self, make: Make) -> None:
        ex: Any = make(2)
        licence = ex.options(limit=("licence", 1))
        assert most_at_once(list(licence.map(tasks.span, [0.002] * 20))) == 1
        assert licence.map(abs, range(10), reduce=operator.add) == 45
        with pytest.raises(ValueError, match="with limit each item is a task of its own"):
            licence.map(abs, range(10), chunksize=2)

    @workers
    def test_errors_deaths_and_time_outs_give_their_place_back(self, make: Make) -> None:
        licence = make(2).options(limit=("licence", 1))  # type: ignore[attr-defined]
        failed = licence.submit(divmod, 1, 0)
        died = licence.submit(tasks.die)
        stopped = licence.options(timeout=0.05).submit(time.sleep, 60)
        assert licence.submit(abs, -1).result(LIMIT_S) == 1
        assert isinstance(failed.exception(0), ZeroDivisionError)
        assert isinstance(died.exception(0), WorkerDied)
        assert isinstance(stopped.exception(0), repartir.TaskTimeout)

    @workers
    def test_a_cancelled_one_gives_its_place_back_when_its_worker_is_dead(
        self, make: Make, bell: BellKeeper
    ) -> None:
        licence = make(2).options(limit=("licence", 1))  # type: ignore[attr-defined]
        running = licence.submit(tasks.ring_and_sleep, bell.bell)
        bell.hear()
        waiting = licence.submit(abs, -2)
        last = licence.submit(abs, -3)
        assert waiting.cancel()
        assert running.cancel(running=True)
        assert last.result(LIMIT_S) == 3

    @workers
    def test_a_posted_one_that_is_cancelled_gives_its_place_back(
        self, one: Any, bell: BellKeeper, gate: GateKeeper
    ) -> None:
        """Nobody else has news for the client meanwhile."""
        one.submit(tasks.ring_and_wait, bell.bell, gate.gate)
        bell.hear()
        licence = one.options(limit=("licence", 1))
        posted, waiting = licence.submit(abs, -1), licence.submit(abs, -2)
        assert one._broker.pump.ledger.records.keys() >= {posted.task_id}
        assert posted.cancel()
        deadline = time.monotonic() + LIMIT_S
        while waiting.task_id not in one._broker.pump.ledger.records:
            assert time.monotonic() < deadline, "it still waits for the place"
            time.sleep(0.001)
        gate.open()
        assert waiting.result(LIMIT_S) == 2

    @workers
    def test_a_retry_in_its_back_off_holds_no_place(self, one: Any, tmp_path: Path) -> None:
        licence = one.options(limit=("licence", 1))
        said = tmp_path / "said"
        first = licence.options(retries=1, backoff=lambda _: 0.3).submit(tasks.fail_first, said, "x")
        assert licence.submit(abs, -1).result(LIMIT_S) == 1
        assert not first.done()
        assert first.result(LIMIT_S) == 2

    @ours
    def test_one_name_has_one_number(self, ex: Any) -> None:
        assert ex.options(limit=("other", 2)).submit(abs, -1).result(LIMIT_S) == 1
        assert ex.options(limit=("other", 2)).options(limit=None).submit(abs, -1).result(LIMIT_S) == 1
        with pytest.raises(
            ValueError, match="limit 'other' is 2 in this executor already, so it cannot be 3"
        ):
            ex.options(limit=("other", 3))

    @workers
    def test_options_that_are_refused_bind_no_name(self, ex: Any) -> None:
        with pytest.raises(ValueError, match="worker must be from 0 to"):
            ex.options(limit=("unbound", 2), worker=1000)
        assert ex.options(limit=("unbound", 3)).submit(abs, -1).result(LIMIT_S) == 1

    @ours
    @pytest.mark.parametrize("wrong", ["licence", ("licence",), (2, "licence"), ("licence", 2.5)])
    def test_what_it_may_be(self, ex: Any, wrong: Any) -> None:
        with pytest.raises(TypeError):
            ex.options(limit=wrong)
        with pytest.raises(ValueError, match="at least 1"):
            ex.options(limit=("none", 0))

    @workers
    def test_not_with_run_on_all(self, ex: Any) -> None:
        with pytest.raises(ValueError, match="no limit"):
            ex.options(limit=("all", 1)).run_on_all(abs, 1)

    @workers
    def test_shutdown_waits_for_what_waits(self, make: Make) -> None:
        ex: Any = make(2)
        futures = [ex.options(limit=("licence", 1)).submit(tasks.nap, 0.005) for _ in range(20)]
        ex.shutdown()
        assert all(future.result(0) for future in futures)

    @workers
    @pytest.mark.parametrize("how", ["cancel", "kill"])
    def test_cancelling_shutdown_leaves_nothing(self, make: Make, how: str) -> None:
        ex: Any = make(2)
        futures = [ex.options(limit=("licence", 1)).submit(time.sleep, 0.05) for _ in range(20)]
        if how == "kill":
            ex.kill_workers()
        ex.shutdown(cancel_futures=True)
        assert all(future.done() for future in futures)

    @workers
    def test_large_arguments_of_those_that_wait(self, ex: Any) -> None:
        futures = [ex.options(limit=("large", 1)).submit(len, bytes(200_000)) for _ in range(10)]
        assert [future.result(LIMIT_S) for future in futures] == [200_000] * 10
        assert ex.stats().arena_bytes < 2_000_000

    @workers
    def test_a_worker_killed_from_outside_while_it_holds_a_place(self, make: Make, bell: BellKeeper) -> None:
        ex: Any = make(1)
        licence = ex.options(limit=("licence", 1))
        pid = ex.submit(os.getpid).result(LIMIT_S)
        held = licence.submit(tasks.ring_and_sleep, bell.bell)
        bell.hear()
        waiting = [licence.submit(abs, -n) for n in range(3)]
        os.kill(pid, signal.SIGKILL)
        assert isinstance(held.exception(LIMIT_S), WorkerDied)
        assert [future.result(LIMIT_S) for future in waiting] == [0, 1, 2]
