"""Starts that hang or fail: a member that is not ready in time is replaced, and so is the nursery itself."""

from __future__ import annotations

import sys
import threading
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import psutil
import pytest

from repartir import supervisor

from .kinds import FORK, FORKSERVER, SPAWN, Kind
from .scripts import run_script
from .sync import LIMIT_S

# A hook in the forked child stands for a lock that a thread of the parent held: before any code of ours runs.
HANG = """
import os, signal, sys
from repartir import Executor, supervisor

supervisor._FORKED_START_S = 0.2
hangs, folder, client = int(sys.argv[1]), sys.argv[2], os.getpid()

def hang():
    nursery = os.getppid() == client
    if nursery != (sys.argv[3] == "nursery"):
        return
    for nth in range(hangs):
        try:
            os.close(os.open(f"{folder}/{nth}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        while True:
            signal.pause()

os.register_at_fork(after_in_child=hang)
"""


@pytest.mark.kinds(FORK)
@pytest.mark.parametrize("who", ["member", "nursery"])
def test_what_hangs_at_its_start_is_killed_and_forked_again(kind: Kind, tmp_path: Path, who: str) -> None:
    ended = run_script(
        tmp_path,
        kind,
        HANG
        + """
with Executor(2, mp_context="fork") as ex:
    print([ex.submit(pow, n, 2).result(15) for n in range(4)], len(os.listdir(folder)))
""",
        1,
        _folder(tmp_path),
        who,
    )
    assert (ended.returncode, ended.lines, ended.stderr) == (0, ["[0, 1, 4, 9] 1"], "")


@pytest.mark.kinds(FORK)
@pytest.mark.parametrize("who", ["member", "nursery"])
def test_an_executor_that_is_not_used_ends_though_its_start_hangs(
    kind: Kind, tmp_path: Path, who: str
) -> None:
    source = HANG + "with Executor(2, mp_context='fork') as ex: pass\nprint(\"ended\")"
    ended = run_script(tmp_path, kind, source, 1, _folder(tmp_path), who)
    assert (ended.returncode, ended.lines, ended.stderr) == (0, ["ended"], "")


@pytest.mark.slow
@pytest.mark.kinds(FORK)
@pytest.mark.parametrize("who", ["member", "nursery"])
def test_what_hangs_again_and_again_breaks_the_executor(kind: Kind, tmp_path: Path, who: str) -> None:
    ended = run_script(
        tmp_path,
        kind,
        HANG
        + """
from concurrent.futures.process import BrokenProcessPool
with Executor(1, mp_context="fork") as ex:
    try:
        ex.submit(pow, 2, 2).result(15)
    except BrokenProcessPool as error:
        print(error)
""",
        100,
        _folder(tmp_path),
        who,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.lines) == 1
    assert ("forks the workers died" if who == "nursery" else "before they are ready") in ended.lines[0]


def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "hung"
    folder.mkdir()
    return folder


@pytest.mark.kinds(FORK, SPAWN, FORKSERVER)
def test_no_server_process_is_started(kind: Kind, tmp_path: Path) -> None:
    """Neither a resource tracker nor a fork server: the client's descendants are the nursery and two workers."""
    ended = run_script(
        tmp_path,
        kind,
        """
        import multiprocessing.resource_tracker as tracker, numpy, os, psutil
        with make(2) as ex:
            print(ex.submit(numpy.ones, 10**6).result(15).sum() == 10**6)
            print(list(ex.map(abs, range(100))) == list(range(100)), tracker._resource_tracker._pid)
            print(len(psutil.Process().children()), len(psutil.Process().children(recursive=True)))
        """,
    )
    assert (ended.returncode, ended.lines, ended.stderr) == (0, ["True", "True None", "1 3"], "")


@pytest.mark.kinds(SPAWN)
def test_an_initializer_that_cannot_be_sent(kind: Kind) -> None:
    """The constructor says so, and leaves no process behind, not even one that has ended."""
    from repartir import TaskNotSerializable

    before = psutil.Process().children()
    with pytest.raises(TaskNotSerializable, match=r"the initializer.*lock"):
        kind.make(1, initializer=print, initargs=(threading.Lock(),))
    assert psutil.Process().children() == before


@pytest.mark.kinds(SPAWN)
def test_a_fresh_interpreter_that_fails_breaks_the_executor(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it has no argument to read the client's message with; elsewhere memory or a module may be missing."""
    monkeypatch.setattr(supervisor, "fresh_command", lambda *_: [sys.executable, "-c", ""])
    with kind.make(1, initializer=print, initargs=(b"x" * 1_000_000,)) as ex:
        with pytest.raises(BrokenProcessPool, match="forks the workers died"):
            ex.submit(pow, 2, 2).result(LIMIT_S)
