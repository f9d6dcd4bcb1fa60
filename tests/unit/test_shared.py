"""Shared arrays and objects in the process that makes them: what they are, what is computed, when they end."""

from __future__ import annotations

import copy
import gc
import itertools
import os
import pickle
import resource
import sys
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repartir
from repartir import functions, optional, shared
from repartir.codec import Encoded, decode, encode_call, encode_function, encode_result, raw
from repartir.errors import SharedMemoryFull, TaskNotSerializable
from repartir.shared import SharedArray, SharedObject
from repartir.shm import segment
from tests.shared import Forked, fill_shared_memory

MIB = 1 << 20
DTYPES = [
    "?",
    "i1",
    "u8",
    ">i4",
    "f2",
    "f8",
    "c16",
    "M8[ns]",
    "m8[D]",
    "S5",
    "U3",
    "V4",
    [("a", "i4"), ("b", "f8", 2)],
]
SHAPES = [(), 0, 3, (0,), (5,), (2, 3), (2, 0, 3), (np.int64(2), 2, 2)]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def size_of(call: Encoded | bytes) -> int:
    return len(call) if isinstance(call, bytes) else call.size_bytes


def table() -> SharedArray:
    return shared.from_array(np.arange(12.0).reshape(3, 4))


def decoded(sent: Encoded | bytes) -> Any:
    if isinstance(sent, bytes):
        return decode(sent)
    return decode(sent.meta, [bytearray(raw(buffer)) for buffer in sent.buffers])


# ---- making


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zeros_of_every_dtype_and_shape(shape: Any, dtype: Any) -> None:
    for order in ("C", "F"):
        made, expected = shared.zeros(shape, dtype, order=order), np.zeros(shape, dtype, order)  # type: ignore[call-overload]
        assert type(made) is SharedArray
        assert (made.shape, made.dtype) == (expected.shape, expected.dtype)
        assert made.strides == expected.strides or not made.size
        assert made.tobytes() == expected.tobytes()
        assert made.flags.writeable
        assert made.flags.aligned


def test_empty_makes_room_for_a_character_where_the_dtype_says_none() -> None:
    assert shared.empty(3, "U").dtype == np.empty(3, "U").dtype


@pytest.mark.parametrize("value", [7, 2.5, True, "text", np.float32(1.5), np.datetime64("2020-01-01")])
def test_full_takes_the_dtype_of_the_value(value: Any) -> None:
    made, expected = shared.full((2, 3), value), np.full((2, 3), value)
    assert made.dtype == expected.dtype
    assert (made == expected).all()
    assert (shared.full(4, 300, "u2") == 300).all()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24).reshape(2, 3, 4),
        np.asfortranarray(np.arange(24).reshape(2, 3, 4)),
        np.arange(24).reshape(4, 6)[::2, ::-1],
        np.array(3.5),
        np.empty((3, 0)),
        np.zeros(3, [("a", "i4"), ("b", "U2")]),
        [[1, 2], [3, 4]],
        range(5),
    ],
    ids=lambda array: f"{type(array).__name__}{np.shape(array)}",
)
def test_from_array_copies_in_the_order_of_the_array(array: Any) -> None:
    made = shared.from_array(array)
    assert np.array_equal(made, array)
    assert made.dtype == np.asarray(array).dtype
    assert not np.shares_memory(made, np.asarray(array))
    if isinstance(array, np.ndarray) and array.flags.f_contiguous:
        assert made.flags.f_contiguous


@pytest.mark.parametrize("dtype", ["O", [("a", "i4"), ("b", "O")]], ids=str)
def test_objects_cannot_lie_in_shared_memory(dtype: Any) -> None:
    with pytest.raises(TypeError, match="Python objects"):
        shared.zeros(3, dtype)
    with pytest.raises(TypeError, match=r"use ex\.share"):
        shared.from_array(np.zeros(3, dtype))


def test_what_no_array_can_have_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        shared.zeros((2, -1))
    with pytest.raises(TypeError, match="a shape is"):
        shared.zeros(2.5)
    with pytest.raises(TypeError, match="a shape is"):
        shared.zeros("33")
    with pytest.raises(ValueError, match="order"):
        shared.zeros(3, order="K")
    with pytest.raises(TypeError, match="masked"):
        shared.from_array(np.ma.masked_array([1, 2], [True, False]))


