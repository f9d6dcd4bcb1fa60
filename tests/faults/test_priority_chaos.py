"""Tasks and maps of all priorities and under limits, while their workers die: all is settled, and no place stays held."""

from __future__ import annotations

import concurrent.futures
import os
import random
import signal
import time

import pytest

from repartir import PoisonTask, WorkerDied
from tests.faults.conftest import Make
from tests.faults.waits import LIMIT_S, check_goes_on, until

SECONDS = 10.0
ENDS = (WorkerDied, PoisonTask, concurrent.futures.CancelledError)


def run_or_die(value: int, chance: float) -> int:
    if random.random() < chance:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.0003)
    return value


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_all_is_settled(make: Make, seed: int) -> None:
    rng, ex = random.Random(seed), make(3)
    kinds = [
        ex,
        ex.options(priority="high"),
        ex.options(priority="low"),
        ex.options(limit=("a", 1)),
        ex.options(limit=("b", 2), priority="high"),
        ex.options(limit=("b", 2), priority="low", retries=2, backoff=0.001),
    ]
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        maps, futures = [], []
        for _ in range(rng.randrange(5, 60)):
            kind, count = rng.choice(kinds), rng.randrange(1, 300)
            if rng.random() < 0.2:
                chances = [rng.choice([0.0, 0.003])] * count
                results = kind.map(run_or_die, range(count), chances, return_exceptions=True)
                maps.append((count, results))
            else:
                futures.append((count, kind.submit(run_or_die, count, rng.choice([0.0, 0.05]))))
            if futures and rng.random() < 0.1:
                rng.choice(futures)[1].cancel(running=rng.random() < 0.5)
        for count, results in maps:
            if rng.random() < 0.8:
                got = list(results)
                assert len(got) == count
                assert all(isinstance(each, ENDS) or each == nth for nth, each in enumerate(got))
        for count, future in futures:
            try:
                assert future.result(LIMIT_S) == count
            except ENDS:
                pass
        maps.clear()
    pump = ex._broker.pump
    until(lambda: not (pump.anything_waits() or pump.ledger.records), ex)
    until(lambda: not any(limit.held for limit in pump.limits.all()), "a place stays held")
    assert ex.stats().lost > 5
    check_goes_on(ex)
