"""Freed memory: kept for what comes next, given back, and left to the C library where the environment says so."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from tests.helpers import package_root

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library is left as it is")

PASSES = """
import ctypes, os, resource
import numpy as np
from repartir import heap
from repartir.residence import own_bytes

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages, of which a pass needs few

def arrays():
    "Three of 2.4 MB at a time."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    found = [np.ones(300_000) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

KEEP
arrays(), arrays()
print(arrays())
had = own_bytes(os.getpid())
heap.give_back_freed_memory()
print(had - own_bytes(os.getpid()))
"""
PAGES = 3 * 2_400_000 // os.sysconf("SC_PAGE_SIZE")


def passes(keep: str, **variables: str) -> tuple[int, int]:
    """Page faults of the third pass, and bytes given back after it."""
    found = subprocess.run(
        [sys.executable, "-c", PASSES.replace("KEEP", keep)],
        env={**os.environ, "PYTHONPATH": str(package_root()), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    faults, given_back = map(int, found.stdout.split())
    return faults, given_back


def test_freed_memory_is_kept_and_given_back() -> None:
    faults, given_back = passes("heap.keep_freed_memory()")
    assert faults < PAGES / 10
    assert given_back > 6_000_000


def test_without_it_the_test_above_fails() -> None:
    faults, _ = passes("")
    assert faults > PAGES / 2


@pytest.mark.parametrize(
    "variables",
    [
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"MALLOC_MMAP_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_the_environment_decides(variables: dict[str, str]) -> None:
    faults, _ = passes("heap.keep_freed_memory()", **variables)
    assert faults > PAGES / 2
