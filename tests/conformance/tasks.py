"""Functions, classes and exceptions that the tests submit by reference: importable in every worker."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from .sync import LIMIT_S, Bell, Gate

initialised: list[Any] = []


class PickyError(Exception):
    """Its constructor takes two arguments, but passes one on: plain pickle cannot rebuild it."""

    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"{left} and {right}")
        self.left = left


class RichError(ValueError):
    """An exception with an attribute beside its arguments."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message, code)
        self.code = code


class CustomBaseException(BaseException):
    """Not an Exception, and not one of the interpreter's own."""


class UnpicklableError(Exception):
    """An exception that holds a lock, so that it cannot be sent."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class FailsToLoad:
    """Pickles, but its unpickling raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        return fail, ("loading exploded",)


class FailsToDump:
    """Its pickling raises an error of its own."""

    def __reduce__(self) -> NoReturn:
        raise ValueError("dumping exploded")


class KillsAtLoad:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exit_hard, (9,)


class Counter:
    """Has state, methods of each sort, and is callable."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __call__(self, step: int) -> int:
        return self.start + step

    def plus(self, step: int = 1, *, times: int = 1) -> int:
        return self.start + step * times

    @classmethod
    def name(cls) -> str:
        return cls.__name__

    @staticmethod
    def double(value: int) -> int:
        return 2 * value


def echo(value: Any) -> Any:
    return value


def add(left: Any, right: Any) -> Any:
    return left + right


def signature(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def grown(values: list[int], *more: Any) -> int:
    """Changes its argument; how long that is then."""
    values.append(1)
    return len(values)


def grown_inside(item: dict[str, Any]) -> int:
    return grown(item["values"])


def raised_by_one(array: Any) -> float:
    """Changes its argument; what it begins with then."""
    array += 1
    return float(array[0])


def fail(message: str) -> NoReturn:
    raise ValueError(message)


def fail_on(bad: int, value: int) -> int:
    if value == bad:
        raise ValueError(f"bad {value}")
    return value


def throw(error: BaseException) -> NoReturn:
    raise error


def throw_picky() -> NoReturn:
    raise PickyError("salt", "pepper")


def throw_unpicklable() -> NoReturn:
    raise UnpicklableError("holds a lock")


def throw_chained() -> NoReturn:
    try:
        fail("first")
    except ValueError as error:
        raise KeyError("second") from error


def throw_noted() -> NoReturn:
    error = ValueError("noted")
    error.add_note("look here")
    raise error


def make_lock() -> Any:
    return threading.Lock()


def make_unloadable() -> FailsToLoad:
    return FailsToLoad()


def pid() -> int:
    return os.getpid()


def wait_for(gate: Gate, value: Any = None) -> Any:
    gate.wait()
    return value


def ring_and_wait(bell: Bell, gate: Gate, value: Any = None) -> Any:
    """Tell that the task runs, with its pid; return `value` when the gate opens."""
    bell.ring(os.getpid())
    gate.wait()
    return value


def ring_value_and_wait(bell: Bell, gate: Gate, value: Any) -> Any:
    bell.ring(value)
    gate.wait()
    return value


def ring(bell: Bell, value: Any) -> Any:
    bell.ring(value)
    return value


def wait_unless_first(bell: Bell, gate: Gate, value: int) -> int:
    """Item 0 fails at once; every other item rings and waits."""
    if value == 0:
        fail("first item")
    bell.ring(value)
    gate.wait()
    return value


def first_then_wait(bell: Bell, gate: Gate, value: int) -> int:
    """Item 0 returns at once; every other item rings and waits."""
    if value:
        bell.ring(value)
        gate.wait()
    return value


def exit_hard(code: int) -> NoReturn:
    os._exit(code)


def exit_soft(code: Any) -> NoReturn:
    sys.exit(code)


def kill_self(signum: int) -> NoReturn:
    """Die by `signum` as if nobody had caught it, and write no core file."""
    import faulthandler
    import resource

    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if signum != signal.SIGKILL:
        signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
    time.sleep(LIMIT_S)
    raise AssertionError("survived")


def initialise(value: Any) -> None:
    initialised.append(value)


def get_initialised() -> list[Any]:
    return initialised


def initialise_and_ring(bell: Bell) -> None:
    bell.ring(os.getpid())


def initialise_badly() -> NoReturn:
    raise RuntimeError("initializer exploded")


def describe_array(array: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], str, bool, bool]:
    """Return the array, and the dtype, writability and Fortran order that the task saw."""
    return array, array.dtype.str, array.flags.writeable, array.flags.f_contiguous


def increment(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Write into the argument itself, and return it."""
    array += 1
    return array


def draw(bell: Bell, gate: Gate) -> tuple[int, float, float]:
    """Draw from both global generators, keeping this worker busy so that another takes the next task."""
    drawn = os.getpid(), random.random(), float(np.random.random())
    bell.ring()
    gate.wait()
    return drawn


def draw_numpy() -> float:
    return float(np.random.random())


def seed_numpy(seed: int) -> None:
    np.random.seed(seed)


def read_stdin() -> str:
    return sys.stdin.read()


def run_child_process() -> int:
    """Start a multiprocessing child from the task, which only non-daemonic processes may."""
    child = multiprocessing.get_context("fork").Process(target=os._exit, args=(5,))
    child.start()
    child.join(LIMIT_S)
    assert child.exitcode is not None
    return child.exitcode


def run_command() -> str:
    return subprocess.check_output(["echo", "hello"], text=True, timeout=LIMIT_S)


def sigint_of_children() -> tuple[bool, bool]:
    """Whether a command ignores SIGINT, and whether it interrupts a forked child."""
    status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    (ignored,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:")]
    pid = os.fork()
    if pid == 0:
        os._exit(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    return bool(int(ignored, 16) >> signal.SIGINT - 1 & 1), os.waitstatus_to_exitcode(
        os.waitpid(pid, 0)[1]
    ) == 1


def run_stdlib_pool(value: int) -> int:
    """With fork, as the servers of the other start methods would outlive the pool."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as inner:
        return int(inner.submit(add, value, 1).result(LIMIT_S))


def run_thread(value: int) -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(value))
    thread.start()
    thread.join(LIMIT_S)
    return found[0]


def fork_and_return() -> tuple[int, int]:
    """A user's os.fork that returns in both processes: (own pid, child's pid or 0)."""
    child = os.fork()
    return os.getpid(), child


def write_at_exit(path: str) -> None:
    """As an initializer: leave a finalizer that writes into `path` when the worker ends."""
    import multiprocessing.util

    multiprocessing.util.Finalize(None, append_line, (path, "finalised"), exitpriority=1)


def append_line(path: str, line: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{line}\n")
