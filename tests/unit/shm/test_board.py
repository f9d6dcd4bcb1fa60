from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from repartir.errors import InternalError, SharedMemoryFull
from repartir.shm import board as board_module
from repartir.shm import layout
from repartir.shm.board import Board, ClientSleep, Kind, MemberState
from repartir.shm.lock import FcntlLock, PthreadLock
from repartir.shm.outbox import records
from repartir.shm.segment import Segment
from tests.helpers import package_root
from tests.shared import Forked

ROWS = 3


@pytest.fixture(params=["pthread", "fcntl"])
def board(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    works = request.param == "pthread"
    monkeypatch.setattr(board_module, "robust_mutex_works", lambda: works)
    made = Board.create(ROWS)
    yield made
    if vars(made):
        made.close()
    request.node.funcargs.clear()  # they hold the mapping, and the guard looks before pytest lets them go


def use_all(board: Board) -> None:
    """One action on each structure of each row; AssertionError unless they are the ones that were expected."""
    for index, row in enumerate(board.rows):
        for deque in (board.lanes[index], board.spawns[index], board.mailboxes[index]):
            task = index * 10 + 1
            assert deque.push_tail([(task, b"payload", 0)])
            assert deque.pop_head(row.claim) == (task, b"payload", 0)
            assert board.words[row.claim] == task
            board.words[row.claim] = 0
        assert board.outboxes[index].put(index + 1, 0, b"answer %d" % index)
        assert [*records(board.outboxes[index].peek())] == [(index + 1, 0, b"answer %d" % index)]
        board.outboxes[index].consumed()
        board.outboxes[index].peek()
        board.parking.announce(index)
        assert board.parking.wake() == 1
        assert board.semaphores[index].wait(0)
    handle = board.blocks.store([b"block"], 1)
    assert handle is not None
    assert board.blocks.load(handle) == [b"block"]
    board.blocks.free(handle)


def test_new_board_is_empty(board: Board) -> None:
    words = board.words
    for index, row in enumerate(board.rows):
        assert row.index == index
        values = [row.kind, row.pid, row.state, row.claim, row.started, row.runs, row.steals, row.blocked]
        assert len(set(values)) == len(values)
        assert [words[word] for word in values] == [0] * len(values)
        assert (Kind(words[row.kind]), MemberState(words[row.state])) == (Kind.NONE, MemberState.ABSENT)
        assert board.lanes[index].is_empty()
        assert board.spawns[index].is_empty()
        assert not board.outboxes[index].has_news()
        assert not board.semaphores[index].wait(0)
    assert not board.parking.anyone_idle()
    assert board.blocks.used() == (0, 0)
    assert not board.closing
    assert board.words[layout.H_CLIENT_SLEEP] == ClientSleep.AWAKE


def test_locks_are_of_the_kind_that_works_here(board: Board) -> None:
    kind = PthreadLock if board.lock_fd is None else FcntlLock
    assert {type(lock) for lock in board._locks()} == {kind}
    assert len(board._locks()) == 6 + 5 * ROWS
    assert len(board.descriptors()) == (3 if kind is PthreadLock else 4)


def test_every_structure_works(board: Board) -> None:
    use_all(board)
    Forked(use_all, board).join()


def test_flags(board: Board) -> None:
    board.set_closing()
    assert board.closing
    for how in ClientSleep:
        board.set_client_sleep(how)
        assert board.words[layout.H_CLIENT_SLEEP] == how


def test_fresh_interpreter_attaches(board: Board) -> None:
    board.lanes[1].push_tail([(77, b"payload", 0)])
    handle = board.blocks.store([b"block"], 5)
    assert handle is not None
    ring, memory, overflow, *lock = board.descriptors()
    source = f"""
from repartir.shm.arena import Handle
from repartir.shm.board import Board
from tests.unit.shm.test_board import use_all
board = Board.attach({ring}, ({memory}, {overflow}), {lock[0] if lock else None})
assert len(board.rows) == {ROWS}
assert board.lanes[1].pop_head(board.rows[2].claim) == (77, b"payload", 0)
assert board.blocks.load(Handle.unpack({handle.pack()!r})) == [b"block"]
board.words[board.rows[2].claim] = 0
use_all(board)
board.lanes[0].push_tail([(78, b"back", 0)])
"""
    root = os.pathsep.join((str(package_root()), os.getcwd()))
    subprocess.run(
        [sys.executable, "-c", source],
        pass_fds=board.descriptors(),
        env={**os.environ, "PYTHONPATH": root},
        timeout=30,
        check=True,
    )
    assert board.lanes[0].pop_head(board.rows[0].claim) == (78, b"back", 0)
    board.words[board.rows[0].claim] = 0
    assert board.blocks.free(handle)
    assert board.blocks.used() == (0, 0)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        (layout.H_MAGIC, 0),
        (layout.H_MAGIC, layout.MAGIC + 1),
        (layout.H_VERSION, layout.VERSION + 1),
        (layout.H_ROWS, 0),
        (layout.H_ROWS, ROWS + 1),
        (layout.H_ROWS, 1 << 40),
    ],
)
def test_other_segments_are_refused(board: Board, word: int, value: int) -> None:
    board.words[word] = value
    ring, *arenas = board.descriptors()[:3]
    with pytest.raises(InternalError, match="no ring of this version"):
        Board.attach(ring, arenas, board.lock_fd)


