"""Arrays of every kind through encode and decode: equal, with the flags that are promised, and the receiver's own."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from repartir.codec import Encoded, decode, encode_call, encode_result, parts_of, raw


def travel(value: Any, threshold: int = 16) -> Any:
    encoded = encode_call((value,), {}, None, threshold)
    meta, *buffers = [bytearray(raw(part)) for part in parts_of(encoded)]
    (copy,), _ = decode(meta, buffers)
    return copy


def beside(value: Any, threshold: int = 16) -> list[int]:
    """The sizes of the buffers that travel beside the pickle."""
    encoded = encode_call((value,), {}, None, threshold)
    return [len(buffer) for buffer in encoded.buffers] if isinstance(encoded, Encoded) else []


def expect_same(copy: Any, array: Any) -> None:
    assert type(copy) is type(array)
    assert copy.dtype == array.dtype
    assert copy.shape == array.shape
    assert copy.tobytes() == array.tobytes()
    assert copy.flags.writeable
    assert copy.flags.aligned
    if array.flags.c_contiguous or array.flags.f_contiguous:
        assert copy.flags.c_contiguous == array.flags.c_contiguous
        assert copy.flags.f_contiguous == array.flags.f_contiguous


scalars = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
    hnp.complex_number_dtypes(endianness="?"),
    hnp.datetime64_dtypes(endianness="?"),
    hnp.timedelta64_dtypes(endianness="?"),
    hnp.byte_string_dtypes(min_len=1),
    hnp.unicode_string_dtypes(endianness="?", min_len=1),
)
dtypes = st.one_of(scalars, hnp.nested_dtypes(scalars), hnp.array_dtypes(scalars))
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """Arrays of any dtype, shape, order and strides; their elements are whatever bytes they are."""
    dtype, shape = draw(dtypes), draw(shapes)
    if not dtype.itemsize:
        dtype = np.dtype("f4")
    size = int(np.prod(shape, dtype=int)) * dtype.itemsize
    array = np.frombuffer(bytearray((nth * 7 + 1) % 2 for nth in range(size)), np.uint8)
    array = np.ndarray(shape, dtype, array.data if size else bytearray(dtype.itemsize))
    if draw(st.booleans()):
        array = np.asfortranarray(array)
    if array.ndim and draw(st.booleans()):
        array = array.transpose(draw(st.permutations(range(array.ndim))))
    if array.ndim and draw(st.booleans()):
        steps = [draw(st.sampled_from([1, 1, 2, -1])) for _ in array.shape]
        array = array[tuple(slice(None, None, step) for step in steps)]
    if array.ndim and draw(st.booleans()) and array.shape[0] == 1:
        array = np.broadcast_to(array, (3, *array.shape[1:]))
    if draw(st.booleans()):
        array.flags.writeable = False
    return array


@given(arrays(), st.sampled_from([1, 16, 1 << 20]))
def test_every_array_arrives_equal_and_writable(array: Any, threshold: int) -> None:
    copy = travel(array, threshold)
    expect_same(copy, np.asarray(array))
    assert not np.shares_memory(copy, array)


@given(arrays())
def test_what_is_large_enough_travels_beside_the_pickle_once(array: Any) -> None:
    assert beside(array) == ([array.nbytes] if array.nbytes >= 16 else [])


@dataclasses.dataclass
class Holder:
    name: str
    array: Any
    more: list[Any]


@given(st.lists(arrays(), min_size=1, max_size=4))
def test_in_any_nesting(several: list[Any]) -> None:
    nested = {"holder": Holder("h", several[0], several[1:]), "pair": (several[-1], [several])}
    copy = travel(nested)
    expect_same(copy["holder"].array, several[0])
    for one, other in zip(copy["pair"][1][0], several, strict=True):
        expect_same(one, other)
    assert copy["pair"][1][0][0] is copy["holder"].array
    assert sum(beside(nested)) == sum(each.nbytes for each in several if each.nbytes >= 16)


@given(arrays())
def test_a_result_comes_back_the_same_way(array: Any) -> None:
    meta, *buffers = [bytearray(raw(part)) for part in parts_of(encode_result(array, 16))]
    expect_same(decode(meta, buffers), array)


def test_one_array_twice_stays_one() -> None:
    array = np.arange(100.0)
    one, two, view = travel([array, array, array[::2]])
    assert one is two
    one[0] = -1
    assert view[0] == 0


def test_a_strided_array_is_compacted_by_one_copy() -> None:
    """The pickle holds none of it, and nothing is copied before the elements are written to where they go."""
    array = np.arange(1 << 16).reshape(256, 256)[::2, ::3]
    encoded = encode_call((array,), {}, None, 16)
    assert isinstance(encoded, Encoded)
    array[1, 1] = -5
    (buffer,) = encoded.buffers
    assert np.frombuffer(bytes(buffer), array.dtype).reshape(array.shape)[1, 1] == -5


def test_objects_fall_back_to_their_pickles() -> None:
    array = np.array([1, "two", [3.0], None] * 100, dtype=object)
    copy = travel(array)
    assert copy.dtype == object
    assert copy.tolist() == array.tolist()
    mixed = np.array([(1, "x")] * 50, dtype=[("number", "i8"), ("thing", object)])
    assert travel(mixed).tolist() == mixed.tolist()


# ---- subclasses


@pytest.mark.parametrize("order", ["C", "F"])
def test_matrices(order: Any) -> None:
    matrix = np.asmatrix(np.asarray(np.arange(200.0).reshape(10, 20), order=order))
    copy = travel(matrix)
    expect_same(copy, matrix)
    assert (copy * copy.T == matrix * matrix.T).all()
    assert beside(matrix) == [matrix.nbytes]


def test_record_arrays() -> None:
    records = np.rec.fromarrays([np.arange(50), np.arange(50) / 3], names="number,third")
    copy = travel(records)
    expect_same(copy, records)
    assert copy.number[7] == 7
    assert type(copy[3]) is type(records[3])
    plain = np.zeros(40).view(np.recarray)
    expect_same(travel(plain), plain)
    assert beside(records) == [records.nbytes]


@pytest.mark.parametrize(
    "masked",
    [
        np.ma.MaskedArray(np.arange(100.0)),
        np.ma.MaskedArray(np.arange(100.0), mask=np.arange(100) % 3 == 0),
        np.ma.MaskedArray(np.arange(100), mask=True, fill_value=-7),
        np.ma.MaskedArray(np.arange(100).reshape(10, 10)[::2], mask=False, hard_mask=True),
        np.ma.MaskedArray(np.zeros(30, "i4, f8"), mask=[(True, False)] * 30),
    ],
    ids=["nothing masked", "some", "all", "hard", "records"],
)
def test_masked_arrays(masked: Any) -> None:
    copy = travel(masked)
    assert type(copy) is np.ma.MaskedArray
    assert copy.dtype == masked.dtype
    assert (copy.mask is np.ma.nomask) == (masked.mask is np.ma.nomask)
    assert np.array_equal(copy.mask, masked.mask)
    assert copy.data.tobytes() == masked.data.tobytes()
    assert copy.fill_value == masked.fill_value
    assert copy.hardmask == masked.hardmask
    assert beside(masked)[0] == masked.nbytes
    copy[0] = np.ma.masked


class Tagged(np.ndarray[Any, Any]):
    """A user's subclass, with an attribute of its own."""

    def __array_finalize__(self, origin: Any) -> None:
        self.tag = getattr(origin, "tag", None)

    def __reduce__(self) -> Any:
        return tagged, (np.asarray(self), self.tag)


