"""Where a worker may come to harm × how × what is promised, as one table; each cell is a test.

After each: another task, submitted before and after, is not affected, the executor goes on unless the promise is that it is
broken, and nothing is left behind (the guard looks).  Deaths inside the shared memory's own operations, with each lock held
and in each allocation, are in `test_word_deaths.py` and `tests/interleave`.
"""

from __future__ import annotations

import atexit
import ctypes
import enum
import faulthandler
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from repartir import Executor, TaskNotSerializable, WorkerDied
from tests.faults.conftest import Make
from tests.faults.waits import LIMIT_S


class Promise(enum.Enum):
    """What becomes of the task, and of the executor."""

    RAISES = "the task's own exception"
    NOT_SERIALIZABLE = "an error that says what could not travel"
    DIES = "WorkerDied for this task alone"
    SETTLES = "the task's result"
    SETTLES_OR_DIES = "one or the other"
    BREAKS = "the executor is broken, and says why"


class OwnError(Exception):
    pass


def raise_error() -> None:
    raise OwnError("mine")


def run_out_of_memory() -> None:
    raise MemoryError("no more")


def find_the_disk_full() -> None:
    with open("/dev/full", "w") as file:
        file.write("x")


def hit_the_limit_of_memory() -> None:
    """A real failure to allocate."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 20, hard))
    try:
        bytearray(1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def leave() -> None:
    sys.exit(3)


def leave_hard() -> None:
    os._exit(3)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash() -> None:
    """In C code."""
    faulthandler.disable()  # pytest's, which would write to its terminal
    ctypes.string_at(0)


def abort() -> None:
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.abort()


def close_descriptors() -> None:
    os.closerange(3, 256)


HOW: dict[str, Callable[[], None]] = {
    "exception": raise_error,
    "MemoryError": run_out_of_memory,
    "rlimit": hit_the_limit_of_memory,
    "full disk": find_the_disk_full,
    "sys.exit": leave,
    "os._exit": leave_hard,
    "SIGKILL": be_killed,
    "SIGSEGV": crash,
    "SIGABRT": abort,
    "closed fds": close_descriptors,
}
RAISING = ("exception", "MemoryError", "rlimit", "full disk", "sys.exit")
DEADLY = ("os._exit", "SIGKILL", "SIGSEGV", "SIGABRT")


class HarmsWhenUnpickled:
    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        return _harm, (self.how,)


class HarmsWhenPickled:
    """In the worker: the client never pickles one."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        HOW[self.how]()
        return int, (5,)


class HarmsWhenItDies:
    def __init__(self, how: str) -> None:
        self.how = how

    def __del__(self) -> None:
        HOW[self.how]()


def _harm(how: str) -> int:
    HOW[how]()
    return 5


def takes(_value: object) -> int:
    return 5


def gives(how: str) -> object:
    return HarmsWhenPickled(how)


def drops(how: str) -> int:
    """Harm comes in a finalizer within the task."""
    HarmsWhenItDies(how)
    return 5


def leaves_to_exit(how: str) -> int:
    """Harm comes when the process ends."""
    atexit.register(HOW[how])
    return 5


_kept: list[object] = []


def keeps(how: str) -> int:
    """Harm comes when the interpreter drops its globals, if it ever does."""
    _kept.append(HarmsWhenItDies(how))
    return 5


