"""How much memory a process has to itself, and whether the kernel has killed for want of memory."""

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


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory so far, in this container where that is known."""
    for path in (f"/sys/fs/cgroup{_cgroup()}/memory.events", "/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        try:
            with open(path, encoding="ascii") as file:
                for line in file:
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
        except (OSError, ValueError):
            continue
    return 0


def _cgroup() -> str:
    """The path of this process's group in the unified hierarchy."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            for line in file:
                if line.startswith("0::"):
                    return line.strip().removeprefix("0::").rstrip("/")
    except OSError:
        pass
    return ""


_PAGE = os.sysconf("SC_PAGE_SIZE")
