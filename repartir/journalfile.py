"""The file of a journal: an SQLite database with a mark of its own, which one process at a time writes.

What holds:

- **A file that is not ours is never written.**  Its first hundred bytes are read before SQLite opens it, and its pages are
  checked before anything is changed.  A new file is made beside its place and renamed.
- **A committed batch survives power loss**: ``synchronous=FULL``.  On local disks the log is SQLite's WAL, a commit of which
  is one fsync; it needs memory that all readers share, so network file systems get the rollback journal.
- **One writer.**  ``PATH.lock`` is locked with ``fcntl``, whose locks end with their process, however it ends, and are not
  inherited by forks.  It says who holds it.  They do not hold within a process, hence `_held`.  The database itself must not
  be opened besides SQLite: to close it would let go of SQLite's own locks.
- **At rest it is one file**: the last writer turns the WAL off.

A *definition* is what the rows depend on: function, digest, version, seed.  Rows belong to a *lineage*: definitions that
serve each other's rows.  The newest definition is the current one, and names the current lineage.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import sqlite3
import struct
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from repartir import durable
from repartir.errors import JournalError

APPLICATION_ID = 0x5250_4A31  # "RPJ1"
FORMAT = 1
BUSY_S = 3.0
_LOOK_S = 0.05
_SQLITE_BUSY_S = 30.0
_NETWORK = frozenset(
    "9p afs beegfs ceph cifs coda fhgfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs panfs pvfs2 smb smb2 smb3 "
    "smbfs virtiofs wekafs".split()
)
_SCHEMA = f"""
BEGIN;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
CREATE TABLE definitions (id INTEGER PRIMARY KEY, lineage INTEGER NOT NULL, function TEXT NOT NULL, digest TEXT NOT NULL,
    parts TEXT NOT NULL, version TEXT, seed TEXT NOT NULL, noted REAL NOT NULL);
CREATE TABLE runs (id INTEGER PRIMARY KEY, started REAL NOT NULL, ended REAL, definition INTEGER NOT NULL,
    host TEXT NOT NULL, user TEXT NOT NULL, pid INTEGER NOT NULL, command TEXT NOT NULL,
    repartir TEXT NOT NULL, python TEXT NOT NULL, numpy TEXT NOT NULL);
CREATE TABLE rows (id INTEGER PRIMARY KEY, lineage INTEGER NOT NULL, key BLOB NOT NULL, repeat INTEGER NOT NULL,
    run INTEGER NOT NULL, finished REAL NOT NULL, params NOT NULL, result, error TEXT, traceback TEXT,
    seconds REAL NOT NULL, worker INTEGER, attempts INTEGER NOT NULL, UNIQUE (lineage, key, repeat));
COMMIT;
"""

_held: set[str] = set()
_held_mutex = threading.Lock()


def real_path(path: str | os.PathLike[str]) -> str:
    """``path`` with links followed.  `JournalError` if there can be no file."""
    if not isinstance(path, str | os.PathLike) or not isinstance(given := os.fspath(path), str):
        raise TypeError(f"the path of a journal must be a string or a Path, not {type(path).__name__}")
    real = os.path.realpath(given)
    if not given or os.path.isdir(real):
        raise JournalError(f"the journal must be a file, and {given!r} is a folder")
    if os.path.exists(real) and not os.path.isfile(real):  # /dev/null, which a new journal would replace
        raise JournalError(
            f"the journal must be a file, and {given!r} is a device or a pipe: give another path"
        )
    if not os.path.isdir(os.path.dirname(real)):
        raise JournalError(f"the folder of the journal {given!r} does not exist: make it first")
    return real


def check_mark(real: str) -> bool:
    """Whether there is a journal; False for an absent or empty file.  `JournalError` for a file that is none."""
    try:
        with open(real, "rb") as file:
            head = file.read(100)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise JournalError(f"the journal {real} cannot be read: {error.strerror}") from error
    if not head:
        return False
    if len(head) < 100 or not head.startswith(b"SQLite format 3\0"):
        raise JournalError(
            f"{real} is no journal of Repartir, nor an SQLite database: give another path. It is left as it was"
        )
    format_number, mark = struct.unpack_from(">I", head, 60)[0], struct.unpack_from(">I", head, 68)[0]
    if mark != APPLICATION_ID:
        raise JournalError(
            f"{real} is an SQLite database of another program: give another path. It is left as it was"
        )
    if format_number > FORMAT:
        raise JournalError(
            f"the journal {real} has format {format_number}, and this Repartir knows formats up to {FORMAT}: "
            "use the newer Repartir that made it. It is left as it was"
        )
    return True


def connect(real: str, *, writable: bool) -> sqlite3.Connection:
    """A connection to a file that `check_mark` found to be a journal; `JournalError` if broken.

    All pages are checked before anything is written.
    """
    mode = "rw" if writable else "ro"
    connection = None
    try:
        connection = sqlite3.connect(
            f"file:{quote(real)}?mode={mode}",
            uri=True,
            timeout=_SQLITE_BUSY_S,
            isolation_level=None,
            check_same_thread=False,
        )
        check = "PRAGMA quick_check(1)" if writable else "SELECT 'ok' FROM definitions"
        found = connection.execute(check).fetchone()
        if found not in (None, ("ok",)):
            raise sqlite3.DatabaseError(found[0])
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        raise JournalError(
            f"the journal {real} is broken ({error}). It is left as it was; restore it from a copy, or save what is left "
            f"with `sqlite3 {real} .recover`, or give another path"
        ) from error
    return connection


def create(real: str) -> None:
    """Make an empty journal in place of an absent or empty file, which another program may see at once or not at all."""
    new = f"{real}.{os.getpid()}.new"
    try:
        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = OFF")  # it is forced to the disk once, below
            connection.execute("PRAGMA journal_mode = MEMORY")
            connection.executescript(_SCHEMA)
        with open(new, "rb") as file:
            os.fsync(file.fileno())
        os.replace(new, real)
        durable.sync_folder(os.path.dirname(real))
    except (sqlite3.Error, OSError) as error:
        raise JournalError(f"the journal {real} cannot be made: {error}") from error
    finally:
        durable.remove(new)


@contextlib.contextmanager
def reader(path: str | os.PathLike[str]) -> Iterator[sqlite3.Connection]:
    """A connection that only reads, also while a run writes.  `JournalError` if there is no journal, or it is broken."""
    real = real_path(path)
    with _held_mutex:
        is_ours = real in _held  # not opened here: to close it would let go of SQLite's locks
    if not is_ours and not check_mark(real):
        raise JournalError(f"there is no journal {real}")
    with contextlib.closing(connect(real, writable=False)) as connection:
        try:
            yield connection
        except sqlite3.Error as error:
            raise JournalError(f"the journal {real} cannot be read: {error}") from error


def writer(real: str) -> sqlite3.Connection:
    """The connection of who holds the `FileLock`; an absent or empty file becomes a journal."""
    if not check_mark(real):
        create(real)
    connection = connect(real, writable=True)
    try:
        set_log(connection, network=is_network(os.path.dirname(real)))
    except sqlite3.Error as error:
        connection.close()
        raise JournalError(f"the journal {real} cannot be written: {error}") from error
    return connection


def set_log(connection: sqlite3.Connection, *, network: bool) -> str:
    """Choose how commits survive power loss; the journal mode that SQLite then has."""
    connection.execute("PRAGMA synchronous = FULL")
    mode = "DELETE" if network else "WAL"
    return str(connection.execute(f"PRAGMA journal_mode = {mode}").fetchone()[0])


def close(connection: sqlite3.Connection) -> None:
    """End the writer's connection: one file at rest, unless a reader holds the WAL."""
    with contextlib.closing(connection), contextlib.suppress(sqlite3.Error):
        connection.execute("PRAGMA busy_timeout = 0")
        connection.execute("PRAGMA journal_mode = DELETE")