def first_time_only(path: str, how: str) -> None:
    """An initializer that does harm in the first worker that comes by."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    HOW[how]()


WHERE: dict[str, Callable[[Executor, str], Any]] = {
    "decode": lambda ex, how: ex.submit(takes, HarmsWhenUnpickled(how)),
    "function": lambda ex, how: ex.submit(_harm, how),
    "finalizer": lambda ex, how: ex.submit(drops, how),
    "encode": lambda ex, how: ex.submit(gives, how),
    "exit": lambda ex, how: ex.submit(leaves_to_exit, how),
    "globals": lambda ex, how: ex.submit(keeps, how),
}

P = Promise
TASKS: dict[tuple[str, str], Promise] = {
    **{("decode", how): P.RAISES for how in RAISING},
    **{("decode", how): P.DIES for how in DEADLY},
    ("decode", "closed fds"): P.SETTLES_OR_DIES,
    **{("function", how): P.RAISES for how in RAISING},
    **{("function", how): P.DIES for how in DEADLY},
    ("function", "closed fds"): P.SETTLES_OR_DIES,
    **{("finalizer", how): P.SETTLES for how in RAISING},
    **{("finalizer", how): P.DIES for how in DEADLY},
    **{("encode", how): P.NOT_SERIALIZABLE for how in RAISING},
    ("encode", "sys.exit"): P.RAISES,
    **{("encode", how): P.DIES for how in DEADLY},
    ("encode", "closed fds"): P.SETTLES_OR_DIES,
    **{("exit", how): P.SETTLES for how in HOW},
    **{("globals", how): P.SETTLES for how in (*RAISING, *DEADLY)},
}


def check_promise(promise: Promise, future: Any) -> None:
    error = future.exception(LIMIT_S)
    if promise is P.RAISES:
        assert isinstance(error, OwnError | MemoryError | OSError | SystemExit), error
        assert not isinstance(error, WorkerDied)
    elif promise is P.NOT_SERIALIZABLE:
        assert isinstance(error, TaskNotSerializable), error
    elif promise is P.DIES:
        assert type(error) is WorkerDied, error
    elif promise is P.SETTLES:
        assert error is None
        assert future.result(0) == 5
    else:
        assert error is None or type(error) is WorkerDied, error


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("where", "how"), TASKS)
def test_a_task(make: Make, where: str, how: str, capfd: pytest.CaptureFixture[str]) -> None:
    ex = make(2)
    beside = ex.submit(time.sleep, 0.1)
    harmed = WHERE[where](ex, how)
    behind = [ex.submit(pow, n, 2) for n in range(10)]
    check_promise(TASKS[where, how], harmed)
    assert beside.exception(LIMIT_S) is None
    assert [future.result(LIMIT_S) for future in behind] == [n * n for n in range(10)]
    assert [ex.submit(pow, n, 2).result(LIMIT_S) for n in range(10)] == [n * n for n in range(10)]
    ex.shutdown()


@pytest.mark.parametrize("how", [*RAISING, *DEADLY])
def test_every_initializer(make: Make, how: str, capfd: pytest.CaptureFixture[str]) -> None:
    """An executor whose workers all fail to start cannot be used, and says why."""
    ex = make(2, initializer=HOW[how])
    error = ex.submit(pow, 2, 5).exception(LIMIT_S)
    assert isinstance(error, BrokenProcessPool)
    assert "initializer" in str(error) if how in RAISING else "die before they are ready" in str(error)
    with pytest.raises(BrokenProcessPool):
        ex.submit(pow, 2, 5)


@pytest.mark.parametrize("how", DEADLY)
def test_one_initializer(make: Make, tmp_path: Path, how: str) -> None:
    """One that dies at its start is simply replaced."""
    ex = make(2, initializer=first_time_only, initargs=(str(tmp_path / "flag"), how))
    assert [ex.submit(pow, n, 2).result(LIMIT_S) for n in range(10)] == [n * n for n in range(10)]


SIGNALS = ("SIGKILL", "SIGSEGV", "SIGTERM", "SIGABRT", "SIGHUP")


@pytest.mark.parametrize("name", SIGNALS)
def test_an_idle_worker(make: Make, name: str) -> None:
    ex = make(2)
    pids = {ex.submit(os.getpid).result(LIMIT_S) for _ in range(20)}
    for pid in pids:
        os.kill(pid, getattr(signal, name))
    assert [ex.submit(pow, n, 2).exception(LIMIT_S) for n in range(20)].count(None) >= 18
    assert [ex.submit(pow, n, 2).result(LIMIT_S) for n in range(20)] == [n * n for n in range(20)]


def test_a_stopped_idle_worker_holds_nothing_up(make: Make) -> None:
    """The other does its work; it goes on when it is continued."""
    ex = make(2)
    pid = ex.submit(os.getpid).result(LIMIT_S)
    time.sleep(0.05)  # asleep, so with no lock in its hands
    os.kill(pid, signal.SIGSTOP)
    try:
        futures = [ex.submit(os.getpid) for _ in range(20)]
        done = {future.result(LIMIT_S) for future in futures}
        assert pid not in done
    finally:
        os.kill(pid, signal.SIGCONT)
    assert ex.submit(pow, 2, 5).result(LIMIT_S) == 32


def test_a_task_that_is_stopped_ends_by_its_time_out(make: Make) -> None:
    """A stopped process takes no SIGUSR1 and no SIGTERM; it can be killed."""
    ex: Any = make(2)
    error = ex.options(timeout=0.2).submit(signal.raise_signal, signal.SIGSTOP).exception(LIMIT_S)
    assert isinstance(error, TimeoutError)
    assert ex.submit(pow, 2, 5).result(LIMIT_S) == 32


@pytest.mark.parametrize("how", DEADLY)
def test_a_map(make: Make, how: str) -> None:
    """The map raises the death, and the executor goes on."""
    ex = make(2)
    with pytest.raises(WorkerDied):
        list(ex.map(_harm, [how]))
    assert list(ex.map(abs, range(-20, 0))) == list(range(20, 0, -1))


@pytest.mark.parametrize("how", [*RAISING, *DEADLY])
def test_while_shutting_down(make: Make, how: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Harm in the last tasks, when `shutdown` already waits."""
    ex = make(2)
    futures = [ex.submit(_harm, how) for _ in range(4)]
    ex.shutdown()
    assert all(future.exception(0) is not None for future in futures)