def test_more_than_there_is_is_an_error_that_says_so() -> None:
    for size in (1 << 50, 1 << 60):
        with pytest.raises(SharedMemoryFull, match="bytes of shared memory"):
            shared.zeros(size, "u1")
    with pytest.raises(ValueError, match="no array can be as large"):
        shared.zeros((1 << 40, 1 << 40))


def test_an_array_shared_again_is_itself() -> None:
    array = table()
    assert shared.from_array(array) is array
    assert repartir.SerialExecutor().share(array) is array
    part = array[1:]
    assert shared.from_array(part) is part
    with pytest.raises(ValueError, match="shared for reading"):
        shared.from_array(array, writable=True)
    writable = shared.zeros(3, writable=True)
    assert shared.from_array(writable, writable=True) is writable


# ---- what is a view and what is computed


VIEWS: dict[str, Callable[[Any], Any]] = {
    "slice": lambda a: a[1:],
    "step": lambda a: a[::2, ::-1],
    "row": lambda a: a[1],
    "ellipsis": lambda a: a[...],
    "newaxis": lambda a: a[:, None],
    "T": lambda a: a.T,
    "transpose": lambda a: a.transpose(1, 0),
    "np.transpose": np.transpose,
    "swapaxes": lambda a: a.swapaxes(0, 1),
    "reshape": lambda a: a.reshape(-1),
    "ravel": lambda a: a.ravel(),
    "real": lambda a: a.real,
    "diagonal": lambda a: a.diagonal(),
    "view": lambda a: a.view("i8"),
    "squeeze": lambda a: a[:, :1].squeeze(),
    "split": lambda a: np.split(a, 3)[1],
}
COMPUTED: dict[str, Callable[[Any], Any]] = {
    "+": lambda a: a + 1,
    "reflected": lambda a: 1 - a,
    "@": lambda a: a @ a.T,
    "comparison": lambda a: a > 3,
    "negative": lambda a: -a,
    "mask": lambda a: a[a > 3],
    "fancy": lambda a: a[[0, 2]],
    "copy": lambda a: a.copy(),
    "np.copy": np.copy,
    "astype": lambda a: a.astype("f4"),
    "flatten": lambda a: a.flatten(),
    "ravel F": lambda a: a.ravel("F"),
    "take": lambda a: a.take([1, 2]),
    "repeat": lambda a: a.repeat(2),
    "sum": lambda a: a.sum(0),
    "mean": lambda a: a.mean(0),
    "cumsum": lambda a: a.cumsum(),
    "argsort": lambda a: a.argsort(),
    "dot": lambda a: a.dot(a.T),
    "round": lambda a: a.round(),
    "imag": lambda a: a.imag,
    "np.sort": np.sort,
    "np.where": lambda a: np.where(a > 1, a, 0),
    "np.concatenate": lambda a: np.concatenate([a, a]),
    "np.stack": lambda a: np.stack([a, a]),
    "np.ones_like": np.ones_like,
    "np.linalg": lambda a: np.linalg.pinv(a),
    "np.array": np.array,
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda a: pickle.loads(pickle.dumps(a)),
    "pickle 2": lambda a: pickle.loads(pickle.dumps(a, 2)),
    "add.outer": lambda a: np.add.outer(a, a),
    "add.reduce": np.add.reduce,
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_view_is_shared_too(view: Callable[[Any], Any]) -> None:
    array = table()
    found = view(array)
    assert type(found) is SharedArray
    assert np.shares_memory(found, array)
    assert np.array_equal(found, view(np.arange(12.0).reshape(3, 4)))
    assert size_of(encode_call((found,), {})) < 500


@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED)
def test_what_is_computed_is_a_plain_array_of_its_own(compute: Callable[[Any], Any]) -> None:
    array = table()
    found = compute(array)
    assert type(found) is np.ndarray
    assert not np.shares_memory(found, array)
    assert np.array_equal(found, compute(np.arange(12.0).reshape(3, 4)))


