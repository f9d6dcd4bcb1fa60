"""map without chunks to choose: items that workers share among themselves, each with an outcome of its own."""

from __future__ import annotations

import collections
import functools
import gc
import operator
import os
import signal
import time
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repartir import TaskNotSerializable, TaskTimeout, WorkerDied
from repartir.pump import KEPT_S

from . import map_tasks as tasks
from .conftest import Make
from .kinds import ours, workers
from .sync import LIMIT_S, BellKeeper, GateKeeper

pytestmark = pytest.mark.any_start


@pytest.fixture
def own(make: Make) -> Any:
    """An executor of this test alone: its workers die."""
    return make(2)


class TestOutcomes:
    @ours
    def test_exceptions_in_their_places(self, ex: Any) -> None:
        results = list(ex.map(tasks.odd_fails, range(100), return_exceptions=True))
        assert [result for result in results if not isinstance(result, ValueError)] == list(range(0, 100, 2))
        assert [result.args for result in results if isinstance(result, ValueError)] == [
            (n,) for n in range(1, 100, 2)
        ]

    @workers
    def test_they_have_the_remote_traceback(self, ex: Any) -> None:
        *_, error = ex.map(tasks.odd_fails, [1], return_exceptions=True)
        text = str(error.__cause__)
        assert "odd_fails" in text
        assert "rangeloop" not in text

    @workers
    @pytest.mark.parametrize(
        "options", [{}, {"chunksize": 7}, {"buffersize": 3}, {"buffersize": 2, "chunksize": 4}]
    )
    def test_a_death_costs_the_item_that_ran(self, own: Any, options: dict[str, int]) -> None:
        results = list(own.map(tasks.dies_at, range(60), [17] * 60, return_exceptions=True, **options))
        assert type(results[17]) is WorkerDied
        results[17] = 17
        assert results == list(range(60))

    @workers
    def test_deaths_of_many(self, own: Any) -> None:
        results = list(own.map(tasks.every_tenth_dies, range(100), return_exceptions=True))
        assert [n for n, result in enumerate(results) if type(result) is WorkerDied] == list(
            range(0, 100, 10)
        )
        assert [result for n, result in enumerate(results) if n % 10] == [n for n in range(100) if n % 10]

    @workers
    def test_the_first_death_ends_a_map_that_returns_none(self, own: Any) -> None:
        with pytest.raises(WorkerDied):
            list(own.map(tasks.dies_at, range(60), [17] * 60))
        assert list(own.map(abs, range(5))) == list(range(5))

    @workers
    def test_a_time_out_costs_its_item(self, own: Any) -> None:
        limited = own.options(timeout=0.2)
        results = list(limited.map(tasks.hangs_at, range(20), [5] * 20, return_exceptions=True))
        assert type(results[5]) is TaskTimeout
        results[5] = 5
        assert results == list(range(20))

    @workers
    def test_retries_are_an_items_own(self, own: Any, tmp_path: Path) -> None:
        again = own.options(retries=3, backoff=0)
        assert list(again.map(functools.partial(tasks.second_time, str(tmp_path)), range(20))) == list(
            range(20)
        )

    @ours
    def test_base_exceptions(self, ex: Any) -> None:
        first, second = ex.map(tasks.exits, [0, 1], return_exceptions=True)
        assert (first, type(second), second.code) == (0, SystemExit, 1)


