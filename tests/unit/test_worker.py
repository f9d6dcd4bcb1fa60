"""The worker's loop, on a board in this process: races are forced by standing in for its spinning."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from repartir import worker as worker_module
from repartir.shm.board import Board, Kind, MemberState
from repartir.shm.deque import Entry
from repartir.shm.layout import AT_HIGH, AT_LOW, AT_NORMAL, MEMBER_BROKEN
from repartir.shm.outbox import records
from repartir.worker import MemberSettings, Worker
from tests.shared import Threads

FIRST, SECOND = (1 << 16 | 1, b"first", 0), (2 << 16 | 1, b"second", 0)


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(3)
    for row in board.rows:
        board.words[row.kind] = Kind.CPU
    yield board
    board.close()


@pytest.fixture
def make(board: Board) -> Iterator[Callable[..., Worker]]:
    reader, writer = os.pipe()
    yield lambda index, initializer=None: Worker(
        board, index, writer, MemberSettings(initializer, (), frozenset(), None, 1, None)
    )
    os.close(reader)
    os.close(writer)


def post(board: Board, at: int, entry: Entry) -> None:
    """As the client does it."""
    board.lanes[at].push_tail([entry])
    if board.parking.anyone_idle():
        board.parking.wake(1, at)


def test_a_condemned_member_leaves_the_next_task_to_others(
    board: Board, make: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answered before it was killed."""
    monkeypatch.setattr(worker_module, "_current", None)
    worker = make(0)
    post(board, 0, FIRST)
    board.words[board.rows[0].condemned] = SECOND[0]
    worker.run()
    assert board.words[board.rows[0].claim] == 0
    assert board.lanes[0].size_hint() == 1
    assert board.words[board.rows[0].state] == MemberState.RETIRED


def woken(board: Board, row: int) -> bool:
    return not board.parking.is_idle(row) and board.semaphores[row].wait(0)


