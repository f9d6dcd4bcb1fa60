"""How arrays, and what is made of them, come out of a pickle and the buffers beside it."""

from __future__ import annotations

import array
import ctypes
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from repartir.codec import Encoded, decode, encode_call, encode_result, parts_of, raw
from repartir.errors import TaskNotSerializable
from repartir.shm.arena import HANDLE_BYTES, Handle
from tests.shared import arena_room

LARGE = 1 << 30


def travel(value: Any, threshold: int = 1) -> Any:
    """Through a call whose buffers of `threshold` bytes and more go beside the pickle."""
    return unpack(encode_call((value,), {}, threshold=threshold))[0][0]


def unpack(encoded: Encoded | bytes) -> Any:
    meta, *buffers = [bytearray(raw(part)) for part in parts_of(encoded)]
    return decode(meta, buffers)


def assert_same(copy: Any, original: Any) -> None:
    """Equal in type, dtype, shape and elements; what lies between the fields of a record does not count."""
    assert type(copy) is type(original)
    assert copy.dtype == original.dtype
    assert copy.shape == original.shape
    for name in original.dtype.names or ():
        assert_same(np.asarray(copy[name]), np.asarray(original[name]))
    if original.dtype.names is None:
        np.testing.assert_array_equal(np.asarray(copy), np.asarray(original), strict=True)


# ---- arrays of every dtype, shape and layout

PADDED = np.dtype({"names": ["a", "b"], "formats": ["u1", "f8"], "offsets": [3, 16], "itemsize": 40})
NESTED = np.dtype([("inner", [("x", ">i2"), ("y", "S3")]), ("when", "M8[ms]"), ("table", "f4", (2, 2))])
DTYPES = (
    hnp.scalar_dtypes()
    | hnp.byte_string_dtypes()
    | hnp.unicode_string_dtypes()
    | hnp.array_dtypes(allow_subarrays=True)
    | hnp.nested_dtypes().filter(lambda dtype: dtype.subdtype is None)
    | st.sampled_from([PADDED, NESTED, np.dtype("i1,f8", align=True), np.dtype("g"), np.dtype("G")])
)
LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "transposed": lambda a: a.T,
    "axes rolled": lambda a: np.moveaxis(a, 0, -1) if a.ndim else a,
    "every second": lambda a: a[..., ::2] if a.ndim else a,
    "backwards": lambda a: a[(..., *(slice(None, None, -1) for _ in a.shape))],
    "a slice": lambda a: a[1:] if a.ndim else a,
    "a column": lambda a: a[..., :1] if a.ndim else a,
    "broadcast": lambda a: np.broadcast_to(a, (2, *a.shape)),
}


def read_only(value: Any) -> Any:
    value = value.view()
    value.flags.writeable = False
    return value


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    made = draw(hnp.arrays(draw(DTYPES), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)))
    made = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](made)
    return read_only(made) if draw(st.booleans()) else made


def keeps_order(copy: Any, original: Any) -> bool:
    """Whether what is contiguous stays so, in the same order, and what is not becomes so."""
    was, now = original.flags, copy.flags
    if was.c_contiguous or was.f_contiguous:
        return bool((was.c_contiguous, was.f_contiguous) == (now.c_contiguous, now.f_contiguous))
    return bool(now.c_contiguous or now.f_contiguous)


@given(arrays())
def test_an_array_beside_the_pickle_comes_out_as_it_went_in(made: Any) -> None:
    copy = travel(made)
    assert_same(copy, made)
    assert keeps_order(copy, made)
    assert copy.flags.writeable
    assert not np.shares_memory(copy, made)


@given(arrays(), st.sampled_from([1, 8, 64, LARGE]))
def test_a_result_does_so_whatever_goes_beside_the_pickle(made: Any, threshold: int) -> None:
    copy = unpack(encode_result({"of": [made]}, threshold))["of"][0]
    assert_same(copy, made)
    assert copy.flags.writeable


