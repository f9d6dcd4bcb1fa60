"""The memory of arrays that a worker makes and frees again and again."""

from __future__ import annotations

import functools

from repartir.shm.clib import holding_gil

KEPT_BYTES = 32 << 20
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


@functools.cache
def keep_freed_memory() -> None:
    """Have the C library keep 32 MiB of freed memory in this process, rather than give each large array's back at once.

    A function that draws 65,536 samples makes the same arrays in each batch.  glibc maps those of 128 KiB and more anew
    each time or trims its heap after each batch, and the kernel clears every page again: half the time of a short function
    went into that.  Other C libraries are left as they are.
    """
    mallopt = getattr(holding_gil(), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, KEPT_BYTES)