class TestValues:
    """Whatever values follow on each other."""

    @ours
    @pytest.mark.parametrize("count", [1, 5, 700, 5000])
    @pytest.mark.parametrize(
        "name", ["nothing", "integer", "huge", "real", "text", "flag", "data", "pair", "whatever"]
    )
    def test_come_as_they_are(self, ex: Any, name: str, count: int) -> None:
        value = getattr(tasks, name)
        results = list(ex.map(value, range(count)))
        assert results == [value(n) for n in range(count)]
        assert list(map(type, results)) == [type(value(n)) for n in range(count)]

    @ours
    def test_signed_zeros_and_nan(self, ex: Any) -> None:
        values = [0.0, -0.0, float("nan"), float("inf")] * 10
        assert list(map(repr, ex.map(tasks.same, values))) == list(map(repr, values))

    @ours
    @pytest.mark.parametrize("size", [100, 5_000, 9_000, 300_000])
    def test_large_ones(self, ex: Any, size: int) -> None:
        texts = list(ex.map(tasks.long_text, [size] * 10))
        assert texts == ["x" * size] * 10
        arrays = list(ex.map(np.full, [size] * 10, np.arange(10.0)))
        assert [array.shape for array in arrays] == [(size,)] * 10
        assert [array[-1] for array in arrays] == list(range(10))

    @ours
    def test_arrays_as_items(self, ex: Any) -> None:
        items = [np.full(n * 1000 + 1, float(n)) for n in range(30)]
        assert list(ex.map(np.sum, items)) == [n * (n * 1000 + 1) for n in range(30)]
        assert list(ex.map(tasks.dot, items, items)) == [n * n * (n * 1000 + 1) for n in range(30)]

    @workers
    def test_an_argument_is_each_calls_own(self, ex: Any) -> None:
        item: list[int] = []
        assert list(ex.map(tasks.append_to, [item, item, item])) == [[1], [1, 1], [1, 1, 1]] or list(
            ex.map(tasks.append_to, [[], [], []])
        ) == [[1], [1], [1]]

    @workers
    def test_a_result_that_cannot_be_pickled_costs_its_item(self, ex: Any) -> None:
        results = list(ex.map(tasks.lock_at, range(50), [20] * 50, return_exceptions=True))
        assert type(results[20]) is TaskNotSerializable
        assert results[:20] + results[21:] == [*range(20), *range(21, 50)]

    @workers
    def test_an_item_that_cannot_be_pickled_costs_itself(self, ex: Any) -> None:
        items: list[Any] = list(range(50))
        items[20] = (n for n in range(3))
        results = list(ex.map(tasks.same, items, return_exceptions=True))
        assert type(results[20]) is TaskNotSerializable
        assert "argument 0" in str(results[20])
        assert results[:20] + results[21:] == [*range(20), *range(21, 50)]

    @workers
    def test_an_item_that_cannot_be_unpickled(self, ex: Any) -> None:
        items = [0, 1, tasks.FailsToLoad(), 3]
        results = list(ex.map(tasks.same, items, return_exceptions=True))
        assert isinstance(results[2], RuntimeError)
        assert results[0] == 0

    @workers
    def test_a_function_that_cannot_be_unpickled(self, ex: Any) -> None:
        call = functools.partial(tasks.same, tasks.FailsToLoad())
        results = list(ex.map(call, range(300), return_exceptions=True))
        assert [str(result) for result in results] == ["loading exploded"] * 300

    @workers
    def test_a_function_that_cannot_be_pickled(self, ex: Any) -> None:
        with pytest.raises(TaskNotSerializable):
            list(ex.map(functools.partial(tasks.same, (n for n in range(3))), range(10)))


class TestOrders:
    @ours
    def test_unordered_has_all(self, ex: Any) -> None:
        assert sorted(ex.map_unordered(tasks.text, range(3000))) == sorted(map(str, range(3000)))

    @workers
    def test_unordered_waits_for_nobody(self, ex: Any, gate: GateKeeper) -> None:
        results = ex.map_unordered(tasks.waits_at_zero, range(20), [gate.gate] * 20)
        assert sorted(next(results) for _ in range(19)) == list(range(1, 20))
        gate.open()
        assert list(results) == [0]

    @ours
    def test_unordered_with_exceptions(self, ex: Any) -> None:
        results = list(ex.map_unordered(tasks.odd_fails, range(100), return_exceptions=True))
        assert sorted(result for result in results if isinstance(result, int)) == list(range(0, 100, 2))
        assert len(results) == 100

    @ours
    def test_unordered_of_what_never_ends(self, ex: Any) -> None:
        source = iter(int, 1)
        results = ex.map_unordered(abs, source, buffersize=4)
        assert [next(results) for _ in range(50)] == [0] * 50
        results.close()

    @ours
    def test_starmap(self, ex: Any) -> None:
        assert list(ex.starmap(pow, [(2, 3), [3, 4], (2, 10, 7)])) == [8, 81, 2]
        assert list(ex.starmap(pow, ((n, 2) for n in range(200)), chunksize=9)) == [n * n for n in range(200)]
        assert list(ex.starmap(pow, [])) == []