@pytest.mark.parametrize("size", [8, 4096])
def test_segment_that_is_too_small_is_refused(board: Board, size: int) -> None:
    small = Segment.create(size)
    small.words[0] = layout.MAGIC
    with pytest.raises(InternalError, match="no ring of this version"):
        Board.attach(small.fd, board.descriptors()[1:3], board.lock_fd)
    small.close()


def test_other_arenas_are_refused(board: Board) -> None:
    ring = board.descriptors()[0]
    with pytest.raises(InternalError, match="no ring of this version"):
        Board.attach(ring, [ring, ring], board.lock_fd)


def test_row_is_made_ready_for_a_successor(board: Board) -> None:
    words, row, other = board.words, board.rows[1], board.rows[2]
    for each in (row, other):
        words[each.kind] = Kind.CPU
        for word in (each.pid, each.claim, each.started, each.blocked, each.runs):
            words[word] = 9
    board.parking.announce(1)
    board.parking.announce(2)
    board.semaphores[1].post()
    board.lanes[1].push_tail([(5, b"waits", 0)])
    board.reset_row(1)
    assert [words[word] for word in (row.pid, row.claim, row.started, row.blocked)] == [0] * 4
    assert (words[row.kind], words[row.runs]) == (Kind.CPU, 9)
    assert [words[word] for word in (other.pid, other.claim, other.started, other.blocked)] == [9] * 4
    assert not board.parking.is_idle(1)
    assert board.parking.is_idle(2)
    assert not board.semaphores[1].wait(0)
    assert board.lanes[1].pop_head(row.claim) == (5, b"waits", 0)


def test_taking_every_lock_forces_every_repair(board: Board) -> None:
    words = board.words

    def dies_in_all_deques() -> None:
        for deque in board.deques:
            deque.lock.try_acquire()
        os._exit(0)

    for index, deque in enumerate(board.deques):
        deque.push_tail([(index + 1, b"", 0), (99, b"", 0)])
    Forked(dies_in_all_deques).join()
    for row in board.rows:
        words[row.claim] = row.index + 1 + row.index * ROWS  # one in each sort of deque
    board.lock_and_unlock_all()
    assert [words[row.claim] for row in board.rows] == [0] * ROWS
    assert all(deque.lock.try_acquire() == 0 for deque in board.deques)
    for deque in board.deques:
        deque.lock.release()


def test_closing_frees_the_memory_at_once(board: Board) -> None:
    """No cycle holds it: the garbage collector is not needed."""
    mappings = [weakref.ref(segment.data) for segment in board.segments]
    gc.disable()
    try:
        board.close()
        assert [mapping() for mapping in mappings] == [None, None, None]
    finally:
        gc.enable()


def test_views_outlive_the_board(board: Board) -> None:
    words = board.words
    words[board.rows[0].runs] = 12
    word = board.rows[0].runs
    board.close()
    assert words[word] == 12


@pytest.mark.parametrize("works", [True, False])
@pytest.mark.parametrize("failing", ["ring", "arena", "overflow"])
def test_failed_creation_leaves_no_descriptor(
    monkeypatch: pytest.MonkeyPatch, works: bool, failing: str
) -> None:
    really = Segment.create
    sizes: list[int] = []

    def full(size: int, *, reserved: int | None = None, folder: str | None = None) -> Segment:
        sizes.append(size)
        if len(sizes) >= ["ring", "arena", "overflow"].index(failing) + 1:
            raise SharedMemoryFull("no room")
        return really(size, reserved=reserved, folder=folder)

    monkeypatch.setattr(board_module, "robust_mutex_works", lambda: works)
    monkeypatch.setattr(Segment, "create", full)
    gc.collect()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(SharedMemoryFull):
        Board.create(2)
    gc.collect()
    assert os.listdir("/proc/self/fd") == before
