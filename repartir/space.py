"""Spaces of parameters: what a sweep goes through.

grid(lr=[0.1, 1], depth=[2, 4])             every combination; the last name varies fastest
zipped(lr=[0.1, 1], depth=[2, 4])           side by side: two points
sampled(100, lr=draw, depth=[2, 4])         drawn at random
latin_hypercube(100, lr=uniform(0, 1))      the same, each parameter spread evenly
a * b                                       every point of a with every point of b
a + b                                       the points of a, then those of b
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from repartir.params import params_key
from repartir.streams import Seed, Seedlike, rng, settled

SAMPLED = 0x7370
"""The first word of the keys of the streams that points are drawn from: (SAMPLED, which space of the whole, which point)."""

_MOST_DRAWS = 10_000
"""So often a point is drawn, until it is a new one."""

Values = Sequence[Any]


class Labelled(NamedTuple):
    """A value that rows and tables call ``label``."""

    label: str
    value: Any


class Space:
    """Points: dicts of parameters.  Iterate over it to see them; those that are drawn are other ones each time."""

    names: tuple[str, ...]
    """All parameters, in the order in which they were named."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({name: value_of(it) for name, it in point.items()} for point in self.points())

    def points(self, seed: Seedlike = None) -> Iterator[dict[str, Any]]:
        """The points that a sweep with this seed has, in their order; values that have labels are `Labelled`.

        Any part of them is a space, too: so the jobs of an array share one, ``list(space.points(7))[job::jobs]``.
        """
        return self._points(settled(seed), itertools.count())

    def __mul__(self, other: Space) -> Space:
        return _Product(self, other) if isinstance(other, Space) else NotImplemented

    def __add__(self, other: Space) -> Space:
        return _Sum(self, other) if isinstance(other, Space) else NotImplemented

    def __repr__(self) -> str:
        return f"<space of {len(self)} points: {', '.join(self.names)}>"

    def _points(self, seed: Seed, places: Iterator[int]) -> Iterator[dict[str, Any]]:
        """``places``: numbers for the parts of a space whose points are drawn."""
        raise NotImplementedError


def value_of(value: Any) -> Any:
    """What the function is given."""
    return value.value if type(value) is Labelled else value


def label_of(value: Any) -> Any:
    """What rows and tables show."""
    return value.label if type(value) is Labelled else value


def in_words(point: Mapping[str, Any]) -> str:
    """A point as in a call, shortened."""
    return ", ".join(f"{name}={label_of(value)!r:.40}" for name, value in point.items())


def key_of(point: Mapping[str, Any]) -> bytes:
    """The key of a point's labels and values, which equal points share.  Raises ``TypeError`` for a value without one."""
    return params_key({name: label_of(value) for name, value in point.items()})


def grid(**values: Iterable[Any]) -> Space:
    """Every combination of the values; the last name varies fastest.

    Args:
        values: for each parameter an iterable, or a dict from labels to values: rows then show the label, and the function
            gets the value.  To streams and journals the label is the value: what has changed wants another one.

    Raises ``TypeError`` for a string or what cannot be iterated over, ``ValueError`` for a parameter without values.
    """
    return _Grid(_checked("grid", values))


def zipped(**values: Iterable[Any]) -> Space:
    """The values side by side: the first of each, the second of each, and so on.

    As `grid`; ``ValueError`` also where there are not as many values of each parameter.
    """
    columns = _checked("zipped", values)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"zipped() needs as many values of each parameter: {told}")
    return _Zipped(columns)


def sampled(n: int, /, **dists: Any) -> Space:
    """``n`` different points drawn at random from the seed of the sweep: point i is the same for any n.

    Args:
        dists: for each parameter an iterable of values (or a dict with labels) to choose from, a function that draws from a
            ``numpy.random.Generator``, or a frozen distribution of scipy.

    A sweep raises ``ValueError`` where there are not so many.
    """
    return _Sampled(_count("sampled", n), {name: _drawing(name, dist) for name, dist in _named(dists)})


def latin_hypercube(n: int, /, **dists: Any) -> Space:
    """``n`` points drawn from the seed of the sweep, each parameter spread evenly: one value in each n-th of its range.

    Source: McKay, Beckman, Conover 1979.  Over lists alone two points may be the same, which a sweep refuses: take `grid` or
    `sampled` then.

    Args:
        dists: for each parameter an iterable of values (or a dict with labels), or a distribution that has ``ppf``, as the
            frozen ones of scipy.
    """
    return _Hypercube(
        _count("latin_hypercube", n), {name: _spreading(name, dist) for name, dist in _named(dists)}
    )


def as_points(space: Space | Iterable[Mapping[str, Any]], seed: Seedlike) -> list[dict[str, Any]]:
    """The points of a space, or of an iterable of dicts.

    Raises ``TypeError`` for something else, ``ValueError`` if there are none.
    """
    if isinstance(space, Space):
        points = list(space.points(settled(seed)))
    else:
        if isinstance(space, Mapping) or not isinstance(space, Iterable):
            raise TypeError(
                f"space must be a space, as grid(lr=[0.1, 1]), or an iterable of dicts, not {type(space).__name__}"
            )
        points = []
        for index, point in enumerate(space):
            if not isinstance(point, Mapping) or not all(isinstance(name, str) for name in point):
                raise TypeError(f"point {index} of the space must be a dict with names, not {point!r:.80}")
            points.append(dict(point))
    if not points:
        raise ValueError("the space is empty: there is nothing to sweep over")
    return points


class _Grid(Space):
    def __init__(self, columns: dict[str, Values]) -> None:
        self.names = tuple(columns)
        self._columns = columns

    def __len__(self) -> int:
        return math.prod(map(len, self._columns.values()))

    def _points(self, seed: Seed, places: Iterator[int]) -> Iterator[dict[str, Any]]:
        for values in itertools.product(*self._columns.values()):
            yield dict(zip(self.names, values, strict=True))


