"""Tasks of sweeps that keep how far they have come."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

import repartir
from repartir import JournalMismatch, grid, sweep

from .conftest import Make
from .kinds import only_fork, ours

pytestmark = pytest.mark.any_start


def steps(x: int, folder: str) -> list[int]:
    """Ten steps, each kept; ends badly after the fifth where the folder says so. Where this attempt began."""
    done = repartir.restored() or []
    begun = len(done)
    while len(done) < 10:
        done.append(x)
        repartir.checkpoint(done)
        if len(done) == 5 and (way := Path(folder, f"ends-{x}")).exists():
            how = way.read_text()
            way.unlink()
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError(x)
    return [begun, *done]


def other_steps(x: int, folder: str) -> list[int]:
    return [-1, *steps(x, folder)]


@pytest.fixture
def space(tmp_path: Path) -> Any:
    (tmp_path / "ends-2").write_text("error")
    return grid(x=[1, 2, 3], folder=[str(tmp_path)])


def passing() -> list[str]:
    return [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("repartir-")]


@ours
class TestResumed:
    def test_the_next_run_goes_on_from_the_last_state(self, ex: Any, tmp_path: Path, space: Any) -> None:
        path = tmp_path / "run.db"
        first = sweep(steps, space, executor=ex, journal=path, on_error="keep")
        assert [row.error is None for row in first.rows] == [True, False, True]
        assert len(os.listdir(f"{path}.checkpoints/1")) == 1
        again = sweep(steps, space, executor=ex, journal=path)
        assert [row.result for row in again.rows] == [[at, *[x] * 10] for x, at in ((1, 0), (2, 5), (3, 0))]
        assert not Path(f"{path}.checkpoints").exists()

    def test_another_function_does_not(self, ex: Any, tmp_path: Path, space: Any) -> None:
        path = tmp_path / "run.db"
        sweep(steps, space, executor=ex, journal=path, on_error="keep")
        with pytest.raises(JournalMismatch):
            sweep(other_steps, space, executor=ex, journal=path)
        found = sweep(other_steps, space, executor=ex, journal=path, on_change="rerun")
        assert [row.result[:2] for row in found.rows] == [[-1, 0]] * 3

    def test_without_a_journal_it_lasts_as_long_as_the_sweep(self, ex: Any, space: Any) -> None:
        before = passing()
        sweep(steps, space, executor=ex, on_error="skip")
        found = sweep(steps, space, executor=ex)
        assert [row.result[0] for row in found.rows] == [0, 0, 0]
        assert passing() == before

    def test_elsewhere_there_is_none(self, ex: Any) -> None:
        with pytest.raises(RuntimeError, match="only"):
            ex.submit(repartir.restored).result()


@pytest.mark.parametrize("how", ["error", "kill"])
@only_fork
def test_a_retry_goes_on_from_the_last_state(make: Make, tmp_path: Path, space: Any, how: str) -> None:
    (tmp_path / "ends-2").write_text(how)
    ex: Any = make(2)
    found = sweep(steps, space, executor=ex.options(retries=1))
    assert [row.result[0] for row in found.rows] == [0, 5, 0]
    assert [row.attempts for row in found.rows] == [1, 2, 1]
