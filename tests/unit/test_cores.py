"""A worker's share of the cores: what arguments mean, what the environment says, which cores come first."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from repartir import Executor, SerialExecutor, cores
from repartir.cores import UNLIMITED, VARIABLES, CoreShare, cores_by_node, share_of_cores


@pytest.mark.parametrize(
    ("usable", "workers", "threads"), [(8, 2, 4), (8, 3, 2), (2, 2, 1), (2, 5, 1), (64, 1, 64)]
)
def test_auto_is_cores_by_workers(usable: int, workers: int, threads: int) -> None:
    assert share_of_cores("auto", False, workers, usable) == CoreShare(threads, at_most=True)


def test_none_leaves_all_alone() -> None:
    share = share_of_cores(None, False, 2, 8)
    assert share == UNLIMITED
    assert share.variables({"OMP_NUM_THREADS": "5"}) == {}
    assert share.limiter() is None


def test_a_number_is_obeyed_whatever_the_environment_says() -> None:
    share = share_of_cores(3, False, 2, 8)
    assert share.variables({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "8"}) == dict.fromkeys(VARIABLES, "3")


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({}, {"OMP": 4, "OPENBLAS": 4, "MKL": 4}),
        ({"OMP_NUM_THREADS": "2"}, {"OMP": 2, "OPENBLAS": 2, "MKL": 2}),
        ({"OMP_NUM_THREADS": "16"}, {"OMP": 4, "OPENBLAS": 4, "MKL": 4}),
        ({"OPENBLAS_NUM_THREADS": "1"}, {"OMP": 4, "OPENBLAS": 1, "MKL": 4}),
        ({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "3"}, {"OMP": 1, "OPENBLAS": 1, "MKL": 3}),
        ({"OMP_NUM_THREADS": " 2, 1"}, {"OMP": 2, "OPENBLAS": 2, "MKL": 2}),
        ({"OMP_NUM_THREADS": "many"}, {"OMP": 4, "OPENBLAS": 4, "MKL": 4}),
        ({"OMP_NUM_THREADS": "0"}, {"OMP": 4, "OPENBLAS": 4, "MKL": 4}),
        ({"OMP_NUM_THREADS": "1" * 5000}, {"OMP": 4, "OPENBLAS": 4, "MKL": 4}),
        ({"OMP_NUM_THREADS": "-1"}, {"OMP": 4, "OPENBLAS": 4, "MKL": 4}),
    ],
)
def test_auto_never_goes_above_what_the_environment_says(said: dict[str, str], found: dict[str, int]) -> None:
    variables = CoreShare(4, at_most=True).variables(said)
    assert {name: int(variables[f"{name}_NUM_THREADS"]) for name in found} == found


@pytest.mark.parametrize("make", [Executor, SerialExecutor])
@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"threads_per_worker": 0}, ValueError, "threads_per_worker must be at least 1, not 0"),
        ({"threads_per_worker": -3}, ValueError, "at least 1"),
        (
            {"threads_per_worker": "all"},
            ValueError,
            "threads_per_worker must be a number, \"auto\" or None, not 'all'",
        ),
        (
            {"threads_per_worker": 1.5},
            TypeError,
            'threads_per_worker must be an integer, "auto" or None, not float',
        ),
        ({"threads_per_worker": True}, TypeError, "not bool"),
        ({"pin": 1}, TypeError, "pin must be True or False, not int"),
        ({"pin": [0, 1]}, TypeError, "not list"),
    ],
    ids=str,
)
def test_bad_arguments(make: Any, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        make(1, **arguments)
    assert text in str(raised.value)


def test_pin_where_the_system_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity")
    with pytest.raises(ValueError, match=r"pin=True needs os\.sched_setaffinity"):
        Executor(1, pin=True)


def test_a_pinned_worker_has_one_thread() -> None:
    assert share_of_cores("auto", True, 2, 8).threads == 1
    assert share_of_cores(4, True, 2, 8).threads == 4


def test_cores_of_one_node_come_before_those_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for node, text in ((0, "0-1,4,8-9\n"), (1, "2-3,5-7\n"), (10, "\n")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(text)
    (tmp_path / "node2").mkdir()
    (tmp_path / "possible").write_text("0-2,10\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2, 3, 4, 6, 8})
    assert cores_by_node(str(tmp_path)) == (1, 4, 8, 2, 3, 6)


def test_without_nodes_cores_come_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 3, 9})
    assert cores_by_node(str(tmp_path / "none")) == (3, 5, 9)


def test_rows_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[set[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, which: bound.append(which))
    for row in range(4):
        CoreShare(1, at_most=True, pins=(3, 5, 9)).pin(row)
    assert bound == [{3}, {5}, {9}, {3}]


def test_nothing_is_looked_for_where_no_library_is_loaded() -> None:
    """What it costs then is one look at the map of the process."""
    code = (
        "import sys; from repartir.cores import CoreShare; print(CoreShare(1, at_most=True).limiter().args[1],"
        "'threadpoolctl' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["()", "False"]


def test_libraries_are_looked_for_anew_only_when_others_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    mapped, looks = [""], []
    monkeypatch.setattr(cores, "open", lambda _: io.StringIO(mapped[0]), raising=False)
    monkeypatch.setattr(cores, "_look_at_libraries", lambda: (looks.append(1), len(looks)))
    line = "7f00-7f01 r-xp 00000000 00:23 53 /usr/lib/"
    assert cores._loaded_libraries() == ()
    mapped[0] = f"{line}libm.so.6\n{line}_component.so\n{line}blas/one.py\n"
    assert cores._loaded_libraries() == ()
    mapped[0] += f"{line}libscipy_openblas64_-32a4.so\n"
    assert [cores._loaded_libraries()[1] for _ in range(3)] == [1, 1, 1]
    mapped[0] += f"{line}libgomp-a34.so.1.0.0\n"
    assert [cores._loaded_libraries()[1] for _ in range(3)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("share", "present", "told"),
    [
        (CoreShare(2, at_most=True), 8, [2]),
        (CoreShare(2, at_most=True), 1, []),
        (CoreShare(2, at_most=False), 1, [2]),
        (CoreShare(2, at_most=False), 2, []),
        (CoreShare(2, at_most=True), None, [2]),
    ],
)
def test_a_loaded_library_is_told(
    share: CoreShare, present: int | None, told: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        num_threads = present
        told: ClassVar[list[int]] = []

        def set_num_threads(self, number: int) -> None:
            self.told.append(number)

    monkeypatch.setattr(os, "environ", {"MKL_NUM_THREADS": "1"})
    monkeypatch.setattr(cores, "_loaded_libraries", lambda: (Library(),))
    limit = share.limiter()
    assert limit is not None
    assert Library.told == []
    limit()
    assert Library.told == told
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert os.environ["MKL_NUM_THREADS"] == ("1" if share.at_most else "2")


def test_a_system_that_does_not_tell_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_file(path: str) -> Any:
        raise FileNotFoundError(path)

    monkeypatch.setattr(cores, "open", no_file, raising=False)
    monkeypatch.setattr(cores, "_look_at_libraries", lambda: ("found",))
    assert cores._loaded_libraries() == ("found",)
