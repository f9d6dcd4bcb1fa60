"""Pictures of a sweep: a line over one parameter; over two a heat map, or points where few of all pairs are there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from repartir.sweeprow import stderr_of

_MOST_TICKS = 16
_SPARSE = 2
"""With so many cells a row the points were drawn, not laid out."""


class Drawn(NamedTuple):
    """A row as the picture needs it."""

    params: Mapping[str, Any]
    value: float


def draw(rows: Sequence[Drawn], label: str, x: str | None, y: str | None, ax: Any) -> Any:
    """See `SweepResult.plot`; ``label`` is what the values are called."""
    try:
        from matplotlib import pyplot
    except ImportError as exc:
        raise ImportError(
            "plot() needs matplotlib: pip install matplotlib, or use to_csv(), to_dataframe()"
        ) from exc
    rows = [row for row in rows if not math.isnan(row.value)]
    if not rows:
        raise ValueError(f"there is nothing to draw: no row has a number for {label}")
    x, y = _axes_of(rows, x, y)
    if ax is None:
        _, ax = pyplot.subplots(layout="constrained")
    ax.set_xlabel(x)
    if y is None:
        ax.set_ylabel(label)
        _line(ax, rows, x)
    else:
        ax.set_ylabel(y)
        columns, lines = _values(rows, x), _values(rows, y)
        were_drawn = all(map(_is_number, (*columns, *lines))) and len(columns) * len(lines) > _SPARSE * len(
            rows
        )
        drawn = _points(ax, rows, x, y) if were_drawn else _map(ax, rows, x, y, columns, lines)
        ax.figure.colorbar(drawn, ax=ax, label=label)
    return ax


def _axes_of(rows: Sequence[Drawn], x: str | None, y: str | None) -> tuple[str, str | None]:
    names = list(dict.fromkeys(name for row in rows for name in row.params))
    for name in (x, y):
        if name is not None and name not in names:
            raise ValueError(f"there is no parameter {name!r}: the sweep has {', '.join(names)}")
    if x is not None:
        return x, y
    if y is not None:
        raise ValueError("y= goes with x=")
    varied = [name for name in names if len(_values(rows, name)) > 1] or names[:1]
    if not varied or len(varied) > 2:
        raise ValueError(
            f"{len(varied)} parameters have several values ({', '.join(varied)}): say which to draw, as "
            "plot(x=..., y=...); the others are averaged"
        )
    return varied[0], varied[1] if len(varied) == 2 else None


def _line(ax: Any, rows: Sequence[Drawn], x: str) -> None:
    """Means with their standard errors, where there are several values."""
    values = _values(rows, x)
    groups = [[row.value for row in rows if _same(row.params.get(x), value)] for value in values]
    means = [math.fsum(group) / len(group) for group in groups]
    errors = [stderr_of(group) if len(group) > 1 else 0.0 for group in groups]
    at, texts = _positions(values)
    style = "o-" if texts is None else "o"
    ax.errorbar(at, means, yerr=errors if any(errors) else None, fmt=style, capsize=2)
    if texts is not None:
        ax.set_xticks(at, texts)
    elif _is_geometric(values):
        ax.set_xscale("log")


def _map(ax: Any, rows: Sequence[Drawn], x: str, y: str, columns: Sequence[Any], lines: Sequence[Any]) -> Any:
    """A cell for each pair of values; what no row has stays empty."""
    cells = np.full((len(lines), len(columns)), math.nan)
    for line, upward in enumerate(lines):
        for column, across in enumerate(columns):
            found = [
                row.value
                for row in rows
                if _same(row.params.get(x), across) and _same(row.params.get(y), upward)
            ]
            if found:
                cells[line, column] = math.fsum(found) / len(found)
    image = ax.imshow(cells, origin="lower", aspect="auto")
    ax.set_xticks(*_ticks(columns))
    ax.set_yticks(*_ticks(lines))
    return image


def _points(ax: Any, rows: Sequence[Drawn], x: str, y: str) -> Any:
    """A point for each pair of values that a row has."""
    groups: dict[tuple[Any, Any], list[float]] = {}
    for row in rows:
        groups.setdefault((row.params[x], row.params[y]), []).append(row.value)
    across, upward = zip(*groups, strict=True)
    means = [math.fsum(group) / len(group) for group in groups.values()]
    drawn = ax.scatter(across, upward, c=means)
    if _is_geometric(sorted(set(across))):
        ax.set_xscale("log")
    if _is_geometric(sorted(set(upward))):
        ax.set_yscale("log")
    return drawn


def _is_geometric(values: Sequence[Any]) -> bool:
    """Whether the logarithms of these numbers, by size, lie more evenly than the numbers, and over more than a decade."""
    if len(values) < 3 or values[0] <= 0 or values[-1] < 10 * values[0]:
        return False
    steps, ratios = np.diff(np.asarray(values, float)), np.diff(np.log(np.asarray(values, float)))
    return bool(ratios.std() / ratios.mean() < steps.std() / steps.mean())


def _values(rows: Sequence[Drawn], name: str) -> list[Any]:
    """The different values of a parameter: numbers by size, others in the order of the rows."""
    found: list[Any] = []
    for row in rows:
        value = row.params.get(name)
        if not any(_same(value, other) for other in found):
            found.append(value)
    return sorted(found) if all(map(_is_number, found)) else found


def _ticks(values: Sequence[Any]) -> tuple[Sequence[int], list[str]]:
    """Places and texts for the cells of an axis: all, or each second, third, … where they would overlap."""
    at = range(0, len(values), math.ceil(len(values) / _MOST_TICKS))
    return at, [_text(values[place]) for place in at]


def _positions(values: Sequence[Any]) -> tuple[Sequence[Any], list[str] | None]:
    """Where values are drawn on an axis, and what stands there if they are no numbers."""
    if all(map(_is_number, values)):
        return values, None
    return range(len(values)), [_text(value) for value in values]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating)


def _same(first: Any, second: Any) -> bool:
    return bool(np.array_equal(first, second)) if isinstance(first, np.ndarray) else bool(first == second)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


__all__ = ["Drawn", "draw"]
