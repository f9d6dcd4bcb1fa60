"""Tables of a sweep's rows, and what a value looks like in them."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repartir.portable import in_a_line
from repartir.sweeprow import SweepRow, entries_of

_OF_ROWS = ("repeat", "seconds", "worker", "attempts", "error")
"""What tables tell of a row beside its parameters and its result."""
_LARGEST = 1 << 63


def columns(rows: Sequence[SweepRow]) -> dict[str, list[Any]]:
    """See `SweepResult.columns`."""
    params = list(dict.fromkeys(name for row in rows for name in row.params))
    entries = list(dict.fromkeys(name for row in rows for name in entries_of(row.result)))
    table: dict[str, list[Any]] = {name: [row.params.get(name) for row in rows] for name in map(str, params)}
    about = {name: f"row.{name}" if name in table else name for name in _OF_ROWS}
    table[about["repeat"]] = [row.repeat for row in rows]
    taken = {*table, *about.values()}
    for name in entries:
        title = f"result.{name}" if name in taken else str(name)
        table[title] = [entries_of(row.result).get(name) for row in rows]
    for name in ("seconds", "worker", "attempts"):
        table[about[name]] = [getattr(row, name) for row in rows]
    table[about["error"]] = [None if row.error is None else in_a_line(row.error) for row in rows]
    return table


def csv_of(rows: Sequence[SweepRow]) -> str:
    """The table as CSV."""
    table = columns(rows)
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table)
    writer.writerows([_cell(value) for value in row] for row in zip(*table.values(), strict=True))
    return out.getvalue()


def json_of(rows: Sequence[SweepRow]) -> str:
    """The rows as JSON."""
    objects = [
        {
            "params": _jsonable(row.params),
            "repeat": row.repeat,
            "result": _jsonable(row.result),
            "error": None if row.error is None else in_a_line(row.error),
            "seconds": row.seconds,
            "worker": row.worker,
            "attempts": row.attempts,
        }
        for row in rows
    ]
    return json.dumps(objects, indent=1, allow_nan=False)


def written(text: str, path: str | os.PathLike[str] | None) -> str | None:
    if path is None:
        return text
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    return None


def _cell(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | int | float | complex):
        return value
    plain = _jsonable(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _jsonable(value: Any) -> Any:
    """A value that JSON has: arrays as lists, nan and infinity as None, what else there is by its text."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.ndarray):
        return _jsonable(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_jsonable(entry) for entry in value]
    return str(value)


def as_array(column: list[Any]) -> Any:
    kinds = {type(value) for value in column if value is not None}
    if not kinds:
        return np.full(len(column), math.nan)
    if all(issubclass(kind, int | float | np.number | np.bool_) for kind in kinds):
        numbers = np.array([math.nan if value is None else value for value in column])
        if not numbers.dtype.hasobject:  # as whole numbers beyond 64 bits are
            return numbers
    if all(issubclass(kind, np.ndarray) for kind in kinds) and None not in map(_shape, column):
        if len({_shape(value) for value in column}) == 1 and not any(
            value.dtype.hasobject for value in column
        ):
            return np.stack(column)
    return np.array(["" if value is None else str(_cell(value)) for value in column])


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)


def for_arrow(column: list[Any]) -> list[Any]:
    """Values of one type that Parquet has, JSON where there is none."""
    plain = [value.item() if isinstance(value, np.generic) else value for value in column]
    kinds = {type(value) for value in plain if value is not None}
    if kinds <= {int, float} and all(
        type(value) is not int or -_LARGEST <= value < _LARGEST for value in plain
    ):
        return [None if value is None else float(value) for value in plain] if len(kinds) > 1 else plain
    if len(kinds) <= 1 and kinds <= {bool, str, bytes}:
        return plain
    return [None if value is None else str(_cell(value)) for value in plain]