def test_in_place_operations_keep_the_array() -> None:
    array = before = shared.zeros(4)
    array += 3
    assert array is before
    array[1:] *= 2
    assert np.add(array, 1, out=array) is array
    assert array.tolist() == [4, 7, 7, 7]
    np.add.at(array, [0, 0], 1)
    assert array[0] == 6
    assert array.sum(out=(total := shared.zeros(()))) is total
    assert total == 27


def test_a_ufunc_with_several_outputs_gives_back_those_it_was_given() -> None:
    quotient = shared.zeros(3, int)
    first, second = np.divmod(shared.from_array([7, 8, 9]), 4, out=(quotient, None))
    assert first is quotient
    assert type(second) is np.ndarray
    assert (first.tolist(), second.tolist()) == ([1, 2, 2], [3, 0, 1])


def test_a_ufunc_takes_a_shared_mask() -> None:
    mask = shared.from_array([True, False, True])
    assert np.add([1, 2, 3], 1, where=mask, out=np.zeros(3, int)).tolist() == [2, 0, 4]


def test_scalars_come_out_as_of_any_array() -> None:
    array = table()
    assert type(array[1, 2]) is np.float64
    assert type(array.max()) is np.float64
    assert float(shared.full((), 2.5)) == 2.5
    assert next(row.tolist() for row in array) == [0, 1, 2, 3]
    assert 5.0 in array
    assert len(array) == 3


def test_repr_and_str_are_those_of_an_array() -> None:
    array = table()
    assert repr(shared.from_array([1, 2])) == "SharedArray([1, 2])"
    assert str(array) == str(np.asarray(array))
    assert f"{shared.full((), 2.5):.2f}" == "2.50"


def test_methods_that_change_an_array_do() -> None:
    array = table()
    array.fill(2)
    array.flat[3] = 1
    array[0].sort()
    array.real = array + 1
    assert array.tolist() == [[2, 3, 3, 3], [3, 3, 3, 3], [3, 3, 3, 3]]


@pytest.mark.parametrize("method", ["sum", "prod", "mean", "std", "max", "any", "argmin", "cumsum", "round"])
def test_reductions_are_those_of_an_array(method: str) -> None:
    array, plain = table(), np.arange(12.0).reshape(3, 4)
    for kwargs in ({}, {"axis": 0}, {"axis": 1, "keepdims": True}, {"out": shared.zeros(4), "axis": 0}):
        if method in ("cumsum", "round") and kwargs:
            continue
        if method == "argmin" and "out" in kwargs:
            kwargs = {"axis": 0}
        found = getattr(array, method)(**kwargs)
        assert np.array_equal(
            found, getattr(plain, method)(**{k: v for k, v in kwargs.items() if k != "out"})
        )
        assert type(found) is not SharedArray or found is kwargs["out"]
        assert np.array_equal(getattr(np, method)(array, **kwargs), found)


def test_a_reduction_that_fails_keeps_nothing_alive() -> None:
    array = table()
    memory = weakref.ref(array._lifetime.memory)
    for reduce in (np.sum, np.max, np.mean):
        with pytest.raises(np.exceptions.AxisError):
            reduce(array, axis=9)
    with pytest.raises(np.exceptions.AxisError):
        array.sum(axis=9)
    del array
    gc.collect()
    assert memory() is None


# ---- travelling


def test_a_reference_has_the_same_size_whatever_the_array() -> None:
    large = shared.zeros((1000, 1000))
    plain = np.asarray(large)
    for given in (
        large,
        large[3:, ::-2],
        large.T,
        plain,
        plain[5:],
        plain.T,
        np.asarray(large[1:])[1:],
        plain[::-1],
    ):
        assert size_of(encode_call((given,), {})) < 500
        assert size_of(encode_call(({"a": [given, (given,)]},), {"b": given})) < 500


def test_subclasses_over_shared_memory_stay_what_they_are() -> None:
    large = shared.zeros((100, 1000))
    for given in (large.view(np.matrix), np.ma.masked_array(large, large > 3)):
        args, _ = decoded(encode_call((given,), {}))
        assert type(args[0]) is type(given)
        assert np.shares_memory(np.asarray(args[0]), large)
    assert size_of(encode_call((large.view(np.matrix),), {})) < 600


