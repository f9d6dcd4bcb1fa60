"""Arrays in arguments and results: whose they are, how long they stay, and when their memory is free again."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repartir import SharedMemoryFull, WorkerDied, outcome, views
from tests.shared import Interrupted, Threads, family, gates, until

from . import array_tasks as tasks
from .kinds import FORK, SPAWN, workers
from .sync import LIMIT_S, BellKeeper, GateKeeper, wait_for_end
from .tasks import echo, pid, ring_and_wait

pytestmark = pytest.mark.kinds(FORK)
both_starts = pytest.mark.kinds(FORK, SPAWN)

Make = Callable[..., Any]
KIB, MIB = 1 << 10, 1 << 20
SIZE = 256 * KIB


def full(value: int, size: int = SIZE) -> Any:
    return np.full(size, value, np.uint8)


def churn(ex: Executor, rounds: int = 24) -> None:
    """Use the memory that is free for other arguments and results."""
    futures = [ex.submit(echo, full(255, SIZE + 4096 * (n % 3))) for n in range(rounds)]
    assert all(future.result(LIMIT_S)[-1] == 255 for future in futures)


def is_full_of(array: Any, value: int) -> bool:
    return bool((array == value).all())


@pytest.fixture
def one(make: Make) -> Any:
    """An executor with one worker."""
    return make(1)


def wait_for_blocks(ex: Any, count: int) -> None:
    until(lambda: ex.stats().blocks == count)


# ---- arguments


@workers
def test_what_a_task_writes_to_its_argument_nobody_else_sees(ex: Executor) -> None:
    original = np.arange(SIZE)
    for value in (1, 2, 3):
        assert ex.submit(tasks.overwrite, original, value).result(LIMIT_S) == SIZE
    together = [ex.submit(tasks.overwrite, original, value) for value in range(8)]
    assert [future.result(LIMIT_S) for future in together] == [SIZE] * 8
    assert (original == np.arange(SIZE)).all()


@workers
def test_what_the_client_writes_after_the_submit_no_task_sees(ex: Executor) -> None:
    array = full(1)
    futures = []
    for value in range(1, 9):
        array[...] = value
        futures.append(ex.submit(tasks.total, array))
    array[...] = 0
    assert [future.result(LIMIT_S) for future in futures] == [value * SIZE for value in range(1, 9)]


@workers
def test_an_argument_given_twice_is_one_array_in_the_task(ex: Executor) -> None:
    original = full(1)
    are_one, seen = ex.submit(tasks.aliased, original, original, {"array": original}).result(LIMIT_S)
    assert are_one
    assert seen[0] == 99
    assert is_full_of(original, 1)


@workers
def test_arrays_of_every_layout_come_back_as_they_went(ex: Executor) -> None:
    made = np.arange(SIZE, dtype=">i4").reshape(16, 64, -1)
    layouts = [
        made,
        np.asfortranarray(made),
        made.T,
        made[:, ::2],
        made[::-1],
        np.broadcast_to(made[0], made.shape),
    ]
    for array in layouts:
        copy = ex.submit(echo, array).result(LIMIT_S)
        np.testing.assert_array_equal(copy, array, strict=True)
        assert copy.flags.f_contiguous == array.flags.f_contiguous
        assert copy.flags.writeable


def test_the_memory_of_arguments_is_free_after_their_tasks(one: Any) -> None:
    one.submit(tasks.total, full(1)).result(LIMIT_S)
    before = one.stats()
    for _ in range(5):
        one.submit(tasks.total, full(1)).result(LIMIT_S)
        assert one.stats().blocks == before.blocks
    assert one.stats().backed_bytes == before.backed_bytes
    assert before.kept_bytes == 0


# ---- arguments that outlive their task


@pytest.mark.parametrize("how", tasks.WAYS_TO_KEEP)
def test_what_a_task_keeps_of_its_argument_no_later_task_overwrites(one: Any, how: str) -> None:
    for value in (7, 8):
        one.submit(tasks.keep, how, full(value)).result(LIMIT_S)
    assert one.stats().kept_bytes >= 2 * SIZE
    churn(one)
    assert one.submit(tasks.kept_values).result(LIMIT_S) == [{7}, {8}]
    one.submit(tasks.drop).result(LIMIT_S)
    until(lambda: one.stats().kept_bytes == 0)


def test_it_may_be_given_back_in_any_order(one: Any) -> None:
    for value in range(12):
        one.submit(tasks.keep, "itself", full(value)).result(LIMIT_S)
    one.submit(tasks.drop, slice(None, None, 2)).result(LIMIT_S)
    until(lambda: one.stats().kept_bytes < 7 * SIZE)
    churn(one)
    assert one.submit(tasks.kept_values).result(LIMIT_S) == [{value} for value in range(1, 12, 2)]
    one.submit(tasks.drop).result(LIMIT_S)
    until(lambda: one.stats().kept_bytes == 0)


def test_of_several_arguments_one_that_is_kept_keeps_its_content(one: Any) -> None:
    arrays = [full(value) for value in range(4)]
    one.submit(tasks.keep, "itself", arrays).result(LIMIT_S)
    churn(one)
    (values,) = one.submit(tasks.kept_values).result(LIMIT_S)
    assert values == {0, 1, 2, 3}


def test_a_thread_that_outlives_its_task_still_has_the_argument(
    one: Any, gate: GateKeeper, bell: BellKeeper
) -> None:
    one.submit(tasks.keep_in_thread, gate.gate, bell.bell, full(5)).result(LIMIT_S)
    assert one.stats().kept_bytes >= SIZE
    churn(one)
    gate.open()
    assert bell.hear() == "{5}"
    until(lambda: one.submit(pid).result(LIMIT_S) and one.stats().kept_bytes == 0)


def test_what_a_killed_worker_kept_is_free_again(make: Make) -> None:
    ex = make(2)
    for value in range(6):
        ex.submit(tasks.keep, "itself", full(value)).result(LIMIT_S)
    assert ex.stats().kept_bytes >= 6 * SIZE
    workers_alive = {ex.submit(pid).result(LIMIT_S) for _ in range(20)}
    until(lambda: workers_alive.add(ex.submit(pid).result(LIMIT_S)) or len(workers_alive) == 2)
    for worker in workers_alive:
        os.kill(worker, signal.SIGKILL)
    until(lambda: ex.stats().lost == 2)
    until(lambda: ex.stats().kept_bytes == 0)
    churn(ex)


def test_what_retired_workers_kept_is_free_again(make: Make) -> None:
    ex = make(1, max_tasks_per_child=1)
    for value in range(3):
        ex.submit(tasks.keep, "itself", full(value)).result(LIMIT_S)
    until(lambda: ex.stats().kept_bytes == 0)


def test_a_worker_killed_while_it_has_an_argument_frees_it(
    one: Any, gate: GateKeeper, bell: BellKeeper
) -> None:
    future = one.submit(ring_and_wait, bell.bell, gate.gate, full(1))
    os.kill(int(bell.hear()), signal.SIGKILL)
    with pytest.raises(WorkerDied):
        future.result(LIMIT_S)
    wait_for_blocks(one, 1)
    assert one.stats().kept_bytes == 0


# ---- results


@workers
def test_a_result_can_be_written_to_and_no_later_task_overwrites_it(ex: Any) -> None:
    results = [ex.submit(tasks.full, SIZE, value).result(LIMIT_S) for value in range(8)]
    churn(ex)
    for value, result in enumerate(results):
        assert is_full_of(result, value)
        result[...] = 100 + value
    churn(ex)
    assert all(is_full_of(result, 100 + value) for value, result in enumerate(results))


def test_a_result_is_no_copy_and_its_memory_is_free_after_its_last_view(one: Any) -> None:
    one.submit(tasks.full, SIZE, 0).result(LIMIT_S)
    until(lambda: one.stats().viewed_bytes == 0)
    before = one.stats().blocks
    result = one.submit(tasks.full, SIZE, 3).result(LIMIT_S)
    assert one.stats().viewed_bytes >= SIZE
    view = memoryview(result[::2].T[100:])
    del result
    churn(one)
    assert one.stats().viewed_bytes >= SIZE
    assert set(view.tolist()) == {3}
    del view
    until(lambda: one.stats().viewed_bytes == 0)
    wait_for_blocks(one, before + 1)  # `churn` brought a function


def test_views_die_while_nobody_waits_for_a_task(one: Any) -> None:
    one.submit(tasks.full, SIZE, 0).result(LIMIT_S)
    until(lambda: one.stats().viewed_bytes == 0)


@both_starts
def test_results_stay_valid_after_the_shutdown(make: Make) -> None:
    ex = make(2)
    results = [ex.submit(tasks.full, SIZE, value).result(LIMIT_S) for value in range(6)]
    del results[::2]
    ex.shutdown()
    results[0][:10] = 9
    assert results[0][:10].tolist() == [9] * 10
    assert all(is_full_of(result[10:], 2 * n + 1) for n, result in enumerate(results))
    del ex
    gc.collect()
    assert all(is_full_of(result[10:], 2 * n + 1) for n, result in enumerate(results))


def test_after_the_shutdown_each_result_frees_its_memory(make: Make) -> None:
    ex = make(1)
    arena = os.dup(ex._broker.board.segments[1].fd)
    try:

        def taken() -> int:
            return os.fstat(arena).st_blocks * 512

        results = [ex.submit(tasks.full, MIB, value).result(LIMIT_S) for value in range(4)]
        churn(ex, 40)
        ex.shutdown()
        assert 4 * MIB <= taken() < 4 * MIB + 128 * KIB
        while results:
            assert is_full_of(results[0], 4 - len(results))
            del results[0]
            if results:  # the last one takes the mapping with it, and this test alone holds the file
                assert taken() < len(results) * MIB + 128 * KIB
    finally:
        os.close(arena)


def test_results_outlive_an_executor_that_was_never_shut_down(make: Make) -> None:
    ex = make(1)
    result = ex.submit(tasks.full, SIZE, 4).result(LIMIT_S)
    thread = ex._broker.thread
    del ex
    gc.collect()
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    assert is_full_of(result, 4)


def test_a_result_outlives_a_worker_that_died_right_after_its_answer(make: Make) -> None:
    ex = make(1, initializer=tasks.die_after_an_answer)
    results: list[Any] = []
    for value in range(4):
        results.append(ex.submit(tasks.full, SIZE, value).result(LIMIT_S))
        until(lambda: ex.stats().lost == len(results))
    assert ex.submit(pid).result(LIMIT_S)
    assert all(is_full_of(result, value) for value, result in enumerate(results))
    results.clear()
    wait_for_blocks(ex, 2)  # the functions


@pytest.mark.parametrize("end", ["kill_workers", "terminate_workers"])
def test_results_outlive_killed_workers(make: Make, end: str) -> None:
    ex = make(2)
    result = ex.submit(tasks.full, SIZE, 4).result(LIMIT_S)
    getattr(ex, end)()
    ex.shutdown()
    assert is_full_of(result, 4)


@pytest.mark.parametrize(
    "how", ["itself", "a slice", "every second", "backwards", "another shape", "a memoryview"]
)
@both_starts
def test_a_result_that_is_a_view_of_the_argument(ex: Any, how: str) -> None:
    original = np.arange(SIZE)
    result = ex.submit(tasks.part, original, how).result(LIMIT_S)
    assert ex.stats().kept_bytes == 0
    churn(ex)
    expected = np.array(tasks.WAYS_TO_KEEP[how](original))
    np.testing.assert_array_equal(np.array(result), expected)
    result[0] = result[-1]
    assert (original == np.arange(SIZE)).all()


@both_starts
def test_a_result_that_is_the_argument_and_views_of_it(ex: Any) -> None:
    original = np.arange(SIZE).reshape(4, -1)
    itself, transposed, rest, again = ex.submit(tasks.parts, original).result(LIMIT_S)
    assert itself is again
    transposed[...] = -1
    np.testing.assert_array_equal(itself, original)
    np.testing.assert_array_equal(rest, original[1:])
    assert ex.stats().kept_bytes == 0


def test_a_result_given_back_as_an_argument(one: Any) -> None:
    array = one.submit(tasks.full, SIZE, 1).result(LIMIT_S)
    for _ in range(6):
        array = one.submit(tasks.double_in_place, array).result(LIMIT_S)
    assert is_full_of(array, 64)
    del array
    until(lambda: one.stats().viewed_bytes == 0)


@pytest.mark.slow
def test_ten_thousand_results_at_a_time(make: Make) -> None:
    ex = make(2, out_of_band=1)
    ex.submit(tasks.full, 1000, 0).result(LIMIT_S)
    until(lambda: ex.stats().viewed_bytes == 0)
    before = ex.stats().blocks
    futures = [ex.submit(tasks.full, 1000, n % 251) for n in range(10_000)]
    results = [future.result(LIMIT_S) for future in futures]
    del futures
    assert ex.stats().blocks == before + 10_000
    assert ex.stats().viewed_bytes >= 10_000_000
    assert all(is_full_of(result, n % 251) for n, result in enumerate(results))
    del results[::2]
    wait_for_blocks(ex, before + 5_000)
    more = [ex.submit(tasks.full, 1000, 7).result(LIMIT_S) for _ in range(100)]
    assert all(is_full_of(result, (2 * n + 1) % 251) for n, result in enumerate(results))
    del results, more
    wait_for_blocks(ex, before)
    assert ex.stats().viewed_bytes == 0


def test_results_beyond_half_of_the_limit_come_as_private_memory(make: Make) -> None:
    ex = make(1, shm_limit=16 * MIB)
    results = [ex.submit(tasks.full, MIB, value).result(LIMIT_S) for value in range(40)]
    assert 0 < ex.stats().viewed_bytes <= 8 * MIB
    assert ex.stats().arena_bytes <= 9 * MIB
    assert all(is_full_of(result, value) for value, result in enumerate(results))
    assert all(result.flags.writeable for result in results)
    results.clear()
    until(lambda: ex.stats().viewed_bytes == 0)
    again = ex.submit(tasks.full, MIB, 1).result(LIMIT_S)
    assert ex.stats().viewed_bytes >= MIB
    assert is_full_of(again, 1)


def test_a_result_larger_than_the_limit_comes_as_private_memory(make: Make) -> None:
    ex = make(1, shm_limit=4 * MIB)
    results = [ex.submit(tasks.full, 16 * MIB, value).result(LIMIT_S) for value in range(3)]
    assert ex.stats().viewed_bytes == 0
    assert all(is_full_of(result, value) for value, result in enumerate(results))
    wait_for_blocks(ex, 1)
    assert ex.stats().spills == 0


def test_a_result_in_a_cycle_is_given_back_by_the_garbage_collector(one: Any) -> None:
    results = [one.submit(tasks.in_a_cycle, SIZE, value).result(LIMIT_S) for value in range(4)]
    churn(one)
    assert all(is_full_of(result[0], value) for value, result in enumerate(results))
    results.clear()
    gc.collect()
    until(lambda: one.stats().viewed_bytes == 0)


def test_a_future_keeps_its_result(one: Any) -> None:
    future = one.submit(tasks.full, SIZE, 1)
    future.result(LIMIT_S)
    churn(one)
    assert is_full_of(future.result(0), 1)
    del future
    until(lambda: one.stats().viewed_bytes == 0)


def test_threads_that_take_and_drop_results(make: Make) -> None:
    ex = make(2, shm_limit="64MiB")
    threads = Threads()

    def take(first: int) -> None:
        held: list[tuple[int, Any]] = []
        for value in range(first, first + 60):
            held.append((value % 256, ex.submit(tasks.double_in_place, full(value % 128)).result(LIMIT_S)))
            if len(held) > 5:
                del held[value % 5]
            assert all(is_full_of(result, 2 * (value % 128)) for value, result in held)

    for first in (0, 40, 80):
        threads.start(take, first)
    threads.join()
    until(lambda: ex.stats().viewed_bytes == 0)
    assert ex.stats().kept_bytes == 0


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_result_whose_taking_was_interrupted_comes_whole_and_is_given_back(
    one: Any, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    one.submit(tasks.full, SIZE, 0).result(LIMIT_S)
    until(lambda: one.stats().viewed_bytes == 0)
    before = one.stats().blocks
    decode, raised = outcome.decode_outcome, 0

    def interrupted(data: Any, buffers: Any = ()) -> Any:
        nonlocal raised
        found = decode(data, buffers) if moment == "after" else None
        if threading.current_thread() is threading.main_thread() and buffers and raised < 3:
            raised += 1
            raise Interrupted
        return found or decode(data, buffers)

    def patiently(call: Callable[..., Any], *args: Any) -> Any:
        while True:
            with suppress(Interrupted):
                return call(*args)

    monkeypatch.setattr(outcome, "decode_outcome", interrupted)
    results: list[Any] = []
    while raised < 3:
        future = patiently(one.submit, tasks.full, SIZE, len(results) % 256)
        results.append(patiently(future.result, LIMIT_S))
        del future
    churn(one)
    assert all(is_full_of(result, value % 256) for value, result in enumerate(results))
    results.clear()
    until(lambda: one.stats().viewed_bytes == 0)
    wait_for_blocks(one, before + 1)  # `churn` brought a function


@pytest.fixture(scope="module")
def pd() -> Any:
    """Of wider scope than the guard, for an import of pyarrow, which pandas does, leaves a thread."""
    return pytest.importorskip("pandas")


@both_starts
def test_a_data_frame_is_the_receivers_own(ex: Any, pd: Any) -> None:
    frame = pd.DataFrame({"a": np.arange(SIZE), "b": np.arange(SIZE) / 2, "c": ["x", None] * (SIZE // 2)})
    copy = ex.submit(echo, frame).result(LIMIT_S)
    pd.testing.assert_frame_equal(copy, frame)
    copy.loc[0, "a"] = -1
    copy.loc[:, "b"] += 1
    churn(ex)
    assert frame.loc[0, "a"] == 0
    assert copy["a"].tolist() == [-1, *range(1, SIZE)]


# ---- memory maps


@pytest.mark.parametrize(("mode", "written"), [("r", 7), ("r+", -1), ("c", 7)])
@both_starts
def test_a_memory_map_is_mapped_by_the_task(ex: Any, tmp_path: Path, mode: Any, written: int) -> None:
    path = tmp_path / "data"
    np.arange(100_000, dtype="i8").tofile(path)
    mapped = np.memmap(path, "i8", mode)
    is_mapped, total = ex.submit(tasks.write_map, mapped[5:], 2, -1).result(LIMIT_S)
    assert is_mapped == (mode != "c")
    assert total == mapped[5:].sum() - (8 if mode == "c" else 0)
    assert mapped[7] == written
    assert np.fromfile(path, "i8")[7] == written
    assert ex.stats().kept_bytes == 0


@pytest.mark.parametrize("deleted", [False, True])
@both_starts
def test_a_memory_map_as_a_result(ex: Any, tmp_path: Path, deleted: bool) -> None:
    result = ex.submit(tasks.map_of, str(tmp_path / "made"), deleted=deleted).result(LIMIT_S)
    assert type(result) is np.memmap
    assert result.tolist() == list(range(999, 0, -2))
    assert (result._mmap is None) == deleted


# ---- exceptions


@pytest.mark.parametrize("how", ["plain", "chained", "in a group", "with the array"])
@both_starts
def test_an_exception_does_not_keep_the_argument(ex: Any, how: str) -> None:
    with pytest.raises((ValueError, ExceptionGroup, tasks.ArrayError)) as caught:
        ex.submit(tasks.raise_with_frames, full(3), how).result(LIMIT_S)
    assert ex.stats().kept_bytes == 0
    if how == "with the array":
        churn(ex)
        assert is_full_of(caught.value.args[0], 3)
        assert is_full_of(caught.value.data, 3)


def test_an_item_that_raises_keeps_no_array_of_its_chunk(one: Any) -> None:
    items = [full(value) for value in range(8)]
    results = one.map(partial(tasks.double_unless, 5), items, chunksize=4)
    assert [int(next(results)[0]) for _ in range(5)] == [0, 2, 4, 6, 8]
    with pytest.raises(ValueError, match="bad 5"):
        next(results)
    assert one.stats().kept_bytes == 0
    until(lambda: one.stats().viewed_bytes == 0)


# ---- forks

QUARTER = "[[4], [3], [3], [3]]"


def use_in_child(array: Any, bell: Any, gate: Any) -> None:
    assert is_full_of(array, 3)
    tasks._show_later(bell, gate, array, 4)


@pytest.mark.parametrize("shut_down", ["before the fork", "after the fork", "never"])
def test_a_child_of_the_client_has_its_results_to_itself(
    make: Make, gate: GateKeeper, bell: BellKeeper, shut_down: str
) -> None:
    ex = make(1)
    result = ex.submit(tasks.full, 4 * SIZE, 3).result(LIMIT_S)
    if shut_down == "before the fork":
        ex.shutdown()
    with family() as children:
        child = children.fork(use_in_child, result, bell.bell, gate.gate)
        assert bell.hear() == "written"
        assert is_full_of(result, 3)
        del result
        gc.collect()
        if shut_down == "after the fork":
            ex.shutdown()
        elif shut_down == "never":
            others = [ex.submit(tasks.full, 4 * SIZE, 9).result(LIMIT_S) for _ in range(6)]
            churn(ex)
            assert all(is_full_of(other, 9) for other in others)
        gate.open()
        assert bell.hear() == QUARTER
        child.join()


def test_a_child_may_drop_what_the_client_still_has(make: Make) -> None:
    ex = make(1)
    results = [ex.submit(tasks.full, SIZE, value).result(LIMIT_S) for value in range(4)]

    def in_child() -> None:
        results.clear()
        gc.collect()

    with family() as children:
        children.fork(in_child).join()
    churn(ex)
    assert all(is_full_of(result, value) for value, result in enumerate(results))
    ex.shutdown()
    with family() as children:
        children.fork(in_child).join()
    assert all(is_full_of(result, value) for value, result in enumerate(results))


def test_results_that_come_after_a_fork_are_given_back_as_ever(make: Make) -> None:
    ex = make(1)
    early = ex.submit(tasks.full, SIZE, 1).result(LIMIT_S)
    with gates(1) as (end,), family() as children:
        children.fork(end.wait)
        pinned = ex.stats().viewed_bytes
        del early
        for value in range(10):
            late = ex.submit(tasks.full, SIZE, value).result(LIMIT_S)
            assert is_full_of(late, value)
            del late
        until(lambda: ex.stats().viewed_bytes == pinned)
        end.open()


def test_an_executor_made_while_another_has_views(make: Make) -> None:
    first = make(1)
    result = first.submit(tasks.full, SIZE, 1).result(LIMIT_S)
    second = make(1)
    assert second.submit(tasks.total, result).result(LIMIT_S) == SIZE
    doubled = second.submit(tasks.double_in_place, result).result(LIMIT_S)
    first.shutdown()
    second.shutdown()
    assert is_full_of(result, 1)
    assert is_full_of(doubled, 2)


@pytest.mark.parametrize("lies_in", ["shared memory", "the spill file"])
@pytest.mark.parametrize("way", [tasks.fork_with, tasks.process_with])
def test_a_child_of_a_task_has_the_argument_to_itself(
    make: Make, gate: GateKeeper, bell: BellKeeper, way: Callable[..., Any], lies_in: str
) -> None:
    ex = make(1, shm_limit=MIB if lies_in == "the spill file" else "64MiB")
    original = full(3, 4 * SIZE)
    child, seen = ex.submit(way, bell.bell, gate.gate, original, 4).result(LIMIT_S)
    assert seen == [3]
    assert bell.hear() == "written"
    churn(ex)
    kept = ex.stats().kept_bytes
    gate.open()
    assert bell.hear() == QUARTER
    assert wait_for_end(child)
    for value in range(5):
        assert ex.submit(tasks.overwrite, original, value).result(LIMIT_S) == 1
    assert ex.stats().kept_bytes == kept
    assert is_full_of(original, 3)


# ---- maps


@pytest.mark.parametrize("chunksize", [None, 1, 3])
@pytest.mark.parametrize("buffersize", [None, 2])
@both_starts
def test_a_map_over_arrays(ex: Any, chunksize: int | None, buffersize: int | None) -> None:
    items = [full(value) for value in range(10)]
    results = list(ex.map(tasks.double_in_place, items, chunksize=chunksize, buffersize=buffersize))
    assert all(is_full_of(result, 2 * value) for value, result in enumerate(results))
    assert all(is_full_of(item, value) for value, item in enumerate(items))
    results[0][...] = 77
    assert all(is_full_of(result, 2 * value) for value, result in enumerate(results) if value)
    assert ex.stats().kept_bytes == 0


def test_a_map_over_arrays_and_numbers(ex: Any) -> None:
    items = [full(value) for value in range(10)]
    results = list(ex.map(tasks.add_to, items, range(10), chunksize=4))
    assert all(is_full_of(result, 2 * value) for value, result in enumerate(results))


def test_one_array_in_every_item_of_a_chunk_is_one_in_the_task(one: Any) -> None:
    """As in the standard library, where a chunk is pickled as one; but each item's result is pickled when it is there."""
    array = full(0)
    results = list(one.map(tasks.add_to, [array] * 3, [1, 1, 1], chunksize=3))
    for nth, result in enumerate(results):
        assert is_full_of(result, nth + 1)
    assert is_full_of(array, 0)


