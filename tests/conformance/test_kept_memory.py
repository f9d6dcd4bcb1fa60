"""Memory that tasks have freed: the next task has it, limits do not count it, and idle workers give it back."""

from __future__ import annotations

import mmap
import os
import platform
import resource
import time
from typing import Any

import numpy as np
import pytest

from repartir import MemoryLimitExceeded
from repartir import worker as worker_module
from repartir.residence import own_bytes

from .conftest import Make
from .kinds import SPAWN, workers
from .sync import LIMIT_S

MIB = 1 << 20

only_fresh = pytest.mark.kinds(SPAWN)  # a fork has the tests' free memory, too
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep it")


def be_hasty() -> None:
    worker_module._KEEP_S = 0.05


def page_faults_of(arrays: int, mebibytes: int) -> int:
    """Those of making so many arrays of such a size."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    made = [np.ones(mebibytes * MIB // 8) for _ in range(arrays)]
    del made
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def pid_after(arrays: int, mebibytes: int) -> int:
    page_faults_of(arrays, mebibytes)
    return os.getpid()


def own_bytes_after(arrays: int, mebibytes: int) -> tuple[int, int]:
    return pid_after(arrays, mebibytes), own_bytes(os.getpid())


def free_and_map_for(seconds: float, mebibytes: int) -> int:
    page_faults_of(2, 30)
    return map_for(seconds, mebibytes)


def map_for(seconds: float, mebibytes: int) -> int:
    """Other memory than what was freed."""
    with mmap.mmap(-1, mebibytes * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as made:
        made.write(b"x" * len(made))
        time.sleep(seconds)
        return len(made)


@workers
def test_the_next_task_has_it(make: Make) -> None:
    with make(1) as ex:
        first, _, third = (ex.submit(page_faults_of, 3, 4).result(LIMIT_S) for _ in range(3))
        pages = 12 * MIB // os.sysconf("SC_PAGE_SIZE")
        assert first >= pages / 600  # huge ones, at worst
        assert third < pages / 10


@only_fresh
def test_idle_workers_give_it_back(make: Make) -> None:
    with make(1, initializer=be_hasty) as ex:
        pid, had = ex.submit(own_bytes_after, 3, 8).result(LIMIT_S)
        until = time.monotonic() + LIMIT_S
        while own_bytes(pid) > had - 16 * MIB:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert ex.submit(os.getpid).result(LIMIT_S) == pid


@only_fresh
def test_it_is_no_growth_of_a_worker(make: Make) -> None:
    with make(1, max_rss_growth="20MiB") as ex:
        assert len({ex.submit(pid_after, 2, 20).result(LIMIT_S) for _ in range(3)}) == 1
        assert len(set(ex.map(pid_after, [2] * 3, [20] * 3))) == 1


@only_fresh
def test_it_does_not_count_for_a_memory_limit(make: Make) -> None:
    with make(1) as ex:
        ex.submit(pid_after, 2, 30).result(LIMIT_S)
        limited: Any = ex.options(memory_limit="130MiB")  # imports take up to 40
        assert limited.submit(map_for, 0.7, 60).result(LIMIT_S) == 60 * MIB


@only_fresh
def test_nor_does_what_a_limited_task_has_freed_itself(make: Make) -> None:
    with make(1, memory_limit="130MiB") as ex:
        assert ex.submit(free_and_map_for, 0.7, 60).result(LIMIT_S) == 60 * MIB


@only_fresh
def test_what_an_initializer_has_freed_is_no_room_for_a_task(make: Make) -> None:
    with make(1, initializer=page_faults_of, initargs=(3, 10)) as ex:
        limited: Any = ex.options(memory_limit="20MiB")
        assert isinstance(limited.submit(map_for, 20, 24).exception(LIMIT_S), MemoryLimitExceeded)