@given(st.lists(arrays(), min_size=1, max_size=4))
def test_arrays_written_into_a_block_come_out_of_it_as_they_went_in(made: list[Any]) -> None:
    with arena_room() as room:
        handle = room.arena.store(parts_of(encode_call(tuple(made), {}, threshold=1)), owner=7)
        assert handle is not None
        assert len(handle.pack()) == HANDLE_BYTES
        meta, *buffers = room.arena.load(Handle.unpack(handle.pack()))
        copies, _ = decode(meta, buffers)
        for copy, original in zip(copies, made, strict=True):
            assert_same(copy, original)


@given(arrays(), st.integers(1, 100))
def test_buffers_go_beside_the_pickle_from_the_threshold_on(made: Any, threshold: int) -> None:
    encoded = encode_call((made,), {}, threshold=threshold)
    beside = encoded.buffers if isinstance(encoded, Encoded) else ()
    assert [len(buffer) for buffer in beside] == ([made.nbytes] if made.nbytes >= threshold else [])


def test_what_goes_beside_the_pickle_is_not_in_it() -> None:
    for layout in LAYOUTS.values():
        made = layout(np.zeros((64, 64)))
        encoded = encode_call((made, read_only(made)), {}, threshold=1)
        assert isinstance(encoded, Encoded)
        assert len(encoded.meta) < 1000
        assert encoded.size_bytes == len(encoded.meta) + 2 * made.nbytes


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("threshold", [1, LARGE])
def test_a_read_only_array_arrives_in_its_order_and_can_be_written_to(order: Any, threshold: int) -> None:
    made = read_only(np.array([[1, 2, 3], [4, 5, 6]], order=order))
    copy = travel(made, threshold)
    assert keeps_order(copy, made)
    copy[0, 0] = 9
    assert made[0, 0] == 1


def test_arrays_of_objects_go_inside_the_pickle() -> None:
    inner = np.arange(3.0)
    made = np.array([inner, "text", None, {1: 2}], dtype=object)
    records = np.array([(1, [2])], dtype=[("number", "i4"), ("any", object)])
    copy, copied_records = travel((made, records))
    assert copy[0].tolist() == [0, 1, 2]
    assert copy[1:].tolist() == ["text", None, {1: 2}]
    assert copied_records["any"][0] == [2]
    assert copied_records.dtype == records.dtype


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="numpy 1")
def test_arrays_of_strings_of_any_length_come_out_as_they_went_in() -> None:
    made = np.array(["a", "long enough to lie elsewhere " * 9, ""], dtype=np.dtypes.StringDType())
    assert_same(travel(made), made)


def test_fields_that_overlap_keep_their_bytes() -> None:
    dtype = np.dtype({"names": ["whole", "low"], "formats": ["<u4", "<u2"], "offsets": [0, 0]})
    made = np.array([0x11223344], "<u4").view(dtype)
    assert_same(travel(made), made)
    assert_same(travel(np.repeat(made, 4)[::2]), np.repeat(made, 2))


def test_one_field_of_a_record_array_leaves_the_others_behind() -> None:
    made = np.zeros(100, [("wanted", "i4"), ("other", "S1000")])
    made["wanted"] = range(100)
    encoded = encode_call((made["wanted"],), {}, threshold=1)
    assert isinstance(encoded, Encoded)
    assert encoded.size_bytes < 1000
    assert_same(unpack(encoded)[0][0], np.arange(100, dtype="i4"))


@pytest.mark.parametrize(
    "scalar", [np.float64(1.5), np.datetime64("2024-02-29"), np.bool_(True), np.str_("x")]
)
def test_numpy_scalars_stay_scalars(scalar: Any) -> None:
    copy = travel(scalar)
    assert type(copy) is type(scalar)
    assert copy == scalar


# ---- nested, and more than once


@dataclass
class Holder:
    name: str
    data: Any
    more: Any = None


def nests(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaf,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.tuples(inner, inner)
            | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            | st.builds(Holder, st.text(max_size=3), inner, inner)
        ),
        max_leaves=6,
    )


