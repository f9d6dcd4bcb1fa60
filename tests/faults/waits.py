"""What the fault tests wait for, and what they ask of a pool afterwards."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

import repartir
from tests.stress.storm import check_arena, check_unlocked

LIMIT_S = 15.0


def until(condition: Callable[[], object], what: object) -> None:
    """Wait for what only shared memory tells; AssertionError with `what` after a while."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


def until_ended(pid: int) -> None:
    """Wait until the process, of whatever parent, has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], LIMIT_S)[0], f"process {pid} lives"
    finally:
        os.close(fd)


def until_lost(ex: repartir.Executor, count: int) -> None:
    """Wait until the executor has heard of so many deaths."""
    until(lambda: f"{count} lost" in repr(ex), ex)


def check_goes_on(ex: repartir.Executor) -> None:
    """The pool answers, and of what died nothing is left in it."""
    assert [ex.submit(pow, n, 2).result(LIMIT_S) for n in range(4)] == [0, 1, 4, 9]
    assert list(ex.map(abs, range(20), timeout=LIMIT_S)) == list(range(20))
    check_unlocked(ex)
    check_arena(ex)
