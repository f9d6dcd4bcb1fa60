"""What a test may not leave behind: names in /dev/shm, fds, threads, processes, temporary files.

`snapshot()` before a test, `settle(before, SETTLE_S)` after it: what is new and stays for two seconds is a
leak and is named. An fd that vanished is named too, for closing a number twice closes somebody else's file.

Four things are tolerated, each by a rule that can be read here:

- The servers that other libraries keep for the life of the process: the resource tracker and the fork server
  of `multiprocessing`, and loky's tracker, each the one its own module holds, with the fd that leads to it.
- The threads of BLAS and OpenMP pools: threads that Python does not know, at most `num_threads - 1` a pool.
- Names in /dev/shm that a process outside this one's tree holds open: another program's.
- Orphans that have ended. This process adopts the children of its children (so that a worker whose nursery
  died is seen), and buries them as init would; a child of its own that nobody waited for is a leak.

Linux only: elsewhere `snapshot` sees nothing.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import select
import signal
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SHM = "/dev/shm"
TEMP_PREFIX = "repartir"
SETTLE_S = 2.0

_LINUX = sys.platform.startswith("linux")
_SERVERS = (  # module, attribute that holds the server object, its pid, its fd
    ("multiprocessing.resource_tracker", "_resource_tracker", "_pid", "_fd"),
    ("multiprocessing.forkserver", "_forkserver", "_forkserver_pid", "_forkserver_alive_fd"),
    ("loky.backend.resource_tracker", "_resource_tracker", "_pid", "_fd"),
    ("joblib.externals.loky.backend.resource_tracker", "_resource_tracker", "_pid", "_fd"),
)

_PR_SET_CHILD_SUBREAPER = 36
_FORK_SLOTS = 1 << 16
_fork_slot = struct.Struct("ii")  # pid, pid of the process that forked it
_forks = mmap.mmap(
    -1, _FORK_SLOTS * _fork_slot.size
)  # shared with all forked descendants; written by each once


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    started: int  # clock ticks since boot: with the pid, an identity that is not reused

    def __str__(self) -> str:
        try:
            command = (
                Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
            state, parent, _ = _stat(self.pid)
        except OSError:
            return f"process {self.pid}"
        if state == "Z":
            return f"process {self.pid}, ended, its parent {parent} never waited for it"
        return f"process {self.pid} (state {state}, parent {parent}): {command.strip()}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    shm: frozenset[str]
    fds: dict[int, str]  # fd → what it leads to
    threads: frozenset[threading.Thread]
    native_threads: int  # threads that Python does not know
    processes: frozenset[Process]  # descendants, ended ones included
    temp: frozenset[str]


def install() -> None:
    """Adopt orphans of this process's descendants from now on, and note who forked whom."""
    if not _LINUX:
        return
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    forker = 0

    def before() -> None:
        nonlocal forker
        forker = os.getpid()

    def in_child() -> None:
        pid = os.getpid()
        _fork_slot.pack_into(_forks, pid % _FORK_SLOTS * _fork_slot.size, pid, forker)

    os.register_at_fork(before=before, after_in_child=in_child)


def snapshot() -> Snapshot:
    if not _LINUX:
        return Snapshot(frozenset(), {}, frozenset(), 0, frozenset(), frozenset())
    threads = frozenset(threading.enumerate())
    return Snapshot(
        shm=frozenset(os.listdir(SHM)) if Path(SHM).is_dir() else frozenset(),
        fds=_fds(),
        threads=threads,
        native_threads=len(os.listdir("/proc/self/task")) - len(threads),
        processes=frozenset(_descendants(os.getpid())),
        temp=frozenset(name for name in os.listdir(tempfile.gettempdir()) if name.startswith(TEMP_PREFIX)),
    )


def leftovers(before: Snapshot) -> list[str]:
    """One line for each thing that is here now and was not `before`."""
    now = snapshot()
    if now == before:
        return []
    server_pids, server_fds = _servers()
    lines = [f"{SHM}/{name}" for name in sorted(now.shm - before.shm) if not _held_by_a_stranger(name, now)]
    lines += [
        f"fd {fd} → {now.fds[fd]}"
        for fd in sorted(now.fds)
        if now.fds[fd] != before.fds.get(fd) and fd not in server_fds
    ]
    lines += [
        f"fd {fd} → {before.fds[fd]} was closed, and this test did not open it"
        for fd in sorted(before.fds.keys() - now.fds.keys())
    ]
    lines += [f"thread {thread!r}" for thread in now.threads - before.threads]
    if now.native_threads > before.native_threads + _pool_threads(now, before):
        lines.append(f"{now.native_threads - before.native_threads} threads that Python does not know")
    lines += [str(process) for process in now.processes - before.processes if process.pid not in server_pids]
    lines += [f"{tempfile.gettempdir()}/{name}" for name in sorted(now.temp - before.temp)]
    return lines


