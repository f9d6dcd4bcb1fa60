"""What a forked child undoes of what it inherits, looked at in a forked child.

The same with whole executors, and with threads that hold what is undone: tests/conformance/test_forks.py.
"""

from __future__ import annotations

import gc
import importlib._bootstrap as bootstrap
import io
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import FrameType, ModuleType
from typing import Any

import numpy as np
import pytest

from repartir import hygiene
from repartir.hygiene import die_with_parent, leave_parent_behind, quiet_parent, reseed


def in_child(look: Callable[[], Any]) -> Any:
    """What `look` returns in a forked child, as JSON has it."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, json.dumps(look()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        said = file.read()
    os.waitpid(pid, 0)
    return json.loads(said)


@contextmanager
def handled(number: int, handler: Any) -> Iterator[None]:
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)


def do_nothing(_number: int, _frame: FrameType | None) -> None:
    """A handler of the client's."""


class TestLeaveParentBehind:
    def look(self, see: Callable[[], Any]) -> Any:
        def child() -> Any:
            leave_parent_behind()
            return see()

        return in_child(child)

    def test_handlers_of_the_clients_are_gone_and_what_it_ignores_stays_ignored(self) -> None:
        with handled(signal.SIGUSR1, do_nothing), handled(signal.SIGUSR2, signal.SIG_IGN):
            found = self.look(
                lambda: [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)]
            )
        assert found == [signal.SIG_DFL, signal.SIG_IGN]

    def test_ctrl_c_is_for_the_client_to_handle(self) -> None:
        assert self.look(lambda: signal.getsignal(signal.SIGINT)) == signal.SIG_IGN

    def test_no_signal_is_blocked(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            assert self.look(lambda: sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))) == []
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def test_the_clients_wakeup_fd_is_not_written_to(self) -> None:
        read, write = os.pipe()
        os.set_blocking(write, False)
        before = signal.set_wakeup_fd(write)
        try:
            assert self.look(lambda: signal.set_wakeup_fd(-1)) == -1
        finally:
            signal.set_wakeup_fd(before)
            os.close(read)
            os.close(write)

    def test_a_half_imported_module_is_imported_anew(self, monkeypatch: pytest.MonkeyPatch) -> None:
        half, whole = ModuleType("half"), ModuleType("whole")
        half.__spec__, whole.__spec__ = ModuleSpec("half", None), ModuleSpec("whole", None)
        half.__spec__._initializing = True  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "half", half)
        monkeypatch.setitem(sys.modules, "whole", whole)
        locks = [bootstrap._get_module_lock(name) for name in ("half", "whole")]  # type: ignore[attr-defined]
        assert self.look(lambda: ["half" in sys.modules, "whole" in sys.modules]) == [False, True]
        assert len(locks) == 2, "held by the importing threads"

    def test_no_event_loop_runs(self) -> None:
        import asyncio

        async def fork() -> Any:
            return self.look(lambda: asyncio._get_running_loop() is None)

        assert asyncio.run(fork()) is True

    def test_the_clients_garbage_stays_uncollected(self) -> None:
        """Its finalizers are the client's: here they would, say, shut down what the client uses."""
        assert self.look(lambda: [gc.isenabled(), gc.get_freeze_count() > 0]) == [False, True]


def test_a_member_collects_its_own_garbage() -> None:
    def child() -> bool:
        leave_parent_behind()
        reseed()
        return gc.isenabled()

    assert in_child(child) is True


def test_reseed_draws_anew() -> None:
    def child() -> list[float]:
        reseed()
        return [random.random(), float(np.random.random())]

    first, second = in_child(child), in_child(child)
    assert first[0] != second[0]
    assert first[1] != second[1]


class TestNumpysLock:
    def test_is_held_around_the_fork_and_let_go_in_both(self) -> None:
        lock = np.random.mtrand._rand._bit_generator.lock  # type: ignore[attr-defined]
        with quiet_parent() as let_go, ThreadPoolExecutor(1) as other:
            held = not other.submit(lock.acquire, timeout=0).result()

            def child() -> bool:
                let_go()
                return bool(lock.acquire(timeout=0))

            assert in_child(child) is True
        assert held
        assert lock.acquire(timeout=0)
        lock.release()

    def test_held_by_another_for_long_the_child_gets_a_new_generator(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hygiene, "_NUMPY_LOCK_S", 0.01)
        lock = np.random.mtrand._rand._bit_generator.lock  # type: ignore[attr-defined]

        def child() -> list[float]:
            let_go()
            leave_parent_behind()
            reseed()
            return [float(np.random.random()), float(np.random.mtrand.random_sample())]  # type: ignore[attr-defined]

        with lock, quiet_parent() as let_go:
            drawn = in_child(child)
        assert 0 <= min(drawn) < max(drawn) < 1

    def test_without_numpy_there_is_nothing_to_hold(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "numpy.random.mtrand")
        with quiet_parent() as let_go:
            let_go()
        hygiene._free_numpy_random()


class Full(io.StringIO):
    """A stream to a full disk."""

    def flush(self) -> None:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stream", [None, Full(), "closed"])
def test_a_stream_that_cannot_be_flushed_stops_no_fork(monkeypatch: pytest.MonkeyPatch, stream: Any) -> None:
    if stream == "closed":
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    with quiet_parent():
        pass


def test_an_exception_at_the_fork_lets_go_of_numpys_lock() -> None:
    lock = np.random.mtrand._rand._bit_generator.lock  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt), quiet_parent():
        raise KeyboardInterrupt
    assert lock.acquire(timeout=0)
    lock.release()


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
class TestDieWithParent:
    def test_the_parents_death_is_the_childs(self) -> None:
        """A process, its child and the child's pipe: the pipe ends when the child does."""
        read, write = os.pipe()
        parent = os.fork()
        if parent == 0:
            os.close(read)
            ready_r, ready_w = os.pipe()
            me = os.getpid()
            if os.fork() == 0:
                die_with_parent(me)
                os.write(ready_w, b"!")
                signal.pause()
            os.read(ready_r, 1)
            os._exit(0)
        os.close(write)
        with open(read, "rb") as file:
            assert file.read() == b""
        os.waitpid(parent, 0)

    def test_a_parent_that_is_dead_already(self) -> None:
        pid = os.fork()
        if pid == 0:
            die_with_parent(os.getppid() + 1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