def is_network(folder: str, mounts: str | None = None) -> bool:
    """Whether ``folder`` lies on a file system of another machine.  ``mounts``: text as in /proc/self/mountinfo."""
    if mounts is None:
        try:
            with open("/proc/self/mountinfo", errors="surrogateescape") as file:
                mounts = file.read()
        except OSError:
            return False
    kind, longest = "", -1
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split(" ")[4])
        inside = folder == point or folder.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:
            kind, longest = after.split(" ")[0], len(point)
    return kind in _NETWORK or kind == "fuse" or kind.startswith("fuse.")


class FileLock:
    """The right to write one journal, held by one run at a time."""

    def __init__(self, real: str, wait_s: float) -> None:
        """Wait up to ``wait_s`` for it; `JournalError`, which says who holds it."""
        self.path = f"{real}.lock"
        self._real = real
        deadline = time.monotonic() + wait_s
        while not self._try():
            if time.monotonic() >= deadline:
                raise JournalError(
                    f"the journal {real} is in use by {self._holder()}. Wait for that run, or give each run a journal of "
                    "its own and join them with `repartir journal merge`"
                )
            time.sleep(_LOOK_S)

    def _try(self) -> bool:
        with _held_mutex:
            if self._real in _held:
                return False
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise JournalError(
                    f"the journal {self._real} cannot be locked, since {self.path} cannot be made: {error.strerror}"
                ) from error
            self._fd, is_locked = fd, False
            try:
                is_locked = self._lock(fd)
            finally:
                if not is_locked:
                    os.close(fd)
            if not is_locked:
                return False
            _held.add(self._real)
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(_myself()).encode(), 0)
        except BaseException:
            self.release()
            raise
        return True

    def _lock(self, fd: int) -> bool:
        """Whether ``fd`` is locked and still is the file under its name, which the last holder may have removed."""
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise JournalError(
                f"the file system of {self._real} has no file locks ({error.strerror}), so that a journal is not safe "
                "there: put it on another one"
            ) from error
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _holder(self) -> str:
        with _held_mutex:
            if self._real in _held:  # not read: to close the file would let go of the lock
                return f"this process ({os.getpid()}), which opened it before"
        try:
            with open(self.path) as file:
                who = json.load(file)
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(who["since"]))
            return f"process {who['pid']} on {who['host']} since {since} ({who['command']:.200})"
        except (OSError, ValueError, KeyError):
            return "another process"

    def release(self) -> None:
        with _held_mutex:
            _held.discard(self._real)
            try:
                durable.remove(self.path)
            finally:
                os.close(self._fd)


def _myself() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time(), "command": command_line()}


def command_line() -> str:
    """What this process was started with."""
    try:
        with open("/proc/self/cmdline", "rb") as file:
            return file.read().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return " ".join(sys.argv)


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing of what is written meanwhile."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
