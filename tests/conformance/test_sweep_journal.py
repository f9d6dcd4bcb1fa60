"""Sweeps with a journal: what it has is not run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from repartir import (
    Interrupted,
    JournalError,
    JournalMismatch,
    SerialExecutor,
    SweepRow,
    TaskNotSerializable,
    grid,
    halving,
    sampled,
    sweep,
)
from repartir.committer import Committer

from . import sweep_tasks as tasks
from .conftest import Make
from .kinds import only_fork, ours

pytestmark = pytest.mark.any_start

SPACE = grid(lr=[0.01, 0.1, 1.0], depth=[1, 2])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


def counted(x: int, folder: str) -> int:
    with Path(folder, f"calls-{x}").open("a") as file:
        file.write("x")
    if Path(folder, f"fails-{x}").exists():
        raise ValueError(x)
    return x * x


def calls(folder: Path) -> dict[int, int]:
    return {int(path.name.partition("-")[2]): len(path.read_text()) for path in folder.glob("calls-*")}


@ours
class TestResumed:
    def test_a_second_run_calls_nothing_and_finds_the_same(self, ex: Any, path: Path) -> None:
        first = sweep(tasks.loss, SPACE, repeats=2, executor=ex, journal=path)
        told: list[SweepRow] = []
        again = sweep(tasks.loss, SPACE, repeats=2, executor=ex, journal=path, on_row=told.append)
        assert again.rows == first.rows
        assert again.seed == first.seed
        assert not told

    def test_only_what_is_missing_or_failed_runs(self, ex: Any, path: Path, tmp_path: Path) -> None:
        (tmp_path / "fails-2").touch()
        space = grid(x=range(4), folder=[str(tmp_path)])
        found = sweep(counted, space, executor=ex, journal=path, on_error="keep")
        assert [row.params["x"] for row in found.errors] == [2]
        (tmp_path / "fails-2").unlink()
        wider = grid(x=range(6), folder=[str(tmp_path)])
        found = sweep(counted, wider, executor=ex, journal=path)
        assert [row.result for row in found] == [x * x for x in range(6)]
        assert calls(tmp_path) == {0: 1, 1: 1, 2: 2, 3: 1, 4: 1, 5: 1}

    def test_more_repeats(self, ex: Any, path: Path) -> None:
        few = sweep(tasks.loss, SPACE, repeats=1, executor=ex, journal=path)
        more = sweep(tasks.loss, SPACE, repeats=3, executor=ex, journal=path)
        assert [row for row in more if row.repeat == 0] == list(few)
        assert len({row.result["noise"] for row in more}) == 18

    def test_the_journals_seed_draws_the_points_again(self, ex: Any, path: Path) -> None:
        space = sampled(10, x=lambda rng: rng.random())
        first = sweep(tasks.identity, space, executor=ex, journal=path)
        again = sweep(tasks.identity, space, executor=ex, journal=path)
        assert [row.params for row in again] == [row.params for row in first]

    def test_what_finished_before_an_error_is_there(self, make: Make, path: Path, tmp_path: Path) -> None:
        ex: Any = make(2)  # its workers are stopped
        (tmp_path / "fails-3").touch()
        space = grid(x=range(4), folder=[str(tmp_path)])
        with pytest.raises(ValueError, match="3") as caught:
            sweep(counted, space, executor=ex, journal=path)
        partial = {row.params["x"] for row in caught.value.partial}  # type: ignore[attr-defined]
        (tmp_path / "fails-3").unlink()
        told: list[SweepRow] = []
        sweep(counted, space, executor=ex, journal=path, on_row=told.append)
        assert {row.params["x"] for row in told} == set(range(4)) - partial

    def test_labels(self, ex: Any, path: Path) -> None:
        space = grid(x={"one": object, "two": dict})
        first = sweep(tasks.name_of, space, executor=ex, journal=path)
        assert [row.result for row in first] == ["object", "dict"]
        assert sweep(tasks.name_of, space, executor=ex, journal=path).rows == first.rows

    def test_rungs(self, ex: Any, path: Path) -> None:
        rungs, space = halving("epochs", [1, 3]), grid(lr=[0.1, 0.2, 0.3])
        first = sweep(tasks.trained, space, executor=ex, journal=path, rungs=rungs)
        told: list[SweepRow] = []
        longer = halving("epochs", [1, 3, 9])
        again = sweep(tasks.trained, space, executor=ex, journal=path, rungs=longer, on_row=told.append)
        assert again.rows[:4] == first.rows
        assert [row.params["epochs"] for row in told] == [9]


@only_fork
class TestFailing:
    @pytest.mark.parametrize(("where", "count"), [("close", 5), ("add", 1)])
    def test_what_has_no_room_on_the_disk_is_in_partial(
        self, make: Make, path: Path, monkeypatch: pytest.MonkeyPatch, where: str, count: int
    ) -> None:
        own = make(2)  # its workers may be stopped
        done = getattr(Committer, where)

        def full(*args: Any) -> None:
            done(*args)
            raise JournalError("the disk is full")

        monkeypatch.setattr(Committer, where, full)
        with pytest.raises(JournalError, match="full") as caught:
            sweep(tasks.identity, grid(x=range(5)), executor=own, journal=path)
        assert len(caught.value.partial) == count  # type: ignore[attr-defined]

    def test_a_result_that_nothing_can_store_costs_its_row(self, kind: Any, path: Path) -> None:
        with SerialExecutor() as ex:
            space = grid(x=[1, "lock", 2])
            found = sweep(tasks.lock_or, space, executor=ex, journal=path, on_error="keep")
            assert [row.result for row in found] == [1, None, 2]
            assert isinstance(found[1].error, TaskNotSerializable)
            again = sweep(tasks.lock_or, space, executor=ex, journal=path, on_error="skip")
            assert [row.result for row in again] == [1, 2]
            with pytest.raises(TaskNotSerializable, match="lock"):
                sweep(tasks.lock_or, space, executor=ex, journal=path)


@only_fork
class TestChanged:
    def test_another_function(self, ex: Any, path: Path) -> None:
        sweep(tasks.identity, grid(x=[1]), executor=ex, journal=path)
        with pytest.raises(JournalMismatch, match="identity"):
            sweep(tasks.inverse, grid(x=[1]), executor=ex, journal=path)
        reused = sweep(tasks.inverse, grid(x=[1, 2]), executor=ex, journal=path, on_change="reuse")
        assert [row.result for row in reused] == [1, 0.5]

    def test_rerun(self, ex: Any, path: Path) -> None:
        sweep(tasks.identity, grid(x=[2]), executor=ex, journal=path)
        found = sweep(tasks.inverse, grid(x=[2]), executor=ex, journal=path, on_change="rerun")
        assert [row.result for row in found] == [0.5]

    def test_a_version_stands_for_the_code(self, ex: Any, path: Path) -> None:
        sweep(tasks.identity, grid(x=[2]), executor=ex, journal=path, version="1", seed=1)
        found = sweep(tasks.inverse, grid(x=[2]), executor=ex, journal=path, version="1", seed=1)
        assert [row.result for row in found] == [2]
        with pytest.raises(JournalMismatch, match="version"):
            sweep(tasks.inverse, grid(x=[2]), executor=ex, journal=path, version="2", seed=1)

    def test_another_seed(self, ex: Any, path: Path) -> None:
        sweep(tasks.loss, SPACE, executor=ex, journal=path, seed=1)
        with pytest.raises(JournalMismatch, match="seed"):
            sweep(tasks.loss, SPACE, executor=ex, journal=path, seed=2)

    def test_a_version_without_a_journal(self, ex: Any) -> None:
        with pytest.raises(ValueError, match=r"version= .* goes with journal="):
            sweep(tasks.identity, grid(x=[1]), executor=ex, version="1")
        with pytest.raises(ValueError, match=r"on_change= .* goes with journal="):
            sweep(tasks.identity, grid(x=[1]), executor=ex, on_change="rerun")

    def test_a_bad_space_makes_no_journal(self, ex: Any, path: Path) -> None:
        with pytest.raises(ValueError, match="the same"):
            sweep(tasks.identity, grid(x=[1, 1]), executor=ex, journal=path)
        assert not path.exists()

    def test_ctrl_c_keeps_the_rows_that_finished(self, make: Make, path: Path) -> None:
        def interrupt(row: SweepRow) -> None:
            if row.params["x"] >= 0:
                raise KeyboardInterrupt

        own: Any = make(2)
        with pytest.raises(Interrupted):
            sweep(tasks.identity, grid(x=range(50)), executor=own, journal=path, on_row=interrupt)
        told: list[SweepRow] = []
        found = sweep(tasks.identity, grid(x=range(50)), executor=own, journal=path, on_row=told.append)
        assert (len(found), len(told)) == (50, 49)


SCRIPT = """
import json, os, sys, time
import repartir

