"""What a task may do with an array that it was given, and what a result is."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import repartir

from .kinds import FORK
from .sync import LIMIT_S, Gate, GateKeeper

MIB = 1 << 20

pytestmark = pytest.mark.kinds(FORK)
Make = Callable[..., repartir.Executor]

_kept: list[Any] = []


def numbers(count: int = 100_000, first: int = 0) -> Any:
    return np.arange(first, first + count, dtype="f8")


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def overwrite(array: Any) -> float:
    array[:] = -1
    return float(array.sum())


def identity(value: Any) -> Any:
    return value


def part(array: Any) -> Any:
    return array[::2].reshape(2, -1).T


def keep(array: Any) -> int:
    _kept.append(array[1:])
    return len(_kept)


def sums_of_kept() -> list[float]:
    return [float(array.sum()) for array in _kept]


def forget() -> int:
    _kept.clear()
    return os.getpid()


def is_same_object(one: Any, other: Any) -> tuple[bool, bool]:
    one[0] = 77
    return one is other, bool(other[0] == 77)


def raise_with(array: Any) -> None:
    error = ValueError("carries its array")
    error.array = array  # type: ignore[attr-defined]
    raise error


def zeros(size: int) -> Any:
    return np.zeros(size, np.uint8)


def fork_and_write(gate: Gate, path: str, array: Any) -> float:
    """A child writes to the array, and looks at it again after the task is over."""
    if os.fork() == 0:
        try:
            array[0] = -5
            gate.wait()
            with open(path, "w") as file:
                file.write(f"{array[0]} {array[1:].sum()}")
        finally:
            os._exit(0)
    return float(array.sum())


def process_sums(array: Any) -> float:
    queue: Any = multiprocessing.get_context("fork").SimpleQueue()
    process = multiprocessing.get_context("fork").Process(target=_put_sum, args=(queue, array))
    process.start()
    found = queue.get()
    process.join()
    return float(found)


def _put_sum(queue: Any, array: Any) -> None:
    array += 1
    queue.put(float(array.sum()))


# ---- arguments


def test_a_task_may_write_to_its_argument_and_nobody_sees_it(make: Make) -> None:
    with make(2) as ex:
        array = numbers()
        futures = [ex.submit(overwrite, array) for _ in range(6)]
        assert [future.result(LIMIT_S) for future in futures] == [-100_000.0] * 6
        assert np.array_equal(array, numbers())
        assert list(ex.map(overwrite, [array] * 4, chunksize=2)) == [-100_000.0, -100_000.0] * 2
        assert np.array_equal(ex.submit(identity, array).result(LIMIT_S), numbers())


def test_what_the_client_writes_after_the_submit_the_task_does_not_see(make: Make) -> None:
    with make(1) as ex:
        array = numbers()
        future = ex.submit(identity, array)
        array[:] = 0
        assert np.array_equal(future.result(LIMIT_S), numbers())


def test_an_array_given_twice_is_one_array(make: Make) -> None:
    with make(1) as ex:
        array = numbers()
        assert ex.submit(is_same_object, array, array).result(LIMIT_S) == (True, True)
        assert ex.submit(is_same_object, array, array[:]).result(LIMIT_S) == (False, False)


def test_what_outlives_its_task_is_not_overwritten(make: Make) -> None:
    with make(1, shm_limit="64MiB") as ex:
        for nth in range(5):
            assert ex.submit(keep, numbers(first=nth)).result(LIMIT_S) == nth + 1
        for _ in range(200):
            ex.submit(overwrite, numbers()).result(LIMIT_S)
        expected = [float(numbers(first=nth)[1:].sum()) for nth in range(5)]
        assert ex.submit(sums_of_kept).result(LIMIT_S) == expected
        assert ex.stats().kept_bytes >= 5 * 800_000
        ex.submit(forget).result(LIMIT_S)
        until(lambda: ex.submit(len, "a").result(LIMIT_S) and ex.stats().kept_bytes == 0)


def test_what_a_dead_worker_kept_is_given_back(make: Make) -> None:
    with make(1) as ex:
        ex.submit(keep, numbers()).result(LIMIT_S)
        assert ex.stats().kept_bytes > 0
        os.kill(ex.submit(os.getpid).result(LIMIT_S), signal.SIGKILL)
        until(lambda: ex.stats().kept_bytes == 0)
        assert ex.submit(sums_of_kept).result(LIMIT_S) == []


def test_an_error_that_carries_its_argument(make: Make) -> None:
    with make(1) as ex:
        for _ in range(3):
            error = ex.submit(raise_with, numbers()).exception(LIMIT_S)
            assert isinstance(error, ValueError)
            assert np.array_equal(error.array, numbers())  # type: ignore[attr-defined]
        until(lambda: ex.submit(len, "a").result(LIMIT_S) and ex.stats().kept_bytes == 0)


def test_a_child_of_a_task_keeps_its_own_content(
    make: Make, gate: GateKeeper, tmp_path: Any, kind: Any
) -> None:
    with make(1, shm_limit="64MiB") as ex:
        path = tmp_path / "seen"
        array = numbers()
        assert ex.submit(fork_and_write, gate.gate, str(path), array).result(LIMIT_S) == array.sum()
        for _ in range(100):
            ex.submit(overwrite, array).result(LIMIT_S)
        gate.open()
        until(lambda: path.exists() and path.read_text())
        assert path.read_text() == f"-5.0 {array[1:].sum()}"


def test_a_process_that_a_task_starts_sees_the_argument(make: Make) -> None:
    with make(1) as ex:
        array = numbers()
        for _ in range(3):
            assert ex.submit(process_sums, array).result(LIMIT_S) == (array + 1).sum()
        assert ex.stats().kept_bytes < 2 * array.nbytes


# ---- results


def test_a_result_is_the_callers_own_and_costs_no_private_memory(make: Make) -> None:
    with make(2) as ex:
        one, other = (ex.submit(identity, numbers()).result(LIMIT_S) for _ in range(2))
        assert ex.stats().viewed_bytes >= 2 * one.nbytes
        one += 1
        assert np.array_equal(other, numbers())
        assert one[0] == 1
        del one
        assert ex.stats().viewed_bytes < 2 * other.nbytes
        view = other[10:20]
        del other
        gc.collect()
        for _ in range(50):
            ex.submit(overwrite, numbers()).result(LIMIT_S)
        assert list(view) == list(range(10, 20))
        del view
        assert ex.stats().viewed_bytes == 0


def test_a_result_that_is_a_view_of_the_argument(make: Make) -> None:
    with make(1) as ex:
        result = ex.submit(part, numbers()).result(LIMIT_S)
        assert np.array_equal(result, part(numbers()))
        assert result.flags.writeable
        assert ex.stats().kept_bytes == 0


def test_results_outlive_the_executor(make: Make) -> None:
    with make(2) as ex:
        results = [ex.submit(identity, numbers(first=nth)).result(LIMIT_S) for nth in range(4)]
        ex.submit(identity, numbers()).result(LIMIT_S)
    ex.shutdown()
    del ex
    gc.collect()
    for nth, result in enumerate(results):
        assert np.array_equal(result, numbers(first=nth))
        result += 1
    del results[1]
    assert np.array_equal(results[1], numbers(first=3))


def test_ten_thousand_results_at_a_time(make: Make) -> None:
    with make(2) as ex:
        futures = [ex.submit(identity, np.full(8192, nth)) for nth in range(10_000)]
        results = [future.result(LIMIT_S) for future in futures]
        del futures
        assert all(result[0] == nth == result[-1] for nth, result in enumerate(results))
        assert ex.stats().blocks >= 10_000
        del results
        assert ex.stats().viewed_bytes == 0


def test_results_that_are_kept_never_starve_the_workers(make: Make) -> None:
    with make(2, shm_limit="32MiB") as ex:
        results = [ex.submit(zeros, 2 * MIB + nth).result(LIMIT_S) for nth in range(40)]
        assert ex.stats().viewed_bytes <= 16 * MIB
        for nth, result in enumerate(results):
            assert result.nbytes == 2 * MIB + nth
            result[:] = nth
        assert [result[-1] for result in results] == list(range(40))


def test_out_of_band_is_an_option(make: Make) -> None:
    with make(1, out_of_band=1000) as ex:
        small = ex.submit(identity, np.zeros(1000, np.uint8)).result(LIMIT_S)
        assert ex.stats().viewed_bytes >= small.nbytes
    with make(1, out_of_band="1MiB") as ex:
        large = ex.submit(identity, np.zeros(MIB - 1, np.uint8)).result(LIMIT_S)
        assert large.flags.writeable
        assert ex.stats().viewed_bytes == 0


# ---- children of the client


@pytest.fixture
def child() -> Iterator[Callable[[Callable[[], object]], Callable[[], None]]]:
    """Runs a function in a forked child; what comes back waits for it, and fails if it raised."""
    pids: list[int] = []

    def fork(run: Callable[[], object]) -> Callable[[], None]:
        pid = os.fork()
        if pid == 0:
            try:
                run()
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)

        def join() -> None:
            pids.remove(pid)
            assert os.waitpid(pid, 0)[1] == 0

        return join

    yield fork
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("is_over", [False, True], ids=["executor lives", "executor is over"])
def test_a_forked_child_has_results_of_its_own(
    make: Make, new_gate: Callable[[], GateKeeper], child: Any, is_over: bool
) -> None:
    wrote, reused = new_gate(), new_gate()
    with make(1, shm_limit="64MiB") as ex:
        results = [ex.submit(identity, numbers()).result(LIMIT_S)]
        if is_over:
            ex.shutdown()

        def in_child() -> None:
            results[0][0] = -9
            wrote.open()
            reused.gate.wait()
            assert results[0][0] == -9
            assert np.array_equal(results[0][1:], numbers()[1:])

        join = child(in_child)
        wrote.gate.wait()
        assert results[0][0] == 0
        results.clear()
        if not is_over:
            for _ in range(100):
                ex.submit(overwrite, numbers()).result(LIMIT_S)
        reused.open()
        join()
