"""Trees of tasks while workers are killed at random: all is settled, nothing is left."""

from __future__ import annotations

import concurrent.futures
import os
import random
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

from repartir import WorkerDied, current_executor
from tests.faults.conftest import Make
from tests.faults.test_nested_deaths import check_no_family
from tests.faults.waits import LIMIT_S, check_goes_on

SECONDS = 8.0
PAUSE_S = 0.15


def leaf(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value * 2
    time.sleep(random.random() * 0.002)
    return value


def node(depth: int, width: int, large: bool) -> int:
    """How many children were lost; some raise, some cancel, some wait by other means."""
    executor, lost = current_executor(), 0
    futures = [
        executor.submit(node, depth - 1, width, large)
        if depth > 1
        else executor.submit(leaf, np.ones(20_000) if large else nth)
        for nth in range(width)
    ]
    fate = random.random()
    if fate < 0.2:
        concurrent.futures.wait(futures)
    elif fate < 0.25:
        futures[-1].cancel()
    elif fate < 0.27:
        raise KeyError(depth)
    for future in futures:
        try:
            future.result()
        except (WorkerDied, KeyError, concurrent.futures.CancelledError):
            lost += 1
    return lost


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_trees_of_tasks_while_workers_die(make: Make, seed: int) -> None:
    chance, stop = random.Random(seed), threading.Event()
    ex = make(3)
    board = ex._broker.board

    def kill() -> None:
        while not stop.wait(chance.random() * PAUSE_S):
            pid = board.words[chance.choice(board.rows).pid]
            try:
                os.kill(pid or 1 << 30, signal.SIGKILL)
            except ProcessLookupError:
                pass

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            futures = [
                ex.submit(node, random.randint(1, 4), random.randint(1, 4), random.random() < 0.3)
                for _ in range(20)
            ]
            futures[random.randrange(20)].cancel(running=True)
            for future in futures:
                try:
                    assert future.result(LIMIT_S) >= 0
                except (WorkerDied, KeyError, concurrent.futures.CancelledError):
                    pass
    finally:
        stop.set()
        killer.join()
    check_goes_on(ex)
    check_no_family(ex)
