"""What a forked child must undo of what it inherits.

The client may have threads when it forks the nursery, and each of them may hold a lock, be in the middle of an import
or own a signal handler.  Only the forking thread lives on in the child.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from repartir.shm.clib import holding_gil

_PR_SET_PDEATHSIG = 1
_NUMPY_LOCK_S = 0.2


@contextlib.contextmanager
def quiet_parent() -> Iterator[Callable[[], None]]:
    """In the parent, around the fork: nothing buffered in stdio, and numpy's random generator between two draws.

    Gives what the child is to call first, since the ``with`` block ends in the parent alone.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.flush()
    lock = _numpy_random_lock()
    held = lock is not None and lock.acquire(timeout=_NUMPY_LOCK_S)
    try:
        yield lock.release if held else _nothing_held
    finally:
        if held:
            lock.release()


def _nothing_held() -> None:
    return None


def leave_parent_behind() -> None:
    """In the nursery, right after the fork: its own signals, imports, event loop, thread pools and garbage."""
    signal.set_wakeup_fd(-1)
    for number in range(1, signal.NSIG):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _forget_half_imports()
    _free_numpy_random()
    asyncio_events = sys.modules.get("asyncio.events")
    if asyncio_events is not None:
        asyncio_events._set_running_loop(None)
    pool_threads = sys.modules.get("concurrent.futures.thread")
    if pool_threads is not None:
        pool_threads._threads_queues.clear()  # else a member joins them at its end: one of them is its own thread
    gc.disable()
    gc.freeze()


def leave_ctrl_c_to_client() -> None:
    """In a member.  Not ignored, since a command that a task runs would ignore it for good."""
    signal.signal(signal.SIGINT, _go_on)
    signal.siginterrupt(signal.SIGINT, False)  # calls of the operating system in C code of others go on, too


def take_ctrl_c() -> None:
    """In a child that a task has forked: it ends as it would elsewhere."""
    if signal.getsignal(signal.SIGINT) is _go_on:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _go_on(*_: object) -> None:
    return None


def leave(code: int) -> NoReturn:
    """End this forked process here, whatever its stdio is like: no exception may reach the caller of ``os.fork``."""
    try:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def reseed() -> None:
    """In a member: random streams of its own, and garbage collection of what it makes."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    gc.enable()


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent, a process with one thread, dies (Linux)."""
    if sys.platform == "linux":
        holding_gil().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            os._exit(1)


def _forget_half_imports() -> None:
    """Modules that another thread was importing will never be finished here; import locks will never be let go."""
    import importlib._bootstrap as bootstrap

    for name in list(bootstrap._module_locks):  # type: ignore[attr-defined]  # one a module that is being imported
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if getattr(spec, "_initializing", False):
            del sys.modules[name]
    bootstrap._module_locks.clear()  # type: ignore[attr-defined]
    bootstrap._blocking_on.clear()  # type: ignore[attr-defined]


def _numpy_random_lock() -> Any:
    mtrand = sys.modules.get("numpy.random.mtrand")
    return None if mtrand is None else mtrand._rand._bit_generator.lock


def _free_numpy_random() -> None:
    """Where a thread of the parent held numpy's global generator for long, its lock will never be let go: replace both."""
    lock = _numpy_random_lock()
    if lock is None:
        return
    if lock.acquire(timeout=0):
        lock.release()
        return
    numpy_random = sys.modules["numpy.random"]
    mtrand: Any = sys.modules["numpy.random.mtrand"]
    old, new = mtrand._rand, numpy_random.RandomState()
    mtrand._rand = new
    for module in (numpy_random, mtrand):
        for name, value in list(vars(module).items()):
            if getattr(value, "__self__", None) is old:
                setattr(module, name, getattr(new, value.__name__))
