"""How far a long task has come, kept in a file: a retry, or the next run with the same journal, goes on from there.

A row of a sweep has one file.  A state is written beside it, forced to the disk and renamed, so that a kill or power loss at
any moment leaves the state before or the state after.  A digest tells a broken file, which counts as none.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from repartir import durable
from repartir.diagnosis import describe, is_interruption
from repartir.pickler import blake2b

_MAGIC = b"RPC1"
_DIGEST_BYTES = 16
_SUFFIX = ".checkpoint"
_log = logging.getLogger("repartir")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the running task keeps its state; threads of one task write one after the other."""

    folder: str
    name: str
    mutex: threading.Lock = field(default_factory=threading.Lock)


_place: ContextVar[_Place | None] = ContextVar("checkpoint", default=None)


def checkpoint(state: Any) -> None:
    """Keep ``state`` in place of the last one; on the disk when this returns.

    In a task of a `sweep`: if it is killed, fails or its program ends, its next attempt gets the state from `restored`, also
    in a later run with the same journal.  The state is forgotten once the task has a result.  One call takes as long as the
    disk takes to write it, some milliseconds: call it every few seconds, not every step.

    Args:
        state: what pickle can copy; arrays, random generators and dicts of them can.

    Raises ``RuntimeError`` elsewhere than in a task of a sweep, `TaskNotSerializable` for what cannot be pickled,
    ``OSError`` if the disk is full or fails; the state before is then still there.
    """
    from repartir import values  # loads more than `import repartir` may

    place = _here("checkpoint(state)")
    data = values.pickled(state, "the state")
    digest = blake2b(data, digest_size=_DIGEST_BYTES).digest()
    with place.mutex:
        os.makedirs(place.folder, exist_ok=True)
        durable.write(_path(place.folder, place.name), (_MAGIC, digest, data))


def restored() -> Any:
    """The state that `checkpoint` kept last for this task, in this attempt or an earlier one; None without one.

    A file that is broken counts as none, and is logged.  ``RuntimeError`` elsewhere than in a task of a `sweep`.
    """
    place = _here("restored()")
    path = _path(place.folder, place.name)
    try:
        with open(path, "rb") as file:
            head = file.read(len(_MAGIC) + _DIGEST_BYTES)
            data = file.read()
    except FileNotFoundError:
        return None
    digest = blake2b(data, digest_size=_DIGEST_BYTES).digest()
    if head != _MAGIC + digest:
        _log.warning("the checkpoint %s is broken: its task begins anew", path)
        return None
    try:
        return pickle.loads(data)
    except Exception as error:  # unpickling runs users' code
        if is_interruption(error):
            raise
        _log.warning("the checkpoint %s cannot be read (%s): its task begins anew", path, describe(error))
        return None


@contextlib.contextmanager
def checkpointing(folder: str, name: str) -> Iterator[None]:
    """While the task runs that keeps its state under ``name``, its own among all tasks, in ``folder``.

    The folder is made when the first state is kept.
    """
    if not name or name != os.path.basename(name):
        raise ValueError(f"the name of a checkpoint must be one of a file, not {name!r}")
    token = _place.set(_Place(folder, name))
    try:
        yield
    finally:
        _place.reset(token)


def forget(folder: str, name: str) -> None:
    """Remove the state of a task that has a result, and what a kill left of one that was being written."""
    path = _path(folder, name)
    durable.remove(path)
    durable.remove(f"{path}.new")


def _here(call: str) -> _Place:
    place = _place.get()
    if place is None:
        raise RuntimeError(
            f"{call} works in the tasks of repartir.sweep() only, whose journal knows them again. Elsewhere write a file of "
            "your own"
        )
    return place


def _path(folder: str, name: str) -> str:
    return os.path.join(folder, name + _SUFFIX)