def assert_nest_same(copy: Any, original: Any) -> None:
    assert type(copy) is type(original)
    if isinstance(original, Holder):
        copy, original = vars(copy), vars(original)
    if isinstance(original, dict):
        assert list(copy) == list(original)
        copy, original = list(copy.values()), list(original.values())
    if isinstance(original, np.ndarray):
        assert_same(copy, original)
    elif isinstance(original, list | tuple):
        assert len(copy) == len(original)
        for one, other in zip(copy, original, strict=True):
            assert_nest_same(one, other)
    else:
        assert copy == original


@given(nests(arrays() | st.integers() | st.binary(max_size=20)), st.sampled_from([1, 16]))
def test_arrays_nested_in_whatever_come_out_as_they_went_in(nest: Any, threshold: int) -> None:
    assert_nest_same(travel(nest, threshold), nest)


@given(arrays(), st.sampled_from([1, LARGE]))
def test_an_array_given_twice_stays_one(made: Any, threshold: int) -> None:
    encoded = encode_call((made, [made]), {"again": Holder("h", made)}, threshold=threshold)
    assert len(parts_of(encoded)) <= 2
    (first, (second,)), kwargs = unpack(encoded)
    assert first is second is kwargs["again"].data


def test_views_of_one_array_become_arrays_of_their_own() -> None:
    made = np.arange(12).reshape(3, 4)
    left, right = travel((made[:, :2], made[:, 1:]))
    left[...] = -1
    assert right.tolist() == [[1, 2, 3], [5, 6, 7], [9, 10, 11]]


def test_arrays_that_hold_each_other_through_objects_come_out_so() -> None:
    holder = Holder("h", np.arange(4))
    holder.more = [holder, holder.data]
    copy = travel(holder)
    assert copy.more[0] is copy
    assert copy.more[1] is copy.data


def test_many_arrays_made_while_pickling_do_not_get_mixed_up() -> None:
    class Makes:
        def __init__(self, number: int) -> None:
            self.number = number

        def __reduce__(self) -> Any:
            return np.asarray, (np.full(50, self.number),)

    copies = travel([Makes(number) for number in range(200)])
    assert [int(copy[0]) for copy in copies] == list(range(200))
    assert all((copy == copy[0]).all() for copy in copies)


# ---- subclasses


