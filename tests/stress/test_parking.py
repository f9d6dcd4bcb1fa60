"""Real workers' sleep and wake: members of a board whose tasks only count, and a client that posts and wakes.

A wake that is lost shows as a round that never ends: the backstop of a park is a minute.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from repartir.shm import board as board_module
from repartir.shm.board import Board, Kind
from repartir.shm.layout import task_word
from repartir.worker import MemberSettings, Worker
from tests.shared import LIMIT_S, Family, Forked, Patience, Room, Tally, Threads, gates

MEMBERS = 4
Run = Callable[[int, int], object]
"""What a member does with a task: its row, the task's number."""


@pytest.fixture
def board(request: pytest.FixtureRequest, lock_kind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    monkeypatch.setattr(board_module, "robust_mutex_works", lambda: lock_kind == "pthread")
    made = Board.create(MEMBERS)
    for row in made.rows:
        made.words[row.kind] = Kind.CPU
    yield made
    made.close()
    request.node.funcargs.clear()  # they hold the mapping, and the guard looks before pytest lets them go


@pytest.fixture(params=[0, 1, 2])
def spinners(request: pytest.FixtureRequest) -> int:
    most: int = request.param
    return most


def serve(board: Board, row: int, spinners: int, run: Run) -> None:
    """A worker's loop with `run` in place of calls."""
    worker = Worker(board, row, -1, MemberSettings(None, (), frozenset(), None, spinners, None))
    claim = board.rows[row].claim
    while entry := worker.find_work() or worker._rest():
        run(row, entry[0] >> 16)
        board.words[claim] = 0


def post(board: Board, lane: int, *tasks: int) -> None:
    """Append tasks to a lane and wake sleepers for them, as the broker does."""
    patience = Patience()
    while not board.lanes[lane].push_tail([(task_word(task, 0), b"", 0) for task in tasks]):
        patience()
    if board.parking.anyone_idle():
        board.parking.wake(len(tasks), lane)


def close(board: Board) -> None:
    board.set_closing()
    board.parking.wake_all()


def wait_for(condition: Callable[[], object]) -> None:
    patience = Patience()
    while not condition():
        patience()


def all_asleep(board: Board) -> bool:
    return all(board.parking.is_idle(row) for row in range(MEMBERS))


def test_smoke(place: Room, children: Family) -> None:
    parking, semaphores = place.lot(MEMBERS)

    def sleeper(row: int) -> None:
        parking.announce(row)
        assert semaphores[row].wait(LIMIT_S)

    children.fork(sleeper, 2)
    wait_for(parking.anyone_idle)
    assert parking.wake() == 1
    children.join()
    assert not parking.anyone_idle()


def test_is_empty(place: Room, children: Family, scale: int) -> None:
    """An announcement that was over before the question is seen, and so is the end of one."""
    parking, _ = place.lot(MEMBERS)
    with gates(2) as (asked, answered):

        def sleeper() -> None:
            for _ in range(150 * scale):
                for act in (parking.announce, parking.retract):
                    asked.wait()
                    act(3)
                    answered.open()

        children.fork(sleeper)
        for nth in range(300 * scale):
            assert parking.anyone_idle() == bool(nth % 2)
            asked.open()
            answered.wait()
        assert not parking.anyone_idle()
        children.join()


def test_spsc(board: Board, children: Family, scale: int, spinners: int) -> None:
    """One task at a time: each needs its wake."""
    done = board.rows[0].runs

    def run(_: int, task: int) -> None:
        board.words[done] = task

    children.fork(serve, board, 0, spinners, run)
    for task in range(1, 300 * scale):
        post(board, 0, task)
        wait_for(lambda task=task: board.words[done] == task)  # type: ignore[misc]
    close(board)
    children.join()


def test_stampede(board: Board, children: Family, scale: int, spinners: int) -> None:
    """All sleep, then there is work for all in one lane."""
    rounds = 20 * scale
    tasks = Counter(task % 255 for task in range(1, rounds * 12 + 1))
    tally = Tally(MEMBERS, 255)
    for row in range(MEMBERS):
        children.fork(serve, board, row, spinners, lambda row, task: tally.count(row, task % 255))
    for nth in range(rounds):
        wait_for(lambda: all_asleep(board))
        post(board, nth % MEMBERS, *range(nth * 12 + 1, nth * 12 + 13))
        wait_for(lambda nth=nth: sum(map(sum, map(tally.of, range(MEMBERS)))) == nth * 12 + 12)  # type: ignore[misc]
    assert Counter(dict(enumerate(tally.totals()))) == tasks
    close(board)
    children.join()


def test_stress(board: Board, children: Family, scale: int, spinners: int, dice: random.Random) -> None:
    """Bursts from two threads; every task is run once, and in the end all sleep."""
    tasks = 1500 * scale
    tally = Tally(MEMBERS, 2 * tasks + 1)
    pushing = threading.Lock()  # a lane has one pusher at a time

    def client(first: int, dice: random.Random) -> None:
        task = first
        while task < first + tasks:
            count = min(dice.choice([1, 1, 1, 2, 5, 30]), first + tasks - task)
            with pushing:
                post(board, dice.randrange(MEMBERS), *range(task, task + count))
            task += count
            if dice.random() < 0.02:
                wait_for(board.parking.anyone_idle)

    for row in range(MEMBERS):
        children.fork(serve, board, row, spinners, tally.count)
    threads = Threads()
    threads.start(client, 1, random.Random(dice.random()))
    threads.start(client, tasks + 1, random.Random(dice.random()))
    threads.join()
    wait_for(lambda: all_asleep(board))
    assert tally.totals() == [0, *[1] * (2 * tasks)]
    assert all(lane.is_empty() for lane in board.lanes)
    close(board)
    children.join()


def test_no_starvation(
    board: Board, children: Family, scale: int, spinners: int, dice: random.Random
) -> None:
    """Nobody sleeps beside a queued task: tasks that wait for each other find enough members awake."""
    words, arrived = board.words, [row.runs for row in board.rows]

    def run(row: int, nth: int) -> None:
        words[arrived[row]] = nth
        wait_for(lambda: all(words[each] >= nth for each in arrived))

    for row in range(MEMBERS):
        children.fork(serve, board, row, spinners, run)
    for nth in range(1, 60 * scale):
        if dice.random() < 0.5:
            wait_for(lambda: all_asleep(board))
        lanes = [dice.randrange(MEMBERS) for _ in range(MEMBERS)]
        if dice.random() < 0.3:
            post(board, lanes[0], *[nth] * MEMBERS)
        else:
            for lane in lanes:
                post(board, lane, nth)
        wait_for(lambda nth=nth: all(words[each] == nth for each in arrived))  # type: ignore[misc]
    close(board)
    children.join()


def test_destructors(board: Board, children: Family, scale: int, spinners: int, dice: random.Random) -> None:
    """Members are killed at any moment, also in their sleep; each task is run once, and nobody is left asleep."""
    deaths = 40 * scale
    tally = Tally(MEMBERS, deaths * 20)
    members: dict[int, Forked] = {
        row: children.fork(serve, board, row, spinners, tally.count) for row in range(MEMBERS)
    }
    task = 1
    for nth in range(deaths):
        for _ in range(dice.randrange(5)):
            count = dice.randrange(1, 4)
            post(board, dice.randrange(MEMBERS), *range(task, task + count))
            task += count
        if nth % 3 == 0:
            wait_for(board.parking.anyone_idle)
        row = dice.randrange(MEMBERS)
        members[row].kill()
        recover(board, row, tally)
        members[row] = children.fork(serve, board, row, spinners, tally.count)
    wait_for(lambda: all_asleep(board))
    assert tally.totals() == [0, *[1] * (task - 1), *[0] * (deaths * 20 - task)]
    close(board)
    for member in members.values():
        member.join()


def recover(board: Board, row: int, tally: Tally) -> None:
    """What the broker does for a dead member: repairs, then the task that it had claimed and not run, then the row."""
    board.lock_and_unlock_all()
    claimed = board.words[board.rows[row].claim]
    board.reset_row(row)
    if claimed and not tally.total(claimed >> 16):
        tally.count(row, claimed >> 16)
    board.parking.wake_all()
