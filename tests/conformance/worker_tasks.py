"""Functions that workers run in the tests of what is each worker's own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import repartir

from .sync import Bell, Gate


class Unpicklable:
    """What an initializer may make all the same."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid = os.getpid()
        self.calls = 0

    def __reduce__(self) -> Any:
        raise TypeError("not this one")


def make_state(number: int) -> Unpicklable:
    return Unpicklable(number)


def count_state() -> tuple[int, int, int]:
    """The worker's process, that in which its state was made, how often this was called here."""
    state = repartir.worker_state()
    state.calls += 1
    return os.getpid(), state.pid, state.calls


def number_of_state(_: object = None) -> int:
    number: int = repartir.worker_state().number
    return number


def state_of_nested() -> tuple[int, int]:
    """Seen from a task that this one submits."""
    return number_of_state(), repartir.current_executor().submit(number_of_state).result()


def state_of_serial_inside() -> tuple[int, int]:
    with repartir.SerialExecutor(initializer=make_state, initargs=(99,)) as inner:
        return inner.submit(number_of_state).result(), number_of_state()


def is_none() -> bool:
    return repartir.worker_state() is None


def make_nothing() -> None:
    return None


def pid_and(value: object) -> tuple[int, object]:
    return os.getpid(), value


def pid_and_total(array: Any) -> tuple[int, float]:
    array[0] += 1
    return os.getpid(), float(array.sum())


def ring_and_wait(bell: Bell, gate: Gate) -> int:
    bell.ring(os.getpid())
    gate.wait()
    return os.getpid()


def ring_wait_and_die(bell: Bell, gate: Gate) -> None:
    ring_and_wait(bell, gate)
    os.kill(os.getpid(), signal.SIGKILL)


def die_if_there(path: Path) -> int:
    """The first who takes the file away dies."""
    try:
        path.unlink()
    except FileNotFoundError:
        return os.getpid()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def fail_if_there(path: Path) -> int:
    try:
        path.unlink()
    except FileNotFoundError:
        return os.getpid()
    raise ValueError("it was there")


def ring_and_sleep(bell: Bell) -> None:
    bell.ring(os.getpid())
    time.sleep(60)


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()