def matrix(value: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return np.matrix(value)


both_ways = pytest.mark.parametrize("threshold", [1, LARGE])


@both_ways
def test_a_matrix_stays_one(threshold: int) -> None:
    made = matrix([[1.0, 2.0], [3.0, 4.0]])
    for value in (made, made.T, made[:, :1]):
        copy = travel(value, threshold)
        assert_same(copy, value)
        assert copy.flags.writeable
        assert keeps_order(copy, value)


@both_ways
def test_a_record_array_stays_one_and_keeps_its_attributes(threshold: int) -> None:
    made: Any = np.rec.array([(1, 2.5, "a"), (3, 4.5, "bc")], dtype=[("x", "i4"), ("y", ">f8"), ("z", "U2")])
    for value in (made, made[::-1], made.reshape(2, 1), made[:0]):
        copy = travel(value, threshold)
        assert_same(copy, value)
        assert copy.dtype.type is np.record
        assert copy.y.tolist() == value.y.tolist()
    assert travel(made, threshold)[1].z == "bc"


STRUCTURED = [("a", "i4"), ("b", "f8")]
MASKED: dict[str, Any] = {
    "nomask": np.ma.array([1.5, 2.5, 3.5]),
    "full mask": np.ma.array([1, 2, 3], mask=[0, 1, 0]),
    "all masked": np.ma.masked_all((2, 3), ">i2"),
    "2-d F": np.ma.array(np.arange(6.0).reshape(2, 3, order="F"), mask=np.eye(2, 3)),
    "strided": np.ma.array(np.arange(10), mask=np.arange(10) % 3 == 0)[::-2],
    "structured": np.ma.array([(1, 2.0), (3, 4.0)], mask=[(0, 1), (1, 0)], dtype=STRUCTURED),
    "structured nomask": np.ma.array([(1, 2.0)], dtype=STRUCTURED),
    "hard mask": np.ma.array([1, 2, 3], mask=[0, 1, 0], hard_mask=True),
    "fill value": np.ma.array([1, 2, 3], mask=[0, 1, 0], fill_value=-7),
    "structured fill": np.ma.array([(1, 2.0)], mask=[(0, 1)], dtype=STRUCTURED, fill_value=(-1, -2.0)),
    "0-d": np.ma.array(4.0, mask=True),
    "0-d nomask": np.ma.array(4.0),
    "empty": np.ma.array(np.empty((0, 3)), mask=np.empty((0, 3), bool)),
    "datetimes": np.ma.array(np.array(["2024-01-01", "NaT"], "M8[D]"), mask=[1, 0]),
    "strings": np.ma.array(["a", "bcd"], mask=[1, 0]),
    "read-only": np.ma.array(read_only(np.arange(3)), mask=[1, 0, 0]),
}


@both_ways
@pytest.mark.parametrize("made", MASKED.values(), ids=MASKED)
def test_a_masked_array_keeps_data_mask_and_fill_value(made: Any, threshold: int) -> None:
    copy = travel(made, threshold)
    assert type(copy) is np.ma.MaskedArray
    assert_same(copy.data, made.data)
    assert (copy.mask is np.ma.nomask) == (made.mask is np.ma.nomask)
    if made.mask is not np.ma.nomask:
        assert_same(np.asarray(copy.mask), np.asarray(made.mask))
    assert copy.hardmask == made.hardmask
    assert (copy._fill_value is None) == (made._fill_value is None)
    assert copy.fill_value == made.fill_value or np.isnat(made.fill_value)
    assert copy.flags.writeable


@both_ways
def test_a_masked_array_works_as_before(threshold: int) -> None:
    copy = travel(MASKED["full mask"], threshold)
    assert copy.sum() == 4
    copy[0] = np.ma.masked
    copy[1] = 8
    assert copy.tolist() == [None, 8, 3]
    hard = travel(MASKED["hard mask"], threshold)
    hard[1] = 8
    assert hard.tolist() == [1, None, 3]
    assert MASKED["full mask"].tolist() == [1, None, 3]
    assert travel(MASKED["structured"], threshold)["b"].tolist() == [None, 4.0]


@both_ways
def test_the_masked_constant_stays_the_one(threshold: int) -> None:
    assert travel(np.ma.masked, threshold) is np.ma.masked


@both_ways
def test_a_masked_array_over_a_subclass_stays_so(threshold: int) -> None:
    made = np.ma.array(matrix([[1, 2], [3, 4]]), mask=[[0, 1], [0, 0]])
    copy = travel(made, threshold)
    assert type(copy.data) is np.matrix
    assert copy.filled(0).tolist() == [[1, 0], [3, 4]]


class Labelled(np.ndarray[Any, Any]):
    """A user's subclass that pickles its attribute by the usual recipe."""

    label: Any = None

    def __array_finalize__(self, origin: Any) -> None:
        self.label = getattr(origin, "label", None)

    def __reduce__(self) -> Any:
        made, args, state = super().__reduce__()
        return made, args, (state, self.label)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__reduce__()

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state[0])
        self.label = state[1]


class Plain(np.ndarray[Any, Any]):
    """A user's subclass that says nothing about pickling."""


@both_ways
def test_a_users_subclass_goes_its_own_way(threshold: int) -> None:
    made = np.arange(6.0).reshape(2, 3).view(Labelled)
    made.label = ["metres", np.arange(3)]
    copy = travel(made, threshold)
    assert_same(copy, made)
    assert copy.label[0] == "metres"
    assert copy.label[1].tolist() == [0, 1, 2]
    plain = np.arange(5).view(Plain)
    assert_same(travel(plain, threshold), plain)


# ---- memory maps

COUNT = 3000  # several pages


@pytest.fixture
def mapped_file(tmp_path: Path) -> Path:
    path = tmp_path / "data.bin"
    np.arange(COUNT, dtype="i8").tofile(path)
    return path


def is_attached(value: Any, path: Path) -> bool:
    """Whether a memory map lies in this file, and not in memory of its own."""
    return value._mmap is not None and Path(value.filename) == path


