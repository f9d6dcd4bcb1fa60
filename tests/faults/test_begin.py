"""An executor that cannot begin, or is interrupted while it does, leaves nothing behind: the guard looks after each."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

import repartir
from repartir import executor as executor_module


@pytest.fixture(autouse=True)
def mask_is_restored() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_no_process_can_be_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more() -> int:
        raise BlockingIOError(11, "no more processes")

    monkeypatch.setattr(os, "fork", no_more)
    with pytest.raises(BlockingIOError):
        repartir.Executor(2, mp_context="fork")


def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_more)
    monkeypatch.setattr(executor_module, "_THREAD_START_S", 0.01)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        repartir.Executor(2)


def test_ctrl_c_when_the_brokers_thread_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread has the board and the pipe by then: it ends everything, and nobody else does."""
    start = threading.Thread.start
    threads = []

    def start_and_interrupt(thread: threading.Thread) -> None:
        threads.append(thread)
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", start_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        repartir.Executor(2)
    threads[0].join(15)
    assert not threads[0].is_alive()


def test_ctrl_c_right_after_the_nursery_was_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It arrives while signals are blocked, and is raised when they are let through."""
    fork = os.fork

    def fork_and_interrupt() -> int:
        pid = fork()
        if pid:
            os.kill(os.getpid(), signal.SIGINT)
        return pid

    monkeypatch.setattr(os, "fork", fork_and_interrupt)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            repartir.Executor(2, mp_context="fork")
    finally:
        signal.signal(signal.SIGINT, previous)
