"""What tests of every kind share."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import TextIO

import psutil


def package_root() -> Path:
    """The folder that holds the `repartir` under test: a checkout or site-packages."""
    spec = importlib.util.find_spec("repartir")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations))).parent


def module_main(
    tmp_path: Path, source: str, *args: str, timeout: float = 30
) -> subprocess.CompletedProcess[str]:
    """Run `source` (dedented) as `python script.py args…` in `tmp_path`: a fresh interpreter without stdin.

    The script imports the `repartir` that the tests import. The exit status is the caller's to assert.
    AssertionError with the stacks of all its processes if it outlives `timeout` seconds; its process group is
    killed then. What a script that ended leaves running is not waited for: the guard names it.
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(source))
    environment = {**os.environ, "PYTHONPATH": str(package_root()), "PYTHONFAULTHANDLER": "1"}
    command = [sys.executable, str(script), *args]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            _end_with_stacks(process)
            raise AssertionError(
                f"not done after {timeout} s\n── stdout\n{_read(out)}\n── stderr\n{_read(err)}"
            ) from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return subprocess.CompletedProcess(command, process.returncode, _read(out), _read(err))


def _end_with_stacks(process: subprocess.Popen[bytes]) -> None:
    """Abort all of its family, leaves first and one by one, so that faulthandler's stacks do not mingle."""
    for member in psutil.Process(process.pid).children(recursive=True)[::-1]:
        try:
            member.send_signal(signal.SIGABRT)
        except psutil.NoSuchProcess:
            continue
        psutil.wait_procs([member], timeout=0.2)  # a parent that hangs does not bury it
    process.send_signal(signal.SIGABRT)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        return  # stopped, or SIGABRT is blocked: the caller kills it


def _read(file: TextIO) -> str:
    file.seek(0)
    return file.read()