@pytest.mark.parametrize("mode", ["r", "r+", "w+"])
@both_ways
def test_a_memory_map_is_mapped_by_the_receiver(mapped_file: Path, mode: Any, threshold: int) -> None:
    made = np.memmap(mapped_file, "i8", mode, shape=(COUNT,))
    if mode == "w+":
        made[:] = range(COUNT)
    encoded = encode_call((made,), {}, threshold=threshold)
    assert isinstance(encoded, bytes)
    assert len(encoded) < 1000
    copy = unpack(encoded)[0][0]
    assert_same(copy, made)
    assert is_attached(copy, mapped_file)
    assert copy.flags.writeable == (mode != "r")
    if mode != "r":
        copy[5] = -5
        assert made[5] == -5


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
@both_ways
def test_a_part_of_a_memory_map_travels_as_that_part(mapped_file: Path, mode: Any, threshold: int) -> None:
    made = np.memmap(mapped_file, "i8", mode).reshape(50, 60)
    offset = np.memmap(mapped_file, "i8", mode, offset=8 * 1000)
    parts = [
        *(made[7:9], made[:, 3], made.T, made[::-1], made[::-2, 5:1:-1], made[49:, 59:], made[3].view("u1")),
        *(made.reshape(5, 10, 60)[1:3, ::2, 4].T, np.broadcast_to(made[0], (3, 60), subok=True)),
        *(offset, offset[:10], offset[1500:], offset[::-1]),
    ]
    for part in parts:
        assert type(part) is np.memmap
        copy = travel(part, threshold)
        assert_same(copy, part)
        assert is_attached(copy, mapped_file) == (mode != "c")
        assert_same(travel(copy, threshold), part)


def test_what_was_written_to_a_copy_on_write_map_travels(mapped_file: Path) -> None:
    made = np.memmap(mapped_file, "i8", "c")
    made[3] = -3
    copy = travel(made)
    assert_same(copy, made)
    copy[4] = -4
    assert made[4] == 4
    assert np.fromfile(mapped_file, "i8")[3] == 3


def test_a_read_only_view_of_a_writable_map_arrives_read_only(mapped_file: Path) -> None:
    copy = travel(read_only(np.memmap(mapped_file, "i8", "r+")))
    assert not copy.flags.writeable
    assert is_attached(copy, mapped_file)


def test_an_empty_part_of_a_memory_map_travels(mapped_file: Path) -> None:
    made = np.memmap(mapped_file, "i8", "r")
    assert_same(travel(made[:0]), made[:0])


def test_what_was_computed_from_a_memory_map_travels_by_its_elements(mapped_file: Path) -> None:
    made = np.memmap(mapped_file, "i8", "r")
    for value in (made + 1, np.asarray(made), made.copy(), made[[1, 2]], made.astype(">i4")):
        copy = travel(value)
        assert_same(copy, value)
        assert copy.flags.writeable


def test_a_map_of_a_deleted_file_travels_by_its_elements(mapped_file: Path) -> None:
    made = np.memmap(mapped_file, "i8", "r+")
    mapped_file.unlink()
    copy = travel(made)
    assert_same(copy, made)
    copy[0] = -1
    assert made[0] == 0


@pytest.mark.parametrize("seen_before", [False, True])
def test_a_map_whose_file_was_replaced_travels_by_its_elements(mapped_file: Path, seen_before: bool) -> None:
    made = np.memmap(mapped_file, "i8", "r")
    if seen_before:
        assert is_attached(travel(made), mapped_file)
    other = mapped_file.with_suffix(".new")
    np.full(COUNT, -1, "i8").tofile(other)
    os.replace(other, mapped_file)
    copy = travel(made)
    assert_same(copy, made)
    assert copy[1] == 1
    assert is_attached(travel(np.memmap(mapped_file, "i8", "r")), mapped_file)


def test_a_map_whose_file_was_renamed_travels_by_its_elements(mapped_file: Path) -> None:
    made = np.memmap(mapped_file, "i8", "r")
    mapped_file.rename(mapped_file.with_suffix(".old"))
    assert_same(travel(made), made)
    np.full(COUNT, -1, "i8").tofile(mapped_file)
    assert_same(travel(made), made)


