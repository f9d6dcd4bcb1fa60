"""The nursery's loop, in this process, with children that only wait for a signal."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from repartir.nursery import COMMAND, EVERY_ROW, REPORT, FreshStart, Nursery, NurserySettings, Operation
from repartir.shm.board import Board
from repartir.worker import MemberSettings

LIMIT_S = 15.0
SETTINGS = MemberSettings(None, (), frozenset(), None, 1, None)


class Client:
    """The other end of the line, and the nursery that it talks to."""

    def __init__(self) -> None:
        self.board = Board.create(2)
        self.line, theirs = socket.socketpair()
        self._theirs = theirs
        self.nursery = Nursery(theirs, self.board, NurserySettings(os.getpid(), "fork", lambda row: None))
        self._children: list[int] = []

    def child(self, row: int) -> int:
        """A member of `row` that waits for a signal."""
        pid = os.fork()
        if pid == 0:
            self.line.close()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pause()
            os._exit(0)
        self._children.append(pid)
        self.nursery._members[pid] = row
        return pid

    def command(self, operation: int, row: int) -> bool:
        self.line.sendall(COMMAND.pack(operation, row))
        return self.nursery._obey()

    def report(self) -> tuple[Any, ...]:
        """The next report, of a child whose end the nursery is made to notice."""
        while True:
            self.nursery._reap()
            try:
                return REPORT.unpack(self.line.recv(REPORT.size, socket.MSG_WAITALL | socket.MSG_DONTWAIT))
            except BlockingIOError:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)

    def close(self) -> None:
        for pid in self._children:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue
        nursery = self.nursery
        for fd in (nursery._wake_r, nursery._wake_w, nursery._life_r, nursery._life_w, nursery._client_fd):
            if fd >= 0:
                os.close(fd)
        self.line.close()
        self._theirs.close()
        self.board.close()


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.close()


@pytest.mark.parametrize(
    ("operation", "number"), [(Operation.TERMINATE, signal.SIGTERM), (Operation.KILL, signal.SIGKILL)]
)
def test_a_signal_to_one_row(client: Client, operation: Operation, number: signal.Signals) -> None:
    spared, meant = client.child(0), client.child(1)
    assert client.command(operation, 1)
    assert client.report() == (1, meant, number)
    assert os.waitpid(spared, os.WNOHANG) == (0, 0)
    assert client.nursery._members == {spared: 0}


def test_a_signal_to_every_row(client: Client) -> None:
    pids = {client.child(0): 0, client.child(1): 1}
    assert client.command(Operation.KILL, EVERY_ROW)
    reports = {client.report(), client.report()}
    assert reports == {(row, pid, signal.SIGKILL) for pid, row in pids.items()}


def test_an_end_that_was_reported_is_not_reported_again(client: Client) -> None:
    client.child(0)
    client.command(Operation.KILL, 0)
    client.report()
    client.nursery._reap()
    with pytest.raises(BlockingIOError):
        client.line.recv(1, socket.MSG_DONTWAIT)


def test_quit_waits_for_the_members(client: Client) -> None:
    pid = client.child(0)
    assert client.command(Operation.QUIT, EVERY_ROW)
    assert client.nursery._quitting
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)


def test_a_command_that_nobody_knows_changes_nothing(client: Client) -> None:
    pid = client.child(0)
    assert client.command(99, 0)
    assert not client.nursery._quitting
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)


def test_a_command_in_two_pieces(client: Client) -> None:
    """As a full socket cuts it."""
    pid = client.child(0)
    message = COMMAND.pack(Operation.KILL, 0)
    client.line.sendall(message[:3])
    rest = threading.Timer(0.05, client.line.sendall, (message[3:],))
    rest.start()
    assert client.nursery._obey()
    assert client.report() == (0, pid, signal.SIGKILL)
    rest.join()


def closed(client: Client) -> None:
    client.line.close()


def closed_amid_a_command(client: Client) -> None:
    client.line.sendall(COMMAND.pack(Operation.FORK, 0)[:5])
    client.line.close()


def closed_with_a_report_unread(client: Client) -> None:
    """The kernel then reports a reset instead of an end of file."""
    client.nursery._report(0, 5, 0)
    client.line.close()


@pytest.mark.parametrize("end", [closed, closed_amid_a_command, closed_with_a_report_unread])
def test_a_client_that_closes_its_end_takes_the_members_along(
    client: Client, end: Callable[[Client], None]
) -> None:
    pid = client.child(0)
    end(client)
    assert not client.nursery._obey()
    assert client.nursery._quitting
    assert os.waitpid(pid, 0) == (pid, signal.SIGKILL)


def test_a_report_to_a_client_that_has_gone_ends_the_nursery(client: Client) -> None:
    client.line.close()
    client.nursery._report(0, 5, 0)
    assert client.nursery._quitting


def test_a_member_that_cannot_be_forked_is_reported(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more() -> int:
        raise BlockingIOError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(os, "fork", no_more)
    assert client.command(Operation.FORK, 1)
    monkeypatch.undo()
    assert REPORT.unpack(client.line.recv(REPORT.size, socket.MSG_WAITALL)) == (1, 0, errno.EAGAIN)
    assert client.nursery._members == {}


def test_a_member_whose_nursery_died_right_after_the_fork_does_not_live(client: Client) -> None:
    """It asks for its parent's death signal too late, and must look whether the parent is still there."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        nursery_pid = os.getpid()

        def outlive_the_nursery(_fd: int) -> None:
            while os.getppid() == nursery_pid:
                os.sched_yield()

        signal.set_wakeup_fd = outlive_the_nursery  # the first that a member does
        settings = NurserySettings(os.getppid(), "fork", lambda row: os.write(write, b"alive") and None)
        Nursery(client._theirs, client.board, settings)._fork(0)
        os._exit(0)
    os.waitpid(process, 0)
    os.close(write)
    with open(read, "rb") as file:
        assert file.read() == b""


class TestFreshStart:
    """What a nursery in a fresh interpreter is told, over the same line."""

    def start(self) -> FreshStart:
        return FreshStart(os.getpid(), "spawn", ["program"], b"key", SETTINGS)

    def test_there_and_back(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.start().send(ours)
            assert FreshStart.receive(theirs) == self.start()

    def test_in_any_pieces(self) -> None:
        ours, theirs = socket.socketpair()
        relayed, end = socket.socketpair()
        with ours, theirs, relayed, end:
            self.start().send(ours)
            ours.shutdown(socket.SHUT_WR)

            def relay() -> None:
                while byte := theirs.recv(1):
                    relayed.sendall(byte)

            thread = threading.Thread(target=relay)
            thread.start()
            assert FreshStart.receive(end) == self.start()
            thread.join(LIMIT_S)

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
    def test_the_end_of_the_line_at_any_place(self, share: float) -> None:
        ours, theirs = socket.socketpair()
        cut, end = socket.socketpair()
        with ours, theirs, cut, end:
            self.start().send(ours)
            whole = theirs.recv(1 << 16)
            cut.sendall(whole[: int(share * len(whole))])
            cut.close()
            with pytest.raises(EOFError, match="client went away"):
                FreshStart.receive(end)