def test_a_plain_array_is_no_reference_though_shared_ones_exist() -> None:
    table()
    for given in (np.zeros(100_000)[1:], np.empty((0, 3))[:, 1:]):
        args, _ = decoded(encode_call((given,), {}))
        assert type(args[0]) is np.ndarray


def test_a_result_holds_copies() -> None:
    array = table()
    large = shared.zeros(100_000)
    for given in (array, array.T, large, large[::2]):
        got = decoded(encode_result(given))
        assert type(got) is np.ndarray
        assert np.array_equal(got, given)
        assert not np.shares_memory(got, given)


def test_what_a_call_refers_to_lives_until_the_call_is_forgotten() -> None:
    array = shared.zeros(MIB, "u1")
    call = encode_call((array,), {})
    memory = weakref.ref(array._lifetime.memory)
    array.free()
    assert memory() is not None
    del call
    assert memory() is None


# ---- the end


# numpy leaks a reference to the array when __array_ufunc__ raises in a ufunc's reduce (seen in 2.4).
_NOT_CHECKED = ("np.array", "add.reduce")
USES: dict[str, Callable[[Any], Any]] = {
    **VIEWS,
    **{name: use for name, use in COMPUTED.items() if name not in _NOT_CHECKED},
    "getitem": lambda a: a[0, 0],
    "setitem": lambda a: a.__setitem__(0, 1),
    "fill": lambda a: a.fill(1),
    "sort": lambda a: a.sort(),
    "tolist": lambda a: a.tolist(),
    "tobytes": lambda a: a.tobytes(),
    "item": lambda a: a.item(0),
    "repr": repr,
    "str": str,
    "format": lambda a: f"{a}",
    "iterate": list,
    "flat": lambda a: a.flat,
    "with": lambda a: a.__enter__(),
    "second of several": lambda a: np.concatenate([np.ones((1, 4)), a]),
    "out": lambda a: np.add(1, 2, out=a),
    "share": shared.from_array,
    "contains": lambda a: 3.0 in a,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_use_after_free_is_a_value_error(use: Callable[[Any], Any]) -> None:
    array = shared.zeros((3, 4))
    part = array[:]
    array.free()
    for freed in (array, part):
        with pytest.raises(ValueError, match=r"this shared array of shape \(3, 4\) was freed"):
            use(freed)


def test_a_freed_argument_is_named() -> None:
    array = table()
    array.free()
    with pytest.raises(
        ValueError, match=r"argument 1 \(list\): .*was freed; use it inside its `with`"
    ) as caught:
        encode_call((1, [array]), {})
    assert isinstance(caught.value, TaskNotSerializable)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), ValueError)


def test_free_may_be_repeated() -> None:
    array = table()
    array.free()
    array.free()
    np.zeros(3).view(SharedArray).free()


def test_a_plain_view_made_before_free_stays_valid() -> None:
    array = shared.from_array(np.arange(1000))
    plain = np.asarray(array)[1:]
    array.free()
    del array
    gc.collect()
    assert plain.sum() == 499500
    assert size_of(encode_call((plain,), {})) > 4000, "it travels by its elements"


@pytest.mark.parametrize("end", ["free", "with", "garbage"])
def test_memory_goes_back_when_array_and_views_have_gone(end: str) -> None:
    before, held = descriptors(), shared.total_bytes()
    array = shared.zeros(MIB)
    part: Any = array[5:]
    mapping = weakref.ref(array._lifetime.memory.segment.data)
    assert shared.total_bytes() > held + 8 * MIB
    if end == "with":
        with array:
            pass
    elif end == "free":
        array.free()
    del array
    if end != "garbage":
        assert shared.total_bytes() == held
        del part
    else:
        assert shared.total_bytes() > held
        del part
        assert shared.total_bytes() == held
    assert mapping() is None
    assert descriptors() == before


def test_small_arrays_share_descriptors() -> None:
    before = descriptors()
    arrays = [shared.full(100, n) for n in range(5_000)]
    assert descriptors() - before <= 20
    assert all(int(array[99]) == n for n, array in enumerate(arrays))
    bounds = sorted((array.__array_interface__["data"][0], array.nbytes) for array in arrays)
    assert all(low + size <= high for (low, size), (high, _) in itertools.pairwise(bounds))
    del arrays, bounds
    assert descriptors() == before


