"""Functions, classes and exceptions of `__main__`, run from scripts in fresh interpreters."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from .kinds import FORK, Kind, every_start, ours, processes, workers
from .main_functions import EXPECTED, SOURCE
from .scripts import run_script

NOT_SERIAL = {"exception_is_of_our_class": "without a process there is no remote traceback"}


@pytest.fixture(scope="module")
def report(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the checks of one script gave: one interpreter for all of them."""
    ended = run_script(tmp_path_factory.mktemp("main"), kind, SOURCE, timeout_s=60)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, object] = json.loads(ended.stdout)
    return found


@every_start
@ours
@pytest.mark.parametrize("check", EXPECTED)
def test_main(report: dict[str, object], kind: Kind, check: str) -> None:
    if kind.is_serial and check in NOT_SERIAL:
        pytest.skip(NOT_SERIAL[check])
    assert report[check] == EXPECTED[check], report[check]


def test_every_check_is_expected() -> None:
    assert SOURCE.count("@check\n") == len(EXPECTED)


@processes
def test_a_function_defined_before_the_executor(kind: Kind, tmp_path: Path) -> None:
    """The one form that the stdlib's pool can do too."""
    ended = run_script(
        tmp_path,
        kind,
        """
        class Point:
            def __init__(self, x):
                self.x = x

        def doubled(point):
            return Point(2 * point.x)

        if __name__ == "__main__":
            with make(2) as ex:
                result = ex.submit(doubled, Point(21)).result(15)
                print(type(result) is Point, result.x)
        """,
    )
    assert (ended.returncode, ended.lines, ended.stderr) == (0, ["True 42"], "")


@ours
def test_tracebacks_and_warnings_name_the_file(kind: Kind, tmp_path: Path) -> None:
    ended = run_script(
        tmp_path,
        kind,
        """
        import traceback, warnings

        class Model:
            def inverse(self, x):
                return 1 / x

        def fails():
            return (lambda x: Model().inverse(x))(0)  # divides

        def warns():
            warnings.warn("careful")

        with make(1) as ex:
            text = "".join(traceback.format_exception(ex.submit(fails).exception(15)))
            ex.submit(warns).result(15)
        print(__file__, text.count(__file__), "return 1 / x" in text, "# divides" in text)
        """,
    )
    assert ended.returncode == 0, ended.stderr
    file, count, *lines = ended.lines[0].split()
    assert int(count) >= 3
    assert lines == ["True", "True"]
    assert re.search(
        rf'^{re.escape(file)}:\d+: UserWarning: careful\n  warnings.warn\("careful"\)$', ended.stderr, re.M
    )


@workers
def test_a_global_array_of_main(kind: Kind, tmp_path: Path) -> None:
    """Made before the executor (inherited by fork, else sent), then replaced by another."""
    ended = run_script(
        tmp_path,
        kind,
        """
        import numpy as np
        TABLE = np.arange(50_000.0)

        def total():
            return float(TABLE.sum())

        with make(1) as ex:
            print(ex.submit(total).result(15) == TABLE.sum())
            TABLE = np.ones(50_000)
            print(ex.submit(total).result(15) == 50_000)
        """,
    )
    assert (ended.returncode, ended.lines) == (0, ["True", "True"]), ended.stderr


@pytest.mark.kinds(FORK)
def test_a_large_global_warns_once_and_names_it(kind: Kind, tmp_path: Path) -> None:
    ended = run_script(
        tmp_path,
        kind,
        """
        with make(1) as ex:
            BIG = list(range(300_000))
            def size():
                return len(BIG)
            print([ex.submit(size).result(15) for _ in range(3)])
        """,
    )
    assert (ended.returncode, ended.lines) == (0, ["[300000, 300000, 300000]"])
    assert ended.stderr.count("BIG") >= 1
    assert "before the executor is made" in ended.stderr