def test_a_map_of_a_relative_path_through_a_link_is_found_from_elsewhere(
    mapped_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mapped_file.parent / "link").symlink_to(mapped_file)
    monkeypatch.chdir(mapped_file.parent)
    encoded = encode_call((np.memmap("link", "i8", "r"),), {})
    monkeypatch.chdir("/")
    assert isinstance(encoded, bytes)
    assert unpack(encoded)[0][0]._mmap is not None
    assert unpack(encoded)[0][0][7] == 7


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    os.replace(other, path)


@pytest.mark.parametrize(
    ("change", "says"), [(Path.unlink, "No such file"), (replace, "replaced by another")]
)
def test_a_file_that_changes_while_the_task_waits_is_an_error_that_names_it(
    mapped_file: Path, change: Callable[[Path], None], says: str
) -> None:
    encoded = encode_call((np.memmap(mapped_file, "i8", "r"),), {})
    change(mapped_file)
    with pytest.raises(OSError, match=says) as caught:
        unpack(encoded)
    assert str(mapped_file) in str(caught.value)


def test_a_memory_map_of_records_travels(tmp_path: Path) -> None:
    made = np.memmap(tmp_path / "records", PADDED, "w+", shape=(7, 5))
    made["b"] = np.arange(35).reshape(7, 5)
    copy = travel(made[1::2, ::-1])
    assert_same(copy, made[1::2, ::-1])
    assert is_attached(copy, tmp_path / "records")


def test_an_array_of_that_type_that_maps_nothing_stays_one() -> None:
    made = np.arange(5).view(np.memmap)
    assert_same(travel(made), made)


def test_a_result_may_be_a_memory_map(mapped_file: Path) -> None:
    made = np.memmap(mapped_file, "i8", "r")
    assert is_attached(unpack(encode_result(made[5:])), mapped_file)


# ---- other buffers


