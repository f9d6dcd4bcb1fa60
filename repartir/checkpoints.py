"""How far a long task has come, kept in a file: a retry, or the next run with the same journal, goes on from there.

A row of a sweep has one file.  A state is written beside it, forced to the disk and renamed, so that a kill or power loss at
any moment leaves the state before or the state after.  A digest tells a broken file, which counts as none.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pickle
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from repartir import durable
from repartir.diagnosis import describe, is_interruption
from repartir.pickler import blake2b
from repartir.streams import Place, place_of_task

_MAGIC = b"RPC1"
_DIGEST_BYTES = 16
_SUFFIX = ".checkpoint"
_FOLDERS = "repartir-checkpoints-"
_log = logging.getLogger("repartir")


@dataclass(frozen=True, slots=True)
class _Kept:
    """Where the task at ``place`` keeps its state; threads of one task write one after the other."""

    folder: str
    name: str
    place: Place
    mutex: threading.Lock = field(default_factory=threading.Lock)


_kept: ContextVar[_Kept | None] = ContextVar("checkpoint", default=None)


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

    kept = _here("checkpoint(state)")
    data = values.pickled(state, "the state")
    digest = blake2b(data, digest_size=_DIGEST_BYTES).digest()
    with kept.mutex:
        os.makedirs(kept.folder, exist_ok=True)
        durable.write(_path(kept.folder, kept.name), (_MAGIC, digest, data))


def restored() -> Any:
    """The state that `checkpoint` kept last for this task, in this attempt or an earlier one; None without one.

    A file that is broken counts as none, and is logged.  ``RuntimeError`` elsewhere than in a task of a `sweep`.
    """
    kept = _here("restored()")
    path = _path(kept.folder, kept.name)
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
    token = _kept.set(_Kept(folder, name, place_of_task()))
    try:
        yield
    finally:
        _kept.reset(token)


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    """A folder for one call's states, which goes with the call.

    It is locked as long as this process lives, and what it forks meanwhile, so that the next call removes what a killed
    program has left.  It is made here, for this user alone: in a folder that others can foresee they could have put states,
    which are unpickled.
    """
    others = []
    with (
        contextlib.suppress(OSError),
        os.scandir(tempfile.gettempdir()) as entries,
    ):  # it may not be ours to read
        others = [entry.path for entry in entries if entry.name.startswith(_FOLDERS)]
    for other in others:
        with contextlib.suppress(OSError), _held(other):
            shutil.rmtree(other, ignore_errors=True)
    with contextlib.ExitStack() as holding:
        folder = _new_folder(holding)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _new_folder(holding: contextlib.ExitStack) -> str:
    while True:
        folder = tempfile.mkdtemp(prefix=_FOLDERS)
        try:
            holding.enter_context(_held(folder))
        except (BlockingIOError, FileNotFoundError):
            continue  # a call beside this one took it for what a killed program has left
        except OSError:
            pass  # a file system without such locks: there nobody removes what others left
        return folder


@contextlib.contextmanager
def _held(folder: str) -> Iterator[None]:
    """While a folder is locked.  ``OSError`` if it is gone, another process holds it, or nobody can."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(folder)  # after the lock: who held it may have removed it
        yield
    finally:
        os.close(fd)


def name_of_row(key: bytes, repeat: int) -> str:
    """The name under which a row of a sweep keeps its state."""
    return f"{key.hex()}-{repeat}"


def forget(folder: str, name: str) -> None:
    """Remove the state of a task that has a result, and what a kill left of one that was being written."""
    path = _path(folder, name)
    durable.remove(path)
    durable.remove(f"{path}.new")


def _here(call: str) -> _Kept:
    kept = _kept.get()
    if kept is None or kept.place != place_of_task():
        raise RuntimeError(
            f"{call} works in the tasks of repartir.sweep() only, whose journal knows them again. Elsewhere write a file of "
            "your own"
        )
    return kept


def _path(folder: str, name: str) -> str:
    return os.path.join(folder, name + _SUFFIX)