def test_a_map_with_a_buffersize_holds_few_blocks(one: Any) -> None:
    most = 0
    for result in one.map(tasks.double_in_place, (full(1, MIB) for _ in range(40)), buffersize=2):
        most = max(most, one.stats().arena_bytes)
        del result
    assert most <= 8 * MIB
    until(lambda: one.stats().viewed_bytes == 0)


# ---- options


def views_of(ex: Any, size: int) -> int:
    """Bytes of blocks that a result of so many bytes lies in."""
    until(lambda: ex.stats().viewed_bytes == 0)
    result = ex.submit(tasks.full, size, 1).result(LIMIT_S)
    assert is_full_of(result, 1)
    return int(ex.stats().viewed_bytes)


@pytest.mark.parametrize(
    ("out_of_band", "beside"), [(1, 1), (5000, 5000), ("10 KiB", 10_240), ("1GiB", None)]
)
def test_out_of_band_says_from_which_size_on_arrays_go_beside_the_pickle(
    make: Make, out_of_band: Any, beside: int | None
) -> None:
    ex = make(1, out_of_band=out_of_band)
    if beside is None:
        assert views_of(ex, 8 * MIB) == 0
    else:
        assert views_of(ex, beside) >= beside
        assert views_of(ex, beside - 1) == 0
    array = np.arange(MIB)
    assert ex.submit(tasks.total, array).result(LIMIT_S) == array.sum()