def test_a_small_array_takes_little_memory() -> None:
    held = shared.total_bytes()
    arrays = [shared.full(1000, 1.0)]
    assert shared.total_bytes() - held <= 1 << 16
    arrays += [shared.full(1000, float(n)) for n in range(200)]
    assert shared.total_bytes() - held < 2 * sum(array.nbytes for array in arrays)
    assert {float(array[999]) for array in arrays[1:]} == set(range(200))


def test_a_slab_that_shared_memory_has_no_room_for_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    first = shared.full(100, 1)

    def full(fd: int, offset: int, size: int) -> None:
        raise SharedMemoryFull("no room")

    monkeypatch.setattr(shared, "reserve", full)
    arrays = [shared.full(20_000, n) for n in range(3)]
    assert [int(array.sum()) for array in (first, *arrays)] == [100, 0, 20_000, 40_000]


def test_too_few_descriptors_is_an_error_that_says_so() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    arrays = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 20, hard))
    try:
        with pytest.raises(SharedMemoryFull, match=r"Too many open files.*ulimit -n"):
            arrays.extend(shared.zeros(MIB, "u1") for _ in range(30))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert shared.zeros(MIB, "u1")[0] == 0


def test_it_lies_in_a_file_where_shared_memory_is_full(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fill_shared_memory(monkeypatch, tmp_path)
    array = shared.full(MIB, 3, "u1")
    assert os.readlink(f"/proc/self/fd/{array._lifetime.memory.segment.fd}").startswith(str(tmp_path))
    assert array.sum() == 3 * MIB

    def no_room(fd: int, offset: int, size: int) -> None:
        raise SharedMemoryFull("no room at all")

    monkeypatch.setattr(segment, "reserve", no_room)
    before = descriptors()
    with pytest.raises(SharedMemoryFull, match="no room at all"):
        shared.zeros(MIB)
    with pytest.raises(SharedMemoryFull, match="no room at all"):
        shared.share_object("x", [bytes(MIB)])
    assert descriptors() == before


def test_a_forked_child_sees_what_the_parent_writes_and_frees_only_its_own() -> None:
    array = shared.zeros(10, int)
    memory = array._lifetime.memory

    def child() -> None:
        array[0] = 7
        own = shared.zeros(10, int)
        assert not any(
            other.holds(own.__array_interface__["data"][0], own.__array_interface__["data"][0] + 80)
            for other in [memory]
        )
        own[:] = 9
        array.free()

    Forked(child).join()
    later = shared.zeros(10, int)
    assert array[0] == 7
    assert not memory.is_freed
    assert not later.any()


# ---- objects


def test_an_object_is_a_handle_with_a_dashboard() -> None:
    value = {"table": list(range(1000))}
    handle = repartir.SerialExecutor().share(value)
    assert type(handle) is SharedObject
    assert handle.get() is value
    assert repr(handle).startswith("<SharedObject dict: ")
    assert pickle.loads(pickle.dumps(handle)) == value
    assert repartir.SerialExecutor().share(handle) is handle
    with handle as entered:
        assert entered is handle
    assert repr(handle) == "<SharedObject dict: freed>"
    handle.free()
    with pytest.raises(ValueError, match=r"argument 0 .*dict was freed"):
        encode_call((handle,), {})
    with pytest.raises(ValueError, match="dict was freed"):
        handle.__enter__()


def test_the_memory_of_an_object_goes_with_its_handle() -> None:
    before, held = descriptors(), shared.total_bytes()
    handle = repartir.SerialExecutor().share(bytes(MIB))
    assert shared.total_bytes() > held
    del handle
    assert (descriptors(), shared.total_bytes()) == (before, held)


def test_an_object_keeps_the_shared_arrays_in_it() -> None:
    array = shared.zeros(MIB, "u1")
    memory = weakref.ref(array._lifetime.memory)
    handle = repartir.SerialExecutor().share([array])
    array.free()
    del array
    assert memory() is not None
    handle.free()
    del handle
    assert memory() is None


def test_what_cannot_be_pickled_cannot_be_shared() -> None:
    with pytest.raises(TaskNotSerializable, match=r"the object to share .*generator"):
        repartir.SerialExecutor().share([1, (n for n in "x")])
    with pytest.raises(TypeError, match="only arrays can be shared writable, not list"):
        repartir.SerialExecutor().share([1], writable=True)


def test_arrays_of_objects_and_masked_arrays_are_shared_as_objects() -> None:
    ex = repartir.SerialExecutor()
    for array in (np.array([None, "x"], object), np.ma.masked_array([1, 2], [True, False])):
        assert type(ex.share(array)) is SharedObject


def test_a_memmap_becomes_a_copy_in_memory(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "numbers", "i8", "w+", shape=(100,))
    mapped[:] = range(100)
    array = repartir.SerialExecutor().share(mapped)
    assert type(array) is SharedArray
    assert array.sum() == 4950


# ---- in functions


def over(array: Any) -> types.FunctionType:
    """A function that goes by value, with `array` among its globals."""
    namespace: dict[str, Any] = {"TABLE": array, "__name__": "__main__"}
    exec("def total(): return TABLE.sum()", namespace)
    found: types.FunctionType = namespace["total"]
    return found


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The functions that were pickled, in order."""
    seen = []

    def encode(fn: Any, *args: Any) -> Any:
        seen.append(fn.__name__)
        return encode_function(fn, *args)

    monkeypatch.setattr(functions, "encode_function", encode)
    return seen


def test_a_function_over_something_shared_is_pickled_once(encoded: list[Any]) -> None:
    ex = repartir.SerialExecutor()
    array = shared.zeros(MIB)
    for value in (array, array[3:], ex.share({"a": 1})):
        table, fn, inner = functions.FunctionTable(), over(value), lambda value=value: lambda: value
        closure = inner()
        for each in (fn, closure):
            encoded.clear()
            first = table.encode(each)
            assert table.encode(each) is first
            assert len(encoded) == 1


def test_a_function_is_pickled_anew_when_the_array_is_another_or_has_another_form(encoded: list[Any]) -> None:
    table, array = functions.FunctionTable(), shared.zeros((3, 4), writable=True)
    fn = over(array)
    table.encode(fn)
    array.flags.writeable = False
    table.encode(fn)
    fn.__globals__["TABLE"] = array[1:]
    table.encode(fn)
    fn.__globals__["TABLE"] = shared.zeros(3)
    table.encode(fn)
    assert len(encoded) == 4


def test_a_function_does_not_keep_the_memory_but_its_calls_do() -> None:
    table, array = functions.FunctionTable(), shared.zeros(MIB)
    memory = weakref.ref(array._lifetime.memory)
    fn = over(array)
    ref = table.encode(fn)
    held = ref.hold()
    array.free()
    assert memory() is not None
    del held
    assert memory() is None
    with pytest.raises(ValueError, match=r"the function .*was freed"):
        table.encode(fn)


def test_a_class_keeps_what_its_methods_refer_to_as_long_as_the_call() -> None:
    array = shared.zeros(MIB)
    memory = weakref.ref(array._lifetime.memory)
    made = type("Model", (), {"__module__": "__main__", "run": over(array)})
    call = encode_call((made(),), {})
    assert size_of(call) < 5_000
    array.free()
    assert memory() is not None
    del call
    assert memory() is None


def test_no_warning_names_a_global_that_is_shared() -> None:
    array = shared.zeros(2 * MIB)
    for value in (array, np.asarray(array)[1:], repartir.SerialExecutor().share(bytes(2 * MIB))):
        fn = over(value)
        fn.__globals__["HEAVY"] = bytes(2 * MIB)
        exec("def total(): return TABLE, HEAVY", fn.__globals__)
        with pytest.warns(UserWarning, match="'HEAVY' of 2.0 MiB.*HEAVY = ex.share") as caught:
            functions.FunctionTable().encode(fn.__globals__["total"])
        assert len(caught) == 1


def test_nobody_asks_the_module_before_it_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional, "shared", None)
    monkeypatch.setitem(sys.modules, "repartir.shared", types.ModuleType("repartir.shared"))
    call = encode_call((np.zeros(10), Path("x")), {"fn": over(1)})
    args, _ = decoded(call)
    assert args[1] == Path("x")
