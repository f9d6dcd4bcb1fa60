"""The journal of a sweep: its rows in a file as they finish, so that a run that ends in any way is gone on with.

The file is `journalfile`'s, what its rows depend on `definitions`', when they are written `committer`'s, and how values look
in it `values`'.  Here is what a run asks of them: which rows it need not run again, and to keep those that it runs.
"""

from __future__ import annotations

import atexit
import contextlib
import getpass
import os
import platform
import shutil
import socket
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from repartir import checkpoints, definitions, journalfile, streams, values
from repartir.committer import Committer
from repartir.definitions import Definition
from repartir.door import OnChange, check_on_change
from repartir.errors import JournalError, JournalMismatch
from repartir.functiondigest import describe_function
from repartir.portable import in_a_line
from repartir.readable import readable
from repartir.streams import Seed

Key = tuple[bytes, int]
"""16 bytes that stand for the parameters of a row, and its repeat."""

_ROW_BYTES = 500  # of a row besides its values
# What has finished is not undone by an attempt that failed.
_RECORD = """
INSERT INTO rows (lineage, key, repeat, run, finished, params, result, error, traceback, seconds, worker, attempts)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (lineage, key, repeat) DO UPDATE SET run = excluded.run, finished = excluded.finished, params = excluded.params,
    result = excluded.result, error = excluded.error, traceback = excluded.traceback,
    seconds = excluded.seconds, worker = excluded.worker, attempts = excluded.attempts
WHERE excluded.error IS NULL OR rows.error IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row as the journal has it.  ``error`` and ``traceback`` are texts, or None; then ``result`` counts."""

    params: dict[str, Any]
    repeat: int
    result: Any
    error: str | None
    traceback: str | None
    seconds: float
    worker: int | None
    attempts: int


