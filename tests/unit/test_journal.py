"""A run finds what runs before it have finished, and only what is right for it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from repartir import JournalMismatch, journalfile, streams
from repartir.committer import Committer
from repartir.errors import JournalError
from repartir.journal import Journal, StoredRow
from tests.helpers import module_main, package_root


def simulate(x: float) -> float:
    return 2 * x


def another(x: float) -> float:
    return 3 * x


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "walk.db"


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def record(
    journal: Journal, number: int, result: Any = None, error: BaseException | None = None, **more: Any
) -> None:
    given: dict[str, Any] = {"traceback": None, "seconds": 0.5, "worker": 1, "attempts": 1, **more}
    journal.record(key(number), 0, {"x": number}, result=result, error=error, **given)


def fill(
    path: Path, fn: Callable[..., Any] = simulate, results: tuple[Any, ...] = (0, 2), **how: Any
) -> None:
    how.setdefault("seed", 7)
    with Journal.open(path, fn, **how) as journal:
        for number, result in enumerate(results):
            record(journal, number, result)


def results(path: Path, fn: Callable[..., Any] = simulate, **how: Any) -> list[Any]:
    how.setdefault("seed", 7)
    with Journal.open(path, fn, **how) as journal:
        return [row.result for row in journal.finished().values()]


def test_a_later_run_is_served_what_an_earlier_one_finished(path: Path) -> None:
    with Journal.open(path, simulate, seed=7) as journal:
        assert journal.finished() == {}
        journal.record(
            key(1),
            3,
            {"x": (1, None)},
            result={"loss": np.float32(0.5)},
            error=None,
            traceback=None,
            seconds=1.5,
            worker=None,
            attempts=2,
        )
    with Journal.open(os.fspath(path), simulate, seed=7) as journal:
        assert journal.finished() == {
            (key(1), 3): StoredRow({"x": (1, None)}, 3, {"loss": np.float32(0.5)}, None, None, 1.5, None, 2)
        }
        assert type(journal.finished()[key(1), 3].result["loss"]) is np.float32


def test_failed_rows_are_kept_but_run_again(path: Path) -> None:
    with Journal.open(path, simulate, seed=7) as journal:
        record(journal, 1, error=ValueError("no luck"), traceback="Traceback…")
        record(journal, 2, 4)
        record(journal, 2, error=ValueError("a late attempt"))
        assert list(journal.finished()) == [(key(2), 0)]
        record(journal, 1, 2)
    assert sorted(results(path)) == [2, 4]


def test_the_seed_is_given_stored_or_drawn(path: Path) -> None:
    with Journal.open(path, simulate, seed=None) as journal:
        drawn = journal.seed
        assert isinstance(drawn, int)
        record(journal, 1, 1)
    with Journal.open(path, simulate, seed=None) as journal:
        assert journal.seed == drawn
        assert len(journal.finished()) == 1
    with pytest.raises(JournalMismatch, match=rf"seed {drawn} in the journal, 7 now"):
        Journal.open(path, simulate, seed=7)


@pytest.mark.parametrize(
    "seed",
    [7, (1, 2), 2**200, np.random.SeedSequence(7, spawn_key=(1,), pool_size=8), np.random.SeedSequence(7)],
)
def test_every_kind_of_seed_is_stored(path: Path, seed: Any) -> None:
    fill(path, seed=seed)
    assert results(path, seed=seed) == [0, 2]
    with Journal.open(path, simulate, seed=None) as journal:
        drawn = [streams.rng(found, 1).integers(2**60) for found in (seed, journal.seed)]
        assert drawn[0] == drawn[1]


def test_a_sequence_of_a_number_alone_is_that_number(path: Path) -> None:
    fill(path, seed=7)
    assert results(path, seed=np.random.SeedSequence(7)) == [0, 2]


def test_another_function_is_told_with_the_difference(path: Path) -> None:
    fill(path)
    before = path.read_bytes()
    with pytest.raises(JournalMismatch) as told:
        Journal.open(path, another, seed=7)
    message = str(told.value)
    assert "holds 2 results" in message
    assert "the function is simulate in the journal, another now" in message
    assert "-    return 2 * x" in message
    assert "+    return 3 * x" in message
    assert all(remedy in message for remedy in ('on_change="rerun"', 'on_change="reuse"', "version="))
    assert len(path.read_bytes()) == len(before)
    assert results(path) == [0, 2]


def test_rerun_serves_nothing_and_keeps_the_old(path: Path) -> None:
    fill(path)
    with Journal.open(path, another, seed=7, on_change="rerun") as journal:
        assert journal.finished() == {}
        record(journal, 1, 3)
    assert results(path, another) == [3]
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT lineage, count(*) FROM rows GROUP BY lineage").fetchall() == [
            (1, 2),
            (2, 1),
        ]
    connection.close()


def test_reuse_serves_the_old_and_notes_the_new(path: Path) -> None:
    fill(path)
    assert results(path, another, on_change="reuse", seed=8) == [0, 2]
    assert results(path, another, seed=8) == [0, 2]
    with pytest.raises(JournalMismatch):
        results(path, simulate, seed=8)


def test_a_version_replaces_the_digest(path: Path) -> None:
    fill(path, version="1")
    assert results(path, another, version="1") == [0, 2]
    with pytest.raises(JournalMismatch, match=r"version '1' in the journal, '2' now"):
        results(path, another, version="2")
    assert results(path, another) == [0, 2]  # without one the digests count, and this was the last
    with pytest.raises(JournalMismatch, match="simulate"):
        results(path, simulate)


def test_a_version_that_is_given_later_agrees_with_the_same_code(path: Path) -> None:
    fill(path)
    assert results(path, version="1") == [0, 2]
    assert results(path, another, version="1") == [0, 2]


def test_without_results_nothing_can_mismatch(path: Path) -> None:
    with Journal.open(path, simulate, seed=7) as journal:
        record(journal, 1, error=ValueError("no luck"))
    assert results(path, another, seed=8) == []


def test_a_checkpoint_is_worth_as_much_as_a_result(path: Path) -> None:
    with Journal.open(path, simulate, seed=7) as journal:
        os.makedirs(journal.checkpoints)
        Path(journal.checkpoints, "row").touch()
    assert Path(journal.checkpoints, "row").exists()
    with pytest.raises(JournalMismatch, match="holds 0 results"):
        Journal.open(path, another, seed=7)
    with Journal.open(path, another, seed=7, on_change="rerun") as journal:
        assert not os.path.exists(journal.checkpoints)
    assert os.listdir(path.parent) == [path.name]


def test_wrong_arguments_are_refused_before_anything_is_made(path: Path) -> None:
    wrong: Any
    for wrong, error in (
        ({"on_change": "redo"}, ValueError),
        ({"version": 2}, TypeError),
    ):
        with pytest.raises(error):
            Journal.open(path, simulate, seed=7, **wrong)
    with pytest.raises(TypeError, match="callable"):
        Journal.open(path, 3, seed=7)  # type: ignore[arg-type]
    with pytest.raises(JournalError, match="is a folder"):
        Journal.open(path.parent, simulate, seed=7)
    os.mkfifo(path.parent / "pipe")
    with pytest.raises(JournalError, match="is a device or a pipe"):
        Journal.open(path.parent / "pipe", simulate, seed=7)
    with pytest.raises(JournalError, match="does not exist"):
        Journal.open(path / "deeper" / "walk.db", simulate, seed=7)
    with pytest.raises(TypeError, match="string or a Path"):
        Journal.open(b"x", simulate, seed=7)  # type: ignore[arg-type]
    assert os.listdir(path.parent) == ["pipe"]


def test_a_value_that_nothing_can_pickle_is_named(path: Path) -> None:
    with Journal.open(path, simulate, seed=7) as journal:
        with pytest.raises(TypeError, match=r"the result of the row \{'x': 1\} .*lock"):
            record(journal, 1, threading.Lock())
        record(journal, 2, 4)
    assert results(path) == [4]


def test_odd_texts_and_numbers_are_stored(path: Path) -> None:
    with Journal.open(path, simulate, seed=7) as journal:
        record(journal, 1, error=ValueError("file \udcff"), traceback="\udcff")
        record(journal, 2, "\udcff", seconds=np.float32(0.5), worker=np.int64(1), attempts=np.int8(2))
        journal.flush()
        (row,) = journal.finished().values()
    assert (row.result, row.seconds, row.worker, row.attempts) == ("\udcff", 0.5, 1, 2)


def test_a_result_that_is_too_large_is_told_at_once(path: Path) -> None:
    with Journal.open(path, simulate, seed=7) as journal:
        journal._limit_bytes = 10_000
        with pytest.raises(ValueError, match=r"row \{'x': 1\} takes .* bytes"):
            record(journal, 1, b"x" * 10_000)
        record(journal, 2, 4)
    assert results(path) == [4]


class Gone:
    pass


def test_a_result_whose_class_is_gone_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path, results=(Gone(),))
    monkeypatch.delattr(sys.modules[__name__], "Gone")
    with (
        Journal.open(path, simulate, seed=7) as journal,
        pytest.raises(JournalError, match=r"\{'x': 0\}, repeat 0.*Gone"),
    ):
        journal.finished()


def test_the_runs_are_recorded(path: Path) -> None:
    fill(path)
    with sqlite3.connect(path) as connection:
        (run,) = connection.execute(
            "SELECT host, user, pid, command, python, numpy, started, ended FROM runs"
        )
    connection.close()
    assert run[2] == os.getpid()
    assert run[5] == np.__version__
    assert run[6] <= run[7]
    assert all(run)


def test_at_rest_a_journal_is_one_file(path: Path) -> None:
    journal = Journal.open(path, simulate, seed=7)
    record(journal, 1, 2)
    journal.flush()
    assert "open, seed 7" in repr(journal)
    journal.close()
    journal.close()
    assert os.listdir(path.parent) == [path.name]
    with pytest.raises(JournalError, match="is closed"):
        record(journal, 2, 4)


def test_a_full_disk_is_an_error_and_loses_nothing_that_is_flushed_later(path: Path) -> None:
    with Journal.open(path, simulate, seed=7) as journal:
        record(journal, 0, 0)
        journal.flush()
        limit = journal._connection.execute("PRAGMA max_page_count").fetchone()[0]
        used = journal._connection.execute("PRAGMA page_count").fetchone()[0]
        journal._connection.execute(f"PRAGMA max_page_count = {used}")
        record(journal, 1, b"x" * 100_000)
        with pytest.raises(JournalError, match=r"cannot be written to the journal .*full"):
            journal.flush()
        with pytest.raises(JournalError, match="full"):
            record(journal, 2, 4)
        journal._connection.execute(f"PRAGMA max_page_count = {limit}")
        journal.flush()
        assert len(journal.finished()) == 3


def test_a_disk_that_stays_full_is_an_error_at_the_end(path: Path) -> None:
    journal = Journal.open(path, simulate, seed=7)
    record(journal, 0, 0)
    journal.flush()
    used = journal._connection.execute("PRAGMA page_count").fetchone()[0]
    journal._connection.execute(f"PRAGMA max_page_count = {used}")
    record(journal, 1, b"x" * 100_000)
    with pytest.raises(JournalError, match="full"):
        journal.close()
    assert results(path) == [0]


@pytest.mark.parametrize("of", [journalfile, Committer])
def test_ctrl_c_while_it_is_closed_lets_go_of_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, of: Any
) -> None:
    journal = Journal.open(path, simulate, seed=7)
    record(journal, 0, 0)
    with monkeypatch.context() as patched:
        close = of.close

        def interrupted(closed: Any) -> None:
            close(closed)
            raise KeyboardInterrupt

        patched.setattr(of, "close", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.close()
    assert not list(path.parent.glob("*.lock"))
    with Journal.open(path, simulate, seed=7, busy=0) as again:
        assert len(again.finished()) == 1


def test_ctrl_c_while_it_says_who_holds_it_lets_go_of_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("repartir.journalfile._myself", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Journal.open(path, simulate, seed=7)
    Journal.open(path, simulate, seed=7, busy=0).close()


@pytest.mark.slow
def test_a_small_disk_that_runs_full(tmp_path: Path) -> None:
    """A file system of a megabyte, where this process may make one."""
    script = tmp_path / "fill.py"
    script.write_text(
        "import sys\n"
        "from repartir.journal import Journal\n"
        "from repartir.errors import JournalError\n"
        "from repartir.journalfile import reader\n"
        "from tests.unit.test_journal import record, simulate\n"
        "path = sys.argv[1] + '/walk.db'\n"
        "flushed = 0\n"
        "try:\n"
        "    with Journal.open(path, simulate, seed=7) as journal:\n"
        "        for number in range(1000):\n"
        "            record(journal, number, 'x' * 10_000)\n"
        "            journal.flush()\n"
        "            flushed += 1\n"
        "except JournalError as error:\n"
        "    assert 'full' in str(error), error\n"
        "else:\n"
        "    raise AssertionError('it never was full')\n"
        "with reader(path) as connection:\n"
        "    count = connection.execute('SELECT count(*) FROM rows').fetchone()[0]\n"
        "assert count == flushed > 10, (count, flushed)\n"
        "print('as promised')\n"
    )
    disk = tmp_path / "disk"
    disk.mkdir()
    command = (
        f'mount -t tmpfs -o size=1m tmpfs "{disk}" || exit 77; exec "{sys.executable}" "{script}" "{disk}"'
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(package_root())},
    )
    if done.returncode in (1, 77) and "Traceback" not in done.stderr:
        pytest.skip(f"no file system of its own: {done.stderr}")
    assert (done.returncode, done.stdout) == (0, "as promised\n"), done.stderr


_RECORDER = """
    import sys, time
    from repartir.journal import Journal
    from tests.unit.test_journal import record, simulate

    journal = Journal.open(sys.argv[1], simulate, seed=7)
    for number in range(1_000_000):
        record(journal, number, 2 * number)
        print(number, time.monotonic(), flush=True)
        time.sleep(0.001)
        if number % 500 == 499:
            journal.flush()
            print("flushed", number, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.05, 0.3, 0.7, 1.3, 1.9])