class TestReduce:
    @ours
    @pytest.mark.parametrize("count", [1, 2, 10, 3000])
    def test_folds_all(self, ex: Any, count: int) -> None:
        assert ex.map(tasks.integer, range(count), reduce=operator.add) == sum(
            map(tasks.integer, range(count))
        )

    @ours
    def test_in_the_order_of_items(self, ex: Any) -> None:
        assert ex.map(str, range(500), reduce=operator.add) == "".join(map(str, range(500)))

    @ours
    def test_several_iterables_and_lambdas(self, ex: Any) -> None:
        assert ex.map(pow, range(10), [2] * 10, reduce=lambda left, right: left + right) == 285

    @ours
    def test_arrays(self, ex: Any) -> None:
        total = ex.map(np.full, [20_000] * 40, range(40), reduce=np.add)
        assert total.shape == (20_000,)
        assert set(total) == {780.0}

    @ours
    def test_with_time_outs(self, ex: Any) -> None:
        assert ex.options(timeout=LIMIT_S).map(abs, range(10), reduce=operator.add) == 45

    @ours
    def test_nothing_to_fold(self, ex: Any) -> None:
        with pytest.raises(TypeError, match="no items"):
            ex.map(abs, [], reduce=operator.add)

    @ours
    def test_an_error_of_the_function_or_of_the_operator(self, ex: Any) -> None:
        with pytest.raises(ValueError, match="1"):
            ex.map(tasks.odd_fails, range(10), reduce=operator.add)
        with pytest.raises(TypeError):
            ex.map(tasks.whatever, range(10), reduce=operator.add)

    @workers
    def test_a_death(self, own: Any) -> None:
        with pytest.raises(WorkerDied):
            own.map(tasks.dies_at, range(60), [17] * 60, reduce=operator.add)
        assert own.map(abs, range(5), reduce=operator.add) == 10

    @ours
    @pytest.mark.parametrize("options", [{"chunksize": 2}, {"buffersize": 2}, {"return_exceptions": True}])
    def test_what_does_not_go_with_it(self, ex: Any, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="reduce"):
            ex.map(abs, [1], reduce=operator.add, **options)


class TestProgress:
    @ours
    @pytest.mark.parametrize("way", ["map", "map_unordered", "reduce"])
    def test_a_callable_is_told(self, ex: Any, way: str) -> None:
        told: list[tuple[int, int | None]] = []
        if way == "reduce":
            ex.map(abs, range(100), reduce=operator.add, progress=lambda *args: told.append(args))
        else:
            list(getattr(ex, way)(abs, range(100), progress=lambda *args: told.append(args)))
        assert told[-1] == (100, 100)

    @ours
    def test_without_a_total(self, ex: Any) -> None:
        told: list[tuple[int, int | None]] = []
        list(ex.map(abs, range(100), buffersize=5, progress=lambda *args: told.append(args)))
        assert told[-1] == (100, None)

    @ours
    def test_an_end_before_the_end(self, ex: Any) -> None:
        told: list[tuple[int, int | None]] = []
        with pytest.raises(ValueError, match="1"):
            list(ex.map(tasks.odd_fails, range(100), progress=lambda *args: told.append(args)))
        assert told
        assert told[-1][1] == 100

    @ours
    def test_nonsense_is_refused_at_the_call(self, ex: Any) -> None:
        with pytest.raises(TypeError, match="progress must be"):
            ex.map(abs, range(10), progress="yes")


