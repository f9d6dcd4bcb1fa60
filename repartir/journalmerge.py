"""The files of an array job made one, and a file rid of what no run asks for."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Sequence
from typing import Any, Literal

from repartir import checkpoints, definitions, durable, journalfile
from repartir.definitions import Definition
from repartir.errors import JournalError, JournalMismatch
from repartir.journal import checkpoint_folder
from repartir.readable import readable

Keep = Literal["first", "last"]

_RUN = "started, ended, host, user, pid, command, repartir, python, numpy"
_ROW = "key, repeat, finished, params, result, error, traceback, seconds, worker, attempts"
_MARKS = ", ".join("?" * 10)


def merge(out: str, files: Sequence[str], keep: Keep | None = None) -> dict[str, int]:
    """Add the rows of ``files`` to the journal ``out``, which may be new; all or nothing.

    Of two rows of the same parameters and repeat the finished one counts, and of two that failed the later.  ``keep``: which
    counts where two results differ; ``out`` stands before the files.

    Returns how many rows, and among them errors, ``out`` then has, and how many were added.  Raises `JournalMismatch`, which
    names the difference, for a file of another function or seed, and, without ``keep``, for two results that differ.
    """
    real = journalfile.real_path(out)
    if any(os.path.realpath(file) == real for file in files):
        raise JournalError(f"{out} cannot be merged into itself: name the other files only")
    lock = journalfile.FileLock(real, journalfile.BUSY_S)
    try:
        is_new = not journalfile.check_mark(real)
        connection = journalfile.writer(real)
        try:
            with journalfile.transaction(connection):
                merged = _Merge(connection, out, keep)
                for file in files:
                    with journalfile.reader(file) as source:
                        merged.add(file, source)
                return merged.counts()
        except BaseException:
            if is_new:
                durable.remove(real)
            raise
        finally:
            journalfile.close(connection)
    finally:
        lock.release()


class _Merge:
    """The way of several journals into one, within a transaction."""

    def __init__(self, connection: sqlite3.Connection, out: str, keep: Keep | None) -> None:
        self._connection = connection
        self._out = out
        self._keep = keep
        self._added = 0
        self._files: dict[int, str] = {}  # run in the joined file → the file that it came from
        found = definitions.current(connection)
        self._lineage = 1 if found is None else found[1]
        self._first: tuple[str, int, Definition] | None = None if found is None else (out, found[0], found[2])

    def add(self, file: str, source: sqlite3.Connection) -> None:
        found = definitions.current(source)
        if found is None:
            raise JournalError(f"the journal {file} has had no run yet")
        _, lineage, definition = found
        if self._first is None:
            self._first = (file, definitions.note(self._connection, 1, definition), definition)
        first, _, known = self._first
        if not known.agrees(definition):
            difference = known.difference(definition, f"in {first}", f"in {file}")
            raise JournalMismatch(f"{file} cannot be merged with {first}: {difference}")
        runs = {
            run[0]: self._run(file, run[1:])
            for run in source.execute(f"SELECT id, {_RUN} FROM runs").fetchall()
        }
        for run, *row in source.execute(
            f"SELECT run, {_ROW} FROM rows WHERE lineage = ? ORDER BY id", (lineage,)
        ):
            self._row(file, runs[run], row)

    def _run(self, file: str, run: Sequence[Any]) -> int:
        """The run in the joined file, which may have it already."""
        started, _, host, _, pid, *_ = run
        known = self._connection.execute(
            "SELECT id FROM runs WHERE started = ? AND host = ? AND pid = ?", (started, host, pid)
        ).fetchone()
        if known is not None:
            return int(known[0])
        assert self._first is not None
        cursor = self._connection.execute(
            f"INSERT INTO runs (definition, {_RUN}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (self._first[1], *run),
        )
        assert cursor.lastrowid is not None
        self._files[cursor.lastrowid] = file
        return cursor.lastrowid

    def _row(self, file: str, run: int, row: list[Any]) -> None:
        key, repeat, finished, params, result, error, *_ = row
        known = self._connection.execute(
            "SELECT id, run, finished, result, error FROM rows WHERE lineage = ? AND key = ? AND repeat = ?",
            (self._lineage, key, repeat),
        ).fetchone()
        if known is not None:
            known_id, known_run, known_finished, known_result, known_error = known
            if error is None and known_error is None and result != known_result and self._keep is None:
                raise JournalMismatch(
                    f"two results of the row {readable(params)}, repeat {repeat}: "
                    f"{readable(known_result)!r:.200} in {self._files.get(known_run, self._out)}, "
                    f"{readable(result)!r:.200} in {file}. Choose with --keep first or --keep last"
                )
            if error is None:
                is_better = known_error is not None or (result != known_result and self._keep == "last")
            else:
                is_better = known_error is not None and finished > known_finished
            if not is_better:
                return
            self._connection.execute("DELETE FROM rows WHERE id = ?", (known_id,))
        self._connection.execute(
            f"INSERT INTO rows (lineage, run, {_ROW}) VALUES (?, ?, {_MARKS})", (self._lineage, run, *row)
        )
        self._added += 1

    def counts(self) -> dict[str, int]:
        rows, errors = self._connection.execute(
            "SELECT count(*), count(error) FROM rows WHERE lineage = ?", (self._lineage,)
        ).fetchone()
        return {"rows": rows - errors, "errors": errors, "added": self._added}


def vacuum(path: str) -> dict[str, int]:
    """Drop what no run asks for: rows of earlier functions and seeds, checkpoints of finished or dropped rows.

    Returns how many of each, and the size of the file before and after, in bytes.
    """
    real = journalfile.real_path(path)
    if not os.path.exists(real):
        raise JournalError(f"there is no journal {real}")
    lock = journalfile.FileLock(real, journalfile.BUSY_S)
    try:
        before = os.path.getsize(real)
        connection = journalfile.writer(real)
        try:
            found = definitions.current(connection)
            lineage = 0 if found is None else found[1]
            with journalfile.transaction(connection):
                dropped = connection.execute("DELETE FROM rows WHERE lineage != ?", (lineage,)).rowcount
                connection.execute("DELETE FROM definitions WHERE lineage != ?", (lineage,))
                connection.execute("DELETE FROM runs WHERE definition NOT IN (SELECT id FROM definitions)")
            connection.execute("VACUUM")
            forgotten = _drop_checkpoints(connection, real, lineage)
        finally:
            journalfile.close(connection)
        return {
            "rows": dropped,
            "checkpoints": forgotten,
            "bytes_before": before,
            "bytes_after": os.path.getsize(real),
        }
    except sqlite3.Error as error:
        raise JournalError(f"the journal {real} cannot be made smaller: {error}") from error
    finally:
        lock.release()


def _drop_checkpoints(connection: sqlite3.Connection, real: str, lineage: int) -> int:
    current = checkpoint_folder(real, lineage)
    base = os.path.dirname(current)
    count = 0
    for name in os.listdir(base) if os.path.isdir(base) else ():
        folder = os.path.join(base, name)
        if folder != current:
            count += len(os.listdir(folder))
            shutil.rmtree(folder)
    if os.path.isdir(current):
        finished = {
            checkpoints.name_of_row(key, repeat)
            for key, repeat in connection.execute(
                "SELECT key, repeat FROM rows WHERE lineage = ? AND error IS NULL", (lineage,)
            )
        }
        for name in os.listdir(current):
            if name.partition(".")[0] in finished:
                durable.remove(os.path.join(current, name))
                count += 1
    for folder in (current, base):
        with contextlib.suppress(OSError):  # not there, or not empty
            os.rmdir(folder)
    return count
