"""`compat.Pool` against `multiprocessing.Pool`: the same tests for both."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from repartir import TaskNotSerializable, WorkerDied
from repartir.compat import Pool

from . import pool_tasks as tasks
from .sync import LIMIT_S, GateKeeper, wait_for_end

MakePool = Callable[..., Any]
fork = multiprocessing.get_context("fork")
CONTROL = "multiprocessing"
ours_only = pytest.mark.parametrize("which", ["repartir"], indirect=True)


@pytest.fixture(params=["repartir", CONTROL], scope="module")
def which(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


def new_pool(which: str, *args: Any, **kwargs: Any) -> Any:
    return fork.Pool(*args, **kwargs) if which == CONTROL else Pool(*args, context=fork, **kwargs)


@pytest.fixture
def make(which: str) -> Iterator[MakePool]:
    made: list[Any] = []

    def factory(*args: Any, **kwargs: Any) -> Any:
        made.append(new_pool(which, *args, **kwargs))
        return made[-1]

    yield factory
    while made:
        made[-1].terminate()
        made.pop().join()
    gc.collect()  # the stdlib's pool is a cycle, with its pipes


@pytest.fixture(scope="module")
def pool(which: str) -> Iterator[Any]:
    with new_pool(which, 2) as made:
        if isinstance(made, Pool):
            made._executor.run_on_all(abs, 0)  # so that no worker appears in the middle of a test
        yield made
    made.join()


@pytest.fixture
def gate(which: str, tmp_path: Path) -> Iterator[GateKeeper]:
    keeper = GateKeeper(tmp_path / "gate")
    yield keeper
    keeper.close()


class TestMaking:
    @pytest.mark.parametrize(
        ("bad", "error", "text"),
        [
            ({"processes": 0}, ValueError, "Number of processes must be at least 1"),
            ({"processes": 1, "maxtasksperchild": 0}, ValueError, "must be a positive int or None"),
            ({"processes": 1, "maxtasksperchild": "1"}, ValueError, "must be a positive int or None"),
            ({"processes": 1, "initializer": 5}, TypeError, "initializer must be a callable"),
            ({"processes": "2"}, TypeError, "not supported between"),
        ],
        ids=str,
    )
    def test_bad_arguments(self, which: str, bad: dict[str, Any], error: type[Exception], text: str) -> None:
        with pytest.raises(error, match=text):
            new_pool(which, **bad)

    def test_an_initializer(self, make: MakePool) -> None:
        assert make(2, tasks.initialise, (1, "two")).map(tasks.initialised, range(3)) == [[1, "two"]] * 3
        assert make(1, initializer=tasks.initialise, initargs=[3]).apply(tasks.initialised) == [3]

    def test_workers_are_replaced(self, make: MakePool) -> None:
        pool = make(1, maxtasksperchild=2)
        pids = [pool.apply(tasks.pid) for _ in range(6)]
        assert [len(set(pids[at : at + 2])) for at in (0, 2, 4)] == [1, 1, 1]
        assert len(set(pids)) == 3

    def test_all_cores_by_default(self, make: MakePool) -> None:
        assert make().map(tasks.square, range(5)) == [0, 1, 4, 9, 16]

    def test_repr_shows_the_state(self, make: MakePool) -> None:
        pool = make(2)
        assert "Pool state=RUN pool_size=2>" in repr(pool)
        pool.close()
        assert "state=CLOSE" in repr(pool)
        pool.terminate()
        assert "state=TERMINATE" in repr(pool)

    def test_it_cannot_be_pickled(self, pool: Any) -> None:
        with pytest.raises(NotImplementedError, match="cannot be passed between processes"):
            pickle.dumps(pool)


class TestApply:
    def test_value(self, pool: Any) -> None:
        assert pool.apply(tasks.square, (3,)) == 9
        assert pool.apply(tasks.keywords, (1, 2), {"a": 3}) == ((1, 2), {"a": 3})
        assert pool.apply(tasks.keywords, kwds={"b": [1]}) == ((), {"b": [1]})
        assert pool.apply(tasks.keywords) == ((), {})

    def test_error(self, pool: Any) -> None:
        with pytest.raises(ValueError, match="no 3") as raised:
            pool.apply(tasks.fail_at, (3, 3))
        assert "Traceback" in str(raised.value.__cause__)

    def test_async(self, pool: Any) -> None:
        result = pool.apply_async(tasks.square, (4,))
        assert result.get(LIMIT_S) == result.get() == 16
        assert result.ready()
        assert result.successful()
        result.wait()

    def test_async_error(self, pool: Any) -> None:
        result = pool.apply_async(tasks.fail_at, (3, 3))
        for _ in range(2):
            with pytest.raises(ValueError, match="no 3"):
                result.get(LIMIT_S)
        assert result.ready()
        assert not result.successful()

    def test_before_it_has_ended(self, pool: Any, gate: GateKeeper) -> None:
        result = pool.apply_async(tasks.wait, (gate.gate,))
        assert not result.ready()
        with pytest.raises(ValueError, match="not ready"):
            result.successful()
        began = time.monotonic()
        with pytest.raises(multiprocessing.TimeoutError):
            result.get(timeout=0.05)
        result.wait(0.05)
        assert 0.1 <= time.monotonic() - began < 5
        gate.open()
        assert result.get(LIMIT_S) == "open"

    def test_a_time_out_of_the_task_is_its_own(self, pool: Any) -> None:
        result = pool.apply_async(tasks.raise_time_out)
        with pytest.raises(TimeoutError, match="of the task"):
            result.get(LIMIT_S)

    def test_callbacks(self, pool: Any) -> None:
        """Each is called before the result is ready, whichever it is for."""
        good: list[Any] = []
        bad: list[Any] = []
        results = [
            pool.apply_async(tasks.fail_at_three, (n,), callback=good.append, error_callback=bad.append)
            for n in range(6)
        ]
        for result in results:
            result.wait(LIMIT_S)
            assert result.ready()
        assert sorted(good) == [0, 1, 2, 4, 5]
        assert [str(error) for error in bad] == ["no 3"]

    def test_one_callback_only(self, pool: Any) -> None:
        seen: list[Any] = []
        pool.apply_async(tasks.fail_at_three, (3,), callback=seen.append).wait(LIMIT_S)
        pool.apply_async(tasks.fail_at_three, (2,), error_callback=seen.append).wait(LIMIT_S)
        assert seen == []

    def test_an_argument_that_cannot_travel(self, pool: Any) -> None:
        result = pool.apply_async(tasks.keywords, (threading.Lock(),))
        with pytest.raises((TypeError, pickle.PicklingError)):
            result.get(LIMIT_S)
        assert pool.apply(tasks.square, (2,)) == 4


class TestMap:
    @pytest.mark.parametrize("chunksize", [None, 1, 3, 100])
    @pytest.mark.parametrize("make_items", [range, lambda n: iter(range(n))], ids=["sized", "iterator"])
    def test_values(self, pool: Any, chunksize: int | None, make_items: Any) -> None:
        squares = [n * n for n in range(20)]
        assert pool.map(tasks.square, make_items(20), chunksize) == squares
        assert pool.map_async(tasks.square, make_items(20), chunksize).get(LIMIT_S) == squares
        pairs = [(n, 2) for n in range(20)]
        assert pool.starmap(pow, make_iterable(pairs, make_items), chunksize) == squares
        assert pool.starmap_async(pow, make_iterable(pairs, make_items), chunksize).get(LIMIT_S) == squares

    def test_items_of_starmap_are_any_iterables(self, pool: Any) -> None:
        assert pool.starmap(pow, [[2, 3], iter((3, 2)), range(1, 3)]) == [8, 9, 1]

    def test_nothing(self, pool: Any) -> None:
        assert pool.map(tasks.square, []) == []
        result = pool.map_async(tasks.square, [])
        assert result.ready()
        assert result.successful()
        assert result.get() == []

    @pytest.mark.parametrize("chunksize", [None, 1, 2])
    def test_error(self, pool: Any, chunksize: int | None) -> None:
        with pytest.raises(ValueError, match="no 3"):
            pool.map(tasks.fail_at_three, range(10), chunksize)
        assert not (result := pool.map_async(tasks.fail_at_three, range(10), chunksize)).wait(LIMIT_S)
        assert not result.successful()

    def test_all_chunks_end_before_an_error_is_there(self, pool: Any, tmp_path: Path) -> None:
        result = pool.starmap_async(
            note_or_fail, [(None, tmp_path)] + [(n, tmp_path) for n in range(8)], chunksize=1
        )
        with pytest.raises(TypeError):
            result.get(LIMIT_S)
        assert len(list(tmp_path.iterdir())) == 8

    def test_callbacks(self, pool: Any) -> None:
        seen: list[Any] = []
        pool.map_async(tasks.square, range(4), 2, callback=seen.append).wait(LIMIT_S)
        pool.starmap_async(pow, [(2, 3)], callback=seen.append).wait(LIMIT_S)
        assert seen == [[0, 1, 4, 9], [8]]
        pool.map_async(tasks.fail_at_three, range(5), 1, error_callback=seen.append).wait(LIMIT_S)
        assert str(seen[2]) == "no 3"
        assert len(seen) == 3

    def test_not_ready_before_the_last_chunk(self, pool: Any, gate: GateKeeper) -> None:
        result = pool.map_async(tasks.wait_if, [None, gate.gate], chunksize=1)
        with pytest.raises(multiprocessing.TimeoutError):
            result.get(0.05)
        gate.open()
        assert result.get(LIMIT_S) == [False, True]

    def test_an_error_of_the_iterable(self, pool: Any) -> None:
        with pytest.raises(OSError, match="no more"):
            pool.map(tasks.square, broken())


class TestImap:
    @pytest.mark.parametrize("chunksize", [1, 3, 100])
    @pytest.mark.parametrize("make_items", [range, lambda n: iter(range(n))], ids=["sized", "iterator"])
    def test_values(self, pool: Any, chunksize: int, make_items: Any) -> None:
        squares = [n * n for n in range(200)]
        assert list(pool.imap(tasks.square, make_items(200), chunksize)) == squares
        assert sorted(pool.imap_unordered(tasks.square, make_items(200), chunksize)) == squares
        assert list(pool.imap(tasks.square, make_items(0), chunksize)) == []

    def test_results_go_on_after_an_error(self, pool: Any) -> None:
        results = pool.imap(tasks.fail_at_three, range(6))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="no 3"):
            next(results)
        assert list(results) == [4, 5]
        with pytest.raises(StopIteration):
            next(results)

    def test_in_chunks_an_error_ends_it(self, pool: Any) -> None:
        results = pool.imap(tasks.fail_at_three, range(9), 2)
        assert [next(results) for _ in range(2)] == [0, 1]
        with pytest.raises(ValueError, match="no 3"):
            list(results)

    def test_next_with_a_time_out(self, pool: Any, gate: GateKeeper) -> None:
        for imap in (pool.imap, pool.imap_unordered):
            results = imap(tasks.wait, [gate.gate])
            with pytest.raises(multiprocessing.TimeoutError):
                results.next(0.05)
        gate.open()
        assert results.next(timeout=LIMIT_S) == "open"
        with pytest.raises(StopIteration):
            results.next(timeout=LIMIT_S)

    def test_unordered_gives_what_is_there(self, pool: Any, gate: GateKeeper) -> None:
        results = pool.imap_unordered(tasks.wait_if, [gate.gate, None, None])
        assert [results.next(LIMIT_S) for _ in range(2)] == [False, False]
        gate.open()
        assert list(results) == [True]

    def test_an_error_of_the_iterable_comes_after_what_it_gave(self, pool: Any) -> None:
        results = pool.imap(tasks.square, broken())
        assert [next(results), next(results)] == [1, 4]
        with pytest.raises(OSError, match="no more"):
            next(results)

    def test_bad_chunksize(self, pool: Any) -> None:
        for imap in (pool.imap, pool.imap_unordered):
            with pytest.raises(ValueError, match="Chunksize must be 1"):
                imap(tasks.square, [1], 0)

    def test_all_is_done_before_the_pool_ends(self, make: MakePool, tmp_path: Path) -> None:
        """Though nobody takes a result."""
        pool = make(2)
        pool.imap(tasks.note, (tmp_path / str(n) for n in range(200)))
        pool.imap_unordered(tasks.note, (tmp_path / f"u{n}" for n in range(200)), 7)
        pool.close()
        pool.join()
        assert len(list(tmp_path.iterdir())) == 400


class TestEnd:
    def test_close_does_what_is_there(self, make: MakePool) -> None:
        pool = make(2)
        results = [pool.apply_async(tasks.square, (n,)) for n in range(50)]
        pool.close()
        pool.join()
        assert [result.get(0) for result in results] == [n * n for n in range(50)]

    def test_a_closed_pool_takes_no_calls(self, make: MakePool) -> None:
        pool = make(1)
        pool.close()
        pool.close()
        for call in (pool.apply, pool.apply_async):
            with pytest.raises(ValueError, match="Pool not running"):
                call(tasks.pid)
        for call in (pool.map, pool.map_async, pool.imap, pool.imap_unordered, pool.starmap):
            with pytest.raises(ValueError, match="Pool not running"):
                call(tasks.square, [])
        with pytest.raises(ValueError, match="Pool not running"), pool:
            pass
        pool.join()

    def test_join_needs_an_end(self, pool: Any) -> None:
        with pytest.raises(ValueError, match="Pool is still running"):
            pool.join()

    def test_terminate_ends_workers_at_work(self, make: MakePool) -> None:
        pool = make(2)
        pids = set(pool.map(tasks.pid, range(20), 1))
        pool.map_async(tasks.sleep, [60] * 10, 1)
        began = time.monotonic()
        pool.terminate()
        pool.join()
        assert time.monotonic() - began < 10
        assert all(wait_for_end(pid) for pid in pids)
        with pytest.raises(ValueError, match="Pool not running"):
            pool.apply(tasks.pid)

    def test_with_terminates(self, make: MakePool) -> None:
        began = time.monotonic()
        with make(2) as pool:
            assert pool.apply(tasks.square, (2,)) == 4
            pool.apply_async(tasks.sleep, (60,))
        pool.join()
        assert time.monotonic() - began < 10
        with pytest.raises(ValueError, match="Pool not running"):
            pool.map(tasks.square, [1])


@ours_only
class TestOurs:
    """Where the stdlib's pool waits for ever, or refuses."""

    def test_what_terminate_ends_does_not_hang(self, make: MakePool) -> None:
        pool = make(1)
        running = pool.apply_async(tasks.sleep, (60,))
        waiting = [pool.apply_async(tasks.sleep, (60,)) for _ in range(5)]
        lazy = pool.imap(tasks.square, iter(range(1000)))
        pool.terminate()
        with pytest.raises((WorkerDied, CancelledError)):
            running.get(LIMIT_S)
        for result in waiting:
            with pytest.raises((WorkerDied, CancelledError)):
                result.get(LIMIT_S)
        seen = []
        for _ in range(200):
            try:
                seen.append(next(lazy))
            except StopIteration:
                break
            except (CancelledError, RuntimeError, WorkerDied):
                continue
        else:
            pytest.fail("an iterator of an ended pool does not end")

    def test_the_death_of_a_worker_costs_its_call(self, make: MakePool) -> None:
        pool = make(2)
        with pytest.raises(WorkerDied):
            pool.apply(die)
        assert pool.map(tasks.square, range(5)) == [0, 1, 4, 9, 16]

    def test_lambdas(self, pool: Any) -> None:
        assert pool.map(lambda n: n + 1, range(5)) == [1, 2, 3, 4, 5]
        assert pool.starmap(lambda a, b: a - b, [(3, 1)]) == [2]

    def test_a_function_that_cannot_travel(self, pool: Any) -> None:
        result = pool.map_async(threading.Lock().acquire, [1])
        with pytest.raises(TaskNotSerializable):
            result.get(LIMIT_S)
        with pytest.raises(TaskNotSerializable):
            next(pool.imap(threading.Lock().acquire, [1]))

    def test_an_iterator_is_read_so_far_ahead(self, pool: Any) -> None:
        pulled: list[int] = []

        def numbers() -> Iterator[int]:
            for number in range(1 << 60):
                pulled.append(number)
                yield number

        results = pool.imap(tasks.square, numbers())
        assert [next(results) for _ in range(3)] == [0, 1, 4]
        assert len(pulled) == 2 * 16 + 3

    def test_a_callback_that_raises_harms_nobody(self, pool: Any, caplog: pytest.LogCaptureFixture) -> None:
        result = pool.apply_async(tasks.square, (3,), callback=lambda _: 1 / 0)
        assert result.get(LIMIT_S) == 9
        assert "ZeroDivisionError" in caplog.text

    def test_a_bad_chunksize_of_map(self, pool: Any) -> None:
        with pytest.raises(ValueError, match="chunksize must be >= 1"):
            pool.map(tasks.square, range(5), 0)


def make_iterable(pairs: list[Any], make_items: Any) -> Any:
    return pairs if isinstance(make_items(1), range) else iter(pairs)


def broken() -> Iterator[int]:
    yield 1
    yield 2
    raise OSError("no more")


def note_or_fail(number: int | None, folder: Path) -> None:
    if number is None:
        raise TypeError("no number")
    time.sleep(0.01)
    tasks.note(folder / str(number))


def die() -> None:
    import os

    os._exit(3)
