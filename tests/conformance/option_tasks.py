"""Functions that workers run in the tests of options: at module level, so that every start method finds them."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np


def count(path: Path) -> int:
    """How often this was called with that path, this time included."""
    with open(path, "ab") as file:
        file.write(b"x")
    return path.stat().st_size


def fails_first(path: Path, times: int, error: type[BaseException] = ValueError) -> int:
    """Raises the first times; then returns which call it is."""
    calls = count(path)
    if calls <= times:
        raise error(f"call {calls}")
    return calls


def sleep_and_fail(path: Path, seconds: float) -> None:
    calls = count(path)
    time.sleep(seconds)
    raise ValueError(f"call {calls}")


def dies_first(path: Path, times: int) -> int:
    calls = count(path)
    if calls <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return calls


def hangs_first(path: Path, times: int) -> int:
    calls = count(path)
    if calls <= times:
        sleep_long()
    return calls


def writes_and_fails_first(array: Any, path: Path, times: int) -> float:
    """The sum of its argument, after it has written to it and failed so many times."""
    total = float(array.sum())
    array[:] = -1
    fails_first(path, times)
    return total


def sleep_long() -> None:
    """In one call into C."""
    time.sleep(60)


def spin_long() -> None:
    """In Python alone."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        pass


def ignore_sigterm_and_sleep() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep_long()


def clean_up_on_sigterm(path: Path) -> None:
    def leave(*_: object) -> None:
        path.write_text("clean")
        os._exit(0)

    signal.signal(signal.SIGTERM, leave)
    sleep_long()


def ring_and_sleep(path: Path, array: Any = None) -> None:
    """Says that it has begun, then never ends."""
    path.write_text(str(os.getpid()))
    sleep_long()


def sleep_if(number: int, bad: int) -> int:
    if number == bad:
        sleep_long()
    return number


def total(array: Any) -> float:
    return float(np.asarray(array).sum())


def take_memory_and_sleep(size: int) -> None:
    data = bytearray(b"x") * size
    sleep_long()
    del data


_kept: list[bytearray] = []


def keep_memory(size: int) -> int:
    """Leaks; the process that it ran in."""
    _kept.append(bytearray(b"x") * size)
    return os.getpid()


def map_shared_and_sleep(array: Any, seconds: float) -> float:
    """Touches all of a shared array."""
    result = float(array.sum())
    time.sleep(seconds)
    return result


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("not this one")

    def __repr__(self) -> str:
        return "<unpicklable>"


def log(name: str, level: int, *messages: str) -> int:
    for message in messages:
        logging.getLogger(name).log(level, "%s!", message, extra={"more": Unpicklable(), "number": 5})
    return len(messages)


def log_with_much_beside_it(texts: int) -> None:
    extra = {f"more{n}": "ü" * 5_000 for n in range(texts)}
    logging.getLogger("task").warning("short", extra=extra)


def log_from_threads(threads: int, each: int) -> None:
    def run(nth: int) -> None:
        for number in range(each):
            logging.getLogger("threads").warning("%d %d", nth, number)

    running = [threading.Thread(target=run, args=(nth,)) for nth in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def log_exception(more: str = "") -> None:
    try:
        raise ValueError("inside" + more)
    except ValueError:
        logging.getLogger("task").exception("it failed")


def log_and_die() -> None:
    logging.getLogger("task").warning("last words")
    os.kill(os.getpid(), signal.SIGKILL)


class CustomWarning(UserWarning):
    pass


def warn(text: str, category: type[Warning] = CustomWarning) -> None:
    warnings.warn(text, category, stacklevel=2)


def add_handler(path: Path) -> None:
    """An initializer: the worker's own file."""
    logging.getLogger().addHandler(logging.FileHandler(path))


class BadNotesError(Exception):
    """With notes to which none can be added."""

    __notes__ = 5  # type: ignore[assignment]


class ReadOnlyNotesError(Exception):
    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]
        return []


class _Undecided(type):
    def __instancecheck__(cls, instance: object) -> bool:
        raise RuntimeError("cannot tell")


class UndecidedError(Exception, metaclass=_Undecided):
    pass


class Untold:
    """A callable without a name."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __call__(self) -> None:
        sleep_long()


class HangsPickling:
    def __reduce__(self) -> Any:
        sleep_long()
        raise AssertionError


class TakesMemoryPickling:
    def __reduce__(self) -> Any:
        take_memory_and_sleep(300 << 20)
        raise AssertionError


def take_memory(size: int) -> int:
    return len(bytearray(size))


def run_an_executor_of_its_own(tasks: int) -> list[int]:
    import repartir

    with repartir.Executor(2) as executor:
        return [executor.submit(pow, n, 2).result(30) for n in range(tasks)]


def die_with_an_executor(path: Path) -> None:
    import repartir

    executor = repartir.Executor(2)
    pids = {executor.submit(os.getpid).result(30) for _ in range(20)}
    path.write_text(" ".join(map(str, pids)))
    os.kill(os.getpid(), signal.SIGKILL)