class TestSharing:
    @workers
    def test_one_long_item_holds_nothing_back(self, ex: Any, gate: GateKeeper, bell: BellKeeper) -> None:
        """While the first item runs, the other worker does all others, also those of the first one's range."""
        results = ex.map(tasks.ring_but_wait_at_zero, range(40), [gate.gate] * 40, [bell.bell] * 40)
        assert {bell.hear() for _ in range(39)} == set(map(str, range(1, 40)))
        gate.open()
        assert list(results) == list(range(40))

    @workers
    def test_answers_behind_a_long_item_are_heard(self, make: Make, gate: GateKeeper) -> None:
        """Also by who sleeps until one of them is there, while nobody says anything more."""
        with make(1) as ex:
            assert list(ex.map(tasks.busy, [0.0])) == [0.0]
            results = ex.map(tasks.waits_from_two, range(80), [gate.gate] * 80)
            began = time.monotonic()
            assert next(results) == 0
            at_once = time.monotonic() - began
            assert next(results) == 1
            assert at_once < KEPT_S <= time.monotonic() - began < LIMIT_S / 3
            gate.open()
            assert list(results) == list(range(2, 80))

    @workers
    def test_all_workers_take_part(self, ex: Any) -> None:
        pids = collections.Counter(ex.map(tasks.pid_after_a_while, range(40)))
        assert len(pids) == 2

    @workers
    def test_answers_of_short_items_come_together(self, make: Make) -> None:
        """Each wakes the client, or takes some of its time."""
        with make(1) as ex:
            assert list(ex.map(tasks.busy, [160e-6] * 10)) == [160e-6] * 10
            before = ex._broker.pump.answered  # type: ignore[attr-defined]
            assert sum(ex.map(tasks.busy, [160e-6] * 1000)) == pytest.approx(0.16)
            assert ex._broker.pump.answered - before < 600  # type: ignore[attr-defined]

    @workers
    def test_a_chunk_stays_together_when_another_is_idle(self, ex: Any) -> None:
        assert len(set(ex.map(tasks.pid_after_a_while, range(20), chunksize=20))) == 1

    @workers
    @pytest.mark.parametrize("most", [1, 7])
    def test_items_count_for_max_tasks_per_child(self, make: Make, most: int) -> None:
        with make(2, max_tasks_per_child=most) as ex:
            pids = collections.Counter(ex.map(tasks.pid, range(30)))
            assert max(pids.values()) <= most
            assert ex.stats().lost == 0

    @workers
    def test_a_worker_that_grew_hands_on_its_items(self, make: Make) -> None:
        with make(1, max_rss_growth="20MiB") as ex:
            pids = list(ex.map(tasks.grows, range(6)))
            assert len(set(pids)) > 1
            assert ex.stats().lost == 0

    @workers
    def test_a_chunk_is_finished_by_a_worker_that_grew(self, make: Make) -> None:
        with make(1, max_rss_growth="20MiB") as ex:
            pids = list(ex.map(tasks.grows, range(15), chunksize=3))
            chunks = [set(pids[first : first + 3]) for first in range(0, 15, 3)]
            assert [len(chunk) for chunk in chunks] == [1] * 5
            # Not after each for sure: what the fork has of its parent's garbage may go meanwhile.
            assert len(set(pids)) > 1

    @workers
    def test_results_that_were_dropped_take_no_room(self, make: Make, gate: GateKeeper) -> None:
        """Also while others of their range are still to come."""
        with make(1) as ex:
            results = ex.map(tasks.mebibyte_but_wait_at_seven, range(64), [gate.gate] * 64)
            for _ in range(7):
                assert next(results).shape == (1 << 17,)
            deadline = time.monotonic() + LIMIT_S
            while ex.stats().viewed_bytes:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            gate.open()
            assert sum(1 for _ in results) == 57

    @workers
    def test_a_child_that_a_task_left_behind_answers_nothing(self, own: Any) -> None:
        assert list(own.map(tasks.forks, range(10))) == list(range(10))

    @workers
    def test_logs_come_while_a_range_runs(
        self, ex: Any, gate: GateKeeper, caplog: pytest.LogCaptureFixture
    ) -> None:
        results = ex.map(tasks.logs_then_waits, range(2), [gate.gate] * 2, chunksize=2)
        deadline = time.monotonic() + LIMIT_S
        while "item 0" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        gate.open()
        assert list(results) == [0, 1]


