"""`kill -9` of a client at random moments of a storm of submits: no process is left, and nothing in /dev/shm.

(What is left in /dev/shm the guard sees: tests/guard.py.)
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.faults.waits import until

ROOT = Path(__file__).resolve().parents[2]
ENDS_WITHIN_S = 2.0
LOADED_MACHINE_S = 8.0

CLIENT = """
import os, signal, sys, threading
import numpy as np
import repartir

def echo(value):
    return value

def die(value):
    os.kill(os.getpid(), signal.SIGKILL)

def storm(ex):
    while True:
        futures = [ex.submit(echo, n) for n in range(50)]
        futures += [ex.submit(echo, np.zeros(10_000)) for n in range(3)]
        futures += [ex.submit(lambda: 5)]
        for future in futures:
            future.result()
        list(ex.map(echo, range(100)))
        if "deaths" in sys.argv:
            ex.submit(die, 0).exception()

if __name__ == "__main__":
    ex = repartir.Executor(2, mp_context=sys.argv[1])
    ex.submit(echo, 0).result()
    for _ in range(2):
        threading.Thread(target=storm, args=(ex,), daemon=True).start()
    print("begun", flush=True)
    if "churn" in sys.argv:
        while True:
            with repartir.Executor(2) as other:
                other.submit(echo, 0).result()
    storm(ex)
"""


@contextmanager
def client(folder: Path, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """The program, at work, in a session of its own."""
    script = folder / "client.py"
    script.write_text(CLIENT)
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(script), *args],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        with process.stdout:
            assert process.stdout.readline() == b"begun\n", (folder / "stderr").read_text()
            yield process
    finally:
        process.kill()
        process.wait()


def family(session: int) -> list[psutil.Process]:
    """The processes of a session, those that have ended and are not buried left out."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def kill_it(folder: Path, rng: random.Random, *args: str) -> None:
    with client(folder, *args) as process:
        # Client, nursery and a worker; a second may be on its way, and one may be dead at the moment.
        assert len(family(process.pid)) >= (2 if "deaths" in args else 3)
        threading.Event().wait(rng.uniform(0, 0.15))  # the random moment
        process.kill()
        killed = time.monotonic()
        process.wait(ENDS_WITHIN_S + LOADED_MACHINE_S)
        until(lambda: not family(process.pid), family(process.pid))
        assert time.monotonic() - killed < ENDS_WITHIN_S + LOADED_MACHINE_S
    assert (folder / "stderr").read_text() == ""


def test_amid_submits(tmp_path: Path) -> None:
    kill_it(tmp_path, random.Random(1), "fork")


def test_amid_deaths_of_workers(tmp_path: Path) -> None:
    """The nursery has reports to send, and members to fork, when its client goes."""
    kill_it(tmp_path, random.Random(2), "fork", "deaths")


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("deaths",), ("churn",), ("churn", "deaths")], ids="+".join)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_again_and_again(tmp_path: Path, method: str, how: tuple[str, ...]) -> None:
    rng = random.Random(f"{method} {how}")
    for _ in range(4):
        kill_it(tmp_path, rng, method, *how)
