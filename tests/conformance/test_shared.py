"""Arrays and objects that lie in shared memory, as tasks see them."""

from __future__ import annotations

import functools
import gc
import os
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import repartir
from repartir import shared

from .kinds import FORK, SPAWN
from .sync import LIMIT_S, GateKeeper

MIB = 1 << 20

pytestmark = pytest.mark.kinds(FORK, SPAWN)
Make = Callable[..., repartir.Executor]

_kept: list[Any] = []


@dataclass
class Case:
    name: str
    table: Any


def total(array: Any) -> float:
    return float(array.sum())


def total_of_case(cases: dict[str, list[Case]]) -> float:
    return float(sum(case.table.sum() for several in cases.values() for case in several))


def flags(array: Any) -> tuple[str, bool, bool]:
    """Its type, whether it can be written, and whether a task can make it so."""
    try:
        array.flags.writeable = True
    except ValueError:
        return type(array).__name__, array.flags.writeable, False
    return type(array).__name__, array.flags.writeable, True


def put(array: Any, index: int) -> None:
    array[index] = index


def doubled(array: Any) -> Any:
    return array * 2


def identity(value: Any) -> Any:
    return value


def keep(array: Any) -> float:
    _kept.append(array)
    return float(array[0])


def last_kept() -> float:
    return float(_kept[-1][-1])


def identities(value: Any) -> tuple[int, int, Any]:
    return os.getpid(), id(value), value["name"]


def wait_then_total(gate: Any, array: Any) -> float:
    gate.wait()
    return float(array.sum())


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def numbers(count: int = 200_000) -> Any:
    return np.arange(count, dtype="f8")


def test_passing_it_or_a_view_copies_nothing(make: Make) -> None:
    with make(2) as ex, ex.share(numbers().reshape(400, 500)) as table:
        ex.submit(total, table).result(LIMIT_S)
        before = ex.stats()
        for view in (table, table[3:9], table[:, ::7], table.T, table[::-1], np.asarray(table)[5:]):
            assert ex.submit(total, view).result(LIMIT_S) == view.sum()
        cases = {"a": [Case("x", table[1:]), Case("y", table.T[2:])]}
        assert ex.submit(total_of_case, cases).result(LIMIT_S) == total_of_case(cases)
        assert ex.submit(functools.partial(total, table[7])).result(LIMIT_S) == table[7].sum()
        assert ex.submit(lambda: float(table[8].sum())).result(LIMIT_S) == table[8].sum()
        assert list(ex.map(total, [table[nth] for nth in range(20)])) == [
            table[nth].sum() for nth in range(20)
        ]
        assert ex.stats().arena_bytes - before.arena_bytes < 50_000


def test_tasks_may_only_read_it(make: Make) -> None:
    with make(1) as ex:
        array = ex.share(numbers())
        assert ex.submit(flags, array).result(LIMIT_S) == ("SharedArray", False, False)
        assert ex.submit(flags, array[1:]).result(LIMIT_S) == ("SharedArray", False, False)
        assert isinstance(ex.submit(put, array, 3).exception(LIMIT_S), ValueError)
        assert np.array_equal(array, numbers())


def test_a_writable_one_is_everybodys(make: Make) -> None:
    with make(2) as ex:
        array = shared.zeros(100, writable=True)
        assert ex.submit(flags, array).result(LIMIT_S) == ("SharedArray", True, True)
        for future in [ex.submit(put, array, nth) for nth in range(100)]:
            future.result(LIMIT_S)
        assert np.array_equal(array, np.arange(100))
        array[5] = -5
        assert ex.submit(total, array).result(LIMIT_S) == array.sum()


def test_a_result_is_a_private_copy(make: Make) -> None:
    with make(1) as ex:
        array = ex.share(numbers())
        for value in (array, array[10:20]):
            result = ex.submit(identity, value).result(LIMIT_S)
            assert type(result) is np.ndarray
            assert result.flags.writeable
            assert not np.shares_memory(result, array)
            assert np.array_equal(result, value)
        assert type(ex.submit(doubled, array).result(LIMIT_S)) is np.ndarray