class TestEnds:
    @workers
    def test_closed_early_runs_no_more(self, ex: Any, gate: GateKeeper, bell: BellKeeper) -> None:
        results = ex.map(tasks.ring_and_wait_after_zero, range(1000), [gate.gate] * 1000, [bell.bell] * 1000)
        assert next(results) == 0
        results.close()
        gate.open()
        assert ex.submit(abs, -1).result(LIMIT_S) == 1
        assert ex.submit(abs, -1).result(LIMIT_S) == 1
        assert len(bell.hear_all()) <= 8

    @workers
    def test_nothing_is_kept(self, ex: Any) -> None:
        before = ex.stats()
        for _ in range(3):
            list(ex.map(abs, range(5000)))
            list(ex.map(np.zeros, [20_000] * 20))
            with pytest.raises(ValueError, match="1"):
                list(ex.map(tasks.odd_fails, range(100)))
        gc.collect()
        deadline = time.monotonic() + LIMIT_S
        while (after := ex.stats()).blocks > before.blocks + 3 or after.queued or after.running:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not ex._broker.pump.ledger.records

    @workers
    def test_an_item_s_own_interruption_stops_no_other_worker(self, own: Any, bell: BellKeeper) -> None:
        own.run_on_all(abs, -1)  # both are there
        results = own.map(tasks.interrupts_at_zero, range(2), [bell.bell] * 2)
        bell.hear()
        pids = pids_of(own)
        with pytest.raises(KeyboardInterrupt):
            list(results)
        own.submit(abs, -1).result(LIMIT_S)
        assert pids_of(own) == pids

    @workers
    def test_a_shutdown_that_cancels(self, make: Make, gate: GateKeeper, bell: BellKeeper) -> None:
        ex: Any = make(2)
        results = ex.map(tasks.ring_and_wait, range(100), [gate.gate] * 100, [bell.bell] * 100)
        bell.hear()
        ex.shutdown(wait=False, cancel_futures=True)
        gate.open()
        with pytest.raises(CancelledError):
            list(results)

    @workers
    def test_a_shutdown_that_cancels_gives_each_item_its_error(
        self, make: Make, gate: GateKeeper, bell: BellKeeper
    ) -> None:
        ex: Any = make(2)
        args = [gate.gate] * 500, [bell.bell] * 500
        results = ex.map(tasks.ring_and_wait, range(500), *args, return_exceptions=True)
        bell.hear()
        ex.shutdown(wait=False, cancel_futures=True)
        gate.open()
        kinds = collections.Counter(map(type, results))
        assert kinds.keys() == {int, CancelledError}
        assert kinds[CancelledError] > 450

    @workers
    def test_killed_workers(self, make: Make, gate: GateKeeper, bell: BellKeeper) -> None:
        ex: Any = make(2)
        results = ex.map(tasks.ring_and_wait, range(100), [gate.gate] * 100, [bell.bell] * 100)
        bell.hear()
        ex.kill_workers()
        with pytest.raises((BrokenProcessPool, CancelledError)):
            list(results)

    @workers
    def test_stats_count_items(self, ex: Any, gate: GateKeeper, bell: BellKeeper) -> None:
        results = ex.map(tasks.ring_and_wait, range(100), [gate.gate] * 100, [bell.bell] * 100)
        bell.hear()
        bell.hear()
        stats = ex.stats()
        assert (stats.running, stats.queued) == (2, 98)
        gate.open()
        assert len(list(results)) == 100

    @workers
    def test_ctrl_c_stops_what_runs(self, own: Any, bell: BellKeeper) -> None:
        results = own.map(tasks.ring_and_sleep, range(20), [bell.bell] * 20)
        bell.hear()
        bell.hear()
        pids = pids_of(own)
        signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                next(results)
        finally:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        assert own.submit(os.getpid).result(LIMIT_S) not in pids


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def pids_of(ex: Any) -> list[int]:
    board = ex._broker.board
    return [board.words[row.pid] for row in board.rows]
