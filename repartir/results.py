"""What a sweep found: rows, the best of them, and tables of them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from repartir import tables
from repartir.params import params_key
from repartir.plots import Drawn, draw
from repartir.space import in_words
from repartir.streams import Seed
from repartir.sweeprow import SweepRow, entries_of, sign_of, stderr_of, value_of


@dataclass(frozen=True, slots=True, repr=False)
class Best:
    """The best point of a sweep.

    `params` and the `rows` of it, one a repeat; `mean` of the metric over them, and its standard error `stderr`, nan where
    there is one.
    """

    params: dict[str, Any]
    mean: float
    stderr: float
    rows: tuple[SweepRow, ...]

    @property
    def result(self) -> Any:
        """What the function returned; of several repeats the first's."""
        return self.rows[0].result

    def __repr__(self) -> str:
        spread = "" if math.isnan(self.stderr) else f" ± {self.stderr:.2g}"
        return f"<Best {in_words(self.params)}: {self.mean:.6g}{spread}>"


class SweepResult:
    """The rows of a sweep, in the order of its space, the repeats of a point together."""

    def __init__(
        self, rows: Sequence[SweepRow], seed: Seed, *, total: int, resource: str | None = None
    ) -> None:
        self.rows = tuple(rows)
        self.seed = seed
        """What all random streams of the sweep were made from."""
        self.total = total
        """So many rows the whole sweep has; an interrupted one has fewer."""
        self.resource = resource
        """The parameter that the rungs of `halving` set; None in a sweep without rungs."""

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[SweepRow]:
        return iter(self.rows)

    @overload
    def __getitem__(self, index: int) -> SweepRow: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[SweepRow, ...]: ...

    def __getitem__(self, index: int | slice) -> SweepRow | tuple[SweepRow, ...]:
        return self.rows[index]

    def __repr__(self) -> str:
        failed = len(self.errors)
        told = f"{len(self.rows)}" if len(self.rows) == self.total else f"{len(self.rows)} of {self.total}"
        return f"<SweepResult of {told} rows{f', {failed} with errors' if failed else ''}>"

    @property
    def errors(self) -> tuple[SweepRow, ...]:
        """The rows that ended in an error."""
        return tuple(row for row in self.rows if row.error is not None)

    def best(self, metric: str | Callable[[Any], float] | None = None, mode: str = "min") -> Best:
        """The point whose metric is best in the mean over its repeats.

        Points with a row that failed, or whose metric is nan there, are none; and of a sweep with rungs those of the last
        rung alone are, since the many with less of the resource have more luck.

        Args:
            metric: the name of an entry of the result, a function of the result, or None for results that are numbers.
            mode: "min" or "max".

        Raises ``ValueError`` for another mode and where no row has the metric.
        """
        sign = sign_of(mode)
        points = [point for point in self.points() if point.holds(metric)]
        if not points:
            raise ValueError(lack_of(metric, self.rows))
        if self.resource is not None:
            most = max(point.rows[0].params[self.resource] for point in points)
            points = [point for point in points if point.rows[0].params[self.resource] == most]
        chosen = min(points, key=lambda point: sign * point.mean(metric))
        return Best(chosen.params, chosen.mean(metric), chosen.stderr(metric), chosen.rows)

    def points(self) -> list[Point]:
        """The rows of each point together, in the order of the space."""
        found: dict[bytes, list[SweepRow]] = {}
        for row in self.rows:
            found.setdefault(params_key(row.params), []).append(row)
        return [Point(tuple(rows)) for rows in found.values()]

    def columns(self) -> dict[str, list[Any]]:
        """The table, one value a row, None where a row has none.

        First the parameters by their names, then ``repeat``, then the entries of a result that is a dict by theirs (else
        ``result``), then ``seconds``, ``worker``, ``attempts``, ``error``.  A result's name that is another column's already
        becomes ``result.name``, and one of the row's own ``row.name``.
        """
        return tables.columns(self.rows)

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """The table as CSV, to a file, or as text without one.  What is no number and no text is JSON there."""
        return tables.written(tables.csv_of(self.rows), path)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """The rows as a JSON list of objects, to a file, or as text without one.  Arrays are lists, nan and infinity null
        there."""
        return tables.written(tables.json_of(self.rows), path)

    def to_npz(self, path: str | os.PathLike[str]) -> None:
        """The table as arrays of numpy, one a column, to a file that ``numpy.load`` reads without pickle.

        Numbers, texts, and arrays of one shape keep their type, a number that a row has not is nan; all else is JSON.
        """
        arrays = {name: tables.as_array(column) for name, column in self.columns().items()}
        with open(path, "wb") as file:
            np.savez_compressed(file, **arrays)

    def to_dataframe(self) -> Any:
        """The table as a ``pandas.DataFrame``.  Raises ``ImportError`` where pandas is not installed."""
        try:
            import pandas
        except ImportError as exc:
            raise ImportError(
                "to_dataframe() needs pandas: pip install pandas, or use to_csv(), to_npz()"
            ) from exc
        return pandas.DataFrame(self.columns())

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """The table as a Parquet file.  Raises ``ImportError`` where pyarrow is not installed."""
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as exc:
            raise ImportError(
                "to_parquet() needs pyarrow: pip install pyarrow, or use to_csv(), to_npz()"
            ) from exc
        table = {name: pyarrow.array(tables.for_arrow(column)) for name, column in self.columns().items()}
        parquet.write_table(pyarrow.table(table), os.fspath(path))

    def plot(self, metric: Any = None, *, x: str | None = None, y: str | None = None, ax: Any = None) -> Any:
        """Draw the metric: a line with its standard error over one parameter (points over labels), a heat map over two
        (points where their pairs were drawn).  An axis whose values are spaced like 1, 10, 100 is logarithmic.

        Repeats are averaged, and where ``x`` (and ``y``) are given, all other parameters: the standard error has their
        spread, too.

        Args:
            metric: as in `best`.
            x: the parameter from left to right; None: the first of those that have more than one value.
            y: the one upwards; None: the second of them, if there are two.
            ax: the axes of matplotlib to draw on; None: new ones.

        Returns the axes.  Raises ``ImportError`` where matplotlib is not installed, ``ValueError`` where it is not clear
        what to draw.
        """
        label = metric if isinstance(metric, str) else getattr(metric, "__name__", "result")
        drawn = [Drawn(row.params, value_of(row.result, metric)) for row in self.rows if row.error is None]
        return draw(drawn, label, x, y, ax)


