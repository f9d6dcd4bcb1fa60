"""Arrays in shared memory as their maker sees them; what tasks see is in tests/conformance/test_shared.py."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repartir import SerialExecutor, SharedArray, SharedMemoryFull, TaskNotSerializable, shared
from repartir.codec import Encoded, decode, encode_call, encode_result, parts_of, raw
from repartir.shm import segment as segment_module


def travel(value: Any) -> Any:
    encoded = encode_call((value,), {})
    meta, *buffers = [bytearray(raw(part)) for part in parts_of(encoded)]
    (found,), _ = decode(meta, buffers)
    return found


def is_reference(value: Any) -> bool:
    encoded = encode_call((value,), {})
    return isinstance(encoded, Encoded) and not encoded.buffers and bool(encoded.keep)


# ---- making


@pytest.mark.parametrize("shape", [(), 7, (3, 4), (2, 0), (1 << 16,)])
@pytest.mark.parametrize("dtype", ["f8", "i2", bool, "U3", "M8[s]", [("a", "i4"), ("b", "f8")]])
def test_empty_has_shape_and_type(shape: Any, dtype: Any) -> None:
    array = shared.empty(shape, dtype)
    assert type(array) is SharedArray
    assert array.shape == np.empty(shape).shape
    assert array.dtype == np.dtype(dtype)
    assert array.flags.writeable
    assert array.flags.aligned
    assert array.is_shared
    assert np.array_equal(np.asarray(shared.zeros(shape, dtype)), np.zeros(shape, dtype))


def test_full_takes_its_type_from_the_value() -> None:
    assert shared.full((2, 3), 7).dtype == np.asarray(7).dtype
    assert shared.full(4, 2.5, "f4").dtype == np.dtype("f4")
    assert shared.full((2, 2), 7).tolist() == [[7, 7], [7, 7]]


@pytest.mark.parametrize("order", ["C", "F"])
def test_from_array_keeps_the_order(order: Any) -> None:
    source = np.asarray(np.arange(24).reshape(4, 6), order=order)
    array = shared.from_array(source)
    assert np.array_equal(array, source)
    assert array.flags.f_contiguous == source.flags.f_contiguous
    assert not np.shares_memory(array, source)
    assert np.array_equal(shared.from_array(source[::2, ::-1]), source[::2, ::-1])


def test_what_is_shared_is_given_back_as_it_is() -> None:
    array = shared.zeros(5)
    assert shared.from_array(array) is array
    assert SerialExecutor().share(array) is array


def test_elements_that_are_objects_are_refused() -> None:
    with pytest.raises(TypeError, match=r"ex\.share"):
        shared.empty(3, object)
    with pytest.raises(TypeError, match=r"ex\.share"):
        shared.from_array([{}, None])


# ---- using


def test_what_is_computed_is_a_plain_array() -> None:
    array = shared.from_array(np.arange(10.0))
    for found in (
        array + 1,
        -array,
        np.sin(array),
        array.sum(),
        np.sort(array),
        array[[1, 2]],
        array[array > 3],
    ):
        assert type(found) is not SharedArray
    assert type(array.copy()) is np.ndarray
    assert float(array.mean()) == 4.5
    assert np.dot(array, array) == 285
    assert np.concatenate([array, array]).shape == (20,)


def test_views_are_shared() -> None:
    array = shared.from_array(np.arange(24).reshape(4, 6))
    for view in (array[1:], array[:, 2], array.T, array[::-1, ::2], array.reshape(8, 3), array[2:3, 0:0]):
        assert type(view) is SharedArray
        assert view.is_shared


def test_it_is_written_in_place() -> None:
    array = shared.zeros(10)
    array += 2
    array[3:5] = 7
    np.multiply(array, 2, out=array)
    assert np.asarray(array).tolist() == [4, 4, 4, 14, 14, 4, 4, 4, 4, 4]
    out = np.zeros(10)
    assert np.add(array, 1, out=out) is out


def test_repr_and_str_are_those_of_an_array() -> None:
    array = shared.from_array([1, 2])
    assert repr(array) == "SharedArray([1, 2])"
    assert str(array) == "[1 2]"


def test_pickles_and_copies_of_others_are_plain_arrays() -> None:
    array = shared.from_array(np.arange(5))
    for found in (pickle.loads(pickle.dumps(array)), copy.deepcopy(array), copy.copy(array)):
        assert np.array_equal(found, array)
        assert not np.shares_memory(found, array)


# ---- travelling


def read_only(array: Any) -> Any:
    view = array[3:4]
    view.flags.writeable = False
    return view


VIEWS: dict[str, Any] = {
    "whole": lambda array: array,
    "slice": lambda array: array[10:20],
    "transposed": lambda array: array.T,
    "backwards": lambda array: array[::-1, ::3],
    "plain": np.asarray,
    "slice of plain": lambda array: np.asarray(array)[5:, 5:],
    "read-only": read_only,
    "empty": lambda array: array[0:0],
    "other type": lambda array: array.view("i8"),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("writable", [False, True])
def test_a_view_travels_as_a_reference(view: str, writable: bool) -> None:
    array = shared.from_array(np.arange(10_000.0).reshape(100, 100), writable=writable)
    part = VIEWS[view](array)
    assert is_reference(part)
    found = travel({"nested": [part]})["nested"][0]
    assert type(found) is SharedArray
    assert np.array_equal(np.asarray(found), np.asarray(part))
    assert found.strides == part.strides
    assert np.shares_memory(found, array) or not part.size
    assert found.flags.writeable == (writable and "plain" not in view and view != "read-only")


def test_a_result_is_a_copy() -> None:
    array = shared.from_array(np.arange(100_000.0))
    meta, *buffers = [bytearray(raw(part)) for part in parts_of(encode_result(array[1:]))]
    found = decode(meta, buffers)
    assert type(found) is np.ndarray
    assert np.array_equal(found, array[1:])
    assert found.flags.writeable


def test_what_only_looks_shared_travels_as_its_elements() -> None:
    array = shared.from_array(np.arange(100_000.0))
    for plain in (array + 1, array.astype("f4"), np.asarray(array).copy(), np.arange(100_000.0)[1:]):
        assert not is_reference(plain)
        assert np.array_equal(travel(plain), plain)


# ---- freeing


def memory_of(array: SharedArray) -> weakref.ref[Any]:
    assert array._lifetime is not None
    return weakref.ref(array._lifetime.memory)


def test_the_last_view_gives_the_memory_back() -> None:
    array = shared.zeros(1 << 20)
    memory = memory_of(array)
    assert memory().segment.fd >= 0  # type: ignore[union-attr]
    fd = memory().segment.fd  # type: ignore[union-attr]
    view = array[5:10]
    del array
    assert memory() is not None
    del view
    assert memory() is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


# Not array.sum(): numpy 2.4 leaks a reference to an array whose `__array_ufunc__` raises in a reduction.
USES: dict[str, Any] = {
    "item": lambda array: array[0],
    "assignment": lambda array: array.__setitem__(0, 1),
    "ufunc": lambda array: array + 1,
    "out": lambda array: np.add(1, 2, out=array[...]),
    "function": lambda array: np.concatenate([array, array]),
    "repr": repr,
    "str": str,
    "pickle": pickle.dumps,
    "copy": lambda array: array.copy(),
    "with": lambda array: array.__enter__(),
    "share": shared.from_array,
}


@pytest.mark.parametrize("use", USES)
def test_use_after_free_is_an_error(use: str) -> None:
    array = shared.zeros(1 << 20)
    view = array[10:]
    memory = memory_of(array)
    with array as entered:
        assert entered is array
    assert memory() is None
    assert not view.is_shared
    for freed in (array, view):
        with pytest.raises(ValueError, match=r"was freed"):
            USES[use](freed)
    array.free()
    with pytest.raises(TaskNotSerializable, match=r"was freed"):
        encode_call((array,), {})


def test_memory_is_there_until_the_pickle_is_dropped() -> None:
    array = shared.from_array(np.arange(1 << 20))
    encoded = encode_call((array,), {})
    assert isinstance(encoded, Encoded)
    array.free()
    (found,), _ = decode(encoded.meta)
    assert found[77] == 77


def test_a_reference_to_freed_memory_is_an_error() -> None:
    array = shared.from_array(np.arange(1 << 20))
    encoded = encode_call((array,), {})
    meta = raw(parts_of(encoded)[0])
    del array, encoded
    gc.collect()
    with pytest.raises(ValueError, match=r"was freed"):
        decode(meta)


def test_small_arrays_share_files() -> None:
    before = len(os.listdir("/proc/self/fd"))
    arrays = [shared.full(100, nth) for nth in range(5000)]
    assert len(os.listdir("/proc/self/fd")) - before < 10
    assert all(array[-1] == nth for nth, array in enumerate(arrays))
    assert all(array.__array_interface__["data"][0] % 64 == 0 for array in arrays[:50])


def test_what_it_takes_is_told() -> None:
    before = shared.total_bytes()
    array = shared.zeros(1 << 20)
    assert shared.total_bytes() - before >= array.nbytes
    assert SerialExecutor().stats().shared_bytes == shared.total_bytes()
    del array
    assert shared.total_bytes() == before


# ---- room


def test_full_memory_spills_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    really = segment_module.Segment.create

    def full(size: int, *, reserved: int | None = None, folder: str | None = None) -> Any:
        if folder is None:
            raise SharedMemoryFull("no room in memory")
        return really(size, reserved=reserved, folder=folder)

    monkeypatch.setattr(segment_module.Segment, "create", full)
    array = shared.from_array(np.arange(1 << 18))
    assert array[-1] == (1 << 18) - 1
    monkeypatch.setenv("TMPDIR", "/nowhere/at/all")
    with pytest.raises(SharedMemoryFull, match="no room in memory"):
        shared.zeros(1 << 18)


# ---- objects


class Counted:
    """Counts how often it is unpickled."""

    made = 0

    def __init__(self) -> None:
        self.table = np.arange(100_000.0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).made += 1
        self.__dict__.update(state)


def test_a_shared_object_arrives_as_itself_once() -> None:
    value = Counted()
    handle = SerialExecutor().share(value)
    assert handle.get() is value
    assert "Counted" in repr(handle)
    assert SerialExecutor().share(handle) is handle
    assert is_reference(handle)
    Counted.made = 0
    one, other = travel(handle), travel([handle])[0]
    assert one is other
    assert Counted.made == 1
    assert np.array_equal(one.table, value.table)
    with handle:
        pass
    assert "freed" in repr(handle)
    with pytest.raises(TaskNotSerializable, match="was freed"):
        encode_call((handle,), {})
    shared.drop_freed()
    shared._objects.clear()


def test_what_cannot_be_pickled_cannot_be_shared() -> None:
    with pytest.raises(TaskNotSerializable, match="the object to share"):
        SerialExecutor().share({"lock": __import__("threading").Lock()})


def test_arrays_of_objects_and_memory_maps_can_be_shared(tmp_path: Path) -> None:
    objects = np.array([1, "two", None], dtype=object)
    handle = SerialExecutor().share(objects)
    assert travel(handle).tolist() == objects.tolist()
    shared._objects.clear()
    np.arange(100.0).tofile(tmp_path / "file")
    assert type(SerialExecutor().share(np.memmap(tmp_path / "file", "f8", "r"))) is SharedArray
