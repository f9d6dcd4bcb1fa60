"""Rows that keep how far they have come: retries and later runs go on from there."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from repartir import grid, sweep
from repartir.checkpoints import temporary_folder

from . import sweep_tasks as tasks
from .conftest import Make
from .kinds import only_fork, ours, workers

pytestmark = pytest.mark.any_start


def space_in(folder: Path) -> Any:
    return grid(x=range(3), folder=[str(folder)])


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of this test's for temporary files."""
    folder = tmp_path / "temp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@ours
@pytest.mark.parametrize("with_journal", [True, False])
def test_a_retry_goes_on(ex: Any, tmp_path: Path, temp: Path, with_journal: bool) -> None:
    (tmp_path / "fails-1-3").touch()
    journal = tmp_path / "run.db" if with_journal else None
    again = ex.options(retries=1, backoff=0.001)
    found = sweep(tasks.in_steps, space_in(tmp_path), seed=1, executor=again, journal=journal)
    plain = sweep(tasks.in_steps, space_in(tmp_path), seed=1, executor=ex)
    assert [row.result[0] for row in found] == [0, 4, 0]
    assert [row.result[1] for row in found] == [row.result[1] for row in plain]
    assert not list(temp.iterdir())
    assert not (tmp_path / "run.db.checkpoints").exists()


@workers
def test_so_does_one_after_a_death(make: Make, tmp_path: Path) -> None:
    (tmp_path / "dies-2-1").touch()
    own: Any = make(2)
    again = own.options(retries=1, backoff=0.001)
    found = sweep(tasks.in_steps, space_in(tmp_path), seed=1, executor=again)
    assert [row.result[0] for row in found] == [0, 0, 2]


@ours
def test_a_later_run_goes_on(ex: Any, tmp_path: Path) -> None:
    (tmp_path / "fails-0-2").touch()
    journal = tmp_path / "run.db"
    first = sweep(tasks.in_steps, space_in(tmp_path), executor=ex, journal=journal, on_error="keep")
    assert [row.error is None for row in first] == [False, True, True]
    assert (tmp_path / "run.db.checkpoints").exists()
    again = sweep(tasks.in_steps, space_in(tmp_path), executor=ex, journal=journal)
    assert [row.result[0] for row in again] == [3, 0, 0]
    assert not (tmp_path / "run.db.checkpoints").exists()


@workers
def test_a_child_of_a_row_is_no_row(ex: Any) -> None:
    assert [row.result for row in sweep(tasks.keeps_in_a_child, grid(x=[1, 2]), executor=ex)] == [True, True]


@only_fork
def test_what_a_killed_program_left_goes_with_the_next_sweep(kind: Any, temp: Path) -> None:
    with temporary_folder() as mine:
        assert Path(mine).parent == temp
        assert Path(mine).stat().st_mode & 0o077 == 0  # others cannot put states there
        script = (
            "import os, tempfile\n"
            f"tempfile.tempdir = {str(temp)!r}\n"
            "from repartir.checkpoints import temporary_folder\n"
            "with temporary_folder():\n"
            "    os.kill(os.getpid(), 9)\n"
        )
        subprocess.run([sys.executable, "-c", script], check=False)
        assert len(list(temp.iterdir())) == 2
        with temporary_folder() as other:
            assert {str(path) for path in temp.iterdir()} == {mine, other}
    assert not list(temp.iterdir())
