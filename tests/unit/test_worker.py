from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from repartir import worker as worker_module
from repartir.shm.board import Board, Kind
from repartir.shm.deque import Entry
from repartir.shm.layout import MEMBER_BROKEN
from repartir.shm.outbox import records
from repartir.worker import MemberSettings, Worker

ROWS = 2


@pytest.fixture
def board(request: pytest.FixtureRequest) -> Iterator[Board]:
    made = Board.create(ROWS)
    for row in made.rows:
        made.words[row.kind] = Kind.CPU
    yield made
    made.close()
    request.node.funcargs.clear()  # they hold the mapping, and the guard looks before pytest lets them go


def test_member_woken_by_an_old_post_does_not_go_on_as_a_sleeper(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next wake goes to it, while it is busy, and a member that really sleeps is passed over."""
    entry: Entry = (77, b"", 0)
    worker = Worker(board, 0, -1, MemberSettings(None, (), None, 0, None))
    monkeypatch.setattr(worker, "find_work", lambda: entry)
    board.semaphores[0].post()
    board.parking.announce(1)
    assert worker._rest() == entry
    assert not board.parking.is_idle(0)
    assert board.parking.wake() == 1
    assert board.semaphores[1].wait(0)


def test_initializer_that_fails_at_length(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback that no outbox can hold must not keep the news of the failure back for ever."""

    def fails() -> None:
        raise ValueError("x" * 1_000_000 + "the end")

    def never(worker: Worker) -> None:
        raise AssertionError("it waits for room that will never be")

    monkeypatch.setattr(Worker, "_wait_for_client", never)
    monkeypatch.setattr(worker_module, "_current", None)
    worker = Worker(board, 0, os.open(os.devnull, os.O_WRONLY), MemberSettings(fails, (), None, 0, None))
    worker.run()
    os.close(worker._wake_fd)
    ((word, status, payload),) = records(board.outboxes[0].peek())
    assert (word, status) == (0, MEMBER_BROKEN)
    assert b"ValueError" in payload
    assert payload.endswith(b"the end\n")
