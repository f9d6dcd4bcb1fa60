"""Functions that workers run in the tests of `compat.Pool`: at module level, since the stdlib's pool needs that."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from .sync import Gate

_initialised: list[Any] = []


def initialise(*values: Any) -> None:
    _initialised.extend(values)


def initialised(_: object = None) -> list[Any]:
    return list(_initialised)


def square(number: int) -> int:
    return number * number


def fail_at(bad: int, number: int) -> int:
    if number == bad:
        raise ValueError(f"no {bad}")
    return number


def fail_at_three(number: int) -> int:
    return fail_at(3, number)


def raise_time_out(_: object = None) -> None:
    raise TimeoutError("of the task")


def wait(gate: Gate) -> str:
    gate.wait()
    return "open"


def wait_if(gate: Gate | None) -> bool:
    if gate is not None:
        gate.wait()
    return gate is not None


def note(path: Path) -> None:
    path.touch()


def pid(_: object = None) -> int:
    return os.getpid()


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def keywords(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs
