from __future__ import annotations

import math
from typing import Any

import pytest

from repartir import SweepRow, halving


def rows(*values: Any) -> list[list[SweepRow]]:
    """A row for each point with this result; an error where it is an exception, no row where it is None."""
    return [
        []
        if value is None
        else [
            SweepRow({}, 0, None, value, "", 0.0, 0, 1)
            if isinstance(value, Exception)
            else SweepRow({}, 0, value, None, None, 0.0, 0, 1)
        ]
        for value in values
    ]


@pytest.mark.parametrize(
    ("resources", "points", "counts"),
    [
        ([1, 3, 9], 27, [27, 9, 3]),
        ([1, 3, 9], 10, [10, 3, 1]),
        ([1, 3, 9], 1, [1, 1, 1]),
        ([2, 3], 10, [10, 6]),
        ([0.5, 1, 4], 16, [16, 8, 2]),
        ([5], 7, [7]),
    ],
)
def test_how_many_go_on(resources: list[float], points: int, counts: list[int]) -> None:
    assert halving("epochs", resources).counts(points) == counts


@pytest.mark.parametrize(("mode", "left"), [("min", [1, 3]), ("max", [0, 2])])
def test_the_best_go_on_in_their_order(mode: str, left: list[int]) -> None:
    rungs = halving("epochs", [1, 2], mode=mode)
    points = [{"x": n} for n in range(4)]
    assert rungs.survivors(points, rows(5, 1, 6, 2), 0) == [{"x": n} for n in left]


def test_repeats_are_averaged() -> None:
    rungs = halving("epochs", [1, 2])
    points = [{"x": 0}, {"x": 1}]
    of_both = [first + second for first, second in zip(rows(1, 3), rows(9, 4), strict=True)]
    assert rungs.survivors(points, of_both, 0) == [{"x": 1}]


def test_of_equals_the_first_goes_on() -> None:
    assert halving("epochs", [1, 2]).survivors([{"x": 0}, {"x": 1}], rows(3, 3), 0) == [{"x": 0}]


def test_what_failed_is_nan_or_is_missing_does_not() -> None:
    rungs = halving("epochs", [1, 2])
    points = [{"x": n} for n in range(8)]
    found = rows(1, math.nan, ValueError(), None, "no number", 7, 8, 9)
    assert rungs.survivors(points, found, 0) == [{"x": n} for n in (0, 5, 6, 7)]
    assert rungs.survivors(points[2:4], found[2:4], 0) == []


def test_where_none_has_the_metric_it_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"halving\(\) cannot choose who goes on: no finished row has the metric 'loss'"
    ):
        halving("epochs", [1, 2], metric="loss").survivors([{"x": 1}], rows({"acc": 1}), 0)


def test_the_resource_is_a_parameter() -> None:
    rungs = halving("epochs", [1, 3])
    assert rungs.at({"x": 1}, 1) == {"x": 1, "epochs": 3}
    with pytest.raises(ValueError, match="the space must not have it"):
        rungs.check([{"x": 1}, {"epochs": 1}])