class _Zipped(_Grid):
    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def _points(self, seed: Seed, places: Iterator[int]) -> Iterator[dict[str, Any]]:
        for values in zip(*self._columns.values(), strict=True):
            yield dict(zip(self.names, values, strict=True))


class _Product(Space):
    def __init__(self, first: Space, second: Space) -> None:
        if both := [name for name in first.names if name in second.names]:
            raise ValueError(
                f"both sides of * have {', '.join(both)}: a point can have but one value of each parameter"
            )
        self.names = (*first.names, *second.names)
        self._parts = first, second

    def __len__(self) -> int:
        return len(self._parts[0]) * len(self._parts[1])

    def _points(self, seed: Seed, places: Iterator[int]) -> Iterator[dict[str, Any]]:
        first, second = (list(part._points(seed, places)) for part in self._parts)
        for left, right in itertools.product(first, second):
            yield {**left, **right}


class _Sum(Space):
    def __init__(self, first: Space, second: Space) -> None:
        self.names = tuple(dict.fromkeys((*first.names, *second.names)))
        self._parts = first, second

    def __len__(self) -> int:
        return len(self._parts[0]) + len(self._parts[1])

    def _points(self, seed: Seed, places: Iterator[int]) -> Iterator[dict[str, Any]]:
        for part in self._parts:
            yield from part._points(seed, places)


class _Sampled(Space):
    def __init__(self, n: int, draws: dict[str, Callable[[np.random.Generator], Any]]) -> None:
        self.names = tuple(draws)
        self._n = n
        self._draws = draws

    def __len__(self) -> int:
        return self._n

    def _points(self, seed: Seed, places: Iterator[int]) -> Iterator[dict[str, Any]]:
        place, drawn = next(places), set[bytes]()
        for index in range(self._n):
            yield self._new(rng(seed, SAMPLED, place, index), drawn)

    def _new(self, generator: np.random.Generator, drawn: set[bytes]) -> dict[str, Any]:
        """A point that is not among those drawn."""
        for _ in range(_MOST_DRAWS):
            point = {name: draw(generator) for name, draw in self._draws.items()}
            if (key := key_of(point)) not in drawn:
                drawn.add(key)
                return point
        raise ValueError(
            f"sampled({self._n}, {', '.join(self.names)}) found only {len(drawn)} different points: draw fewer, or take "
            "grid(), which has them all"
        )


class _Hypercube(Space):
    def __init__(self, n: int, quantiles: dict[str, Callable[[float], Any]]) -> None:
        self.names = tuple(quantiles)
        self._n = n
        self._quantiles = quantiles

    def __len__(self) -> int:
        return self._n

    def _points(self, seed: Seed, places: Iterator[int]) -> Iterator[dict[str, Any]]:
        generator = rng(seed, SAMPLED, next(places))
        shares = {
            name: (generator.permutation(self._n) + generator.random(self._n)) / self._n
            for name in self.names
        }
        for index in range(self._n):
            yield {name: at(float(shares[name][index])) for name, at in self._quantiles.items()}


def _checked(what: str, values: dict[str, Any]) -> dict[str, Values]:
    if not values:
        raise ValueError(f"{what}() has no parameters")
    return {name: _values(what, name, given) for name, given in values.items()}


def _values(what: str, name: str, given: Any) -> Values:
    if isinstance(given, str | bytes):
        raise TypeError(
            f"{what}({name}={given!r}) would be its single characters: for one value write {name}=[{given!r}]"
        )
    if isinstance(given, Mapping):
        if odd := [label for label in given if not isinstance(label, str)]:
            raise TypeError(
                f"a dict gives {name} labels, which are strings, not {odd[0]!r}; for dicts as values write {name}=[{{...}}]"
            )
        given = [Labelled(label, value) for label, value in given.items()]
    if not isinstance(given, Iterable) or (isinstance(given, np.ndarray) and not given.ndim):
        raise TypeError(
            f"{what}({name}={given!r:.60}) is no list of values: for one value write {name}=[{given!r:.60}]"
        )
    values = given if isinstance(given, range) else list(given)
    if not values:
        raise ValueError(f"{what}() has no values for {name}")
    return values


def _named(dists: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    if not dists:
        raise ValueError("there are no parameters to draw")
    return dists.items()


def _drawing(name: str, dist: Any) -> Callable[[np.random.Generator], Any]:
    if callable(getattr(dist, "rvs", None)):
        return lambda generator: _plain(dist.rvs(random_state=generator))
    if callable(dist):
        return dist  # type: ignore[no-any-return]
    values = _values("sampled", name, dist)
    return lambda generator: values[int(generator.integers(len(values)))]


def _spreading(name: str, dist: Any) -> Callable[[float], Any]:
    if callable(getattr(dist, "ppf", None)):
        return lambda share: _plain(dist.ppf(share))
    if callable(dist):
        raise TypeError(
            f"latin_hypercube({name}=...) needs values or a distribution that has ppf (scipy's have): from a function that "
            "draws no even spread can be had"
        )
    values = _values("latin_hypercube", name, dist)
    return lambda share: values[int(share * len(values))]


def _plain(value: Any) -> Any:
    """A number of Python's, where scipy gave an array of one."""
    return value.item() if isinstance(value, np.ndarray | np.generic) and value.ndim == 0 else value


def _count(what: str, n: Any) -> int:
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"{what}() draws a number of points, not {n!r:.60}")
    if n < 1:
        raise ValueError(f"{what}() must draw at least one point, not {n}")
    return int(n)
