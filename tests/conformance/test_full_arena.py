"""Tasks whose arguments and results fill the shared memory: none waits for what only another of them would free."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import Executor, wait
from typing import Any

import numpy as np
import pytest

from repartir.shm import board as board_module

from .kinds import FORK
from .sync import LIMIT_S

SMALL_ARENA = 16 << 20
MIB = 1 << 20

pytestmark = pytest.mark.kinds(FORK)
Make = Callable[..., Executor]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "arena_limit", lambda *_: SMALL_ARENA)


def double(array: Any) -> Any:
    return array * 2


def zeros(size: int) -> Any:
    return np.zeros(size, np.uint8)


def test_arguments_that_fill_it(small: None, make: Make) -> None:
    with make(2) as ex:
        futures = [ex.submit(double, np.full(MIB // 8, n, np.int64)) for n in range(40)]
        assert not wait(futures, timeout=LIMIT_S).not_done
        assert [int(future.result()[0]) for future in futures] == [2 * n for n in range(40)]


def test_a_result_that_is_larger(small: None, make: Make) -> None:
    with make(1) as ex:
        result = ex.submit(zeros, 2 * SMALL_ARENA).result(LIMIT_S)
        assert result.shape == (2 * SMALL_ARENA,)
        assert result.flags.writeable
        assert ex.submit(len, "usable").result(LIMIT_S) == 6


def test_a_later_executor_does_not_keep_an_earlier_ones_memory(make: Make) -> None:
    def shared_mib() -> int:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("Shmem:")) // 1024

    before = shared_mib()
    first = make(1)
    first.submit(zeros, 200 * MIB).result(LIMIT_S)
    second = make(1)
    second.submit(len, "warm").result(LIMIT_S)
    first.shutdown()
    gc.collect()
    assert shared_mib() - before < 100
    second.shutdown()
