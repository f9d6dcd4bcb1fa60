"""Signals between tests and tasks: FIFOs, which every start method can open by path, and process ends.

A `Gate` is an event that the test opens and tasks wait for; a `Bell` carries lines from tasks to the test.
The test holds both ends of each FIFO open, so neither side ever blocks in `open`; when the test's end goes
away, waiting tasks raise instead of staying behind.
"""

from __future__ import annotations

import os
import select
import threading
import time
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 15.0


@dataclass(frozen=True)
class Gate:
    """The tasks' side of a gate: picklable, as it is a path."""

    path: str

    def wait(self, timeout_s: float = LIMIT_S) -> None:
        """Return when the gate is open; TimeoutError after `timeout_s`, EOFError when the test gave up."""
        fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            events = poller.poll(timeout_s * 1000)
            if not events:
                raise TimeoutError(f"gate {self.path} stayed shut for {timeout_s} s")
            if not events[0][1] & select.POLLIN:
                raise EOFError("the test that owned this gate has ended")
        finally:
            os.close(fd)


class GateKeeper:
    """The test's side of a gate; closing it unopened lets all waiters, also later ones, raise at once."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.gate = Gate(str(path))
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def open(self) -> None:
        os.write(self._fd, b"!")

    def close(self) -> None:
        os.unlink(self.gate.path)
        os.close(self._fd)


@dataclass(frozen=True)
class Bell:
    """The tasks' side of a bell."""

    path: str

    def ring(self, text: object = "") -> None:
        """Send one line; atomic, as it is shorter than PIPE_BUF."""
        fd = os.open(self.path, os.O_WRONLY)
        try:
            os.write(fd, f"{text}\n".encode())
        finally:
            os.close(fd)


class BellKeeper:
    """The test's side of a bell: hears the lines in the order in which they were rung."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.bell = Bell(str(path))
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._heard = b""

    def hear(self, timeout_s: float = LIMIT_S) -> str:
        """Return the next line; TimeoutError when none comes in `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._heard:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"bell {self.bell.path} stayed silent for {timeout_s} s")
            self._heard += os.read(self._fd, 4096)
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def hear_all(self) -> list[str]:
        """Return the lines rung so far, without waiting."""
        lines = []
        while True:
            try:
                lines.append(self.hear(0))
            except TimeoutError:
                return lines

    def close(self) -> None:
        os.close(self._fd)


def wait_for_end(pid: int, timeout_s: float = 5.0) -> bool:
    """Return whether process `pid`, of whatever parent, has ended (or is a zombie) within `timeout_s`."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], timeout_s)[0])
    finally:
        os.close(fd)


def wait_until_asleep(thread: threading.Thread, timeout_s: float = LIMIT_S) -> None:
    """Return when `thread` of this process is asleep in the kernel, and stays so for ten looks.

    A signal that comes after the interpreter has looked for one and before the thread is asleep wakes it late: so sent in
    the moment in which it lets go of the interpreter's lock, it would often not wake it.
    """
    until, looks = time.monotonic() + timeout_s, 0
    while looks < 10:
        assert time.monotonic() < until, f"{thread} does not sleep"
        state = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()[0]
        looks = looks + 1 if state == "S" else 0
        time.sleep(0.001)
