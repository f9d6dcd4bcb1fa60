"""Workers killed at random while arrays come and go: every result is right or `WorkerDied`, and no block is lost."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import numpy as np
import pytest

import repartir
from repartir import WorkerDied
from tests.faults.conftest import Make
from tests.faults.waits import LIMIT_S, check_goes_on, until

_kept: list[Any] = []


def work(array: Any, table: Any, how: int) -> Any:
    """Write to the argument, keep it now and then, and give an array of another size back."""
    array += 1
    if how % 4 == 0:
        _kept.append(array[::7])
        del _kept[:-3]
    return np.concatenate([array, table[: how % 50]])


def expected(array: Any, table: Any, how: int) -> Any:
    return np.concatenate([array + 1, table[: how % 50]])


def forget(seconds: float = 0) -> int:
    _kept.clear()
    time.sleep(seconds)
    return os.getpid()


def rain(ex: repartir.Executor, seed: int, rounds: int, kill_every: int) -> int:
    """Rounds of tasks with arrays of all sizes; how many workers were killed."""
    dice, generator = random.Random(seed), np.random.default_rng(seed)
    table = repartir.shared.from_array(generator.random(1000))
    source = generator.random(1 << 19)
    under_way: dict[Future[Any], tuple[Any, int]] = {}
    held: list[tuple[Any, Any]] = []
    killed = 0
    for nth in range(rounds):
        array = source[: int(2 ** dice.uniform(0, 19))]
        under_way[ex.submit(work, array, table[nth % 100 :], nth)] = array, nth
        if nth % kill_every == kill_every - 1:
            pids = [ex._broker.board.words[row.pid] for row in ex._broker.board.rows]
            if pid := dice.choice(pids):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        while len(under_way) > 20 or (nth == rounds - 1 and under_way):
            for future in wait(under_way, LIMIT_S, FIRST_COMPLETED).done:
                array, how = under_way.pop(future)
                try:
                    result = future.result(0)
                except WorkerDied:
                    continue
                right = expected(array, table[how % 100 :], how)
                np.testing.assert_array_equal(result, right)
                if dice.random() < 0.3:
                    held.append((result, right))
        while len(held) > 10:
            for result, right in held:
                np.testing.assert_array_equal(result, right)
            del held[dice.randrange(len(held))]
    return killed


def check_nothing_is_kept(ex: repartir.Executor) -> None:
    def both() -> bool:
        futures = [ex.submit(forget, 0.02) for _ in range(2)]
        return len({future.result(LIMIT_S) for future in futures}) == 2

    until(both, "a worker never answers")
    gc.collect()
    until(lambda: both() and not ex.stats().kept_bytes, ex.stats())
    until(lambda: both() and not ex.stats().viewed_bytes, ex.stats())
    assert ex.stats().spilled_bytes == 0


@pytest.mark.parametrize("limit", ["1GiB", "8MiB"])
def test_kills_lose_no_block(make: Make, limit: str) -> None:
    ex = make(2, shm_limit=limit)
    killed = rain(ex, seed=3, rounds=300, kill_every=50)
    assert killed >= 3
    check_nothing_is_kept(ex)
    check_goes_on(ex)


@pytest.mark.soak
def test_kills_for_minutes(make: Make) -> None:
    """With memory that stays flat."""
    ex = make(2, shm_limit="256MiB")
    end, seed, backed = time.monotonic() + 180, 0, []
    while time.monotonic() < end:
        rain(ex, seed, rounds=1000, kill_every=40)
        seed += 1
        check_nothing_is_kept(ex)
        backed.append(ex.stats().backed_bytes)
    print(seed, "rounds,", ex, backed, file=sys.stderr)
    assert max(backed) <= 256 << 20
    check_goes_on(ex)
