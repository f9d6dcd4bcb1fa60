"""How much memory a process has to itself, and a limit on what it may map."""

from __future__ import annotations

import os
import sys


def own_bytes(pid: int) -> int:
    """Bytes of resident memory of a process, without files and shared memory, which several processes have at once.

    0 when it is gone.  Pages that it shares with its parent since the fork are counted, and whether it writes to them or not
    makes no difference: so what it takes beyond them is the difference to what this was after the fork.
    """
    if sys.platform == "linux":
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                _, resident, shared, *_ = file.read().split()
        except (OSError, ValueError):
            return 0
        return (int(resident) - int(shared)) * _PAGE
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def limit_address_space(more: int) -> None:
    """Let this process map so many bytes more than it has now; beyond that, allocations fail with ``MemoryError``."""
    import resource

    with open("/proc/self/statm", "rb") as file:
        mapped = int(file.read().split()[0]) * _PAGE
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = mapped + more if hard == resource.RLIM_INFINITY else min(mapped + more, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


_PAGE = os.sysconf("SC_PAGE_SIZE")
