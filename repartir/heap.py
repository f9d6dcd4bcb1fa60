"""Memory of arrays that a member makes and frees again and again.

glibc maps arrays of 128 KiB and more anew each time, or trims its heap after each task, and the kernel clears every page
again: a third of the time of a task that makes a few arrays of 800 KB went into that.  So members keep what their tasks have
freed for the next, and give it back when there is none for some seconds.
"""

from __future__ import annotations

import ctypes
import os

from repartir.shm.clib import holding_gil, releasing_gil

KEPT_BYTES = 64 << 20
"""So much freed memory a member keeps at most: what glibc comes to by itself where arrays are large."""
LARGEST_KEPT_BYTES = 32 << 20
"""Larger arrays are mapped each on its own; glibc allows no more."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")


def keep_freed_memory() -> None:
    """Have this process, and those that it forks, keep freed memory.

    Other C libraries are left as they are, and glibc where the environment tells it what to do (``GLIBC_TUNABLES``,
    ``MALLOC_TRIM_THRESHOLD_``).
    """
    mallopt = getattr(holding_gil(), "mallopt", None)
    if mallopt is None or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return
    if not any(name in os.environ for name in _VARIABLES):
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)


def give_back_freed_memory() -> None:
    """Return all of it to the system.  Takes some milliseconds, in which other threads run."""
    trim = getattr(releasing_gil(), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
