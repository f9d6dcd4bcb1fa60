"""Tasks that get shared arrays and objects: importable in every worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import repartir
from repartir import shared
from repartir.shared import SharedArray
from repartir.shm.parking import ParkingLot

from .sync import Bell, Gate

kept: list[Any] = []


@dataclass
class Job:
    name: str
    table: Any


class Counted:
    """An object that counts in its process how often it was unpickled."""

    loads = 0

    def __init__(self, value: Any) -> None:
        self.value = value

    def __setstate__(self, state: dict[str, Any]) -> None:
        Counted.loads += 1
        self.__dict__.update(state)


def look(array: Any) -> tuple[str, bool, float]:
    return type(array).__name__, bool(array.flags.writeable), float(array.sum())


def poke(array: Any, index: Any, value: Any) -> None:
    array[index] = value


def write_all(found: Any) -> None:
    """Write into every array in a nest of lists, dicts and jobs."""
    if isinstance(found, np.ndarray):
        found[...] += 1
    elif isinstance(found, Job):
        write_all(found.table)
    else:
        for value in found.values() if isinstance(found, dict) else found:
            write_all(value)


def try_to_write(array: Any, count: int | None = None) -> list[str]:
    """What became of each attempt to write, of the first `count`: "written" or the type of the exception."""
    failures = []
    attempts: list[Callable[[], object]] = [
        lambda: poke(array, 0, 1),
        lambda: array.fill(1),
        lambda: np.add(array, 1, out=array),
        lambda: array.setflags(write=True),
        lambda: setattr(array.flags, "writeable", True),
        lambda: array[:].setflags(write=True),
        lambda: np.asarray(array).setflags(write=True),
        lambda: memoryview(array).cast("B").__setitem__(0, 1),
    ]
    for attempt in attempts[:count]:
        try:
            attempt()
        except (ValueError, TypeError) as exc:
            failures.append(type(exc).__name__)
        else:
            failures.append("written")
    return failures


def compute(array: Any) -> list[str]:
    found = [
        array + 1,
        array * array,
        array.copy(),
        array.astype("f4"),
        np.sort(array),
        array[array > 1],
        -array,
    ]
    return [type(value).__name__ for value in found]


def give_back(array: Any) -> Any:
    return array


def give_back_parts(array: Any) -> Any:
    return {"slice": array[1:3], "reversed": array[::-1], "whole": [array]}


def raise_with(array: Any) -> None:
    raise ValueError(array[:3])


def sum_when_open(gate: Gate, bell: Bell, array: Any) -> float:
    bell.ring("waiting")
    gate.wait()
    return float(array.sum())


def keep(array: Any) -> None:
    kept.append(array)


def sum_of_kept() -> float:
    return float(kept[-1].sum())


def try_to_write_kept() -> list[str]:
    return try_to_write(kept[-1], 3)


def forget() -> None:
    kept.clear()


def die(array: Any) -> None:
    assert array.sum() >= 0
    os.kill(os.getpid(), signal.SIGKILL)


def make_and_return() -> Any:
    return shared.full(1000, 3)


def share_in_place() -> tuple[str, float]:
    array = repartir.current_executor().share(np.ones(1000))
    assert type(array) is SharedArray
    result = repartir.current_executor().submit(np.sum, array).result()
    with repartir.current_executor().share([1, 2]) as handle:
        return type(handle).__name__, float(result)


def in_an_executor_of_its_own(array: Any) -> tuple[str, bool, float]:
    with repartir.Executor(1) as ex:
        return ex.submit(look, array).result()


def describe(value: Any) -> tuple[int, int, str, Any]:
    """Process, id and type of an object, and how often it was unpickled there."""
    return os.getpid(), id(value), type(value).__name__, Counted.loads


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def open_no_more_descriptors() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))


def first_elements(arrays: Any) -> list[int]:
    return [int(array[0]) for array in arrays]


def sum_of_first(arrays: Any) -> float:
    return float(arrays[0].sum())


def type_name(value: Any) -> str:
    return type(value).__name__


def stop_before_announcing(bell: Bell, gate: Gate, mark: Path) -> None:
    """An initializer: once there is ``mark``, this worker rings and waits for the gate when it has looked for the last time
    and is about to announce that it sleeps."""
    announce = ParkingLot.announce

    def late(self: ParkingLot, row: int) -> None:
        if mark.exists():
            mark.unlink()
            bell.ring()
            gate.wait()
        announce(self, row)

    ParkingLot.announce = late  # type: ignore[method-assign]