def settle(before: Snapshot, timeout_s: float) -> list[str]:
    """`leftovers`, after collecting garbage and, as long as there are any, waiting up to `timeout_s`."""
    if not (left := leftovers(before)):
        return []
    gc.collect()
    deadline = time.monotonic() + timeout_s
    while True:
        _bury_orphans(before)
        if not (left := leftovers(before)) or time.monotonic() >= deadline:
            return left
        _await_change(before, min(0.02, timeout_s))


def kill_new_processes(before: Snapshot) -> None:
    """End what a test left running, so that it disturbs no later test."""
    spared = {process.pid for process in before.processes} | _servers()[0]
    for _ in range(100):  # an executor of wider scope replaces its workers as long as it lives
        left = [process.pid for process in _descendants(os.getpid()) if process.pid not in spared]
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue  # gone already, or another's child: it comes to us once its parent is dead


def _fds() -> dict[int, str]:
    fds = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            fds[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the fd that listed the folder
    return fds


def _stat(pid: int) -> tuple[str, int, int]:
    """State letter, parent's pid, start in clock ticks. OSError if the process is gone."""
    fields = Path(f"/proc/{pid}/stat").read_bytes()
    fields = fields[fields.rindex(b")") + 2 :]
    state, parent, *rest = fields.split(maxsplit=20)
    return state.decode(), int(parent), int(rest[17])


def _descendants(pid: int) -> Iterator[Process]:
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    for task in tasks:
        try:
            children = [
                int(child) for child in Path(f"/proc/{pid}/task/{task}/children").read_bytes().split()
            ]
        except OSError:
            continue
        for child in children:
            try:
                yield Process(child, _stat(child)[2])
            except OSError:
                continue
            yield from _descendants(child)


def _servers() -> tuple[set[int], set[int]]:
    """Pids and fds of the servers that other libraries keep for the life of this process."""
    pids: set[int | None] = set()
    fds: set[int | None] = set()
    for module, holder, pid, fd in _SERVERS:
        server = getattr(sys.modules.get(module), holder, None)
        pids.add(getattr(server, pid, None))
        fds.add(getattr(server, fd, None))
    return {pid for pid in pids if pid is not None}, {fd for fd in fds if fd is not None}


def _pool_threads(now: Snapshot, before: Snapshot) -> int:
    """How many threads the BLAS and OpenMP libraries of this process may have of their own."""
    if now.native_threads <= before.native_threads:
        return 0
    from threadpoolctl import threadpool_info

    return sum(pool["num_threads"] - 1 for pool in threadpool_info())


def _held_by_a_stranger(name: str, now: Snapshot) -> bool:
    """Whether a process that does not descend from this one has the name in /dev/shm open or mapped."""
    path = f"{SHM}/{name}"
    family = {process.pid for process in now.processes} | {os.getpid()}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in family:
            continue
        try:
            if path in Path(f"/proc/{entry}/maps").read_text():
                return True
            if any(os.readlink(fd.path) == path for fd in os.scandir(f"/proc/{entry}/fd")):
                return True
        except OSError:
            continue  # gone, or another user's
    return False


def _bury_orphans(before: Snapshot) -> None:
    for process in set(_descendants(os.getpid())) - before.processes:
        if _state(process.pid) == "Z" and not _forked_here(process.pid):
            try:
                os.waitpid(process.pid, os.WNOHANG)
            except ChildProcessError:
                continue  # its parent lives and may still wait for it


def _forked_here(pid: int) -> bool:
    noted, forker = _fork_slot.unpack_from(_forks, pid % _FORK_SLOTS * _fork_slot.size)
    return bool(noted == pid and forker == os.getpid())


def _await_change(before: Snapshot, timeout_s: float) -> None:
    """Until a new process or thread ends, at most `timeout_s`."""
    poller = select.poll()
    pidfds = []
    try:
        for process in set(_descendants(os.getpid())) - before.processes:
            if _state(process.pid) not in {"", "Z"}:
                pidfds.append(os.pidfd_open(process.pid))
                poller.register(pidfds[-1], select.POLLIN)
        threads = set(threading.enumerate()) - before.threads
        if threads and not pidfds:
            threads.pop().join(timeout_s)
        else:
            poller.poll(timeout_s * 1000)
    except ProcessLookupError:
        return  # one ended meanwhile
    finally:
        for fd in pidfds:
            os.close(fd)


def _state(pid: int) -> str:
    """The letter that the kernel shows for it: "Z" for ended and not waited for, "" for gone."""
    try:
        return _stat(pid)[0]
    except OSError:
        return ""