class Journal:
    """One run's hold of a journal, from `open` to `close`; a context manager.  One thread at a time may call it.

    ``seed``: that of the run, as `streams.settled` gives it.  ``checkpoints``: the folder for what tasks keep on their way,
    under `checkpoints.name_of_row`; it may not exist yet.  When a row with a result is on the disk, its file there goes.
    """

    def __init__(
        self,
        real: str,
        lock: journalfile.FileLock,
        connection: sqlite3.Connection,
        lineage: int,
        seed: Seed,
        run: int,
    ) -> None:
        self.path = real
        self.seed = seed
        self.checkpoints = checkpoint_folder(real, lineage)
        self._lock = lock
        self._connection = connection
        self._lineage = lineage
        self._run = run
        self._pid = os.getpid()
        self._limit_bytes = connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH) - _ROW_BYTES
        self._is_closed = False
        self._committer: Committer[tuple[Any, ...]] = Committer(self._write)
        atexit.register(self.close)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        fn: Callable[..., Any],
        *,
        seed: Seed | None,
        version: str | None = None,
        on_change: OnChange = "raise",
        busy: float | None = None,
    ) -> Journal:
        """Hold the journal at ``path`` for a run of ``fn``; an absent or empty file becomes one.

        Args:
            seed: None for the one that the journal has, or else a new one.
            version: replaces the digest of ``fn``: equal versions match whatever the code is.
            on_change: what to do if the journal has results of another function, version or seed: "raise"; "rerun", where
                they are kept as history until `repartir journal vacuum`; or "reuse", where they count as this run's.
            busy: seconds to wait for another run that holds the journal.

        Raises `JournalMismatch`, whose message has the difference of the functions; `JournalError` for a file that is none
        of ours, is broken, is held by another run or cannot be written; ``TypeError`` and ``ValueError`` for wrong
        arguments.
        """
        check_on_change(on_change)
        if version is not None and not isinstance(version, str):
            raise TypeError(f'version must be a string such as "2", not {version!r}')
        real = journalfile.real_path(path)
        description = describe_function(fn)
        with contextlib.ExitStack() as undo:
            lock = journalfile.FileLock(real, journalfile.BUSY_S if busy is None else busy)
            undo.callback(lock.release)
            connection = journalfile.writer(real)
            undo.callback(connection.close)
            try:
                with journalfile.transaction(connection):
                    found = definitions.current(connection)
                    if seed is None:
                        seed = streams.settled(None) if found is None else found[2].seed
                    wanted = Definition(description, version, seed)
                    number, lineage = _settle(connection, real, found, wanted, on_change)
                    run = _note_run(connection, number)
            except (sqlite3.Error, ValueError) as error:
                if isinstance(error, JournalMismatch):
                    raise
                raise JournalError(f"the journal {real} cannot be read or written: {error}") from error
            journal = cls(real, lock, connection, lineage, seed, run)
            undo.pop_all()
        return journal

    def finished(self) -> dict[Key, StoredRow]:
        """The rows that need not run again: those without an error, of this function and seed.

        Raises `JournalError`, which names the row, for one whose class is gone or changed, so that it cannot be read.
        """
        self.flush()
        found = {}
        for key, repeat, params, result, *rest in self._connection.execute(
            "SELECT key, repeat, params, result, error, traceback, seconds, worker, attempts FROM rows "
            "WHERE lineage = ? AND error IS NULL ORDER BY id",
            (self._lineage,),
        ):
            try:
                row = StoredRow(values.loads(params), repeat, values.loads(result), *rest)
            except Exception as error:  # unpickling runs users' code
                raise JournalError(
                    f"the row {readable(params)}, repeat {repeat}, of the journal {self.path} cannot be read: "
                    f"{type(error).__name__}: {error}. Put the classes that it needs back in their place, or give another "
                    "path"
                ) from error
            found[key, repeat] = row
        return found

    def record(
        self,
        key: bytes,
        repeat: int,
        params: dict[str, Any],
        *,
        result: Any,
        error: BaseException | None,
        traceback: str | None,
        seconds: float,
        worker: int | None,
        attempts: int,
    ) -> None:
        """Have a row written soon, within half a second; a failed one is told, but runs again next time.

        Raises `TaskNotSerializable` for a value that nothing can
        pickle, ``ValueError`` for one of a gigabyte, and `JournalError` if rows recorded before could not be written, which
        are kept for `flush` to try again.
        """
        if self._is_closed or os.getpid() != self._pid:
            raise JournalError(
                f"the journal {self.path} is closed, or was opened before this process was forked"
            )
        # Types that SQLite knows, here rather than in the thread that writes
        known = (float(seconds), None if worker is None else int(worker), int(attempts))
        stored_params = values.dumps(params, "the parameters of a row")
        text = None if error is None else _storable(in_a_line(error))
        stored = None if error is not None else values.dumps(result, f"the result of the row {params!r:.200}")
        row = (
            *(
                self._lineage,
                bytes(key),
                int(repeat),
                self._run,
                time.time(),
                stored_params,
                stored,
            ),
            *(text, None if traceback is None else _storable(traceback), *known),
        )
        size_bytes = _ROW_BYTES + len(stored_params) + len(stored or "") + len(traceback or "")
        if size_bytes > self._limit_bytes:
            raise ValueError(
                f"the result of the row {params!r:.200} takes {size_bytes} bytes, and a row of a journal has room for "
                f"{self._limit_bytes}: write it to a file of its own in the task, and return its path"
            )
        self._committer.add(row, size_bytes)

    def flush(self) -> None:
        """Return when all that was recorded is on the disk.  `JournalError` if it cannot be written."""
        self._committer.flush()

    def close(self) -> None:
        """Write what is left and let go of the file.  `JournalError` if it cannot be written; it is let go of anyway."""
        if self._is_closed or os.getpid() != self._pid:
            return
        with contextlib.ExitStack() as closing:  # Ctrl-C in one of these leaves none of the others out
            closing.callback(self._lock.release)
            closing.callback(self._remove_folders)
            closing.callback(journalfile.close, self._connection)
            closing.callback(atexit.unregister, self.close)
            self._is_closed = True
            try:
                self._committer.close()
                self._connection.execute("UPDATE runs SET ended = ? WHERE id = ?", (time.time(), self._run))
            except sqlite3.Error as error:
                raise self._cannot_write(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return f"<Journal {self.path}: {state}, seed {definitions.seed_words(self.seed)}>"

    def _write(self, rows: list[tuple[Any, ...]]) -> None:
        try:
            with journalfile.transaction(self._connection):
                self._connection.executemany(_RECORD, rows)
            self._forget(rows)
        except sqlite3.Error as error:
            raise self._cannot_write(error) from error

    def _forget(self, rows: list[tuple[Any, ...]]) -> None:
        """What tasks kept on their way to results that are on the disk now; `repartir journal vacuum` finds what stays."""
        if os.path.isdir(self.checkpoints):
            for _, key, repeat, *_, error, _, _, _, _ in rows:
                with contextlib.suppress(OSError):
                    if error is None:
                        checkpoints.forget(self.checkpoints, checkpoints.name_of_row(key, repeat))

    def _remove_folders(self) -> None:
        for folder in (self.checkpoints, os.path.dirname(self.checkpoints)):
            with contextlib.suppress(OSError):  # not there, or not empty: tasks go on from it
                os.rmdir(folder)

    def _cannot_write(self, error: sqlite3.Error) -> JournalError:
        return JournalError(
            f"results cannot be written to the journal {self.path}: {error}. What was written before is safe; make room or "
            "mend the disk, and run again"
        )


def checkpoint_folder(real: str, lineage: int) -> str:
    """Where tasks of a lineage keep their checkpoints."""
    return os.path.join(f"{real}.checkpoints", str(lineage))


def _settle(
    connection: sqlite3.Connection,
    real: str,
    found: tuple[int, int, Definition] | None,
    wanted: Definition,
    on_change: OnChange,
) -> tuple[int, int]:
    """The id and the lineage of the definition that this run goes by."""
    if found is None:
        return definitions.note(connection, 1, wanted), 1
    number, lineage, known = found
    if not known.agrees(wanted):
        count = connection.execute(
            "SELECT count(*) FROM rows WHERE lineage = ? AND error IS NULL", (lineage,)
        ).fetchone()[0]
        is_worth_something = count > 0 or os.path.isdir(checkpoint_folder(real, lineage))
        if on_change == "raise" and is_worth_something:
            raise JournalMismatch(
                f"the journal {real} holds {count} results that this run would not give: {known.difference(wanted)}\n"
                'Run with on_change="rerun" to compute them anew, with on_change="reuse" if they are right nevertheless (or '
                'give the function a version="…" of your own, to be changed when results change), or with another journal.'
            )
        if on_change != "reuse":
            shutil.rmtree(checkpoint_folder(real, lineage), ignore_errors=True)
            lineage += 1
    if known.noted_as() != wanted.noted_as():
        number = definitions.note(connection, lineage, wanted)
    return number, lineage


def _note_run(connection: sqlite3.Connection, definition: int) -> int:
    cursor = connection.execute(
        "INSERT INTO runs (started, definition, host, user, pid, command, repartir, python, numpy) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(
                time.time(),
                definition,
                socket.gethostname(),
                _user(),
                os.getpid(),
                journalfile.command_line(),
            ),
            *(_version(), platform.python_version(), np.__version__),
        ),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _version() -> str:
    """That of the package, which is imported before its modules are."""
    return str(sys.modules["repartir"].__dict__["__version__"])


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a number without a name, in a container
        return str(os.getuid())


def _storable(text: str) -> str:
    """Text as UTF-8 has it: names of files may be none."""
    return text.encode("utf-8", "backslashreplace").decode()
