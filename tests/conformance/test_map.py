"""map: order, time-outs, chunks, buffers, errors and abandoned iterators."""

from __future__ import annotations

import functools
import gc
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest

from . import tasks
from .conftest import Make
from .kinds import BUFFERSIZE_IN_STDLIB, Kind, processes
from .scripts import run_script
from .sync import LIMIT_S, BellKeeper, GateKeeper


@pytest.fixture
def buffered(kind: Kind) -> None:
    if kind.is_control and not BUFFERSIZE_IN_STDLIB:
        pytest.skip("the stdlib's map has buffersize from 3.14 on")


class Source:
    """An endless iterator that counts what was taken from it."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Source:
        return self

    def __next__(self) -> int:
        self.taken += 1
        return self.taken - 1


def raise_after(count: int) -> Iterator[int]:
    yield from range(count)
    raise KeyError("source")


def test_results_come_in_the_order_of_items(ex: Executor) -> None:
    assert list(ex.map(pow, range(100), itertools.repeat(2))) == [n * n for n in range(100)]


@processes
def test_a_later_item_that_ends_first_does_not_overtake(
    ex: Executor, bell: BellKeeper, gate: GateKeeper
) -> None:
    results = ex.map(_second_opens, [0, 1], [gate.gate] * 2, [bell.bell] * 2, chunksize=1)
    assert bell.hear() == "1"
    gate.open()
    assert list(results) == [0, 1]


def _second_opens(value: int, gate: Any, bell: Any) -> int:
    if value:
        bell.ring(value)
    else:
        gate.wait()
    return value


def test_stops_at_the_shortest_iterable(ex: Executor) -> None:
    assert list(ex.map(tasks.add, range(10), range(3))) == [0, 2, 4]


def test_no_items(ex: Executor) -> None:
    assert list(ex.map(pow, [], [])) == []


def test_no_iterables(ex: Executor) -> None:
    assert list(ex.map(pow)) == []


def test_is_an_iterator(ex: Executor) -> None:
    results = ex.map(abs, [-1, -2])
    assert iter(results) is results
    assert next(results) == 1
    assert next(results) == 2
    with pytest.raises(StopIteration):
        next(results)


def test_the_longer_iterables_are_taken_as_zip_takes_them(ex: Executor) -> None:
    source = Source()
    assert list(ex.map(tasks.add, source, range(3))) == [0, 2, 4]
    assert source.taken == 4


def test_closed_early_it_gives_no_more(ex: Executor) -> None:
    results: Any = ex.map(abs, range(10))
    assert next(results) == 0
    results.close()
    assert next(results, "ended") == "ended"


@processes
def test_a_timeout_of_zero(ex: Executor, gate: GateKeeper) -> None:
    """It waits for nothing."""
    results = ex.map(tasks.wait_for, [gate.gate], timeout=0)
    with pytest.raises(TimeoutError):
        next(results)
    gate.open()


@pytest.mark.parametrize("options", [{"chunksize": "2"}, {"timeout": "1"}, {"timeout": [1]}])
def test_options_of_another_type_are_type_errors_at_the_call(ex: Executor, options: Any) -> None:
    with pytest.raises(TypeError):
        ex.map(abs, [1], **options)


@pytest.mark.parametrize("timeout", ["1", [1]])
def test_a_timeout_of_another_type_runs_nothing(make: Make, tmp_path: Path, timeout: Any) -> None:
    log = tmp_path / "log"
    with make(1) as ex, pytest.raises(TypeError):
        ex.map(functools.partial(tasks.append_line, str(log)), ["ran"], timeout=timeout)
    assert not log.exists()


def test_items_are_consumed_at_the_call(ex: Executor) -> None:
    source = Source()
    results = ex.map(abs, itertools.islice(source, 20))
    assert source.taken == 20
    assert list(results) == list(range(20))


def test_the_callers_list_may_change_after_the_call(ex: Executor) -> None:
    items = [1, 2, 3]
    results = ex.map(abs, items)
    items.clear()
    assert list(results) == [1, 2, 3]


def test_an_iterable_that_raises_raises_at_the_call(ex: Executor) -> None:
    with pytest.raises(KeyError, match="source"):
        ex.map(abs, raise_after(1))


def test_something_that_is_not_iterable_is_a_type_error(ex: Executor) -> None:
    with pytest.raises(TypeError, match="iterable"):
        ex.map(abs, 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunksize", [1, 2, 3, 7, 100, 1000])
def test_every_chunksize_gives_the_same(ex: Executor, chunksize: int) -> None:
    results = ex.map(pow, range(100), itertools.repeat(2), chunksize=chunksize)
    assert list(results) == [n * n for n in range(100)]


@processes
@pytest.mark.parametrize("chunksize", [0, -1])
def test_chunksize_below_one_is_a_value_error(ex: Executor, chunksize: int) -> None:
    with pytest.raises(ValueError, match=r"^chunksize must be >= 1\.$"):
        ex.map(abs, [1], chunksize=chunksize)


@processes
def test_a_chunk_stays_together_on_one_worker(ex: Executor) -> None:
    pids = list(ex.map(_pid_of, range(40), chunksize=10))
    assert [len(set(pids[start : start + 10])) for start in range(0, 40, 10)] == [1, 1, 1, 1]


def _pid_of(_item: int) -> int:
    return tasks.pid()


def test_many_items_with_defaults(ex: Executor) -> None:
    assert sum(ex.map(abs, range(3000))) == sum(range(3000))


@processes
@pytest.mark.parametrize("wait_s", [0.2, 0])
def test_timeout_ends_the_waiting(ex: Executor, gate: GateKeeper, wait_s: float) -> None:
    started = time.monotonic()
    results = ex.map(tasks.wait_for, [gate.gate] * 2, timeout=wait_s, chunksize=1)
    with pytest.raises(TimeoutError):
        next(results)
    assert wait_s <= time.monotonic() - started < wait_s + 5
    with pytest.raises(StopIteration):
        next(results)
    gate.open()
    assert ex.submit(pow, 2, 2).result(LIMIT_S) == 4


@processes
def test_timeout_counts_from_the_call_and_spares_what_is_ready(
    ex: Executor, bell: BellKeeper, gate: GateKeeper
) -> None:
    task = functools.partial(tasks.first_then_wait, bell.bell, gate.gate)
    results = ex.map(task, range(2), timeout=0.5, chunksize=1)
    assert next(results) == 0
    with pytest.raises(TimeoutError):
        next(results)
    gate.open()


def test_a_generous_timeout_changes_nothing(ex: Executor) -> None:
    assert list(ex.map(abs, range(10), timeout=LIMIT_S)) == list(range(10))


@pytest.mark.parametrize("chunksize", [None, 1, 4])
def test_the_first_exception_ends_the_iterator(ex: Executor, chunksize: int | None) -> None:
    options = {} if chunksize is None else {"chunksize": chunksize}
    results = ex.map(functools.partial(tasks.fail_on, 5), range(10), **options)
    with pytest.raises(ValueError, match="bad 5"):
        for _ in range(10):
            next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_results_before_the_exception_are_given(ex: Executor) -> None:
    results = ex.map(functools.partial(tasks.fail_on, 5), range(10), chunksize=1)
    assert list(itertools.islice(results, 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="bad 5"):
        next(results)


@processes
def test_the_first_exception_cancels_what_has_not_started(
    make: Make, bell: BellKeeper, gate: GateKeeper
) -> None:
    ex = make(2)
    task = functools.partial(tasks.wait_unless_first, bell.bell, gate.gate)
    results = ex.map(task, range(200), chunksize=1)
    with pytest.raises(ValueError, match="first item"):
        next(results)
    gate.open()
    ex.shutdown()
    assert len(bell.hear_all()) <= 8


@processes
def test_an_abandoned_iterator_cancels_what_has_not_started(
    make: Make, bell: BellKeeper, gate: GateKeeper
) -> None:
    ex = make(2)
    task = functools.partial(tasks.first_then_wait, bell.bell, gate.gate)
    results = ex.map(task, range(200), chunksize=1)
    assert next(results) == 0
    bell.hear()
    del results
    gc.collect()
    gate.open()
    ex.shutdown()
    assert len(bell.hear_all()) <= 8


@processes
def test_map_survives_the_executors_variable(make: Make) -> None:
    results = make(2).map(abs, range(50))
    gc.collect()
    assert list(results) == list(range(50))


@processes
def test_two_maps_at_once_may_be_read_alternately(ex: Executor) -> None:
    pairs = zip(ex.map(abs, range(200)), ex.map(pow, range(200), itertools.repeat(2)), strict=True)
    assert list(pairs) == [(n, n * n) for n in range(200)]


@pytest.mark.usefixtures("buffered")
class TestBuffersize:
    """buffersize as in 3.14: items are taken as results are given."""

    def test_takes_a_buffer_full_at_the_call(self, ex: Executor) -> None:
        source = Source()
        results = ex.map(abs, source, buffersize=4, chunksize=1)  # type: ignore[call-arg]
        assert source.taken == 4
        del results

    @pytest.mark.parametrize("options", [{}, {"chunksize": 1}], ids=["default", "chunksize=1"])
    def test_takes_one_item_for_each_result(self, ex: Executor, options: dict[str, int]) -> None:
        source = Source()
        results = ex.map(abs, source, buffersize=4, **options)  # type: ignore[call-arg]
        for given in range(1, 20):
            assert next(results) == given - 1
            assert given <= source.taken <= 4 + given
        results.close()  # type: ignore[attr-defined]

    def test_with_chunks_takes_buffersize_chunks(self, ex: Executor) -> None:
        source = Source()
        results = ex.map(abs, source, buffersize=2, chunksize=5)  # type: ignore[call-arg]
        assert source.taken == 10
        assert list(itertools.islice(results, 12)) == list(range(12))
        assert source.taken <= 30
        results.close()  # type: ignore[attr-defined]

    @pytest.mark.parametrize("size", [1, 2, 7])
    def test_infinite_iterables(self, ex: Executor, size: int) -> None:
        results = ex.map(pow, itertools.count(), itertools.repeat(2), buffersize=size)  # type: ignore[call-arg]
        assert list(itertools.islice(results, 100)) == [n * n for n in range(100)]
        results.close()  # type: ignore[attr-defined]

    @pytest.mark.parametrize("count", [0, 1, 4, 5, 50])
    def test_finite_iterables_of_any_length(self, ex: Executor, count: int) -> None:
        assert list(ex.map(abs, range(count), buffersize=4)) == list(range(count))  # type: ignore[call-arg]

    def test_a_large_buffer_is_no_minimum(self, ex: Executor) -> None:
        assert list(ex.map(abs, range(3), buffersize=100)) == [0, 1, 2]  # type: ignore[call-arg]

    def test_several_iterables_are_taken_in_step(self, ex: Executor) -> None:
        left, right = Source(), Source()
        results = ex.map(tasks.add, left, right, buffersize=3, chunksize=1)  # type: ignore[call-arg]
        assert list(itertools.islice(results, 5)) == [0, 2, 4, 6, 8]
        assert left.taken == right.taken <= 8
        results.close()  # type: ignore[attr-defined]

    def test_the_shortest_iterable_ends_it_and_no_more_is_taken_of_the_others(self, ex: Executor) -> None:
        source = Source()
        results = ex.map(tasks.add, source, range(5), buffersize=2, chunksize=1)  # type: ignore[call-arg]
        assert list(results) == [0, 2, 4, 6, 8]
        assert source.taken == 6  # as zip does it

    def test_an_iterable_that_raises_within_the_buffer_raises_at_the_call(self, ex: Executor) -> None:
        with pytest.raises(KeyError, match="source"):
            ex.map(abs, raise_after(3), buffersize=4, chunksize=1)  # type: ignore[call-arg]

    def test_an_iterable_that_raises_later_ends_it(self, ex: Executor) -> None:
        results = ex.map(abs, raise_after(3), buffersize=2, chunksize=1)  # type: ignore[call-arg]
        assert next(results) == 0
        with pytest.raises(KeyError, match="source"):
            next(results)
        assert next(results, "ended") == "ended"

    def test_closed_early_it_takes_no_more(self, ex: Executor) -> None:
        source = Source()
        results = ex.map(abs, source, buffersize=3, chunksize=1)  # type: ignore[call-arg]
        assert next(results) == 0
        taken = source.taken
        results.close()  # type: ignore[attr-defined]
        assert next(results, "ended") == "ended"
        assert source.taken == taken <= 4

    def test_a_failing_task_ends_it(self, ex: Executor) -> None:
        source = Source()
        results = ex.map(functools.partial(tasks.fail_on, 5), source, buffersize=3, chunksize=1)  # type: ignore[call-arg]
        assert list(itertools.islice(results, 5)) == [0, 1, 2, 3, 4]
        with pytest.raises(ValueError, match="bad 5"):
            next(results)
        assert next(results, "ended") == "ended"
        assert source.taken <= 9

    @processes
    def test_no_more_run_than_the_buffer_holds(
        self, ex: Executor, bell: BellKeeper, gate: GateKeeper
    ) -> None:
        task = functools.partial(tasks.ring_value_and_wait, bell.bell, gate.gate)
        results = ex.map(task, itertools.count(), buffersize=1)  # type: ignore[call-arg]
        bell.hear()
        with pytest.raises(TimeoutError):
            bell.hear(0.1)
        gate.open()
        assert next(results) == 0
        results.close()  # type: ignore[attr-defined]

    @pytest.mark.parametrize("size", [0, -1])
    def test_below_one_is_a_value_error(self, ex: Executor, size: int) -> None:
        with pytest.raises(ValueError, match=r"^buffersize must be None or > 0$"):
            ex.map(abs, [1], buffersize=size)  # type: ignore[call-arg]

    @pytest.mark.parametrize("size", ["3", 2.0])
    def test_other_types_are_type_errors(self, ex: Executor, size: object) -> None:
        with pytest.raises(TypeError, match=r"^buffersize must be an integer or None$"):
            ex.map(abs, [1], buffersize=size)  # type: ignore[call-arg]

    def test_none_means_all_at_the_call(self, ex: Executor) -> None:
        source = Source()
        results = ex.map(abs, itertools.islice(source, 30), buffersize=None)  # type: ignore[call-arg]
        assert source.taken == 30
        assert list(results) == list(range(30))


def test_map_calls_each_item_once(make: Make, tmp_path: Path) -> None:
    log = tmp_path / "calls"
    with make(2) as ex:
        list(ex.map(functools.partial(tasks.append_line, str(log)), map(str, range(500))))
    assert sorted(log.read_text().split(), key=int) == [str(n) for n in range(500)]


def reciprocal(n: int) -> float:
    return 1 / (37 - n)


def test_results_before_an_exception_are_given(ex: Executor) -> None:
    given = []
    with pytest.raises(ZeroDivisionError):
        for result in ex.map(reciprocal, range(2000)):
            given.append(result)
    assert given == [reciprocal(n) for n in range(37)]


@processes
class TestItemsThatShareAnObject:
    """Each call has its own, as with the standard library's default of one item a task."""

    @pytest.mark.parametrize("wrap", [list, lambda items: iter(items)])
    def test_one_iterable(self, ex: Executor, wrap: Any) -> None:
        assert set(ex.map(tasks.grown, wrap([[0]] * 100))) == {2}

    def test_several(self, ex: Executor) -> None:
        shared = [0]
        assert set(ex.map(tasks.grown, [shared] * 100, range(100))) == {2}

    def test_below_the_items(self, ex: Executor) -> None:
        shared = [0]
        assert set(ex.map(tasks.grown_inside, [{"values": shared, "n": n} for n in range(100)])) == {2}


@processes
def test_an_array_that_workers_have_by_fork_is_sent_as_it_is_now(kind: Kind, tmp_path: Path) -> None:
    """As an argument: each call has its own, and sees what was written after the executor was made."""
    ended = run_script(
        tmp_path,
        kind,
        """
        import numpy as np
        from tests.conformance.tasks import raised_by_one

        BIG = np.zeros(100_000)

        if __name__ == "__main__":
            with make(2) as ex:
                ex.submit(len, "").result(15)
                BIG += 1
                print([ex.submit(raised_by_one, BIG).result(15) for _ in range(4)])
                print(list(ex.map(raised_by_one, [BIG] * 4)))
        """,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.lines == ["[2.0, 2.0, 2.0, 2.0]"] * 2