def views() -> Iterator[tuple[str, memoryview]]:
    yield "bytes", memoryview(b"abcdef")
    yield "bytearray", memoryview(bytearray(b"abcdef"))
    yield "empty", memoryview(b"")
    yield "no doubles", memoryview(array.array("d"))
    yield "no rows", memoryview(np.empty((0, 3)))
    yield "every second", memoryview(b"abcdef")[::2]
    yield "backwards", memoryview(b"abcdef")[::-1]
    for code in "bBhHiIlLqQfd":
        yield code, memoryview(array.array(code, [1, 2, 3]))
    yield "c", memoryview(b"abc").cast("c")
    yield "?", memoryview(np.array([True, False]))
    yield "2-d", memoryview(bytes(range(24))).cast("B").cast("h", (3, 4))
    yield "Fortran", memoryview(np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    yield "0-d", memoryview(np.array(2.5))
    yield "half", memoryview(np.arange(3, dtype=np.float16))
    yield "big-endian", memoryview(np.arange(3, dtype=">i4"))
    yield "complex", memoryview(np.arange(3, dtype=complex))
    yield "text", memoryview(np.array(["ab", "c"]))
    yield "records", memoryview(np.ones(3, STRUCTURED))
    yield "padded", memoryview(np.ones((2, 2), np.dtype("i1,f8", align=True)))


@both_ways
@pytest.mark.parametrize("view", [pytest.param(view, id=name) for name, view in views()])
def test_a_memoryview_stays_one_that_can_be_written_to(view: memoryview, threshold: int) -> None:
    copy = travel(view, threshold)
    assert type(copy) is memoryview
    assert copy.format == view.format
    assert copy.shape == view.shape
    assert_same(np.asarray(copy), np.asarray(view))
    assert not copy.readonly


@pytest.mark.parametrize("view", [pytest.param(view, id=name) for name, view in views()])
def test_a_memoryview_goes_beside_the_pickle_and_stays_one_object(view: memoryview) -> None:
    encoded = encode_call((view, [view]), {}, threshold=1)
    assert [len(part) for part in parts_of(encoded)[1:]] == ([view.nbytes] if view.nbytes else [])
    (copy, (again,)), _ = unpack(encoded)
    assert copy is again


def test_a_memoryview_that_numpy_does_not_understand_is_an_error_that_names_it() -> None:
    class Linked(ctypes.Structure):
        _fields_ = (("to", ctypes.POINTER(ctypes.c_int)),)

    with pytest.raises(TaskNotSerializable, match="argument 0"):
        encode_call((memoryview(Linked()),), {})


@both_ways
@pytest.mark.parametrize("value", [b"", b"abc" * 100, bytearray(b""), bytearray(b"abc" * 100)], ids=repr)
def test_bytes_and_bytearrays_come_out_as_they_went_in(value: Any, threshold: int) -> None:
    copy, again = travel((value, value), threshold)
    assert type(copy) is type(value)
    assert copy == value
    assert copy is again


@both_ways
def test_an_array_of_the_standard_library_comes_out_as_it_went_in(threshold: int) -> None:
    made = array.array("d", [1.5, 2.5])
    assert travel(made, threshold) == made


@both_ways
def test_a_users_own_buffers_beside_the_pickle_come_out(threshold: int) -> None:
    class Owner:
        def __init__(self, data: Any) -> None:
            self.data = data

        def __reduce_ex__(self, protocol: Any) -> Any:
            return bytearray, (pickle.PickleBuffer(self.data),)

    assert travel(Owner(b"abc" * 10), threshold) == bytearray(b"abc" * 10)
    assert travel(Owner(bytearray(b"abc" * 10)), threshold) == bytearray(b"abc" * 10)


# ---- foreign libraries


@pytest.fixture(scope="module")
def pd() -> Any:
    """Of wider scope than the guard, for an import of pyarrow, which pandas does, leaves a thread."""
    return pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def pa() -> Any:
    return pytest.importorskip("pyarrow")


@both_ways
def test_pandas_objects_come_out_as_they_went_in(pd: Any, threshold: int) -> None:
    frame = pd.DataFrame(
        {
            "number": np.arange(50.0),
            "count": np.arange(50),
            "when": pd.date_range("2024-01-01", periods=50, tz="UTC"),
            "kind": pd.Categorical(["a", "b"] * 25),
            "text": ["x", None] * 25,
            "flag": pd.array([True, None] * 25, dtype="boolean"),
        },
        index=pd.Index(range(0, 100, 2), name="at"),
    )
    frame.attrs["unit"] = "m"
    copy = travel(frame, threshold)
    pd.testing.assert_frame_equal(copy, frame)
    assert copy.attrs == frame.attrs
    copy.loc[0, "number"] = -1.0
    copy["number"] += 1
    assert frame.loc[0, "number"] == 0
    pd.testing.assert_series_equal(travel(frame["number"][::2], threshold), frame["number"][::2])
    index = pd.MultiIndex.from_product([["a", "b"], range(5)])
    pd.testing.assert_index_equal(travel(index, threshold), index)
    pd.testing.assert_frame_equal(travel(frame.iloc[:0], threshold), frame.iloc[:0])


def test_columns_of_a_pandas_frame_go_beside_the_pickle(pd: Any) -> None:
    encoded = encode_call((pd.DataFrame(np.zeros((1000, 8))),), {}, threshold=1000)
    assert isinstance(encoded, Encoded)
    assert sum(map(len, encoded.buffers)) >= 64_000
    assert len(encoded.meta) < 3000


@both_ways
def test_pyarrow_objects_come_out_as_they_went_in(pa: Any, threshold: int) -> None:
    table = pa.table({"number": [1.5, None, 3.5], "text": ["a", None, "ccc"], "list": [[1], [], [2, 3]]})
    assert travel(table, threshold).equals(table)
    assert travel(table.slice(1, 1), threshold).equals(table.slice(1, 1))
    assert travel(pa.array(range(100)), threshold).to_pylist() == list(range(100))


def test_columns_of_a_pyarrow_table_go_beside_the_pickle(pa: Any) -> None:
    encoded = encode_call((pa.table({"x": np.zeros(1000)}),), {}, threshold=1000)
    assert isinstance(encoded, Encoded)
    assert [len(buffer) for buffer in encoded.buffers] == [8000]
    assert len(encoded.meta) < 3000
