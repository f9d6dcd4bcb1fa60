"""The executors under test, as data, and the marks that choose among them.

A test that asks for `kind`, `make` or `ex` runs for all five kinds unless a mark below narrows it. The kind
`control` is the stdlib's ProcessPoolExecutor: where its behaviour is the yardstick a wrong test fails on it.
"""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

BUFFERSIZE_IN_STDLIB = sys.version_info >= (3, 14)


@dataclass(frozen=True)
class Kind:
    """One executor class with one start method; `serial` has no processes, so no start method."""

    name: str

    @property
    def is_control(self) -> bool:
        return self.name == "control"

    @property
    def is_serial(self) -> bool:
        return self.name == "serial"

    @property
    def start_method(self) -> str:
        return "fork" if self.is_control else self.name

    def make(self, max_workers: int | None = 2, **options: Any) -> Executor:
        """Return a new executor of this kind; `options` are keyword arguments of its constructor."""
        if self.is_control:
            return ProcessPoolExecutor(max_workers, mp_context=multiprocessing.get_context("fork"), **options)
        import repartir

        if self.is_serial:
            return repartir.SerialExecutor()
        return repartir.Executor(
            max_workers, mp_context=multiprocessing.get_context(self.start_method), **options
        )

    @property
    def script_preamble(self) -> str:
        """Python text that defines `make(max_workers, **options)` in a script, for this kind."""
        if self.is_serial:
            return "import repartir\ndef make(max_workers=2, **options): return repartir.SerialExecutor()\n"
        source = "concurrent.futures" if self.is_control else "repartir"
        name = "ProcessPoolExecutor" if self.is_control else "Executor"
        return (
            f"import multiprocessing\nfrom {source} import {name}\n"
            "def make(max_workers=2, **options):\n"
            f"    context = multiprocessing.get_context({self.start_method!r})\n"
            f"    return {name}(max_workers, mp_context=context, **options)\n"
        )

    def __str__(self) -> str:
        return self.name


FORK, SPAWN, FORKSERVER = Kind("fork"), Kind("spawn"), Kind("forkserver")
SERIAL, CONTROL = Kind("serial"), Kind("control")
ALL = (FORK, SPAWN, FORKSERVER, SERIAL, CONTROL)

# Kinds whose tests with executors of their own are left to the slow suite. `forkserver`: each costs a fresh interpreter,
# and nothing but who starts it differs from `spawn`. `control`: it tests the tests.
SLOW_TO_START: tuple[Kind, ...] = (FORKSERVER, CONTROL)
every_start = pytest.mark.every_start

processes = pytest.mark.kinds(FORK, SPAWN, FORKSERVER, CONTROL)
workers = pytest.mark.kinds(FORK, SPAWN, FORKSERVER)
ours = pytest.mark.kinds(FORK, SPAWN, FORKSERVER, SERIAL)
control_only = pytest.mark.kinds(CONTROL)
forked = pytest.mark.kinds(FORK, CONTROL)
only_fork = pytest.mark.kinds(FORK)
