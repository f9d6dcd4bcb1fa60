from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from repartir import grid, latin_hypercube, sampled, zipped
from repartir.space import Labelled, Space, as_points


def points(space: Space, seed: int = 1) -> list[dict[str, Any]]:
    return as_points(space, seed)


class Uniform:
    """As scipy's frozen distributions."""

    def rvs(self, random_state: np.random.Generator) -> Any:
        return np.asarray(random_state.random())

    def ppf(self, share: float) -> Any:
        return np.float64(share)


class TestGrid:
    def test_the_last_name_varies_fastest(self) -> None:
        space = grid(a=[1, 2], b=["xy", "z"])
        assert points(space) == [
            {"a": 1, "b": "xy"},
            {"a": 1, "b": "z"},
            {"a": 2, "b": "xy"},
            {"a": 2, "b": "z"},
        ]
        assert len(space) == 4
        assert list(space) == points(space)
        assert repr(space) == "<space of 4 points: a, b>"

    def test_values_may_come_from_any_iterable(self) -> None:
        space = grid(a=range(2), b=np.linspace(0, 1, 2), c=(n for n in [5]))
        assert points(space) == [{"a": a, "b": b, "c": 5} for a in (0, 1) for b in (0.0, 1.0)]

    def test_lists_dicts_arrays_and_none_are_values(self) -> None:
        values = [[64, 64], {"a": 1}, None, np.arange(3)]
        assert [point["x"] for point in points(grid(x=values))] == values

    def test_a_dict_gives_labels(self) -> None:
        one, two = object(), object()
        space = grid(model={"one": one, "two": two})
        assert points(space) == [{"model": Labelled("one", one)}, {"model": Labelled("two", two)}]
        assert list(space) == [{"model": one}, {"model": two}]

    @pytest.mark.parametrize(
        ("values", "error", "told"),
        [
            ({}, ValueError, "has no parameters"),
            ({"a": []}, ValueError, r"grid\(\) has no values for a"),
            ({"a": "svm"}, TypeError, r"single characters: for one value write a=\['svm'\]"),
            ({"a": b"svm"}, TypeError, "single characters"),
            ({"a": 3}, TypeError, r"for one value write a=\[3\]"),
            ({"a": np.array(3)}, TypeError, "for one value"),
            ({"a": {1: 2}}, TypeError, "labels, which are strings, not 1"),
        ],
    )
    def test_bad_values_are_named(self, values: dict[str, Any], error: type[Exception], told: str) -> None:
        with pytest.raises(error, match=told):
            grid(**values)


class TestZipped:
    def test_side_by_side(self) -> None:
        assert points(zipped(a=[1, 2], b=[3, 4])) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
        assert len(zipped(a=[1, 2], b=[3, 4])) == 2

    def test_lengths_that_differ_are_told(self) -> None:
        with pytest.raises(ValueError, match="as many values of each parameter: a has 2, b has 3"):
            zipped(a=[1, 2], b=[3, 4, 5])


