"""What this machine and this process allow: usable cores, and a start method that is safe here."""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import os
import sys
from typing import Any

from repartir.shm.layout import MAX_ROWS

_CGROUP = "/sys/fs/cgroup"
_log = logging.getLogger("repartir")
_told: set[str] = set()


def usable_cores() -> int:
    """The cores that this process may use: its affinity and the container's CPU quota, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cores, math.ceil(quota)) if quota else cores)


def default_workers() -> int:
    """``REPARTIR_MAX_WORKERS``, else the usable cores, as far as an executor can have so many workers."""
    text = os.environ.get("REPARTIR_MAX_WORKERS")
    if not text:
        return min(usable_cores(), MAX_ROWS)
    if not text.isdecimal() or not 1 <= int(text) <= MAX_ROWS:
        raise ValueError(f"REPARTIR_MAX_WORKERS must be an integer from 1 to {MAX_ROWS}, not {text!r}")
    return int(text)


def choose_start_method(mp_context: Any) -> str:
    """The start method (fork, spawn or forkserver) for an ``mp_context`` argument (a context, a name, or None)."""
    if isinstance(mp_context, str):
        return multiprocessing.get_context(mp_context).get_start_method()
    if mp_context is not None:
        if not hasattr(mp_context, "get_start_method"):
            raise TypeError(f"mp_context must be a multiprocessing context, not {type(mp_context).__name__}")
        return str(mp_context.get_start_method())
    wanted = os.environ.get("REPARTIR_START_METHOD")
    if wanted and wanted not in multiprocessing.get_all_start_methods():
        raise ValueError(f"REPARTIR_START_METHOD must be fork, spawn or forkserver, not {wanted!r}")
    wanted = wanted or multiprocessing.get_start_method(allow_none=True)
    if wanted is not None:
        return multiprocessing.get_context(wanted).get_start_method()
    if sys.platform != "linux":
        return multiprocessing.get_context().get_start_method()
    reason = _does_not_survive_fork()
    if reason is None:
        return "fork"
    if reason not in _told:
        _told.add(reason)
        _log.warning(
            "workers start from a fresh interpreter (forkserver), because this process holds %s", reason
        )
    return "forkserver"


def _cgroup_quota() -> float | None:
    """CPUs by the cgroup's bandwidth limit (version 2, then 1); None where there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = _text(f"{_CGROUP}/cpu.max").split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota = _text(f"{_CGROUP}/cpu/cpu.cfs_quota_us")
        period = _text(f"{_CGROUP}/cpu/cpu.cfs_period_us")
        return int(quota) / int(period) if int(quota) > 0 else None
    return None


def _text(path: str) -> str:
    with open(path) as file:
        return file.read()


def _does_not_survive_fork() -> str | None:
    """What a forked child could not use and would hang on: an OpenMP team, a CUDA context."""
    try:
        mapped = _text("/proc/self/maps")
    except OSError:
        return None
    if "libcuda.so" in mapped and "/dev/nvidia" in mapped:
        return "a CUDA context"
    if not any(library in mapped for library in ("libgomp", "libiomp", "libomp")):
        return None
    import threading

    import threadpoolctl

    blas = [pool["num_threads"] - 1 for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    native = len(os.listdir("/proc/self/task"))
    return "a team of OpenMP threads" if native > threading.active_count() + sum(blas) else None
