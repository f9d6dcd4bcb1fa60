"""An executor that cannot begin, or is interrupted while it does, leaves nothing behind: the guard looks after each."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import repartir
from repartir import supervisor as supervisor_module


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


def test_ctrl_c_when_the_nursery_was_just_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It arrives while signals are blocked, or right after; where another thread receives it no sleep is cut short."""
    run_forked, client = supervisor_module.run_forked, os.getpid()

    def interrupt_and_run(*args: Any) -> None:
        os.kill(client, signal.SIGINT)
        run_forked(*args)

    monkeypatch.setattr(supervisor_module, "run_forked", interrupt_and_run)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), repartir.Executor(2, mp_context="fork"):
            for _ in range(1500):
                time.sleep(0.01)
    finally:
        signal.signal(signal.SIGINT, previous)
