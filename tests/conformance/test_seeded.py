"""map_seeded and monte_carlo: the same bits for any executor, workers, retries; streams that do not leak."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import signal
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

import repartir
from repartir import Executor, Interrupted, SerialExecutor, monte_carlo

from . import seeded_tasks as tasks
from .conftest import Make
from .kinds import Kind, only_fork, ours, workers
from .sync import LIMIT_S, BellKeeper, GateKeeper

PINNED = [1477398836139994863, 2235712337323209092]


def serial(fn: Any, items: Any, **options: Any) -> list[Any]:
    return list(SerialExecutor().map_seeded(fn, items, **options))


def test_the_bits_are_pinned() -> None:
    assert [drawn for _, drawn, _ in serial(tasks.draw, range(2), seed=7)] == PINNED
    assert int(repartir.rng(7, 1).integers(2**62)) == PINNED[1]


@ours
def test_items_have_streams_of_their_own(ex: Any) -> None:
    expected = serial(tasks.draw, range(20), seed=7)
    assert list(ex.map_seeded(tasks.draw, range(20), seed=7)) == expected
    assert list(ex.map_seeded(tasks.draw_deep, range(20), seed=7)) == expected
    assert all(flag for *_, flag in expected)
    assert len({drawn for _, drawn, _ in expected}) == 20


@ours
def test_options_of_map_change_no_bit(ex: Any) -> None:
    expected = serial(tasks.draw, range(9), seed=7)
    for options in ({"chunksize": 4}, {"buffersize": 2}, {"timeout": LIMIT_S}, {"return_exceptions": True}):
        assert list(ex.map_seeded(tasks.draw, range(9), seed=7, **options)) == expected
    endless = ex.map_seeded(tasks.draw, itertools.count(), seed=7, buffersize=3)
    assert list(itertools.islice(endless, 9)) == expected
    endless.close()
    assert ex.map_seeded(tasks.draw, range(9), seed=7, reduce=max) == max(expected)
    assert list(ex.options(retries=1).map_seeded(tasks.draw, range(9), seed=7)) == expected


@ours
def test_errors_name_the_stream(ex: Any) -> None:
    with pytest.raises(ValueError, match="item 3") as caught:
        list(ex.map_seeded(tasks.fails_at, range(9), seed=7))
    assert caught.value.__notes__ == ["item 3: its random stream is repartir.rng(7, 3)"]
    *_, error = ex.map_seeded(tasks.fails_at, range(4), return_exceptions=True)
    assert error.__notes__[0].startswith("item 3: its random stream is repartir.rng(")


@ours
def test_what_is_no_seed_or_cannot_be_called_is_refused_at_once(ex: Any) -> None:
    with pytest.raises(ValueError, match="negative"):
        ex.map_seeded(tasks.draw, range(3), seed=-1)
    with pytest.raises(TypeError, match=r"called as fn\(item, rng=generator\)"):
        ex.map_seeded(tasks.normals, range(3), seed=1)


@pytest.mark.parametrize("count", [1, 2])
@workers
def test_streams_do_not_leak_into_what_a_waiting_worker_runs(make: Make, count: int) -> None:
    executor: Any = make(count)
    for found in executor.map_seeded(tasks.waits_for_plain_ones, range(4), seed=7):
        assert all(found), found
    for found in executor.map(tasks.plain_that_waits_for_seeded, range(4)):
        assert all(found), found
    assert executor.submit(tasks.has_no_stream).result(LIMIT_S)


@only_fork
def test_nor_where_there_is_no_room_for_arguments(make: Make) -> None:
    """A child runs in the midst of its submit then."""
    executor: Any = make(1, shm_limit=1 << 20)
    assert all(next(executor.map_seeded(_with_large_children, [1], seed=7)))


def _with_large_children(item: int, rng: Any) -> list[bool]:
    large = repartir.rng(1).bytes(1 << 22)
    futures = [repartir.current_executor().submit(tasks.has_no_stream, large) for _ in range(4)]
    return [future.result() for future in futures] + [repartir.task_rng() is rng]


def test_nor_into_plain_tasks_in_one_process() -> None:
    executor = SerialExecutor()

    def outer(item: int) -> bool:
        own = repartir.task_rng()
        return executor.submit(tasks.has_no_stream).result() and repartir.task_rng() is own

    assert all(executor.map_seeded(outer, range(3), seed=7))


@only_fork
def test_nor_into_executors_that_a_task_makes(make: Make) -> None:
    def outer(item: int) -> bool:
        with Executor(1) as inner:
            return inner.submit(tasks.has_no_stream).result(LIMIT_S)

    assert all(SerialExecutor().map_seeded(outer, range(1), seed=7))
    executor: Any = make(1)
    assert all(executor.map_seeded(outer, range(1), seed=7))


@workers
def test_deaths_and_retries_change_no_bit(make: Make, tmp_path: Path) -> None:
    executor: Any = make(2, retries=8, backoff=0.0)
    dying = functools.partial(tasks.draw_or_die, tmp_path / "calls", 3)
    assert list(executor.map_seeded(dying, range(12), seed=7)) == serial(tasks.draw, range(12), seed=7)
    dying = functools.partial(tasks.normals_or_die, tmp_path / "batches", 3)
    expected = monte_carlo(tasks.normals, 2000, seed=7, executor=SerialExecutor())
    assert monte_carlo(dying, 2000, seed=7, executor=executor) == expected


@only_fork
def test_an_executor_made_for_the_call_survives_a_death(kind: Kind, tmp_path: Path) -> None:
    dying = functools.partial(tasks.normals_or_die, tmp_path / "batches", 1)
    expected = monte_carlo(tasks.normals, 2000, seed=7, executor=SerialExecutor())
    assert monte_carlo(dying, 2000, seed=7) == expected


@ours
@pytest.mark.parametrize("fn", [tasks.normals, tasks.mixture], ids=["numbers", "dict"])
def test_estimates_are_the_same_to_the_last_bit(ex: Any, fn: Any) -> None:
    options: dict[str, Any] = {"seed": 7, "quantiles": [0.1, 0.5], "histogram": (4, (0, 3))}
    assert monte_carlo(fn, 501, executor=ex, **options) == monte_carlo(
        fn, 501, executor=SerialExecutor(), **options
    )


@ours
def test_so_are_those_that_a_tolerance_ends(ex: Any) -> None:
    est = monte_carlo(tasks.normals, tol=0.05, seed=7, executor=ex)
    assert est.converged
    assert est == monte_carlo(tasks.normals, tol=0.05, seed=7, executor=SerialExecutor())
    assert ex.submit(pow, 2, 5).result(LIMIT_S) == 32


@pytest.mark.parametrize("count", [1, 5])
@workers
def test_so_are_those_of_other_numbers_of_workers(make: Make, count: int) -> None:
    expected = monte_carlo(tasks.mixture, 3_000, seed=7, executor=SerialExecutor())
    assert monte_carlo(tasks.mixture, 3_000, seed=7, executor=make(count)) == expected


@pytest.mark.slow  # each process loads scipy
@only_fork
def test_points_and_controls_are_the_same_too(ex: Any) -> None:
    pytest.importorskip("scipy")

    def area(u: Any) -> Any:
        return (u**2).sum(axis=1) < 1

    def controlled(rng: Any, n: int) -> Any:
        z = rng.standard_normal(n)
        return {"y": z**3 + z, "z": z}

    for fn, options in (
        (area, {"points": "antithetic", "dim": 2}),
        (area, {"points": "sobol", "dim": 2}),
        (controlled, {"control": {"z": 0.0}}),
    ):
        expected = monte_carlo(fn, 4096, seed=7, executor=SerialExecutor(), **options)  # type: ignore[arg-type]
        assert monte_carlo(fn, 4096, seed=7, executor=ex, **options) == expected  # type: ignore[arg-type]


@ours
def test_in_a_task_the_current_executor_draws(ex: Any) -> None:
    assert ex.submit(tasks.estimate_inside, 1500).result(LIMIT_S) == tasks.estimate_inside(1500)


@workers
def test_what_a_batch_raises_names_it(ex: Any) -> None:
    with pytest.raises(ValueError, match=r"got shape \(\)") as caught:
        monte_carlo(_one_number, 100, seed=7, executor=ex)
    assert (
        "batch 0 of monte_carlo: fn(repartir.rng(7, 0x6D63, 0), 1) draws it again" in caught.value.__notes__
    )


def _one_number(rng: Any, n: int) -> Any:
    return rng.random(n).mean()


@workers
def test_an_error_leaves_nothing_to_the_garbage_collector(ex: Any) -> None:
    gc.disable()
    try:
        with pytest.raises(tasks.UnluckyError) as caught:
            monte_carlo(tasks.unlucky, 100, seed=7, executor=ex)
        reference = weakref.ref(caught.value)
        del caught
        assert reference() is None
    finally:
        gc.enable()


@workers
def test_an_interruption_stops_the_call_and_nothing_else(
    make: Make, bell: BellKeeper, gate: GateKeeper
) -> None:
    executor: Any = make(2)

    def interrupt() -> None:
        bell.hear()
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted) as caught:
        monte_carlo(
            functools.partial(tasks.ring_and_draw, bell.bell, gate.gate), 10**6, seed=7, executor=executor
        )
    thread.join()
    partial = caught.value.partial
    assert partial is None or partial.samples <= 64
    assert executor.submit(pow, 2, 5).result(LIMIT_S) == 32