def row(x):
    time.sleep(0.002)
    os.write(1, f"{json.dumps([x, time.time()])}\\n".encode())
    return x

with repartir.Executor(2) as ex:
    repartir.sweep(row, repartir.grid(x=range(int(sys.argv[2]))), journal=sys.argv[1], seed=1, executor=ex)
"""


@only_fork
@pytest.mark.slow
@pytest.mark.parametrize("after", [0.3, 0.8, 1.3, 2.0])
def test_kill_minus_nine_loses_a_second_at_most(kind: Any, path: Path, tmp_path: Path, after: float) -> None:
    """And what is in the journal is not run again."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def run(kill_after: float | None) -> tuple[list[list[float]], float]:
        out = (tmp_path / "out").open("w+")
        with out:
            process = subprocess.Popen([sys.executable, str(script), str(path), "3000"], stdout=out)
            until = time.monotonic() + 30
            while kill_after is not None and not os.path.getsize(tmp_path / "out"):
                assert time.monotonic() < until
                time.sleep(0.01)
            try:
                process.wait(kill_after)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
            killed_at = time.time()
            time.sleep(0.1)  # members end with the client
            out.seek(0)
            return [json.loads(line) for line in out.read().splitlines() if line.endswith("]")], killed_at

    first, killed_at = run(after)
    second, _ = run(None)
    assert len(first) < 3000
    done, again = {x for x, _ in first}, {x for x, _ in second}
    assert done | again == set(range(3000))
    lost = [at for x, at in first if x in again]
    assert min(lost, default=killed_at) >= killed_at - 1.0
