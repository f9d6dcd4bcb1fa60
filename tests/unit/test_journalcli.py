"""`repartir journal …`: what it prints, its exit codes, what it refuses; nothing that it reads is unpickled."""

from __future__ import annotations

import csv
import enum
import io
import json
import math
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repartir import cli, journalmerge
from repartir.checkpoints import name_of_row
from repartir.journal import Journal
from tests.helpers import package_root


class Colour(enum.Enum):
    RED = 1


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def simulate(x: float) -> float:
    return 2 * x


def another(x: float) -> float:
    return 3 * x


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def fill(path: Path, rows: dict[int, Any], fn: Any = simulate, seed: int = 7, **how: Any) -> Path:
    """A journal with `rows`: number → result, or the error of a row that failed."""
    with Journal.open(path, fn, seed=seed, **how) as journal:
        for number, result in rows.items():
            is_error = isinstance(result, Exception)
            journal.record(
                key(number),
                0,
                {"x": number, "colour": Colour.RED},
                result=None if is_error else result,
                error=result if is_error else None,
                traceback="Traceback…" if is_error else None,
                seconds=0.25,
                worker=1,
                attempts=1,
            )
    return path


def run(*args: object) -> int:
    return cli.main(["journal", *map(str, args)])


def said(capsys: pytest.CaptureFixture[str], *args: object, code: int = 0) -> str:
    assert run(*args) == code
    out, err = capsys.readouterr()
    return err if code else out


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return fill(
        tmp_path / "walk.db",
        {1: {"loss": 0.5, "path": np.arange(2)}, 2: ValueError("no luck"), 3: {"loss": math.nan}},
    )


def test_list_has_one_line_a_journal(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = fill(path.parent / "other.db", {1: 1})
    lines = said(capsys, "list", path, other).splitlines()
    assert lines[0].startswith(f"{path}: simulate, 2 rows, 1 error, seed 7, last run 20")
    assert lines[1].startswith(f"{other}: simulate, 1 row, 0 errors, seed 7")
    (one,) = json.loads(said(capsys, "list", "--json", path))["journals"]
    assert (one["function"], one["rows"], one["errors"], one["seed"], one["runs"]) == ("simulate", 2, 1, 7, 1)
    assert one["last_run"]["numpy"] == np.__version__


def test_list_goes_on_after_a_file_that_is_none(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path.parent / "notes.txt").write_text("mine")
    assert run("list", path.parent / "notes.txt", path) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{path}: simulate")
    assert "notes.txt: " in err
    assert "no journal of Repartir" in err
    assert (path.parent / "notes.txt").read_text() == "mine"


def test_show_tells_of_the_journal_and_its_last_rows(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "show", path)
    assert "function:" in text
    assert "x=1, colour=Colour.RED  #0" in text
    assert "failed: ValueError: no luck" in text
    assert len(said(capsys, "show", path, "--rows", 0).splitlines()) == len(text.splitlines()) - 3
    found = json.loads(said(capsys, "show", path, "--rows", 2, "--json"))
    assert [row["params"]["x"] for row in found["last_rows"]] == [2, 3]
    assert found["last_rows"][1]["result"] == {"loss": "nan"}


def test_export_writes_the_three_forms(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(said(capsys, "export", path))))
    assert list(rows[0]) == [
        "x",
        "colour",
        "repeat",
        "loss",
        "path",
        "error",
        "seconds",
        "worker",
        "attempts",
    ]
    assert [row["x"] for row in rows] == ["1", "2", "3"]
    assert (rows[0]["loss"], rows[0]["path"], rows[1]["error"]) == ("0.5", "[0, 1]", "ValueError: no luck")
    parsed = json.loads(said(capsys, "export", path, "--json"))
    assert parsed[0]["result"] == {"loss": 0.5, "path": [0, 1]}
    for name in ("out.csv", "out.json", "out.jsonl"):
        assert said(capsys, "export", path, "--to", path.parent / name) == ""
    assert list(csv.DictReader((path.parent / "out.csv").open())) == rows
    assert json.loads((path.parent / "out.json").read_text()) == parsed
    assert [json.loads(line) for line in (path.parent / "out.jsonl").read_text().splitlines()] == parsed
    assert sorted(os.listdir(path.parent)) == ["out.csv", "out.json", "out.jsonl", "walk.db"]


def test_columns_of_one_name_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fill(tmp_path / "walk.db", {1: {"x": 5, "seconds": 3}})
    (row,) = csv.DictReader(io.StringIO(said(capsys, "export", path)))
    assert (row["x"], row["result.x"], row["result.seconds"], row["seconds"]) == ("1", "5", "3", "0.25")


