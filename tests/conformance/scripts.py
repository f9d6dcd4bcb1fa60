"""Scripts run as `__main__` of fresh interpreters, in process groups of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..helpers import package_root
from .kinds import Kind
from .sync import wait_for_end

SCRIPT_LIMIT_S = 25.0
PYTHONPATH = f"{package_root()}{os.pathsep}{Path(__file__).resolve().parents[2]}"


@dataclass(frozen=True)
class Ended:
    """What a script left: its exit status and all that it, and its workers, wrote."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        return self.stdout.splitlines()


def write_script(folder: Path, kind: Kind, source: str) -> Path:
    """Write `source` behind the definition of `make` for `kind`."""
    path = folder / "script.py"
    path.write_text(kind.script_preamble + textwrap.dedent(source))
    return path


@contextmanager
def started(
    folder: Path,
    kind: Kind,
    source: str,
    *args: object,
    env: dict[str, str] | None = None,
    prefix: tuple[str, ...] = (),
) -> Iterator[subprocess.Popen[str]]:
    """Run a script as leader of a new session; all of its processes are dead after the block."""
    path = write_script(folder, kind, source)
    process = subprocess.Popen(
        [*prefix, sys.executable, str(path), *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": PYTHONPATH, "PYTHONFAULTHANDLER": "1", **(env or {})},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run_script(
    folder: Path,
    kind: Kind,
    source: str,
    *args: object,
    env: dict[str, str] | None = None,
    prefix: tuple[str, ...] = (),
    timeout_s: float = SCRIPT_LIMIT_S,
) -> Ended:
    """Run a script to its end; AssertionError with stacks when it, or a child holding its stdout, stays."""
    with started(folder, kind, source, *args, env=env, prefix=prefix) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGABRT)
            stdout, stderr = process.communicate()
            raise AssertionError(f"not done after {timeout_s} s\n{stdout}\n{stderr}") from None
        return Ended(process.returncode, stdout, stderr)


def descendants(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def survivors(pids: list[int], timeout_s: float) -> list[int]:
    """Return those of `pids` that have not ended after `timeout_s` in all."""
    return [pid for pid in pids if not wait_for_end(pid, timeout_s)]
