from __future__ import annotations

import datetime
import enum
import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repartir.params import canonical, key_words, params_key

ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(), st.binary()
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner) | st.dictionaries(ATOMS, inner) | st.tuples(inner, inner),
    max_leaves=8,
)


class Colour(enum.Enum):
    RED = 1
    CRIMSON_IS_OTHER = 2


class Level(enum.IntEnum):
    LOW = 1


@dataclass
class Box:
    width: int


class Opaque:
    pass


def named(x: float) -> float:
    return x


def with_padding(byte: int) -> Any:
    kind = np.dtype({"names": ["a", "b"], "formats": ["i1", "i8"]}, align=True)
    array = np.frombuffer(bytes([byte]) * kind.itemsize, kind).copy()
    array["a"], array["b"] = 1, 2
    return array


def longdouble_with_padding(byte: int) -> Any:
    """Of x86's 16 bytes the last six mean nothing."""
    array = np.array([1.5], np.longdouble)
    if np.finfo(np.longdouble).nmant == 63:
        array.view(np.uint8)[10:] = byte
    return array


DIFFERENT: list[Any] = [
    None,
    1,
    "1",
    b"1",
    1.5,
    "None",
    math.nan,
    math.inf,
    1 + 2j,
    [1],
    (1,),
    {1},
    {"a": 1},
    [[1], 2],
    [1, [2]],
    [1, 2],
    ["12"],
    ["1", "2"],
    np.array([1]),
    np.array([1.0]),
    np.array([[1]]),
    np.array([1, "a"], object),
    np.array([(1, 2)], [("a", int), ("b", int)]),
    Colour.RED,
    Colour.CRIMSON_IS_OTHER,
    Path("1"),
    datetime.date(2026, 1, 1),
    datetime.datetime(2026, 1, 1),
    datetime.timedelta(1),
    range(3),
    Box(1),
    Box(2),
    named,
    np.sin,
    math.sin,
    float,
    int,
    2**70,
    np.datetime64("2026-01-01"),
]


def test_different_values_have_different_forms() -> None:
    forms = {canonical(value) for value in DIFFERENT}
    assert len(forms) == len(DIFFERENT)
    assert {type(form) for form in forms} == {bytes}


@pytest.mark.parametrize(
    "same",
    [
        (
            1,
            1.0,
            True,
            np.int8(1),
            np.float32(1),
            np.bool_(True),
            Fraction(1),
            Decimal("1.0"),
            1 + 0j,
            Level.LOW,
        ),
        (0, 0.0, -0.0, False),
        (0.5, Fraction(1, 2), np.float16(0.5), np.longdouble(0.5), np.complex64(0.5)),
        (math.nan, float("nan"), np.float32("nan")),
        ("a", np.str_("a")),
        (b"a", bytearray(b"a"), np.bytes_(b"a")),
        ([1, 2.0], [1.0, 2]),
        ({"a": 1, "b": 2}, {"b": 2.0, "a": True}),
        ({1, 2}, frozenset({2.0, 1})),
        (with_padding(0x00), with_padding(0xFF)),
        (longdouble_with_padding(0x00), longdouble_with_padding(0xFF)),
        (np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))),
    ],
    ids=repr,
)
def test_equal_values_have_one_form(same: tuple[Any, ...]) -> None:
    assert len({canonical(value) for value in same}) == 1


def test_the_key_is_pinned() -> None:
    params = {"lr": 0.1, "depth": 3, "name": "svm", "layers": [64, 64], "beta": None}
    assert params_key(params).hex() == "5a528451fdac10a1e188f0a76bd16324"
    assert params_key(dict(reversed(params.items()))) == params_key(params)
    assert key_words(bytes(range(16))) == (0x03020100, 0x07060504, 0x0B0A0908, 0x0F0E0D0C)


def test_names_and_values_do_not_run_together() -> None:
    keys = [
        params_key(params) for params in ({"ab": "c"}, {"a": "bc"}, {"a": "b", "c": ""}, {"a": "c", "b": ""})
    ]
    assert len(set(keys)) == 4


@given(VALUES, VALUES)
def test_equal_means_equal(one: Any, two: Any) -> None:
    assert canonical(one) == canonical(one)
    if one == two and type(one) is type(two):
        assert canonical(one) == canonical(two)


@pytest.mark.parametrize("value", [Opaque(), object(), iter([]), [Opaque()]])
def test_a_value_that_has_no_key_is_named_with_a_remedy(value: Any) -> None:
    with pytest.raises(TypeError, match=r"parameter model=.* give each a label, as in grid\(model="):
        params_key({"model": value})


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(TypeError, match=r"parameter x=\[<.{55}\.\.\. cannot be told"):
        params_key({"x": [Opaque()] * 100})


def test_so_is_a_function_without_a_name() -> None:
    with pytest.raises(TypeError, match=r"parameter f=.*has no name of its own: give each a label"):
        params_key({"f": lambda x: x})