def test_nothing_is_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bomb = tmp_path / "exploded"
    path = fill(tmp_path / "walk.db", {1: Bomb(bomb)})
    for command in ("show", "export", "list", "vacuum"):
        text = said(capsys, command, path)
        assert ("<pickle, " in text) == (command in ("show", "export"))
    said(capsys, "merge", tmp_path / "all.db", path)
    assert not bomb.exists()


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ([], "COMMAND"),
        (["lists"], "invalid choice"),
        (["list"], "FILE"),
        (["show", "walk.db", "--rows", "-1"], "whole number"),
        (["export", "walk.db", "--to", "out.xls"], "must end with .csv, .json or .jsonl"),
        (["merge", "out.db"], "FILE"),
        (["merge", "out.db", "in.db", "--keep", "best"], "invalid choice"),
    ],
)
def test_wrong_usage_exits_with_2(
    args: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        run(*args)
    assert left.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("command", ["list", "show", "export", "vacuum"])
def test_a_file_that_is_not_there_is_told(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there is no journal" in said(capsys, command, tmp_path / "walk.db", code=1)
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_told(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such file" in said(capsys, "export", path, "--to", path.parent / "no" / "out.csv", code=1)


def test_merge_joins_what_agrees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = fill(tmp_path / "1.db", {1: 1.0, 2: ValueError("no luck"), 3: 3.0, 5: ValueError("old")})
    second = fill(tmp_path / "2.db", {2: 2.0, 3: 3.0, 4: math.nan, 5: ValueError("new")})
    third = fill(tmp_path / "3.db", {2: ValueError("again"), 4: math.nan})
    out = tmp_path / "all.db"
    assert json.loads(said(capsys, "merge", out, first, second, third, "--json")) == {
        "file": str(out),
        "rows": 4,
        "errors": 1,
        "added": 7,
    }
    with Journal.open(out, simulate, seed=None) as journal:
        assert journal.seed == 7
        found = {row.params["x"]: row.result for row in journal.finished().values()}
    assert {x: found[x] for x in (1, 2, 3)} == {1: 1.0, 2: 2.0, 3: 3.0}
    assert math.isnan(found[4])
    rows = json.loads(said(capsys, "export", out, "--json"))
    assert [row["error"] for row in rows if row["params"]["x"] == 5] == ["ValueError: new"]
    said(capsys, "merge", out, first, second)  # again: nothing new, and no run twice
    with sqlite3.connect(out) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (4,)
        assert connection.execute("SELECT count(*) FROM rows").fetchone() == (5,)
    connection.close()


def test_merge_refuses_other_functions_and_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = fill(tmp_path / "1.db", {1: 1.0})
    second = fill(tmp_path / "2.db", {1: 1.0}, seed=8)
    third = fill(tmp_path / "3.db", {1: 1.0}, fn=another)
    out = tmp_path / "all.db"
    assert f"seed 7 in {first}, 8 in {second}" in said(capsys, "merge", out, first, second, code=1)
    assert "+    return 3 * x" in said(capsys, "merge", out, first, third, code=1)
    assert not out.exists()
    assert "merged into itself" in said(capsys, "merge", first, first, code=1)
    assert sorted(os.listdir(tmp_path)) == ["1.db", "2.db", "3.db"]


def test_merge_joins_equal_versions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = fill(tmp_path / "1.db", {1: 1.0}, version="2")
    second = fill(tmp_path / "2.db", {2: 1.0}, fn=another, version="2")
    assert "2 rows" in said(capsys, "merge", tmp_path / "all.db", first, second)


def test_results_that_differ_are_told_unless_one_is_to_be_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = fill(tmp_path / "1.db", {1: 1.0, 2: 2.0}), fill(tmp_path / "2.db", {1: 5.0})
    message = said(capsys, "merge", tmp_path / "all.db", first, second, code=1)
    assert f"the row {{'x': 1, 'colour': 'Colour.RED'}}, repeat 0: 1.0 in {first}, 5.0 in {second}" in message
    for keep, expected in (("first", 1.0), ("last", 5.0)):
        out = tmp_path / f"{keep}.db"
        said(capsys, "merge", out, first, second, "--keep", keep)
        with Journal.open(out, simulate, seed=7) as journal:
            assert journal.finished()[key(1), 0].result == expected
    before = {row["result"] for row in json.loads(said(capsys, "export", first, "--json"))}
    said(capsys, "merge", first, second, code=1)
    assert {row["result"] for row in json.loads(said(capsys, "export", first, "--json"))} == before


def test_vacuum_drops_history_and_what_no_task_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fill(tmp_path / "walk.db", dict.fromkeys(range(50), "y" * 5000))
    fill(path, {1: 1.0}, fn=another, on_change="rerun")
    with Journal.open(path, another, seed=7) as journal:
        for folder, names in (
            (journal.checkpoints, (name_of_row(key(1), 0), name_of_row(key(2), 0))),
            (f"{path}.checkpoints/1", ("old",)),
        ):
            os.makedirs(folder)
            for name in names:
                Path(folder, f"{name}.checkpoint").touch()
    assert "2 rows" not in said(capsys, "list", path)
    found = json.loads(said(capsys, "vacuum", path, "--json"))
    assert (found["rows"], found["checkpoints"]) == (50, 2)
    assert found["bytes_after"] < found["bytes_before"] / 2
    assert os.listdir(journal.checkpoints) == [f"{name_of_row(key(2), 0)}.checkpoint"]
    with Journal.open(path, another, seed=7) as journal:
        assert [row.result for row in journal.finished().values()] == [1.0]
    assert "0 rows and 0 checkpoints dropped" in said(capsys, "vacuum", path)


def test_a_journal_in_use_is_read_but_not_written(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journalmerge.journalfile, "BUSY_S", 0.0)
    with Journal.open(path, simulate, seed=7):
        assert "2 rows" in said(capsys, "list", path)
        assert "in use by" in said(capsys, "vacuum", path, code=1)
        assert "2 rows" in said(capsys, "merge", path.parent / "all.db", path)


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_error(path: Path) -> None:
    fill(path, dict.fromkeys(range(10, 40), "y" * 20_000))
    command = [sys.executable, "-m", "repartir", "journal", "export", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(package_root())}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
