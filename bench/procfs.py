"""What Linux's /proc says of a process tree: CPU time, voluntary switches, private memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ThreadUse:
    """CPU time of a thread so far, and how often it went to sleep of its own will."""

    cpu_ns: int
    sleeps: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a process: resident, its proportional share of them, and what no other process maps."""

    resident: int
    proportional: int
    private: int


def tree(pid: int) -> list[int]:
    """`pid` and all its descendants."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def command_line(pid: int) -> str:
    """The process's arguments, joined by blanks; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def thread_uses(pids: Iterable[int]) -> dict[tuple[int, int], ThreadUse]:
    """(pid, thread id) → its use so far, for every thread of `pids` that is still there."""
    uses = {}
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").glob("*"):
            try:
                uses[pid, int(thread.name)] = ThreadUse(_cpu_ns(thread), _sleeps(thread))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return uses


def _cpu_ns(thread: Path) -> int:
    schedstat = thread / "schedstat"
    if schedstat.exists() and (on_cpu := int(schedstat.read_text().split()[0])):
        return on_cpu
    fields = (thread / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_NS


def _sleeps(thread: Path) -> int:
    for line in (thread / "status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches:"):
            return int(line.split()[1])
    raise RuntimeError(f"{thread}/status counts no voluntary switches")


def memory(pid: int) -> Memory:
    """The process's memory from its smaps_rollup; OSError if it is gone or not ours to read."""
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        key, _, rest = line.partition(":")
        sizes[key] = int(rest.split()[0]) * 1024
    return Memory(sizes["Rss"], sizes["Pss"], sizes["Private_Clean"] + sizes["Private_Dirty"])


def open_files(pid: int) -> int:
    """How many descriptors the process has open; OSError if it is gone or not ours to read."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def shared_mappings(pid: int) -> int:
    """How many mappings the process shares, or would share, with others; OSError as above."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return sum(line.split(maxsplit=2)[1].endswith("s") for line in maps)
