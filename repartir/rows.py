"""One row of a sweep: how a worker calls the function, and what the client makes of it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from repartir import optional, worker
from repartir.checkpoints import checkpointing, name_of_row
from repartir.diagnosis import is_interruption
from repartir.errors import TaskTimeout
from repartir.ledger import name_of
from repartir.outcome import format_exception
from repartir.params import key_words
from repartir.portable import ATTEMPTS, add_note, attribute, set_attribute
from repartir.serial import attempt_of_task
from repartir.space import in_words, label_of, value_of
from repartir.streams import SWEEP, Seed, replay, rng, stream_of_task
from repartir.sweeprow import SweepRow

_TOLD = "_repartir_row"
"""An attribute of what a row's function raised: what the worker tells of the row."""


class Told(NamedTuple):
    """What a worker tells of a row beside its result."""

    seconds: float
    worker: int | None
    attempts: int


class Item(NamedTuple):
    """A row to come.  ``sent``: it was pickled for it alone, so that all values are its own."""

    point: Mapping[str, Any]
    key: bytes
    repeat: int
    sent: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        return Item, (self.point, self.key, self.repeat, True)

    def params(self) -> dict[str, Any]:
        """What the function is called with.  What it does to a list or an array shows in no other row."""
        values = {name: value_of(value) for name, value in self.point.items()}
        return values if self.sent else {name: _copied(value) for name, value in values.items()}


class RowCall:
    """The call of one row, in a worker.  ``folder``: where rows keep how far they have come."""

    def __init__(self, fn: Callable[..., Any], seed: Seed, folder: str, *, takes_rng: bool) -> None:
        self.fn = fn
        self.seed = seed
        self.folder = folder
        self.takes_rng = takes_rng
        self.__qualname__ = name_of(fn)

    def __call__(self, item: Item) -> tuple[Any, Told]:
        params = item.params()
        generator = rng(self.seed, *stream_key(item))
        if self.takes_rng:
            params.setdefault("rng", generator)
        began = time.perf_counter()
        try:
            with stream_of_task(generator), checkpointing(self.folder, name_of_row(item.key, item.repeat)):
                result = self.fn(**params)
        except BaseException as exc:
            set_attribute(exc, _TOLD, _told(began))
            raise
        return result, _told(began)

    def row(self, item: Item, outcome: Any) -> SweepRow:
        """In the client: the row, of what `__call__` returned or of the error that it ended in."""
        params = {name: label_of(value) for name, value in item.point.items()}
        if not isinstance(outcome, BaseException):
            result, told = outcome
            return SweepRow(params, item.repeat, result, None, None, *told)
        told = attribute(outcome, _TOLD, None)
        if told is None:
            elapsed = outcome.elapsed if isinstance(outcome, TaskTimeout) else 0.0
            told = Told(elapsed, None, attribute(outcome, ATTEMPTS, 1))
        text = format_exception(outcome)
        add_note(
            outcome,
            f"in the row {in_words(params)}, repeat {item.repeat}; its stream: {replay(self.seed, *stream_key(item))}",
        )
        return SweepRow(params, item.repeat, None, outcome, text, *told)


def stream_key(item: Item) -> tuple[int, ...]:
    """The key of a row's random stream."""
    return (SWEEP, *key_words(item.key), item.repeat)


def _copied(value: Any) -> Any:
    """A copy, as another process would get; what nobody can copy and what lies in shared memory is the same in all rows."""
    shared = optional.shared
    if shared is not None and isinstance(value, shared.SharedArray | shared.SharedObject):
        return value
    try:
        return copy.deepcopy(value)
    except Exception as error:  # of a lock, a connection, a class of users
        if is_interruption(error):
            raise
        return value


def _told(began: float) -> Told:
    member = worker.current()
    number = None if member is None else member.number
    return Told(time.perf_counter() - began, number, attempt_of_task())
