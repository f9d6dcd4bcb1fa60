"""What users do to their processes, and what it must not do to others."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Executor, wait
from pathlib import Path

import pytest

from .kinds import FORK, Kind
from .scripts import run_script
from .sync import LIMIT_S

pytestmark = pytest.mark.kinds(FORK)


@pytest.mark.parametrize("stderr", ["None", "type('Log', (), {'write': lambda self, text: None})()"])
def test_a_stderr_that_cannot_be_flushed(kind: Kind, tmp_path: Path, stderr: str) -> None:
    """The program runs once: no exception leaves the forked child."""
    source = f"""
import os, sys
sys.stderr = {stderr}
try:
    with make(2) as ex:
        print(sum(ex.map(abs, range(-9, 0))), flush=True)
finally:
    print("clean-up", flush=True)
"""
    ended = run_script(tmp_path, kind, source)
    assert ended.lines == ["45", "clean-up"]


def test_a_result_in_a_signal_handler(kind: Kind, tmp_path: Path) -> None:
    source = """
import signal, time
ex = make(2)
ex.submit(abs, 1).result(15)
def handler(*_):
    print(ex.submit(abs, -1).result(15), flush=True)
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.1)
ex.submit(time.sleep, 0.4).result(15)
print("slept", flush=True)
ex.shutdown()
"""
    ended = run_script(tmp_path, kind, source)
    assert (ended.lines, ended.stderr) == (["1", "slept"], "")


def test_a_condition_whose_lock_was_leaked_holds_nobody_up(ex: Executor) -> None:
    """As `wait` of the standard library leaves it when a signal handler raises in it."""
    leaked = ex.submit(time.sleep, 0.05)
    taker = threading.Thread(target=leaked._condition.acquire)  # type: ignore[attr-defined]
    taker.start()
    taker.join()
    others = [ex.submit(abs, -n) for n in range(3)]
    assert not wait(others, timeout=LIMIT_S).not_done
    assert leaked.done() or not wait([ex.submit(time.sleep, 0.2)], timeout=LIMIT_S).not_done


def test_a_callback_that_exits(ex: Executor) -> None:
    future = ex.submit(time.sleep, 0.05)
    future.add_done_callback(leave)
    assert not wait([future], timeout=LIMIT_S).not_done
    assert ex.submit(abs, -3).result(LIMIT_S) == 3
    told = threading.Event()
    ex.submit(time.sleep, 0.05).add_done_callback(lambda _: told.set())
    assert told.wait(LIMIT_S), "the log of the callback before is not written"


def leave(_: object) -> None:
    raise SystemExit(3)


def test_a_task_that_closes_all_descriptors(kind: Kind, tmp_path: Path) -> None:
    source = """
import os
def close_all():
    os.closerange(3, 4096)
    return "closed"
with make(1) as ex:
    print(ex.submit(close_all).result(15), ex.submit(abs, -3).result(15))
"""
    ended = run_script(tmp_path, kind, source)
    assert (ended.lines, ended.stderr) == (["closed 3"], "")
