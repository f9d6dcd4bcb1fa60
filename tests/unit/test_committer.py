"""Batches of rows in a thread: nothing is lost silently, and the thread ends."""

from __future__ import annotations

import threading

import pytest

from repartir import committer
from repartir.committer import Committer

NEVER = 3600.0


class Disk:
    """Keeps batches; fails as long as it is told to; waits for `gate` where it has one."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.failure: Exception | None = None
        self.gate: threading.Event | None = None
        self.asked = threading.Event()

    def write(self, rows: list[int]) -> None:
        self.asked.set()
        if self.gate is not None:
            assert self.gate.wait(10)
        if self.failure is not None:
            raise self.failure
        self.batches.append(rows)

    def rows(self) -> list[int]:
        return [row for batch in self.batches for row in batch]


@pytest.fixture
def disk() -> Disk:
    return Disk()


def test_rows_are_written_in_order_when_the_moment_has_passed(disk: Disk) -> None:
    gathering = Committer(disk.write, gather_s=0.001)
    for row in range(100):
        gathering.add(row, 1)
    assert disk.asked.wait(10)
    gathering.close()
    assert disk.rows() == list(range(100))


def test_a_flush_does_not_wait_for_the_moment(disk: Disk) -> None:
    gathering = Committer(disk.write, gather_s=NEVER)
    gathering.add(1, 1)
    gathering.add(2, 1)
    gathering.flush()
    assert disk.rows() == [1, 2]
    gathering.flush()
    gathering.close()
    assert disk.batches in ([[1, 2]], [[1], [2]])


def test_closing_writes_what_is_left(disk: Disk) -> None:
    gathering = Committer(disk.write, gather_s=NEVER)
    gathering.add(1, 1)
    gathering.close()
    assert disk.rows() == [1]


def test_a_failure_reaches_who_records_and_who_flushes_and_is_tried_again(disk: Disk) -> None:
    gathering = Committer(disk.write, gather_s=NEVER)
    disk.failure = OSError("full")
    gathering.add(1, 1)
    with pytest.raises(OSError, match="full"):
        gathering.flush()
    with pytest.raises(OSError, match="full"):
        gathering.add(2, 1)
    disk.failure = None
    gathering.flush()
    assert disk.rows() == [1, 2]
    gathering.close()


def test_a_failure_that_stays_is_raised_at_the_end_and_the_thread_ends(disk: Disk) -> None:
    gathering = Committer(disk.write, gather_s=NEVER)
    disk.failure = OSError("full")
    gathering.add(1, 1)
    with pytest.raises(OSError, match="full"):
        gathering.close()
    assert not any(thread.name == "repartir-journal" for thread in threading.enumerate())


def test_who_is_faster_than_the_disk_waits(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer, "ROOM_BYTES", 10)
    disk.gate = threading.Event()
    gathering = Committer(disk.write, gather_s=0.0)
    gathering.add(0, 11)
    assert disk.asked.wait(10)  # the thread is at it, and there is room again
    gathering.add(1, 11)
    done = threading.Event()

    def third() -> None:
        gathering.add(2, 1)
        done.set()

    thread = threading.Thread(target=third)
    thread.start()
    assert not done.is_set()
    disk.gate.set()
    thread.join(10)
    assert done.is_set()
    gathering.close()
    assert disk.rows() == [0, 1, 2]