@pytest.mark.parametrize("found", ["while it spins", "after its spinning"])
def test_a_spinner_that_takes_one_task_of_two_wakes_a_sleeper(
    board: Board, make: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    """The client wakes nobody for either, as a member spins; and then the spinner takes the first only."""
    board.parking.announce(0)
    worker = make(1)

    def spin() -> Entry | None:
        assert board.parking.is_spinning(1)
        post(board, 1, FIRST)
        post(board, 0, SECOND)
        assert not woken(board, 0)
        return worker.find_work() if found == "while it spins" else None

    monkeypatch.setattr(worker, "_spin", spin)
    assert worker._rest() == FIRST
    assert woken(board, 0)


def test_a_woken_member_wakes_the_next(
    board: Board, make: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three tasks came while one member spun: it woke one, which has to wake the other."""
    board.parking.start_spinning(1, 1)
    board.parking.announce(0)
    worker = make(2)

    class Sleep:
        def wait(self, timeout_s: float) -> bool:
            board.parking.retract(2)  # what the spinner does for a member that it wakes
            post(board, 2, FIRST)
            post(board, 0, SECOND)
            board.parking.stop_spinning(1)
            return True

    monkeypatch.setattr(board, "semaphores", [*board.semaphores[:2], Sleep()])
    assert worker._rest() == FIRST
    assert woken(board, 0)


def test_a_spinner_that_takes_the_only_task_wakes_nobody(
    board: Board, make: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    board.parking.announce(0)
    worker = make(1)
    monkeypatch.setattr(worker, "_spin", lambda: post(board, 1, FIRST))
    assert worker._rest() == FIRST
    assert board.parking.is_idle(0)


def test_a_member_that_woke_for_nothing_is_not_idle_while_it_works(
    board: Board, make: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next wake goes to it, and a sleeper stays beside a queued task."""
    worker = make(0)
    board.semaphores[0].post()  # left over from an announcement that it retracted
    idle_before_spins = []

    def spin() -> Entry | None:
        idle_before_spins.append(board.parking.is_idle(0))
        if len(idle_before_spins) == 1:
            return None
        post(board, 0, FIRST)
        return worker.find_work()

    monkeypatch.setattr(worker, "_spin", spin)
    assert worker._rest() == FIRST
    assert idle_before_spins == [False, False]
    assert not board.parking.is_idle(0)


def test_an_initializer_that_fails_at_length(
    board: Board, make: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback that no outbox can hold must not keep the news of the failure back for ever."""

    def fails() -> None:
        raise ValueError("x" * 1_000_000 + "the end")

    def never(worker: Worker) -> None:
        raise AssertionError("it waits for room that will never be")

    monkeypatch.setattr(Worker, "_wait_for_client", never)
    monkeypatch.setattr(worker_module, "_current", None)
    make(0, fails).run()
    ((word, status, payload),) = records(board.outboxes[0].peek())
    assert (word, status) == (0, MEMBER_BROKEN)
    assert b"ValueError" in payload
    assert payload.endswith(b"the end\n")


def test_a_thread_of_a_task_takes_no_wake_of_the_main_thread(
    board: Board, make: Callable[..., Worker]
) -> None:
    """One that logs, while the main thread sleeps for want of work."""
    worker = make(0)
    board.parking.announce(0)
    post(board, 0, FIRST)
    threads = Threads()
    threads.start(worker._wait_for_client)
    threads.join()
    assert woken(board, 0)


def test_a_wake_for_a_dead_client_is_no_error(make: Callable[..., Worker]) -> None:
    """The member would print a traceback of ours before the nursery ends it."""
    worker = make(0)
    read, worker._wake_fd = os.pipe()
    os.close(read)
    worker._wake_client()
    os.close(worker._wake_fd)


def test_neither_is_one_into_a_full_pipe(make: Callable[..., Worker]) -> None:
    worker = make(0)
    read, worker._wake_fd = os.pipe()
    os.set_blocking(worker._wake_fd, False)
    for _ in range(1 << 16):
        worker._wake_client()
    worker._wake_client()
    os.close(read)
    os.close(worker._wake_fd)


def fill(board: Board, *names: str) -> None:
    """A task for each, whose payload says which it was."""
    for nth, name in enumerate(names, 100):
        lane = {"high": board.high, "low": board.low, "own": board.lanes[0], "other": board.lanes[1]}[name]
        lane.push_tail([(nth << 16 | 1, name.encode(), 0)])


def found(worker: Worker, most: int = 1000) -> list[str]:
    names = []
    while len(names) < most and (entry := worker.find_work()):
        names.append(entry[1].decode())
    return names


def test_by_priority_the_own_lane_before_others(board: Board, make: Callable[..., Worker]) -> None:
    worker = make(0)
    fill(board, "low", "other", "own", "high", "low", "high")
    assert found(worker) == ["high", "high", "own", "other", "low", "low"]
    fill(board, "own", "low", "own")
    assert found(worker) == ["own", "own", "low"]


def test_no_priority_waits_for_ever(board: Board, make: Callable[..., Worker]) -> None:
    worker = make(0)
    fill(board, *["high"] * 100, *["own"] * 100, *["low"] * 100)
    order = found(worker)
    assert len(order) == 300
    assert [order[:32].count(name) for name in ("high", "own", "low")] == [28, 2, 2]
    assert order.index("low") == 14
    last_high = 99 + order[: 100 + 16].count("own") + order[: 100 + 16].count("low")
    assert order[last_high + 1 :][:32].count("low") in (1, 2)


def test_a_lone_high_task_is_the_next_whatever_came_before(board: Board, make: Callable[..., Worker]) -> None:
    worker = make(0)
    fill(board, *["own"] * 400)
    for before in range(20):
        assert found(worker, before) == ["own"] * before
        fill(board, "high")
        assert found(worker, 1) == ["high"]


def test_a_plain_task_costs_no_look_at_the_lanes(
    board: Board, make: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing was posted there since they were seen empty."""
    worker = make(0)
    fill(board, "high", "low", "own")
    assert found(worker) == ["high", "own", "low"]
    fill(board, "own")
    assert found(worker) == ["own"]
    monkeypatch.setattr(Worker, "_priorities_wait", None)
    fill(board, *["own"] * 3)
    assert found(worker, 3) == ["own"] * 3


def test_between_items_of_a_range_only_another_priority_has_its_turn(
    board: Board, make: Callable[..., Worker]
) -> None:
    worker = make(0)
    fill(board, "own", "other")
    assert not any(worker.gives_way(AT_NORMAL) for _ in range(50))
    assert worker.gives_way(AT_LOW)
    fill(board, "high")
    assert worker.gives_way(AT_NORMAL)
    assert not worker.gives_way(AT_HIGH)
    assert found(worker, 1) == ["high"]
    assert not worker.gives_way(AT_NORMAL)
    fill(board, "low")
    assert [worker.gives_way(AT_NORMAL) for _ in range(15)] == [False] * 14 + [True]
    assert found(worker, 1) == ["low"]