def test_a_kill_loses_at_most_a_second(path: Path, after_s: float) -> None:
    import textwrap
    import time

    environment = {**os.environ, "PYTHONPATH": str(package_root())}
    command = [sys.executable, "-c", textwrap.dedent(_RECORDER), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(after_s)  # the moment of the kill is what is varied
        process.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        lines = (first + process.stdout.read()).splitlines()
    said = [line.split() for line in lines if line.count(" ") == 1]
    flushed = [int(number) for word, number in said if word == "flushed"]
    old = [int(number) for number, when in said if number != "flushed" and float(when) < killed - 1.0]
    found = results(path)
    assert found == [2 * number for number in range(len(found))]
    assert len(found) > max([*old, *flushed], default=-1)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.slow
def test_a_program_that_ends_without_closing_loses_nothing(tmp_path: Path) -> None:
    done = module_main(
        tmp_path,
        f"""
        import sys
        sys.path.insert(0, {str(package_root())!r})
        from repartir.journal import Journal
        from tests.unit.test_journal import record, simulate
        journal = Journal.open("walk.db", simulate, seed=7)
        record(journal, 1, 2)
        """,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert results(tmp_path / "walk.db") == [2]


def test_a_forked_child_leaves_the_journal_alone(path: Path) -> None:
    with Journal.open(path, simulate, seed=7) as journal:
        record(journal, 1, 2)
        pid = os.fork()
        if pid == 0:
            try:
                journal.close()
                record(journal, 2, 4)
            except JournalError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        with pytest.raises(JournalError, match="this process"):
            Journal.open(path, simulate, seed=7, busy=0)
        record(journal, 3, 6)
    assert results(path) == [2, 6]


def test_on_a_network_file_system_the_log_is_another(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for is_network, mode in ((True, "delete"), (False, "wal")):
        monkeypatch.setattr(journalfile, "is_network", lambda folder, kind=is_network: kind)
        with Journal.open(path, simulate, seed=7) as journal:
            found = [
                journal._connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous")
            ]
            assert found == [mode, 2]
            record(journal, is_network, 2)
    assert len(results(path)) == 2