@pytest.mark.parametrize("limit", [MIB, "1MiB", 1_500_001, "2.5MiB", 1])
def test_shared_memory_stays_within_its_limit(make: Make, limit: Any) -> None:
    ex = make(1, shm_limit=limit)
    stats = ex.stats()
    assert MIB <= stats.arena_limit <= 3_000_000
    futures = [ex.submit(tasks.double_in_place, full(value, 300_000)) for value in range(20)]
    assert all(is_full_of(future.result(LIMIT_S), 2 * value) for value, future in enumerate(futures))
    assert ex.stats().backed_bytes <= stats.arena_limit


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("out_of_band", None, TypeError),
        ("out_of_band", 1.5, TypeError),
        ("out_of_band", True, TypeError),
        ("out_of_band", 0, ValueError),
        ("out_of_band", -5, ValueError),
        ("out_of_band", "", ValueError),
        ("out_of_band", "many", ValueError),
        ("out_of_band", "5 parsecs", ValueError),
        ("shm_limit", 1e9, TypeError),
        ("shm_limit", [1], TypeError),
        ("shm_limit", False, TypeError),
        ("shm_limit", 0, ValueError),
        ("shm_limit", "-1GiB", ValueError),
        ("shm_limit", "infGiB", ValueError),
        ("shm_limit", "nan", ValueError),
        ("shm_timeout", "3", TypeError),
        ("shm_timeout", True, TypeError),
        ("shm_timeout", [], TypeError),
        ("shm_timeout", 1j, TypeError),
        ("shm_timeout", -0.1, ValueError),
        ("shm_timeout", float("nan"), ValueError),
        ("shm_timeout", float("inf"), ValueError),
    ],
)
def test_a_bad_option_is_an_error_that_names_it(
    make: Make, option: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"^{option} must be "):
        make(1, **{option: value})