def tagged(array: Any, tag: Any) -> Tagged:
    made: Any = np.asarray(array).view(Tagged)
    made.tag = tag
    return made  # type: ignore[no-any-return]


def test_a_subclass_of_the_users_goes_its_own_way() -> None:
    array = tagged(np.arange(1000.0), "mine")
    copy = travel(array)
    assert type(copy) is Tagged
    assert copy.tag == "mine"
    assert np.array_equal(copy, array)


# ---- bytes and views of them


@pytest.mark.parametrize(
    "view",
    [
        memoryview(b"x" * 1000),
        memoryview(bytearray(1000)),
        memoryview(np.arange(60.0).reshape(5, 12)),
        memoryview(np.arange(60, dtype="i2"))[::3],
        memoryview(b""),
        memoryview(np.float64(3.5)).cast("B")[:8],
    ],
    ids=["bytes", "bytearray", "two dimensions", "strided", "empty", "short"],
)
def test_memoryviews(view: Any) -> None:
    copy = travel(view)
    assert isinstance(copy, memoryview)
    assert copy == view
    assert (copy.format, copy.shape) == (view.format, view.shape)
    assert not copy.readonly


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes(kind: type) -> None:
    value = kind(b"abc" * 100_000)
    copy = travel(value)
    assert type(copy) is kind
    assert copy == value