class TestSampled:
    def test_from_values_functions_and_distributions(self) -> None:
        space = sampled(50, a=[1, 2], b=lambda rng: rng.normal(), c=Uniform(), d={"one": 1})
        drawn = points(space)
        assert len(drawn) == len(space) == 50
        assert {point["a"] for point in drawn} == {1, 2}
        assert len({point["b"] for point in drawn}) == 50
        assert all(type(point["c"]) is float and 0 < point["c"] < 1 for point in drawn)
        assert {point["d"] for point in drawn} == {Labelled("one", 1)}

    def test_the_seed_decides_and_more_points_change_none(self) -> None:
        def draw(n: int, seed: int) -> list[dict[str, Any]]:
            return points(sampled(n, a=lambda rng: rng.random()), seed)

        assert draw(9, 1)[:5] == draw(5, 1) != draw(5, 2)
        assert list(sampled(3, a=Uniform())) != list(sampled(3, a=Uniform()))

    def test_jobs_of_an_array_share_the_points_of_a_seed(self) -> None:
        space = sampled(7, x=lambda rng: rng.random()) * grid(f={"sine": np.sin})
        jobs = [list(space.points(7))[job::3] for job in range(3)]
        assert sorted(point["x"] for job in jobs for point in as_points(job, 7)) == sorted(
            point["x"] for point in as_points(space, 7)
        )
        assert jobs[0][0]["f"] == Labelled("sine", np.sin)

    def test_no_point_is_drawn_twice(self) -> None:
        def draw(n: int) -> list[tuple[Any, ...]]:
            space = sampled(n, depth=[2, 4, 8], model={"a": object(), "b": object(), "c": object()})
            return [(point["depth"], point["model"].label) for point in points(space)]

        assert len(set(draw(9))) == 9
        assert draw(9)[:5] == draw(5)
        with pytest.raises(ValueError, match=r"sampled\(10, depth, model\) found only 9 different points"):
            draw(10)

    def test_parts_of_a_space_are_drawn_apart(self) -> None:
        part = sampled(5, a=lambda rng: rng.random())
        drawn = [point["a"] for point in points(part + part)]
        assert len(set(drawn)) == 10

    def test_scipys_distributions(self) -> None:
        stats = pytest.importorskip("scipy.stats")
        frozen = stats.loguniform(1e-4, 1)
        assert all(1e-4 <= point["a"] <= 1 for point in points(sampled(20, a=frozen)))
        drawn = np.log([point["a"] for point in points(latin_hypercube(20, a=frozen))]) / np.log(1e-4)
        assert sorted(np.floor(drawn * 20)) == list(range(20))

    @pytest.mark.parametrize("make", [sampled, latin_hypercube])
    @pytest.mark.parametrize(
        ("n", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)]
    )
    def test_bad_numbers(self, make: Any, n: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match=rf"{make.__name__}\(\)"):
            make(n, a=[1])

    @pytest.mark.parametrize("make", [sampled, latin_hypercube])
    def test_nothing_to_draw(self, make: Any) -> None:
        with pytest.raises(ValueError, match="no parameters"):
            make(3)
        with pytest.raises(TypeError, match="single characters"):
            make(3, a="abc")


class TestLatinHypercube:
    def test_each_parameter_is_spread_evenly(self) -> None:
        drawn = points(latin_hypercube(40, a=Uniform(), b=[1, 2, 3, 4]))
        assert sorted(int(point["a"] * 40) for point in drawn) == list(range(40))
        assert [sum(point["b"] == value for point in drawn) for value in (1, 2, 3, 4)] == [10] * 4
        assert [point["a"] for point in drawn] != sorted(point["a"] for point in drawn)

    def test_a_function_that_draws_cannot_be_spread(self) -> None:
        with pytest.raises(TypeError, match="has ppf"):
            latin_hypercube(3, a=lambda rng: rng.random())


class TestJoined:
    def test_product(self) -> None:
        space = grid(a=[1, 2, 7]) * zipped(b=[3, 4], c=[5, 6])
        assert points(space) == [{"a": a, "b": b, "c": b + 2} for a in (1, 2, 7) for b in (3, 4)]
        assert (len(space), space.names) == (6, ("a", "b", "c"))

    def test_a_drawn_part_of_a_product_is_drawn_once(self) -> None:
        drawn = points(grid(a=[1, 2]) * sampled(3, b=lambda rng: rng.random()))
        assert [point["b"] for point in drawn[:3]] == [point["b"] for point in drawn[3:]]

    def test_sum(self) -> None:
        space = grid(model=["svm"], c=[1, 2]) + grid(model=["tree"], depth=[3])
        assert points(space) == [
            {"model": "svm", "c": 1},
            {"model": "svm", "c": 2},
            {"model": "tree", "depth": 3},
        ]
        assert (len(space), space.names) == (3, ("model", "c", "depth"))

    def test_a_parameter_on_both_sides_of_a_product_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"both sides of \* have b"):
            grid(a=[1], b=[2]) * grid(b=[3])

    @pytest.mark.parametrize("join", ["__mul__", "__add__"])
    def test_with_something_else(self, join: str) -> None:
        assert getattr(grid(a=[1]), join)([{"b": 1}]) is NotImplemented


class TestAsPoints:
    def test_any_iterable_of_dicts(self) -> None:
        assert as_points(({"a": n} for n in range(2)), None) == [{"a": 0}, {"a": 1}]

    @pytest.mark.parametrize(
        ("space", "error", "told"),
        [
            ([], ValueError, "the space is empty"),
            ({"a": [1, 2]}, TypeError, r"as grid\(lr=\[0.1, 1\]\), or an iterable of dicts, not dict"),
            (3, TypeError, "not int"),
            ([{"a": 1}, 2], TypeError, "point 1 of the space must be a dict with names, not 2"),
            ([{1: 2}], TypeError, "point 0"),
        ],
    )
    def test_what_is_no_space(self, space: Any, error: type[Exception], told: str) -> None:
        with pytest.raises(error, match=told):
            as_points(space, 1)
