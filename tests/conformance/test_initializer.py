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


@every_start
@processes
def test_globals_that_it_sets(kind: Kind, tmp_path: Path) -> None:
    source = SCRIPT.replace("INITIALIZER", "set_up").replace("ARGUMENTS", "(5,)")
    ended = run_script(tmp_path, kind, source)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.lines == SEEN


@processes
def test_by_a_partial(kind: Kind, tmp_path: Path) -> None:
    source = SCRIPT.replace("INITIALIZER", "functools.partial(set_up, 5)").replace("ARGUMENTS", "()")
    ended = run_script(tmp_path, kind, source)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.lines == SEEN
