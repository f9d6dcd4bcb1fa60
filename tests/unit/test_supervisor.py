"""The client's end of the nursery: messages in whole and in pieces, the end of the line, nurseries that hang."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from repartir.nursery import COMMAND, EVERY_ROW, REPORT, Operation
from repartir.shm.board import Board, MemberState
from repartir.supervisor import STARTS, MemberExited, NurseryExited, Supervisor, describe_exit
from repartir.worker import MemberSettings

SETTINGS = MemberSettings(None, (), frozenset(), None, 1, None)
LIMIT_S = 15.0


class Alone(Supervisor):
    """A supervisor whose nursery is this test, at the other end of `theirs`."""

    theirs: socket.socket

    def connect(self) -> None:
        super().connect()
        self.theirs = self._theirs
        self.control.setblocking(False)
        self.theirs.settimeout(LIMIT_S)

    def start(self) -> None:
        self._starts += 1
        self.extend_deadlines(range(2))


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(2)
    yield board
    board.close()


@pytest.fixture
def supervisor(board: Board) -> Iterator[Alone]:
    supervisor = Alone(board, "fork", SETTINGS, -1)
    supervisor.connect()
    supervisor.start()
    yield supervisor
    supervisor.close()


class TestReports:
    def test_none_yet(self, supervisor: Alone) -> None:
        assert list(supervisor.reports()) == []

    def test_several_at_once(self, supervisor: Alone) -> None:
        supervisor.theirs.sendall(REPORT.pack(0, 100, 9) + REPORT.pack(1, 101, 256))
        assert list(supervisor.reports()) == [MemberExited(0, 100, 9), MemberExited(1, 101, 256)]
        assert list(supervisor.reports()) == []

    def test_byte_by_byte(self, supervisor: Alone) -> None:
        message = REPORT.pack(1, 77, 9)
        for at in range(len(message) - 1):
            supervisor.theirs.sendall(message[at : at + 1])
            assert list(supervisor.reports()) == []
        supervisor.theirs.sendall(message[-1:])
        assert list(supervisor.reports()) == [MemberExited(1, 77, 9)]

    def test_a_whole_one_and_the_beginning_of_the_next(self, supervisor: Alone) -> None:
        first, second = REPORT.pack(0, 5, 0), REPORT.pack(1, 6, 0)
        supervisor.theirs.sendall(first + second[:5])
        assert list(supervisor.reports()) == [MemberExited(0, 5, 0)]
        supervisor.theirs.sendall(second[5:])
        assert list(supervisor.reports()) == [MemberExited(1, 6, 0)]

    def test_the_end_of_the_line_is_the_nurserys(self, supervisor: Alone) -> None:
        supervisor.theirs.sendall(REPORT.pack(0, 5, 0))
        supervisor.theirs.close()
        assert list(supervisor.reports()) == [MemberExited(0, 5, 0)]
        assert list(supervisor.reports()) == [NurseryExited()]
        assert list(supervisor.reports()) == [NurseryExited()]

    def test_a_piece_before_the_end_is_dropped(self, supervisor: Alone) -> None:
        supervisor.theirs.sendall(REPORT.pack(0, 5, 0)[:3])
        assert list(supervisor.reports()) == []
        supervisor.theirs.close()
        assert list(supervisor.reports()) == [NurseryExited()]

    def test_a_nursery_that_ends_with_commands_unread(self, supervisor: Alone) -> None:
        """The kernel then reports a reset instead of an end of file."""
        supervisor.kill(0)
        supervisor.theirs.close()
        assert list(supervisor.reports()) == [NurseryExited()]

    def test_they_wake_a_poll(self, supervisor: Alone) -> None:
        import select

        poll = select.poll()
        poll.register(supervisor.fileno(), select.POLLIN)
        assert poll.poll(0) == []
        supervisor.theirs.sendall(REPORT.pack(0, 5, 0))
        assert [fd for fd, _ in poll.poll(LIMIT_S * 1000)] == [supervisor.control.fileno()]


class TestCommands:
    def test_each_is_one_message(self, supervisor: Alone) -> None:
        supervisor.fork(1)
        supervisor.terminate(0)
        supervisor.kill(EVERY_ROW)
        supervisor.quit()
        sent = supervisor.theirs.recv(4 * COMMAND.size, socket.MSG_WAITALL)
        assert list(COMMAND.iter_unpack(sent)) == [
            (Operation.FORK, 1),
            (Operation.TERMINATE, 0),
            (Operation.KILL, EVERY_ROW),
            (Operation.QUIT, EVERY_ROW),
        ]

    def test_to_a_nursery_that_has_gone_are_no_error(self, supervisor: Alone) -> None:
        supervisor.theirs.close()
        supervisor.kill(EVERY_ROW)
        supervisor.quit()

    def test_after_the_end_are_no_error(self, supervisor: Alone) -> None:
        """`kill_workers` in one thread while the broker's closes the line in its own."""
        supervisor.control.close()
        supervisor.kill(EVERY_ROW)
        supervisor.quit()


