"""One row of a sweep, and the metrics in it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One call of a sweep's function.

    `params`: what it was called with, by name; labels where the space has labels.  `repeat`: from 0 on.  `result`: what it
    returned, None if it raised `error`, whose `traceback` is text.  `seconds` it took, in `worker` (its number, None in this
    process, or if that is not known), at the last of `attempts`.
    """

    params: dict[str, Any]
    repeat: int
    result: Any
    error: BaseException | None
    traceback: str | None
    seconds: float
    worker: int | None
    attempts: int


def sign_of(mode: str) -> int:
    """1 where less is better, -1 where more is.  Raises ``ValueError`` for another mode than "min" and "max"."""
    if mode not in ("min", "max"):
        raise ValueError(f'mode must be "min" or "max", not {mode!r}')
    return 1 if mode == "min" else -1


def value_of(result: Any, metric: Any) -> float:
    """The metric of a result; nan where it has none."""
    if callable(metric):
        value = metric(result)
    elif metric is None:
        value = result
    else:
        value = entries_of(result).get(metric)
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def stderr_of(values: Sequence[float]) -> float:
    """The standard error of the mean of values; nan of a single one."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def entries_of(result: Any) -> Mapping[Any, Any]:
    """The entries of a result by their names: of a dict, a dataclass, a named tuple; anything else is called "result"."""
    if isinstance(result, Mapping):
        return result
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    if isinstance(result, tuple) and hasattr(result, "_asdict"):
        named: dict[str, Any] = result._asdict()
        return named
    return {} if result is None else {"result": result}
