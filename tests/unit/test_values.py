"""Values go to text and bytes and come back with all their types; nothing that a journal shows unpickles."""

from __future__ import annotations

import datetime
import enum
import json
import math
import pathlib
import pickle
import threading
import zoneinfo
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from repartir import values
from repartir.readable import readable


class Colour(enum.Enum):
    RED = 1
    BLUE = "b"


class Level(enum.IntFlag):
    LOW = 1
    HIGH = 2


Point = namedtuple("Point", "x y")


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def same(left: Any, right: Any) -> bool:
    """Equal in value and in all types, NaNs too."""
    if type(left) is not type(right):
        return False
    if isinstance(left, np.longdouble):  # some of its bytes mean nothing
        return bool(left == right)
    if isinstance(left, np.ndarray | np.generic):
        return (
            left.dtype == right.dtype
            and left.shape == right.shape
            and np.ascontiguousarray(left).tobytes() == np.ascontiguousarray(right).tobytes()
        )
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return len(left) == len(right) and all(
            same(a, b) and same(left[a], right[b]) for a, b in zip(left, right, strict=True)
        )
    if isinstance(left, float):
        return repr(left) == repr(right)
    if isinstance(left, complex):
        return same(left.real, right.real) and same(left.imag, right.imag)
    return bool(left == right)


dtypes = hnp.scalar_dtypes() | hnp.unicode_string_dtypes() | hnp.byte_string_dtypes()
arrays = hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats().filter(lambda x: not math.isnan(x)) | st.just(math.nan),
    st.text(),
    st.binary(),
    st.complex_numbers(allow_nan=False),
    st.datetimes()
    | st.datetimes(timezones=st.just(datetime.UTC))
    | st.dates()
    | st.times()
    | st.timedeltas(),
    st.sampled_from(
        [*Colour, *Level, pathlib.Path("a/b"), pathlib.PureWindowsPath("c:/d"), ..., Point(1, 2)]
    ),
)
keys = st.one_of(st.text(), st.integers(), st.sampled_from(Colour), st.tuples(st.integers()))
nested = st.recursive(
    atoms | arrays | arrays.map(lambda array: array.ravel()[0] if array.size else array),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys | st.just("!"), inner, max_size=4),
    ),
    max_leaves=8,
)


@pytest.mark.slow
@given(nested)
def test_a_value_comes_back_with_all_its_types(value: Any) -> None:
    stored = values.dumps(value)
    assert same(values.loads(stored), value)
    json.dumps(readable(stored), allow_nan=False)


@pytest.mark.parametrize(
    "value",
    [
        -0.0,
        complex(0, math.inf),
        10**5000,
        "\ud800",
        {1, 2},
        frozenset({"a"}),
        np.str_("é"),
        np.bytes_(b"\1"),
        np.float16(0.1),
        np.longdouble("0.1"),
        np.datetime64("2020-01-01T00:00", "ns"),
        np.zeros(2, [("a", "<i4"), ("b", ">f8", (2,))]),
        np.zeros(1, np.dtype("i1,f8", align=True)),
        np.zeros(1, "i4,f8")[0],
        np.arange(6).reshape(2, 3).T,
        np.arange(10)[::3],
        OrderedDict(a=1),
        datetime.datetime(2020, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Paris")),
        datetime.datetime(2020, 10, 25, 2, fold=1),
        bytearray(b"x"),
        range(3),
        np.bool_(True),
        np.void(b"abc"),
        Level.LOW | Level.HIGH,
    ],
    ids=lambda value: type(value).__name__,
)
def test_odd_values_come_back(value: Any) -> None:
    stored = values.dumps(value)
    found = values.loads(stored)
    assert same(found, value)
    json.dumps(readable(stored), allow_nan=False)
    assert getattr(found, "fold", 0) == getattr(value, "fold", 0)


def test_arrays_keep_their_order_and_can_be_written_to() -> None:
    found = values.loads(values.dumps(np.arange(6).reshape(2, 3).T))
    assert found.flags.f_contiguous
    found[0] = 7


def test_objects_in_arrays_and_subclasses_of_arrays_are_pickled() -> None:
    masked = np.ma.masked_array([1, 2], [True, False])
    for value in (np.array([None, 1], object), masked, np.array(["a", None], object)):
        found = values.loads(values.dumps(value))
        assert type(found) is type(value)
        assert repr(found) == repr(value)


def test_what_contains_itself_comes_back() -> None:
    value: list[Any] = [1]
    value.append(value)
    found = values.loads(values.dumps(value))
    assert found[1] is found


def test_plain_values_are_text_that_others_can_read() -> None:
    stored = values.dumps({"loss": 0.5, "steps": [1, None, "x"]})
    assert isinstance(stored, str)
    assert json.loads(stored) == {"loss": 0.5, "steps": [1, None, "x"]}


def test_a_function_without_a_name_is_pickled() -> None:
    assert values.loads(values.dumps({"f": lambda x: x + 1}))["f"](1) == 2


def test_what_nothing_can_pickle_is_named() -> None:
    with pytest.raises(
        TypeError, match=r"the result of row 3 \(dict\) cannot be stored: item 'a', item 1: cannot pickle"
    ):
        values.dumps({"a": [1, threading.Lock()]}, "the result of row 3")


def test_reading_for_people_runs_nothing(tmp_path: Path) -> None:
    stored = values.dumps(
        {"bomb": Bomb(tmp_path / "exploded"), "colour": Colour.RED, "nan": math.nan, 3: b"abc"}
    )
    size = len(pickle.dumps(Bomb(tmp_path / "exploded"), 5))
    assert readable(stored) == {
        "bomb": f"<pickle, {size} bytes>",
        "colour": "Colour.RED",
        "nan": "nan",
        "3": "<bytes, 3 bytes>",
    }
    assert not (tmp_path / "exploded").exists()
    values.loads(stored)
    assert (tmp_path / "exploded").exists()


def test_reading_an_enum_for_people_imports_nothing() -> None:
    form = {"!": "enum", "class": "no.such.module:Thing", "v": "A"}
    assert readable(json.dumps(form)) == "Thing.A"
    with pytest.raises(ModuleNotFoundError):
        values.loads(json.dumps(form))


@pytest.mark.parametrize("stored", [b"junk", '{"!":"future","v":1}', b"RPV1\3\0\0\0[1]\xff\0\0\0\0\0\0\0xx"])
def test_what_was_not_stored_so_is_refused(stored: values.Stored) -> None:
    with pytest.raises(ValueError):
        values.loads(stored)