def test_any_provider_of_buffers(tmp_path: Path) -> None:
    value = pickle.PickleBuffer(bytearray(b"z" * 500))
    assert bytes(travel(value)) == b"z" * 500
    assert beside(value) == [500]


# ---- memory maps


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "elements"
    np.arange(1000, dtype="i4").tofile(path)
    return path


VIEWS: dict[str, Any] = {
    "whole": lambda array: array,
    "slice": lambda array: array[100:300],
    "strided": lambda array: array[7::13],
    "backwards": lambda array: array[::-1],
    "transposed": lambda array: array[:400].reshape(20, 20).T,
    "one": lambda array: array[500:501],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("offset", [0, 4, 1004])
def test_a_memory_map_travels_as_its_file(file: Path, view: str, offset: int) -> None:
    array = VIEWS[view](np.memmap(file, "i4", "r", offset, shape=(1000 - offset // 4 if offset else 1000,)))
    assert beside(array, 1) == []
    copy = travel(array, 1)
    assert type(copy) is np.memmap
    assert np.array_equal(copy, array)
    assert copy.strides == array.strides
    assert not copy.flags.writeable
    assert np.array_equal(travel(copy[1:], 1), array[1:])


def test_what_is_written_to_a_memory_map_is_in_the_file(file: Path) -> None:
    array = np.memmap(file, "i4", "r+")
    copy = travel(array[10:20], 1)
    copy[3] = -9
    assert array[13] == -9
    array.flags.writeable = False
    assert not travel(array, 1).flags.writeable


def test_a_private_memory_map_travels_as_its_elements(file: Path) -> None:
    array = np.memmap(file, "i4", "c")
    array[5] = -1
    copy = travel(array)
    assert copy[5] == -1
    assert beside(array) == [4000]
    copy[6] = -2
    assert np.fromfile(file, "i4")[6] == 6


def test_what_is_computed_from_a_memory_map_travels_as_its_elements(file: Path) -> None:
    array = np.memmap(file, "i4", "r") + 1
    assert np.array_equal(travel(array), array)
    assert beside(array) == [4000]


def test_a_memory_map_of_a_deleted_file_travels_as_its_elements(file: Path) -> None:
    array = np.memmap(file, "i4", "r")
    file.unlink()
    assert np.array_equal(travel(array), np.arange(1000))
    assert beside(array) == [4000]


def test_a_file_that_was_replaced_meanwhile_is_an_error(file: Path) -> None:
    encoded = encode_call((np.memmap(file, "i4", "r"),), {})
    assert isinstance(encoded, bytes)
    other = file.with_name("other")
    np.zeros(1000, "i4").tofile(other)
    other.rename(file)
    with pytest.raises(OSError, match="was replaced"):
        decode(encoded)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"numpy\.memmap"):
        decode(encoded)


# ---- other libraries


def test_data_frames() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": np.arange(1000.0), "b": np.arange(1000), "c": ["x", "y"] * 500})
    copy = travel(frame)
    pandas.testing.assert_frame_equal(copy, frame)
    assert sum(beside(frame)) >= 16_000
    copy.loc[0, "a"] = -1
    assert frame.loc[0, "a"] == 0


def test_arrow_tables() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"a": np.arange(1000.0), "b": ["x"] * 1000})
    assert travel(table).equals(table)
    assert sum(beside(table)) >= 8_000
