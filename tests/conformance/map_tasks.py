"""What the tests of map run in workers."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from .sync import Bell, Gate

_kept: list[Any] = []


class FailsToLoad:
    """Pickles, but its unpickling raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        return explode, ()


def explode() -> None:
    raise RuntimeError("loading exploded")


def same(value: Any) -> Any:
    return value


def nothing(n: int) -> None:
    return None


def integer(n: int) -> int:
    return n - 3


def huge(n: int) -> int:
    return n << 70 if n % 3 == 0 else -n


def real(n: int) -> float:
    return n / 7


def text(n: int) -> str:
    return str(n)


def flag(n: int) -> bool:
    return n % 2 == 0


def data(n: int) -> bytes:
    return bytes(n % 50)


def pair(n: int) -> tuple[int, dict[str, float]]:
    return n, {"half": n / 2}


def whatever(n: int) -> Any:
    kinds: tuple[Any, ...] = (nothing, integer, integer, real, text, flag, data, pair, huge)
    return kinds[n % len(kinds)](n)


def long_text(size: int) -> str:
    return "x" * size


def dot(left: Any, right: Any) -> float:
    return float(left @ right)


def append_to(items: list[int]) -> list[int]:
    items.append(1)
    return items


def lock_at(n: int, at: int) -> Any:
    return threading.Lock() if n == at else n


def odd_fails(n: int) -> int:
    if n % 2:
        raise ValueError(n)
    return n


def dies_at(n: int, at: int) -> int:
    if n == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def every_tenth_dies(n: int) -> int:
    return dies_at(n, n - n % 10)


def hangs_at(n: int, at: int) -> int:
    if n == at:
        time.sleep(60)
    return n


def second_time(folder: str, n: int) -> int:
    mark = Path(folder, str(n))
    if not mark.exists():
        mark.touch()
        raise ValueError(n)
    return n


def exits(n: int) -> int:
    if n:
        sys.exit(n)
    return n


def waits_at_zero(n: int, gate: Gate) -> int:
    if n == 0:
        gate.wait()
    return n


def ring_but_wait_at_zero(n: int, gate: Gate, bell: Bell) -> int:
    if n == 0:
        gate.wait()
    else:
        bell.ring(n)
    return n


def ring_and_wait(n: int, gate: Gate, bell: Bell) -> int:
    bell.ring(n)
    gate.wait()
    return n


def ring_and_wait_after_zero(n: int, gate: Gate, bell: Bell) -> int:
    return ring_and_wait(n, gate, bell) if n else 0


def ring_and_sleep(n: int, bell: Bell) -> None:
    bell.ring(n)
    time.sleep(60)


def pid(n: int) -> int:
    return os.getpid()


def pid_after_a_while(n: int) -> int:
    time.sleep(0.005)
    return os.getpid()


def grows(n: int) -> int:
    _kept.append(np.ones(2 << 20))
    return os.getpid()


def forks(n: int) -> int:
    os.fork()
    return n


def logs_then_waits(n: int, gate: Gate) -> int:
    if n:
        gate.wait()
    logging.getLogger("maps").warning("item %d", n)
    return n


def interrupts_at_zero(n: int, bell: Bell) -> None:
    if n == 0:
        raise KeyboardInterrupt
    bell.ring(n)
    time.sleep(0.3)


def waits_from_two(n: int, gate: Gate) -> int:
    if n >= 2:
        gate.wait()
    return n


def mebibyte_but_wait_at_seven(n: int, gate: Gate) -> Any:
    if n == 7:
        gate.wait()
    return np.full(1 << 17, n)


def busy(seconds: float) -> float:
    """Works for so long."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
    return seconds
