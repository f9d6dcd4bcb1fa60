"""The member's end of the wake pipe.  (The rest of a worker's life: tests/conformance, tests/faults.)"""

from __future__ import annotations

import os

import pytest

from repartir.worker import Worker


@pytest.fixture
def worker() -> Worker:
    return object.__new__(Worker)


def test_a_wake_for_a_dead_client_is_no_error(worker: Worker) -> None:
    """The member would print a traceback of ours before the nursery ends it."""
    read, worker._wake_fd = os.pipe()
    os.close(read)
    worker._wake_client()
    os.close(worker._wake_fd)


def test_neither_is_one_into_a_full_pipe(worker: Worker) -> None:
    read, worker._wake_fd = os.pipe()
    os.set_blocking(worker._wake_fd, False)
    for _ in range(1 << 16):
        worker._wake_client()
    worker._wake_client()
    os.close(read)
    os.close(worker._wake_fd)
