"""An initializer of the main module sets up globals, and tasks of that module see them."""

from __future__ import annotations

from pathlib import Path

from .kinds import Kind, every_start, processes
from .scripts import run_script

SCRIPT = """
import functools
STATE = None
CONFIG = {}
COUNT = 0

def load(value):
    return value * 10

def set_up(value):
    global STATE, LATE, COUNT
    STATE, LATE, COUNT = load(value), "late", 5
    CONFIG["key"] = value

def get(_):
    return STATE, LATE, CONFIG, [STATE for _ in range(1)]

def count(_):
    global COUNT
    COUNT += 1
    return COUNT

if __name__ == "__main__":
    with make(1, initializer=INITIALIZER, initargs=ARGUMENTS) as ex:
        print(list(ex.map(get, [1])))
        print(list(ex.map(count, [1, 2])))
        print(ex.submit(get, 0).result(15)[0])
"""

SEEN = ["[(50, 'late', {'key': 5}, [50])]", "[6, 7]", "50"]


def expect_seen(kind: Kind, folder: Path, initializer: str, arguments: str) -> None:
    source = SCRIPT.replace("INITIALIZER", initializer).replace("ARGUMENTS", arguments)
    ended = run_script(folder, kind, source)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.lines == SEEN


@every_start
@processes
def test_globals_that_it_sets(kind: Kind, tmp_path: Path) -> None:
    expect_seen(kind, tmp_path, "set_up", "(5,)")


@processes
def test_by_a_partial(kind: Kind, tmp_path: Path) -> None:
    expect_seen(kind, tmp_path, "functools.partial(set_up, 5)", "()")