class TestLateStarters:
    def test_all_have_begun(self, supervisor: Alone, board: Board) -> None:
        for row in board.rows:
            board.words[row.state] = MemberState.INITIALIZING
        assert supervisor.late_starters() == []

    def test_some_are_on_their_way(self, supervisor: Alone, board: Board) -> None:
        board.words[board.rows[0].state] = MemberState.READY
        board.words[board.rows[1].state] = MemberState.STARTING
        assert supervisor.late_starters() is None

    def test_after_the_deadline_they_are_named(
        self, supervisor: Alone, board: Board, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        board.words[board.rows[0].state] = MemberState.READY
        board.words[board.rows[1].state] = MemberState.STARTING
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 3600)
        assert supervisor.late_starters() == [1]
        supervisor.extend_deadlines([1])
        assert supervisor.late_starters() is None

    def test_a_successor_elsewhere_gives_them_no_time(
        self, supervisor: Alone, board: Board, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else one that hangs is not noticed while others die and are forked again."""
        for row in board.rows:
            board.words[row.state] = MemberState.STARTING
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 3600)
        supervisor.fork(0)
        assert supervisor.late_starters() == [1]


class TestHungNursery:
    def test_is_replaced_a_number_of_times(self, supervisor: Alone) -> None:
        for _ in range(STARTS - 1):
            old = supervisor.control
            supervisor.theirs.close()
            assert supervisor.restart_hung_nursery()
            assert old.fileno() == -1
        assert not supervisor.restart_hung_nursery()

    def test_one_that_forked_a_member_is_left_alone(self, supervisor: Alone, board: Board) -> None:
        board.words[board.rows[1].pid] = 4711
        control = supervisor.control
        assert not supervisor.restart_hung_nursery()
        assert supervisor.control is control

    def test_is_killed_and_waited_for(self, supervisor: Alone) -> None:
        pid = os.fork()
        if pid == 0:
            signal.pause()
            os._exit(0)
        supervisor._nurseries.append(pid)
        supervisor.reap(kill=True)
        assert supervisor.nursery_pid == 0
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, 0)

    def test_reap_of_one_that_is_gone_already(self, supervisor: Alone) -> None:
        """As a program that waits for every child of its own does."""
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        supervisor._nurseries.append(pid)
        supervisor.reap(kill=True)
        supervisor.reap()


@pytest.mark.parametrize(
    ("status", "code", "text"),
    [
        (0, 0, "exit code 0"),
        (7 << 8, 7, "exit code 7"),
        (9, -9, "signal SIGKILL"),
        (11, -11, "signal SIGSEGV"),
    ],
)
def test_exits_in_words(status: int, code: int, text: str) -> None:
    assert MemberExited(0, 5, status).exit_code == code
    assert describe_exit(code) == text


def test_a_signal_without_a_name() -> None:
    assert describe_exit(-45) == "signal 45"
