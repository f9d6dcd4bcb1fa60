"""Files that are no journal stay as they are; one run at a time writes; the log fits the file system."""

from __future__ import annotations

import os
import signal
import sqlite3
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from repartir import journalfile
from repartir.errors import JournalError
from repartir.journal import Journal
from tests.helpers import package_root


def simulate(x: float) -> float:
    return x


def a_journal(path: Path) -> bytes:
    with Journal.open(path, simulate, seed=7) as journal:
        for number in range(20):
            journal.record(
                number.to_bytes(16, "big"),
                0,
                {"x": number},
                result="y" * 3000,
                error=None,
                traceback=None,
                seconds=0.1,
                worker=0,
                attempts=1,
            )
    return path.read_bytes()


def another_database(path: Path) -> bytes:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    return path.read_bytes()


def newer(path: Path) -> bytes:
    data = bytearray(a_journal(path))
    struct.pack_into(">I", data, 60, journalfile.FORMAT + 1)
    return bytes(data)


def torn(path: Path) -> bytes:
    data = bytearray(a_journal(path))
    for at in range(4096, len(data), 4096):
        data[at : at + 64] = b"\xff" * 64
    return bytes(data)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: b"some notes of mine", "is no journal of Repartir, nor an SQLite database"),
        (lambda path: b"\0" * 4096, "is no journal of Repartir"),
        (another_database, "SQLite database of another program"),
        (newer, f"has format {journalfile.FORMAT + 1}.*use the newer Repartir"),
        (torn, "is broken"),
        (lambda path: a_journal(path)[:9000], "is broken"),
    ],
    ids=["text", "zeros", "foreign", "newer", "torn", "cut"],
)
def test_what_is_no_sound_journal_stays_as_it_is(tmp_path: Path, make, complaint: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "walk.db"
    data = make(path)
    path.write_bytes(data)
    with pytest.raises(JournalError, match=complaint):
        Journal.open(path, simulate, seed=7)
    assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["walk.db"]


def test_an_empty_file_becomes_a_journal_and_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real.db").touch()
    (tmp_path / "link.db").symlink_to(tmp_path / "real.db")
    Journal.open(tmp_path / "link.db", simulate, seed=7).close()
    assert (tmp_path / "link.db").is_symlink()
    assert journalfile.check_mark(str(tmp_path / "real.db"))


def test_a_file_that_may_not_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_journal(tmp_path / "walk.db")
    real = journalfile.connect
    monkeypatch.setattr(journalfile, "connect", lambda path, writable: real(path, writable=False))
    with pytest.raises(JournalError, match=r"cannot be written.*readonly"):
        Journal.open(tmp_path / "walk.db", simulate, seed=7)
    assert os.listdir(tmp_path) == ["walk.db"]


def test_who_reads_needs_a_journal(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="there is no journal"), journalfile.reader(tmp_path / "walk.db"):
        pass
    assert os.listdir(tmp_path) == []


def test_reading_while_a_run_writes(tmp_path: Path) -> None:
    a_journal(tmp_path / "walk.db")
    with Journal.open(tmp_path / "walk.db", simulate, seed=7) as journal:
        with journalfile.reader(tmp_path / "walk.db") as connection:
            assert connection.execute("SELECT count(*) FROM rows").fetchone() == (20,)
        assert len(journal.finished()) == 20


def test_a_second_run_in_this_process_is_told(tmp_path: Path) -> None:
    path = tmp_path / "walk.db"
    with Journal.open(path, simulate, seed=7):
        with pytest.raises(JournalError, match=rf"in use by this process \({os.getpid()}\)"):
            Journal.open(path, simulate, seed=7, busy=0)
    Journal.open(path, simulate, seed=7, busy=0).close()


_HOLDER = """
    import sys
    from repartir.journal import Journal
    from tests.unit.test_journalfile import simulate
    journal = Journal.open(sys.argv[1], simulate, seed=7)
    print("held", flush=True)
    sys.stdin.readline()
    journal.close()
    print("let go", flush=True)
    sys.stdin.readline()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_HOLDER), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(package_root())},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


@pytest.mark.slow
def test_a_run_in_another_process_is_named_and_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "walk.db"
    with hold(path) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        with pytest.raises(JournalError, match=rf"in use by process {holder.pid} on .* since 20.*python"):
            Journal.open(path, simulate, seed=7, busy=0.01)
        holder.stdin.write("\n")
        holder.stdin.flush()
        Journal.open(path, simulate, seed=7, busy=30).close()
        assert holder.stdout.readline() == "let go\n"
        holder.stdin.write("\n")
    assert os.listdir(tmp_path) == ["walk.db"]


@pytest.mark.slow
def test_the_lock_of_a_dead_run_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "walk.db"
    with hold(path) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        Journal.open(path, simulate, seed=7, busy=0).close()
    assert os.listdir(tmp_path) == ["walk.db"]


def test_a_lock_that_was_removed_meanwhile_does_not_count(tmp_path: Path) -> None:
    """Its holder removed the name between this run's open and its lock: the lock is of a file that nobody else sees."""
    real = str(tmp_path / "walk.db")
    lock = journalfile.FileLock(real, 0)
    fd = os.open(f"{real}.lock", os.O_RDWR)
    os.unlink(f"{real}.lock")
    assert not lock._lock(fd)
    os.close(fd)
    lock.release()
    assert os.listdir(tmp_path) == []


MOUNTS = """\
22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:40 / /home rw - nfs4 server:/home rw
31 30 0:41 / /home/local\\040disk rw - xfs /dev/sdb rw
32 22 0:42 / /scratch rw - lustre mds:/scratch rw
33 22 0:43 / /mnt/ssh rw - fuse.sshfs host:/ rw
34 22 0:44 / /mnt/usb rw - fuseblk /dev/sdc rw
35 22 0:45 / /mnt/win rw master:3 - cifs //win/share rw
"""


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/var/tmp", False),
        ("/home/ada/runs", True),
        ("/home", True),
        ("/homework", False),
        ("/home/local disk/x", False),
        ("/scratch/a", True),
        ("/mnt/ssh", True),
        ("/mnt/usb/x", False),
        ("/mnt/win/x", True),
    ],
)
def test_which_file_systems_are_of_other_machines(folder: str, expected: bool) -> None:
    assert journalfile.is_network(folder, MOUNTS) is expected


def test_this_machine_s_mounts_can_be_read(tmp_path: Path) -> None:
    assert journalfile.is_network(str(tmp_path)) in (True, False)
