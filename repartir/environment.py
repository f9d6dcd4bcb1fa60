"""What this machine and this process allow: usable cores, and a start method that is safe here."""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import numbers
import operator
import os
import re
import sys
import threading
import time
from typing import Any

from repartir.shm.layout import MAX_ROWS

_CGROUP = "/sys/fs/cgroup"
_SPIN_S = 0.1  # for so long a pool's thread may spin before it waits
_TELLS = os.uname().machine in ("x86_64", "i686")  # elsewhere libgomp, too, waits in the C library
_SIZE = r"\s*(?P<number>\d{1,15}(\.\d{1,15})?)\s*(?P<unit>[a-zA-Z]*)\s*"
_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}{unit}": 1024**power for power, letter in enumerate("KMGT", 1) for unit in ("", "IB")}
_UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)}
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


def size_in_bytes(size: int | str, what: str) -> int:
    """A number of bytes, also as "512MiB" or "2 GB".  ``what`` names it in errors: ``TypeError``, ``ValueError``."""
    if isinstance(size, str):
        matched = re.fullmatch(_SIZE, size)
        unit = "" if matched is None else matched["unit"].upper()
        if matched is None or unit not in _UNITS:
            raise ValueError(f'{what} must be a number of bytes or a string such as "2GiB", not {size!r}')
        found = int(float(matched["number"]) * _UNITS[unit])
    else:
        found = as_integer(what, size, "an int or a string")
    if found <= 0:
        raise ValueError(f"{what} must be greater than 0, not {size!r}")
    return found


def as_integer(what: str, value: Any, kind: str = "an integer") -> int:
    """The integer that the value is, numpy's for one; else ``TypeError``, naming ``what``."""
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            return operator.index(value)
    raise TypeError(f"{what} must be {kind}, not {type(value).__name__}")


def check_seconds(what: str, value: Any, *, zero_is_allowed: bool = True) -> float:
    """The value as a finite number of seconds, not negative; else ``TypeError`` or ``ValueError``, naming ``what``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{what} must be seconds, not {type(value).__name__}")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not 0 <= seconds < math.inf or (seconds == 0 and not zero_is_allowed):
        least = "at least" if zero_is_allowed else "more than"
        raise ValueError(f"{what} must be seconds, {least} 0, not {value!r}")
    return seconds


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
    if wanted:
        return multiprocessing.get_context(wanted).get_start_method()
    chosen = multiprocessing.get_start_method(allow_none=True)
    # "fork" may be the user's choice, or the default that some library (joblib) has made multiprocessing take.
    if chosen not in (None, "fork"):
        return chosen
    if sys.platform != "linux":
        return multiprocessing.get_context().get_start_method()
    reason = _does_not_survive_fork()
    if reason is None:
        return "fork"
    if reason not in _told:
        _told.add(reason)
        _log.warning(
            "workers start from a fresh interpreter (forkserver), because this process holds %s, "
            "which a forked child could hang on; mp_context='fork' forks all the same",
            reason,
        )
    return "forkserver"


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory so far, in this container where that is known."""
    for path in (f"{_CGROUP}{_own_cgroup()}/memory.events", f"{_CGROUP}/memory.events", "/proc/vmstat"):
        with contextlib.suppress(OSError):
            for line in _text(path).splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def _own_cgroup() -> str:
    """The path of this process's group in the unified hierarchy."""
    with contextlib.suppress(OSError):
        for line in _text("/proc/self/cgroup").splitlines():
            if line.startswith("0::"):
                return line.removeprefix("0::").rstrip("/")
    return ""


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
    return "a team of OpenMP threads" if "libgomp" in mapped and _a_thread_waits_in_gomp(mapped) else None


def _a_thread_waits_in_gomp(mapped: str) -> bool:
    """Whether some thread may belong to a team of libgomp, whose members wait in its own code; in doubt True.

    Threads of BLAS pools wait in the C library, and survive a fork (LLVM's and Intel's OpenMP do, too).
    """
    ranges = [_range(line) for line in mapped.splitlines() if "libgomp" in line]
    python = {thread.native_id for thread in threading.enumerate()}
    until = time.monotonic() + _SPIN_S
    for task in os.listdir("/proc/self/task"):
        if int(task) in python:
            continue
        state = _where(task)
        while state == ["running"] and time.monotonic() < until:
            os.sched_yield()
            state = _where(task)
        if state and (len(state) < 2 or not _TELLS or any(int(state[-1], 16) in code for code in ranges)):
            return True
    return False


def _where(task: str) -> list[str]:
    """What the kernel shows of a waiting thread, its program counter last; ["running"]; [] for one that has ended."""
    try:
        return _text(f"/proc/self/task/{task}/syscall").split()
    except OSError:
        return ["unknown"] if os.path.exists(f"/proc/self/task/{task}") else []


def _range(line: str) -> range:
    """The addresses of a line of /proc/self/maps."""
    start, _, end = line.partition(" ")[0].partition("-")
    return range(int(start, 16), int(end, 16))
