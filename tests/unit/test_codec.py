from __future__ import annotations

import enum
import pickle
import threading
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from repartir.codec import (
    OUT_OF_BAND_BYTES,
    Encoded,
    decode,
    encode_call,
    encode_function,
    encode_result,
    encode_value,
)
from repartir.errors import TaskNotSerializable


def travel(encoded: Encoded | bytes) -> Any:
    if isinstance(encoded, bytes):
        return decode(encoded)
    return decode(encoded.meta, [bytearray(bytes(buffer)) for buffer in encoded.buffers])


ATOM = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
VALUE = st.recursive(
    ATOM | st.decimals(allow_nan=False) | st.dates() | st.uuids(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4), inner, max_size=4)
        | st.frozensets(ATOM, max_size=4)
    ),
    max_leaves=12,
)


@given(args=st.lists(VALUE, max_size=4).map(tuple), kwargs=st.dictionaries(st.text(), VALUE, max_size=3))
def test_calls_come_out_as_they_went_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert travel(encode_call(args, kwargs)) == (args, kwargs)


@given(VALUE)
def test_values_and_results_come_out_as_they_went_in(value: Any) -> None:
    for encode in (encode_value, encode_result):
        copy = travel(encode(value))
        assert copy == value
        assert type(copy) is type(value)


@given(
    hnp.arrays(
        dtype=hnp.scalar_dtypes() | hnp.unicode_string_dtypes(),
        shape=hnp.array_shapes(min_dims=0, min_side=0, max_side=5),
    ),
    st.sampled_from("CF"),
)
def test_small_arrays_keep_values_dtype_and_order(array: Any, order: Any) -> None:
    array = np.asarray(array, order=order)
    copy = travel(encode_value(array))
    np.testing.assert_array_equal(copy, array)
    assert copy.dtype == array.dtype
    assert copy.flags.f_contiguous == array.flags.f_contiguous
    assert copy.flags.writeable


N = OUT_OF_BAND_BYTES // 8
LARGE = np.arange(4.0 * N).reshape(4, N)


def read_only(array: Any) -> Any:
    array = array.copy(order="K")
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "array",
    [
        LARGE,
        np.asfortranarray(LARGE),
        LARGE[:, ::2],
        LARGE.T,
        np.moveaxis(LARGE.reshape(2, 2, 4, -1), 0, 2)[::-1],
        read_only(LARGE),
        read_only(np.asfortranarray(LARGE)),
        np.broadcast_to(np.float64(3), (2, N)),
        LARGE.view([("a", "f4"), ("b", "i4")]),
        LARGE.astype("datetime64[s]"),
    ],
    ids=[
        "C",
        "F",
        "strided",
        "transposed",
        "permuted",
        "read-only",
        "read-only F",
        "broadcast",
        "records",
        "datetime",
    ],
)
def test_large_arrays_travel_beside_the_pickle_and_are_writable(array: Any) -> None:
    encoded = encode_call((1, array), {})
    assert isinstance(encoded, Encoded)
    assert len(encoded.meta) < 1_000
    assert sum(map(len, encoded.buffers)) == array.nbytes
    assert encoded.size_bytes == len(encoded.meta) + array.nbytes
    (_, copy), _ = travel(encoded)
    np.testing.assert_array_equal(copy, array)
    assert copy.dtype == array.dtype
    assert copy.flags.f_contiguous == array.flags.f_contiguous
    assert copy.flags.writeable
    copy[0] = copy[1]


def test_buffers_are_those_of_the_object_itself() -> None:
    array = LARGE.copy()
    encoded = encode_value(array)
    assert isinstance(encoded, Encoded)
    (buffer,) = encoded.buffers
    assert len(buffer) == array.nbytes
    array[0, 0] = -1
    assert travel(encoded)[0, 0] == -1
    assert "1 buffers" in repr(encoded)


@pytest.mark.parametrize(("extra", "is_beside"), [(-1, False), (0, True)])
def test_the_threshold_is_exact(extra: int, is_beside: bool) -> None:
    array = np.zeros(OUT_OF_BAND_BYTES + extra, "u1")
    assert isinstance(encode_value(array), Encoded) is is_beside