def test_a_submit_that_waits_for_room_gives_up_after_the_time_out(
    make: Make, gate: GateKeeper, bell: BellKeeper
) -> None:
    ex = make(1, shm_limit=3 * MIB, shm_timeout=0.05)
    running = [ex.submit(ring_and_wait, bell.bell, gate.gate, full(n, 600 * KIB)) for n in range(3)]
    bell.hear()
    late = ex.submit(tasks.total, full(1, 800 * KIB))
    with pytest.raises(SharedMemoryFull, match=r"^after 0\.05 s there is still no room for 819,") as caught:
        late.result(0)
    assert "temporary files has no room" not in str(caught.value)
    gate.open()
    assert [int(future.result(LIMIT_S)[0]) for future in running] == [0, 1, 2]
    assert ex.submit(tasks.total, full(1, 600 * KIB)).result(LIMIT_S) == 600 * KIB


# ---- figures


def test_stats_tell_what_is_under_way_and_what_is_held(one: Any, gate: GateKeeper, bell: BellKeeper) -> None:
    at_first = one.stats()
    assert (at_first.workers, at_first.queued, at_first.running, at_first.lost) == (1, 0, 0, 0)
    assert (at_first.blocks, at_first.arena_bytes, at_first.spills, at_first.spilled_bytes) == (0, 0, 0, 0)
    assert (at_first.viewed_bytes, at_first.kept_bytes) == (0, 0)
    assert at_first.arena_limit > at_first.backed_bytes
    futures = [one.submit(ring_and_wait, bell.bell, gate.gate, full(value)) for value in range(3)]
    bell.hear()
    under_way = one.stats()
    assert (under_way.queued, under_way.running) == (2, 1)
    assert under_way.blocks == 4  # three arguments and the function
    assert 3 * SIZE <= under_way.arena_bytes <= 4 * SIZE
    assert under_way.backed_bytes >= under_way.arena_bytes
    assert repr(one).startswith("<Executor 1 workers: 2 queued, 1 running, arena ")
    assert repr(one).endswith(" KiB in 4 blocks>")
    gate.open()
    results = [future.result(LIMIT_S) for future in futures]
    del futures
    until(lambda: one.stats().running == 0)
    done = one.stats()
    assert (done.queued, done.blocks) == (0, 4)  # three results and the function
    assert 3 * SIZE <= done.viewed_bytes <= done.arena_bytes
    assert is_full_of(results.pop(), 2)
    until(lambda: one.stats().viewed_bytes < done.viewed_bytes)
    with pytest.raises(AttributeError):
        done.blocks = 0


