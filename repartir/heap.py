"""Memory of arrays that a member makes and frees again and again.

glibc maps arrays of 128 KiB and more anew each time, or trims its heap after each task, and the kernel clears every page
again: a third of the time of a task that makes a few arrays of 800 KB went into that.  So members keep what their tasks have
freed for the next, and give it back when there is none for some seconds.

Where a member's memory is measured it keeps nothing, since freed memory would count: with ``max_rss_growth``, and from its
first task with a limit of memory on.  glibc's own rule, to keep up to twice the largest array that was ever freed, is off
there, too.
"""

from __future__ import annotations

import ctypes
import os

from repartir.residence import own_bytes
from repartir.shm.clib import holding_gil, releasing_gil

_LARGEST_IN_HEAP_BYTES = 32 << 20
"""Larger arrays are mapped each on its own; glibc allows no more."""
KEPT_BYTES = 2 * _LARGEST_IN_HEAP_BYTES
"""So much free memory stays at the end of the heap: as glibc has it for arrays of that size.  With less than what a task
makes and frees, the kernel clears pages again."""
_NOT_KEPT_BYTES = 128 << 10
_WORTH_GIVING_BACK = 8 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")


def keep_freed_memory(most: int = KEPT_BYTES) -> None:
    """Have this process, and those that it forks, keep so much of freed memory.

    Other C libraries are left as they are, and glibc where the environment tells it what to do (``GLIBC_TUNABLES``,
    ``MALLOC_TRIM_THRESHOLD_``).
    """
    mallopt = getattr(holding_gil(), "mallopt", None)
    if mallopt is None or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return
    if not any(name in os.environ for name in _VARIABLES):
        mallopt(_M_TRIM_THRESHOLD, most)
        mallopt(_M_MMAP_THRESHOLD, min(most, _LARGEST_IN_HEAP_BYTES))


def give_back_freed_memory() -> None:
    """Return all of it to the system.  Takes some milliseconds, in which other threads run."""
    trim = getattr(releasing_gil(), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


class FreedMemory:
    """What this member does with it.  ``keeps``: not if it is measured between tasks."""

    def __init__(self, *, keeps: bool) -> None:
        self._most = KEPT_BYTES if keeps else _NOT_KEPT_BYTES
        self._slim = 0
        """With no more bytes of its own than this there is little to give back."""
        self.is_used = False
        """A task has run since there was a look at what could be given back."""

    def begin(self) -> None:
        """This process is the member."""
        keep_freed_memory(self._most)

    def ready(self, *, after_initializer: bool) -> int:
        """No task has begun: bytes of memory of its own that the member has, what the initializer has freed given back."""
        if after_initializer:
            give_back_freed_memory()
        own = own_bytes(os.getpid())
        self._slim = own + _WORTH_GIVING_BACK
        return own

    def give_back(self) -> None:
        """Return it to the system, if there may be much."""
        self.is_used = False
        if own_bytes(os.getpid()) > self._slim:
            give_back_freed_memory()
            self._slim = own_bytes(os.getpid()) + _WORTH_GIVING_BACK

    def keep_none(self) -> None:
        """A task begins whose memory has a limit: from now on nothing is kept."""
        if self._most != _NOT_KEPT_BYTES:
            self._most = _NOT_KEPT_BYTES
            keep_freed_memory(self._most)
        self.give_back()
