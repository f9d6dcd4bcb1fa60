"""What is left of a pool, and of a program, after a death, an odd exception, a `kill -9` and Ctrl-C: each library in turn.

Every probe runs in a client of its own.  Counted after it are the processes of the client's session that still live and
the names in /dev/shm that were not there before.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from .common import Settings, client_process, run_script
from .contenders import ARRAY_CONTENDERS, OURS, Contender, Pool
from .report import Goal, Report, Row
from .stats import exactly
from .tasks import noop

LEFT_AFTER_S = 5.0
PROBE_S = 40.0


class TwoArguments(Exception):  # noqa: N818
    """As many libraries define theirs: it cannot be rebuilt from its `args`."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} at {where}")


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raise_two_arguments() -> None:
    raise TwoArguments("lost", "sea")


def later_task(pool: Pool, first: Callable[[], None]) -> dict[str, Any]:
    """What a task that ends badly gives, and whether the pool serves another one afterwards."""
    pool.take(pool.submit(noop))
    try:
        pool.take(pool.submit(first))
        gave = "nothing"
    except BaseException as error:  # noqa: BLE001 - what it is, is the figure
        gave = type(error).__name__
    try:
        pool.take(pool.submit(noop))
        after = "goes on"
    except BaseException as error:  # noqa: BLE001
        after = f"broken: {type(error).__name__}"
    return {"gave": gave, "after": after}


PROBES: dict[str, Callable[[Pool], dict[str, Any]]] = {
    "a worker is killed": lambda pool: later_task(pool, kill_self),
    "an exception with two arguments": lambda pool: later_task(pool, raise_two_arguments),
}
ENDS = {"kill -9 of the client": (signal.SIGKILL,), "two Ctrl-C": (signal.SIGINT, signal.SIGINT)}


def client(probe: str, name: str, workers: int) -> None:
    """The fresh interpreter: one probe, or (to be ended from outside) a pool whose workers are busy."""
    # Else a client of a shell's background job ignores Ctrl-C, as that does.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with ARRAY_CONTENDERS[name].open(workers) as pool:
        if probe in PROBES:
            print(json.dumps(PROBES[probe](pool)), flush=True)
            # What a broken pool does at its end is not the question here.
            os.killpg(os.getpgid(0), signal.SIGKILL)
        pool.take(pool.submit(noop))
        waits = [pool.submit(time.sleep, 30) for _ in range(workers)]
        print("busy", flush=True)
        for wait in waits:
            pool.take(wait)


def ask(probe: str, contender: Contender, workers: int) -> str:
    """What the probe found, in words."""
    with client_process("reliability", "--client", probe, contender.name, str(workers)) as process:
        try:
            output, _ = process.communicate(timeout=PROBE_S)
        except subprocess.TimeoutExpired:
            return "hangs"
    try:
        found = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        return f"ended with {process.returncode}"
    return f"{found['gave']}; {found['after']}"


def remains(how: str, contender: Contender, workers: int) -> tuple[int, int]:
    """Processes and names in /dev/shm that are left after the client was ended."""
    before = set(os.listdir("/dev/shm"))
    with client_process("reliability", "--client", how, contender.name, str(workers)) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "busy":
                break
        family = psutil.Process(process.pid).children(recursive=True)
        for number in ENDS[how]:
            if number == signal.SIGKILL:
                process.kill()
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            time.sleep(0.5)
        time.sleep(LEFT_AFTER_S)
        left = [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        client_lives = process.poll() is None
        names = set(os.listdir("/dev/shm")) - before
        for name in names:
            path = Path("/dev/shm", name)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return len(left) + client_lives, len(names)


def measure(settings: Settings) -> Report:
    """A row a probe and library; the goals are ours."""
    rows = []
    ours: list[int] = []
    for contender in ARRAY_CONTENDERS.values():
        if not contender.installed:
            continue
        for probe in PROBES:
            rows.append(Row(probe, contender.name, None, "", note=ask(probe, contender, settings.workers)))
        for how in ENDS:
            processes, names = remains(how, contender, settings.workers)
            rows.append(
                Row(
                    how,
                    contender.name,
                    exactly(processes),
                    "processes left",
                    note=f"{names} names in /dev/shm",
                )
            )
            if contender.name == OURS:
                ours.append(processes + names)
    return Report(
        "reliability",
        f"deaths and ends; what is left after {LEFT_AFTER_S:.0f} s",
        rows,
        [Goal("processes or names left after the client's end", exactly(max(ours)), 0, at_least=False)],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        client(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        raise SystemExit(run_script("reliability", measure, description=__doc__))
