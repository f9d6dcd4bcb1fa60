"""Tasks that get, keep and give arrays; a module's, since what `__main__` defines goes by value."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from repartir.shm.layout import ANSWER_IN_BLOCK
from repartir.worker import Worker

from .sync import Bell, Gate

kept: list[Any] = []


class Interface:
    """Shows memory to numpy by address alone, and keeps its owner alive."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.__array_interface__ = owner.__array_interface__


WAYS_TO_KEEP: dict[str, Callable[[Any], Any]] = {
    "itself": lambda a: a,
    "a slice": lambda a: a[: a.size // 2],
    "every second": lambda a: a[::2],
    "backwards": lambda a: a[::-1],
    "another dtype": lambda a: a.view(np.int16),
    "another shape": lambda a: a.reshape(2, -1).T,
    "a memoryview": lambda a: memoryview(a),
    "a buffer's array": lambda a: np.frombuffer(memoryview(a), a.dtype),
    "an interface": lambda a: np.asarray(Interface(a)),
    "a ctypes array": lambda a: (ctypes.c_byte * a.nbytes).from_buffer(a),
    "a closure": lambda a: lambda: a,
    "an iterator": lambda a: a.flat,
    "a matrix": lambda a: np.asmatrix(a),
    "a masked array": lambda a: np.ma.array(a),
}


def keep(how: str, array: Any) -> None:
    kept.append(WAYS_TO_KEEP[how](array))


def values_of(held: Any) -> set[int]:
    """The bytes that something kept consists of."""
    held = held() if callable(held) else held
    return set(np.array(held).reshape(-1).view(np.uint8).tolist())


def kept_values() -> list[set[int]]:
    return [values_of(held) for held in kept]


def drop(which: slice = slice(None)) -> None:
    del kept[which]
    gc.collect()


def keep_in_thread(gate: Gate, bell: Bell, array: Any) -> None:
    """A thread of the task's goes on with the array after the task is over."""

    def go_on() -> None:
        gate.wait()
        bell.ring(values_of(array))

    threading.Thread(target=go_on).start()


def overwrite(array: Any, value: int) -> int:
    """Write to every element; how many distinct ones there were."""
    distinct = len(set(array.reshape(-1).tolist()))
    array[...] = value
    return distinct


def total(array: Any) -> int:
    return int(array.sum())


def pid_of(array: Any) -> int:
    return os.getpid()


def die_after_an_answer() -> None:
    """As an initializer: this worker is killed right after its first answer that lies in a block."""
    send = Worker.send

    def send_and_die(self: Worker, word: int, status: int, body: bytes) -> None:
        send(self, word, status, body)
        if status == ANSWER_IN_BLOCK:
            os.kill(os.getpid(), signal.SIGKILL)

    Worker.send = send_and_die  # type: ignore[method-assign]


def full(size: int, value: int) -> Any:
    return np.full(size, value, np.uint8)


def aliased(array: Any, again: Any, more: dict[str, Any]) -> tuple[bool, Any]:
    """Whether all three are one, and what the last shows after a write to the first."""
    array[0] = 99
    return array is again is more["array"], more["array"]


def part(array: Any, how: str) -> Any:
    return WAYS_TO_KEEP[how](array)


def parts(array: Any) -> tuple[Any, ...]:
    return array, array.T, array[1:], array


def double_in_place(array: Any) -> Any:
    array *= 2
    return array


def add_to(array: Any, value: int) -> Any:
    array += value
    return array


class ArrayError(Exception):
    """Has an array for its argument and another as its attribute."""

    data: Any = None


def raise_with_frames(array: Any, how: str) -> NoReturn:
    view = array[1:]
    try:
        if how == "chained":
            try:
                raise KeyError(int(view[0]))
            except KeyError as error:
                raise ValueError("chained") from error
        if how == "in a group":
            raise ExceptionGroup("group", [_caught(view)])
        if how == "with the array":
            error = ArrayError(view)
            error.data = array
            raise error
        raise ValueError(how)
    finally:
        del view


def double_unless(bad: int, array: Any) -> Any:
    if array[0] == bad:
        raise ValueError(f"bad {bad}")
    array *= 2
    return array


def write_map(mapped: Any, at: int, value: int) -> tuple[bool, int]:
    """Write to a memory map if it may be written to; whether it maps a file here, and its sum."""
    if mapped.flags.writeable:
        mapped[at] = value
    return mapped._mmap is not None, int(mapped.sum())


def map_of(path: str, *, deleted: bool) -> Any:
    made = np.memmap(path, "i8", "w+", shape=(1000,))
    made[:] = range(1000)
    made.flush()
    if deleted:
        os.unlink(path)
    return made[::-2]


def in_a_cycle(size: int, value: int) -> Any:
    made: list[Any] = [full(size, value)]
    made.append(made)
    return made


def _caught(array: Any) -> ValueError:
    try:
        raise ValueError(int(array[0]))
    except ValueError as error:
        return error


def _show_later(bell: Bell, gate: Gate, array: Any, written: int) -> None:
    """In a forked child: what it wrote is there, and what it did not touch stays, whatever others do meanwhile."""
    array[: array.size // 4] = written
    bell.ring("written")
    gate.wait()
    bell.ring([sorted(set(quarter.tolist())) for quarter in np.split(array, 4)])


def fork_with(bell: Bell, gate: Gate, array: Any, written: int) -> tuple[int, list[int]]:
    """A child that goes on after this task is over: its pid, and what this process sees after the child has written."""
    pid = os.fork()
    if pid == 0:
        try:
            _show_later(bell, gate, array, written)
        except BaseException:  # noqa: BLE001 - a child never returns into the worker
            traceback.print_exc()
        finally:
            os._exit(0)
    return pid, sorted(set(array.tolist()))


def process_with(bell: Bell, gate: Gate, array: Any, written: int) -> tuple[int, list[int]]:
    """The same by ``multiprocessing.Process``."""
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_show_later, args=(bell, gate, array, written))
    child.start()
    assert child.pid is not None
    return child.pid, sorted(set(array.tolist()))


def leave_in_a_cycle(array: Any) -> int:
    """Leaves the array to the garbage collector, as an exception does that its frame keeps."""
    saved = None
    try:
        raise ValueError(array.size)
    except ValueError as error:
        saved = error
    return len(saved.args)