def test_stats_and_repr_tell_of_spills(make: Make, gate: GateKeeper, bell: BellKeeper) -> None:
    ex = make(1, shm_limit=MIB)
    future = ex.submit(ring_and_wait, bell.bell, gate.gate, full(1, 4 * MIB))
    bell.hear()
    stats = ex.stats()
    assert stats.spills == 1
    assert 4 * MIB <= stats.spilled_bytes < 5 * MIB
    assert repr(ex).endswith(", spilled 4 MiB in 1 block>")
    gate.open()
    assert is_full_of(future.result(LIMIT_S), 1)
    wait_for_blocks(ex, 1)
    assert ex.stats().spills == 0


def test_stats_after_the_shutdown(make: Make) -> None:
    ex = make(1, name="calc")
    result = ex.submit(tasks.full, SIZE, 1).result(LIMIT_S)
    ex.shutdown()
    stats = ex.stats()
    assert (stats.queued, stats.running, stats.blocks, stats.arena_bytes, stats.arena_limit) == (
        0,
        0,
        0,
        0,
        0,
    )
    assert stats.viewed_bytes >= SIZE
    assert repr(ex) == "<Executor 'calc' 1 workers: shut down>"
    del result
    assert ex.stats().viewed_bytes == 0


def test_an_idle_worker_collects_what_only_cycles_keep(make: Make) -> None:
    with make(1) as ex:
        for _ in range(5):
            ex.submit(tasks.leave_in_a_cycle, np.zeros(100_000)).result(LIMIT_S)
        until(lambda: ex.stats().kept_bytes == 0)


def test_a_result_interrupted_before_it_is_watched_is_not_counted_for_ever(
    one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, left = views.watch, [1]

    def interrupted(*args: Any) -> Any:
        if left and threading.current_thread() is threading.main_thread():
            left.pop()
            raise Interrupted
        return really(*args)

    kept = one.submit(tasks.full, SIZE, 1).result(LIMIT_S)
    before = one.stats().viewed_bytes
    monkeypatch.setattr(views, "watch", interrupted)
    for _ in range(50):  # the broker's thread, which nothing interrupts, may be first
        future = one.submit(tasks.full, SIZE, 2)
        with suppress(Interrupted):
            future.result(LIMIT_S)
        assert is_full_of(future.result(LIMIT_S), 2)
        if not left:
            break
    assert not left
    del future
    assert one.stats().viewed_bytes == one._broker.pump.views.bytes == before
    assert is_full_of(kept, 1)