def test_the_same_array_twice_is_one_buffer_and_one_object() -> None:
    encoded = encode_value([LARGE, LARGE, LARGE[:2]])
    assert isinstance(encoded, Encoded)
    assert [len(buffer) for buffer in encoded.buffers] == [LARGE.nbytes, LARGE.nbytes // 2]
    one, two, _ = travel(encoded)
    assert one is two


def test_any_provider_of_buffers_goes_beside_the_pickle() -> None:
    encoded = encode_value(pickle.PickleBuffer(bytearray(OUT_OF_BAND_BYTES)))
    assert isinstance(encoded, Encoded)
    assert bytes(travel(encoded)) == bytes(OUT_OF_BAND_BYTES)


def test_arrays_of_objects_and_subclasses_go_through_the_pickle() -> None:
    objects = np.array([Decimal(1), None, "x"] * 10, dtype=object)
    assert travel(encode_value(objects)).tolist() == objects.tolist()
    masked = np.ma.masked_array([1, 2, 3], mask=[False, True, False])
    assert travel(encode_value(masked)).tolist() == [1, None, 3]


def test_calls_of_atoms_are_plain_pickles() -> None:
    call = ((1, 2.0, "a", b"b", None, True), {})
    assert encode_call(*call) == pickle.dumps(call, 5)


class Sneaky(int):
    """A subclass of an atom is not an atom."""

    def __reduce__(self) -> Any:
        return Sneaky, (int(self) + 1,)


def test_subclasses_of_atoms_take_the_full_way() -> None:
    assert travel(encode_call((Sneaky(1),), {})) == ((2,), {})
    assert travel(encode_value(Sneaky(1))) == 2


def test_decode_takes_any_bytes() -> None:
    data = encode_value({"a": 1})
    assert isinstance(data, bytes)
    for kind in (bytes, bytearray, memoryview):
        assert decode(kind(data)) == {"a": 1}


# --- what cannot travel -------------------------------------------------------------------------------------


class Holder:
    def __init__(self, held: Any) -> None:
        self.held = held


class Refuses:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


LOCK = threading.Lock()


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((1, LOCK), {}, "argument 1 (lock): cannot pickle '_thread.lock' object. Pass data"),
        ((1, {"lock": LOCK}), {}, "argument 1 (dict): item 'lock': cannot pickle '_thread.lock'"),
        ((), {"cfg": [0, (LOCK,)]}, "argument 'cfg' (list): item 1: item 0: cannot pickle"),
        ((Holder(LOCK),), {}, "argument 0 (Holder): attribute 'held': cannot pickle"),
        ((Holder(LOCK).__init__,), {}, "argument 0 (method): its object: attribute 'held': cannot"),
        ((lambda: LOCK,), {}, "argument 0 (function): global 'LOCK' of function '<lambda>': cannot"),
        ((lambda x=LOCK: x,), {}, "argument 0 (function): a default of function '<lambda>': cannot"),
        (({Refuses(ValueError("no")): 1},), {}, ">: ValueError: no. Pass data"),
        ((Refuses(MemoryError()),), {}, "argument 0 (Refuses): MemoryError. Pass data"),
    ],
)
def test_the_message_names_the_part(args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskNotSerializable) as caught:
        encode_call(args, kwargs)
    assert message in str(caught.value)
    assert caught.value.__cause__ is not None


def test_captured_variables_and_attributes_of_functions_are_named() -> None:
    lock = threading.Lock()

    def captures() -> object:
        return lock

    def carries() -> None:
        pass

    carries.lock = lock  # type: ignore[attr-defined]
    with pytest.raises(TaskNotSerializable, match=r"captured variable 'lock' of function '.*captures'"):
        encode_function(captures)
    with pytest.raises(TaskNotSerializable, match=r"attribute 'lock' of function '.*carries'"):
        encode_function(carries)


def test_too_deep_nesting_is_named_not_fatal() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TaskNotSerializable, match=r"argument 0 \(list\): .*RecursionError"):
        encode_call((deep,), {})
    while deep:  # else its deallocation is what recurses
        deep = deep.pop()


def test_a_cycle_does_not_trap_the_search() -> None:
    cycle: list[Any] = [LOCK]
    cycle.insert(0, cycle)
    with pytest.raises(TaskNotSerializable, match="item 1: cannot pickle"):
        encode_value(cycle)


def test_values_name_what_they_are() -> None:
    with pytest.raises(TaskNotSerializable, match=r"the initializer \(lock\): cannot pickle"):
        encode_value(LOCK, what="the initializer")
    with pytest.raises(TaskNotSerializable, match=r"the result \(list\): item 0: cannot pickle"):
        encode_result([LOCK])


def test_a_part_that_fails_only_once_still_gives_an_error() -> None:
    class Moody:
        fails = True

        def __reduce__(self) -> Any:
            if Moody.fails:
                Moody.fails = False
                raise OSError("not now")
            return str, ()

    with pytest.raises(TaskNotSerializable, match="the call cannot be pickled: OSError: not now"):
        encode_call((Moody(),), {})


def test_an_error_that_cannot_show_itself() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise ValueError

    with pytest.raises(TaskNotSerializable, match=r"argument 0 \(Refuses\): MuteError\."):
        encode_call((Refuses(MuteError()),), {})


def test_ctrl_c_while_pickling_is_not_swallowed() -> None:
    with pytest.raises(KeyboardInterrupt):
        encode_call((Refuses(KeyboardInterrupt()),), {})


class Colour(enum.Enum):
    RED = 1


def test_what_modules_define_goes_by_reference() -> None:
    for value in (
        Colour,
        Colour.RED,
        Holder,
        travel,
        np.float64,
        Decimal,
        type(None),
        type(...),
        type(travel),
    ):
        assert travel(encode_value(value)) is value
