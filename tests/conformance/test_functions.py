"""Functions and arguments of importable modules: every sort of callable, large values, arrays."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np
import pytest

from . import tasks
from .kinds import ours, processes, workers
from .sync import LIMIT_S, GateKeeper

MIB = 1 << 20


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (functools.partial(pow, 2), 32),
        (functools.partial(functools.partial(tasks.add), 1), 6),
        (tasks.Counter(10), 15),
        (tasks.Counter(10).plus, 15),
        (functools.partial(tasks.Counter(10).plus, times=3), 25),
        (tasks.Counter.double, 10),
        (operator.neg, -5),
        (operator.methodcaller("bit_length"), 3),
        ([1, 2].count, 0),
        (str, "5"),
        (int.bit_length, 3),
        (np.negative, -5),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_callables_of_every_sort(ex: Executor, fn: Callable[[int], Any], expected: Any) -> None:
    assert ex.submit(fn, 5).result(LIMIT_S) == expected
    assert list(ex.map(fn, [5, 5])) == [expected, expected]


def test_class_method(ex: Executor) -> None:
    assert ex.submit(tasks.Counter.name).result(LIMIT_S) == "Counter"


def test_class_as_function(ex: Executor) -> None:
    result = ex.submit(tasks.Counter, 7).result(LIMIT_S)
    assert type(result) is tasks.Counter
    assert result.start == 7


@ours
def test_lambda_and_closure(ex: Executor) -> None:
    base = 40
    assert ex.submit(lambda value: base + value, 2).result(LIMIT_S) == 42
    assert list(ex.map(lambda value: base + value, range(3))) == [40, 41, 42]


@ours
def test_lambda_as_an_argument_and_a_result(ex: Executor) -> None:
    assert ex.submit(tasks.echo, lambda: 5).result(LIMIT_S)() == 5


@ours
def test_a_wrapped_function_of_a_test(ex: Executor) -> None:
    def doubled(fn: Callable[[int], int]) -> Callable[[int], int]:
        @functools.wraps(fn)
        def wrapper(value: int) -> int:
            return 2 * fn(value)

        return wrapper

    @doubled
    def increment(value: int) -> int:
        return value + 1

    assert ex.submit(increment, 20).result(LIMIT_S) == 42


@ours
def test_an_instance_of_a_local_class_comes_back_as_that_class(ex: Executor) -> None:
    class Local:
        def __init__(self, value: int) -> None:
            self.value = value

    result = ex.submit(lambda: Local(5)).result(LIMIT_S)
    assert type(result) is Local
    assert result.value == 5


@workers
def test_the_state_of_the_callable_is_that_at_the_submit(ex: Executor, gate: GateKeeper) -> None:
    held = [ex.submit(tasks.wait_for, gate.gate) for _ in range(2)]
    counter = tasks.Counter(10)
    future = ex.submit(counter, 1)
    counter.start = 1000
    gate.open()
    assert future.result(LIMIT_S) == 11
    assert [f.result(LIMIT_S) for f in held] == [None, None]


class TestLargeValues:
    @pytest.mark.parametrize("size", [0, 1, 100, 1000, 4096, 65_536, MIB, MIB + 1, 5 * MIB])
    def test_bytes_of_any_size(self, ex: Executor, size: int) -> None:
        value = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        assert ex.submit(tasks.echo, value).result(LIMIT_S) == value

    def test_bytearray_and_text(self, ex: Executor) -> None:
        value = (bytearray(b"ab" * MIB), "é" * MIB)
        assert ex.submit(tasks.echo, value).result(LIMIT_S) == value

    def test_many_large_arguments_pending_at_once(self, ex: Executor) -> None:
        futures = [ex.submit(len, bytes([n]) * MIB) for n in range(40)]
        assert [f.result(LIMIT_S) for f in futures] == [MIB] * 40

    def test_many_large_results_held_at_once(self, ex: Executor) -> None:
        results = [f.result(LIMIT_S) for f in [ex.submit(np.full, MIB // 8, n) for n in range(60)]]
        assert all((array == n).all() for n, array in enumerate(results))

    def test_a_deep_structure(self, ex: Executor) -> None:
        value: list[Any] = []
        for _ in range(100):
            value = [value]
        assert ex.submit(tasks.echo, value).result(LIMIT_S) == value


DTYPES = "? b B h H i I l L q Q e f d g F D G S5 U5 M8[s] m8[ns] >i4 <f8 >f8 V6 O".split()


def _filled(dtype: str, count: int) -> np.ndarray[Any, Any]:
    array = np.zeros(count, dtype)
    values = np.arange(count)
    if dtype.startswith(("S", "U", "V")):
        array.view(np.uint8)[:] = 65 + np.arange(array.nbytes, dtype=np.uint64).astype(np.uint8) % 20
        return array if not dtype.startswith("U") else values.astype(dtype)
    array[:] = values % 2 == 0 if dtype == "?" else values.astype(array.dtype)
    return array


def _assert_same(result: np.ndarray[Any, Any], array: np.ndarray[Any, Any]) -> None:
    """The same values, bit by bit, in the array's byte order or, as plain pickle has it, in the host's."""
    native = array.dtype.newbyteorder("=")
    assert result.dtype in (array.dtype, native)
    assert result.shape == array.shape
    if array.dtype.hasobject:
        assert result.tolist() == array.tolist()
    else:
        assert result.astype(native).tobytes() == array.astype(native).tobytes()


class TestArrays:
    @pytest.mark.parametrize("count", [3, 40_000], ids=["small", "large"])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_dtypes(self, ex: Executor, dtype: str, count: int) -> None:
        array = _filled(dtype, count)
        result, seen, writeable, _ = ex.submit(tasks.describe_array, array).result(LIMIT_S)
        _assert_same(result, array)
        assert np.dtype(seen) in (array.dtype, array.dtype.newbyteorder("="))
        assert writeable
        assert result.flags.writeable

    @pytest.mark.parametrize(
        "shape", [(), (0,), (0, 5), (1, 1, 1), (200, 300), (20, 30, 40)], ids=lambda shape: str(shape)
    )
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_shapes_and_orders(self, ex: Executor, shape: tuple[int, ...], order: Any) -> None:
        array = np.asarray(np.random.default_rng(7).random(shape), order=order)
        result, _, writeable, fortran = ex.submit(tasks.describe_array, array).result(LIMIT_S)
        _assert_same(result, array)
        assert writeable
        assert result.flags.writeable
        assert result.flags.f_contiguous == fortran == array.flags.f_contiguous

    @pytest.mark.parametrize(
        "cut",
        [np.s_[::2], np.s_[::-1], np.s_[:, ::3], np.s_[5:200, 7:9], np.s_[..., 0], np.s_[None, :, 3:]],
        ids=str,
    )
    def test_views_that_are_not_contiguous(self, ex: Executor, cut: Any) -> None:
        array = np.arange(400 * 300.0).reshape(400, 300)[cut]
        _assert_same(ex.submit(tasks.echo, array).result(LIMIT_S), array)

    @processes
    @pytest.mark.parametrize("count", [3, 500_000], ids=["small", "large"])
    def test_a_task_may_write_into_its_argument(self, ex: Executor, count: int) -> None:
        array = np.zeros(count)
        result = ex.submit(tasks.increment, array).result(LIMIT_S)
        assert (result == 1).all()
        assert (array == 0).all()

    @processes
    @pytest.mark.parametrize("count", [3, 500_000], ids=["small", "large"])
    def test_an_array_that_is_read_only_here_may_be_written_there(self, ex: Executor, count: int) -> None:
        array = np.zeros(count)
        array.flags.writeable = False
        result = ex.submit(tasks.increment, array).result(LIMIT_S)
        assert (result == 1).all()
        assert result.flags.writeable

    @processes
    def test_results_do_not_share_memory(self, ex: Executor) -> None:
        """Each is written in turn while all are held; a block reused too early would show."""
        results = [f.result(LIMIT_S) for f in [ex.submit(np.full, 50_000, n) for n in range(20)]]
        for array in results:
            array += 100
        later = [f.result(LIMIT_S) for f in [ex.submit(np.full, 50_000, -1) for n in range(20)]]
        assert [int(array[0]) for array in results] == list(range(100, 120))
        assert all((array == 100 + n).all() for n, array in enumerate(results))
        assert all((array == -1).all() for array in later)

    @workers
    def test_an_argument_is_taken_at_the_submit(self, ex: Executor, gate: GateKeeper) -> None:
        """The stdlib pickles later, in another thread, and sends whatever the array holds by then."""
        held = [ex.submit(tasks.wait_for, gate.gate) for _ in range(2)]
        array = np.zeros(500_000)
        future = ex.submit(np.sum, array)
        array += 1
        gate.open()
        assert future.result(LIMIT_S) == 0
        assert [f.result(LIMIT_S) for f in held] == [None, None]

    @processes
    def test_results_outlive_the_executor(self, kind: Any) -> None:
        with kind.make(1) as ex:
            array = ex.submit(np.full, 500_000, 7).result(LIMIT_S)
        array += 1
        assert (array == 8).all()

    def test_several_arrays_in_one_call_and_one_array_twice(self, ex: Executor) -> None:
        array, other = np.arange(50_000), np.ones((300, 300))
        value = {"twice": [array, array], "other": other, "tiny": np.array(5)}
        result = ex.submit(tasks.echo, value).result(LIMIT_S)
        assert result["twice"][0] is result["twice"][1]
        _assert_same(result["twice"][0], array)
        _assert_same(result["other"], other)
        _assert_same(result["tiny"], np.array(5))

    def test_structured_masked_and_scalar(self, ex: Executor) -> None:
        structured = np.zeros(5_000, [("name", "U8"), ("at", "f8", (3,))])
        structured["at"] = 1.5
        masked = np.ma.masked_greater(np.arange(10), 5)
        first, second, third = ex.submit(tasks.echo, (structured, masked, np.float32(1.5))).result(LIMIT_S)
        _assert_same(first, structured)
        assert second.mask.tolist() == masked.mask.tolist()
        assert type(third) is np.float32

    def test_map_over_arrays(self, ex: Executor) -> None:
        arrays = [np.full(20_000, n) for n in range(20)]
        for n, result in enumerate(ex.map(np.negative, arrays)):
            assert (result == -n).all()

    def test_a_random_generator_keeps_its_state(self, ex: Executor) -> None:
        expected = np.random.default_rng(7).random(5)
        assert (ex.submit(_five, np.random.default_rng(7)).result(LIMIT_S) == expected).all()


def _five(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    return rng.random(5)