@dataclass(frozen=True, slots=True)
class Point:
    """The rows of one point."""

    rows: tuple[SweepRow, ...]

    @property
    def params(self) -> dict[str, Any]:
        """What the function was called with."""
        return self.rows[0].params

    def holds(self, metric: Any) -> bool:
        """Whether all of its rows have the metric."""
        return all(row.error is None and not math.isnan(value_of(row.result, metric)) for row in self.rows)

    def mean(self, metric: Any) -> float:
        """The mean of the metric over the repeats."""
        return math.fsum(value_of(row.result, metric) for row in self.rows) / len(self.rows)

    def stderr(self, metric: Any) -> float:
        """The standard error of that mean; nan of a single row."""
        return stderr_of([value_of(row.result, metric) for row in self.rows])


def lack_of(metric: Any, rows: Sequence[SweepRow]) -> str:
    """That no row has the metric, and what they have."""
    results = [row.result for row in rows if row.error is None]
    names = list(dict.fromkeys(name for result in results for name in entries_of(result)))
    wanted = "a number for a result" if metric is None else f"the metric {metric!r}"
    if not results:
        known = "all rows failed" if rows else "there are no rows"
    elif metric in names and not callable(metric):
        kinds = dict.fromkeys(_kind_of(entries_of(result).get(metric)) for result in results)
        wanted, known = f"a number for {metric!r}", f"it is {' or '.join(kinds)}"
    elif names not in ([], ["result"]):
        known = f"results have {', '.join(map(str, names))}"
    else:
        known = f"results are {' or '.join(dict.fromkeys(map(_kind_of, results)))}"
    return f"no finished row has {wanted}: {known}"


def _kind_of(value: Any) -> str:
    if value is None:
        return "None"
    return "nan" if isinstance(value, float) and math.isnan(value) else f"of type {type(value).__name__}"
