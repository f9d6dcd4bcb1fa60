"""Functions that workers run in the tests of priorities and limits."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import repartir

from .sync import Bell, Gate


def note(path: Path, name: object) -> object:
    """Say in a file, one line a call, that this was called."""
    with path.open("a") as file:
        file.write(f"{name}\n")
    return name


def ring_and_wait(bell: Bell, gate: Gate) -> None:
    bell.ring()
    gate.wait()


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return time.monotonic()


def now() -> float:
    return time.monotonic()


def span(seconds: float) -> tuple[float, float]:
    """When it began and when it ended."""
    began = time.monotonic()
    time.sleep(seconds)
    return began, time.monotonic()


def add(one: int, other: int) -> int:
    return one + other


def die(_: object = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_first(path: Path, name: str) -> int:
    """Fails at the first call; the number of the call."""
    note(path, name)
    calls = path.read_text().split().count(name)
    if calls == 1:
        raise ValueError(name)
    return calls


def ring_and_sleep(bell: Bell) -> None:
    bell.ring()
    time.sleep(60)


def options_in_a_task(**options: object) -> str:
    try:
        repartir.current_executor().options(**options)
    except ValueError as error:
        return str(error)
    return ""