def test_tasks_that_were_submitted_before_have_it_after_it_was_freed(make: Make, gate: GateKeeper) -> None:
    with make(1) as ex:
        array = ex.share(numbers())
        expected = array.sum()
        futures = [ex.submit(wait_then_total, gate.gate, array) for _ in range(3)]
        array.free()
        del array
        gc.collect()
        gate.open()
        assert [future.result(LIMIT_S) for future in futures] == [expected] * 3


def test_what_a_task_keeps_stays_valid(make: Make) -> None:
    with make(1) as ex:
        with ex.share(numbers()) as array:
            ex.submit(keep, array).result(LIMIT_S)
        del array
        gc.collect()
        others = [ex.share(np.zeros(200_000)) for _ in range(5)]
        assert sum(ex.submit(total, other).result(LIMIT_S) for other in others) == 0
        assert ex.submit(last_kept).result(LIMIT_S) == 199_999


def shared_memory_of_the_machine() -> int:
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Shmem:")) * 1024


def test_freed_memory_goes_back_while_the_workers_sleep(make: Make) -> None:
    with make(2) as ex:
        before = shared_memory_of_the_machine()
        array = ex.share(np.ones(50 * MIB // 8))
        for future in [ex.submit(total, array) for _ in range(20)]:
            future.result(LIMIT_S)
        assert shared_memory_of_the_machine() - before > 40 * MIB
        array.free()
        del array
        until(lambda: shared_memory_of_the_machine() - before < 20 * MIB)


def test_it_outlives_its_executor_and_serves_others(make: Make) -> None:
    array = shared.from_array(numbers())
    with make(1) as one, make(1) as other:
        assert one.submit(total, array).result(LIMIT_S) == other.submit(total, array).result(LIMIT_S)
    assert array.sum() == numbers().sum()
    with make(1) as later:
        assert later.submit(total, array).result(LIMIT_S) == array.sum()


def test_a_new_worker_has_it_too(make: Make) -> None:
    with make(1) as ex:
        array = ex.share(numbers())
        for _ in range(3):
            assert ex.submit(total, array).result(LIMIT_S) == array.sum()
            os.kill(ex.submit(os.getpid).result(LIMIT_S), signal.SIGKILL)


def test_an_object_is_unpickled_once_a_worker(make: Make) -> None:
    with make(2) as ex:
        value = {"name": "model", "table": numbers()}
        handle = ex.share(value)
        assert handle.get() is value
        found = [ex.submit(identities, handle).result(LIMIT_S) for _ in range(10)]
        assert len({(pid, key) for pid, key, _ in found}) == len({pid for pid, _, _ in found})
        assert {name for _, _, name in found} == {"model"}
        assert ex.stats().arena_bytes < 100_000
        with pytest.raises(repartir.TaskNotSerializable):
            ex.share({"lock": __import__("threading").Lock()})


def test_a_function_that_names_it_is_encoded_once(make: Make) -> None:
    with make(1) as ex, ex.share(numbers()) as table, warnings.catch_warnings():
        warnings.simplefilter("error")

        def row(index: int) -> float:
            return float(table[index])

        assert [ex.submit(row, nth).result(LIMIT_S) for nth in range(5)] == [0, 1, 2, 3, 4]
        assert ex._functions.encode(row) is ex._functions.encode(row)
        table.free()
        error = ex.submit(row, 1).exception(LIMIT_S)
        assert isinstance(error, repartir.TaskNotSerializable)
        assert "was freed" in str(error)


def test_two_hundred_large_ones(make: Make) -> None:
    with make(2) as ex:
        arrays = [ex.share(np.full(MIB // 8, nth)) for nth in range(200)]
        sums = ex.map(total, arrays)
        assert list(sums) == [nth * (MIB // 8) for nth in range(200)]
