"""The process that forks the members: single-threaded, so that no member is ever forked from a process with threads.

It is made together with the executor, forked from the client or started as a fresh interpreter, forks a member
for every row, reports exits, forks successors when it is told to, and, when the client dies, kills all members and ends.

Commands and reports are fixed-size messages on a socket pair: ``COMMAND`` (operation, row) from the client, ``REPORT``
(row, pid, wait status) from the nursery.
"""

from __future__ import annotations

import atexit
import enum
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, NoReturn

from repartir import optional
from repartir.codec import decode, encode_value, parts_of, raw
from repartir.hygiene import (
    die_with_parent,
    leave,
    leave_ctrl_c_to_client,
    leave_parent_behind,
    reseed,
)
from repartir.shm.board import Board, MemberState
from repartir.stacks import SIGNAL
from repartir.worker import MemberSettings, Worker

COMMAND = struct.Struct("=II")
REPORT = struct.Struct("=Iii")
EVERY_ROW = 0xFFFFFFFF
_CLIENT_CHECK_MS = 1000  # where there is no pidfd


class Operation(enum.IntEnum):
    """What the client may ask for."""

    FORK = 1
    TERMINATE = 2
    KILL = 3
    QUIT = 4
    DUMP = 5


class NurserySettings(NamedTuple):
    """How members are to be made.  ``run`` is called in each with its row; ``start_method`` gives the processes' names;
    ``prepare`` is called before the first is made, for what they are to inherit."""

    client_pid: int
    start_method: str
    run: Callable[[int], None]
    prepare: Callable[[], None] | None = None


class Nursery:
    """The nursery's loop, in its own process."""

    def __init__(self, control: socket.socket, board: Board, settings: NurserySettings) -> None:
        self._control = control
        self._board = board
        self._settings = settings
        self._pid = os.getpid()
        self._members: dict[int, int] = {}
        self._quitting = False
        self._wake_r, self._wake_w = os.pipe()
        self._client_fd = -1
        # Members hold the reading end, the nursery alone the other: `multiprocessing.parent_process()` watches it.
        self._life_r, self._life_w = os.pipe()

    def serve(self) -> None:
        """Fork a member for each row, then serve commands until told to quit and all members are gone."""
        self._watch_children()
        for row in range(len(self._board.rows)):
            self._fork(row)
        poll = self._watch_client()
        while not (self._quitting and not self._members):
            ready = {fd for fd, _ in poll.poll(-1 if self._client_fd >= 0 else _CLIENT_CHECK_MS)}
            if self._client_fd in ready or os.getppid() != self._settings.client_pid:
                self._signal_all(signal.SIGKILL)
                return
            if self._wake_r in ready:
                os.read(self._wake_r, 4096)
            self._reap()
            if self._control.fileno() in ready and not self._obey():
                poll.unregister(self._control.fileno())

    def _watch_children(self) -> None:
        for fd in (self._wake_r, self._wake_w):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)

    def _watch_client(self) -> select.poll:
        poll = select.poll()
        poll.register(self._wake_r, select.POLLIN)
        poll.register(self._control.fileno(), select.POLLIN)
        if hasattr(os, "pidfd_open"):
            try:
                self._client_fd = os.pidfd_open(self._settings.client_pid)
            except OSError:
                return poll
            poll.register(self._client_fd, select.POLLIN)
        return poll

    def _obey(self) -> bool:
        """Carry out one command; False when the client closed its end without a word, or within one."""
        try:
            message = self._control.recv(COMMAND.size, socket.MSG_WAITALL)
            while 0 < len(message) < COMMAND.size and (
                rest := self._control.recv(COMMAND.size - len(message))
            ):
                message += rest
        except ConnectionResetError:  # instead of an end of file, where reports of ours lay unread
            message = b""
        if len(message) < COMMAND.size:
            self._quitting = True
            self._signal_all(signal.SIGKILL)
            return False
        operation, row = COMMAND.unpack(message)
        if operation == Operation.FORK:
            self._fork(row)
        elif operation == Operation.TERMINATE:
            self._signal_all(signal.SIGTERM, row)
        elif operation == Operation.KILL:
            self._signal_all(signal.SIGKILL, row)
        elif operation == Operation.DUMP and SIGNAL is not None:
            self._signal_all(SIGNAL, row)
        elif operation == Operation.QUIT:
            self._quitting = True
        return True

    def _signal_all(self, number: int, row: int = EVERY_ROW) -> None:
        """Signal the members (of ``row``, where one is named).  They are not reaped yet, so their pids are theirs."""
        for pid, at in self._members.items():
            if row == EVERY_ROW or at == row:
                os.kill(pid, number)

    def _reap(self) -> None:
        for pid in list(self._members):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self._report(self._members.pop(pid), pid, status)

    def _report(self, row: int, pid: int, status: int) -> None:
        try:
            self._control.sendall(REPORT.pack(row, pid, status))
        except OSError:
            self._quitting = True  # the client is gone or has closed: the loop ends with the last member

    def _fork(self, row: int) -> None:
        """Fork the member of ``row``.  The process object is made here, so that its parent is the nursery."""
        import multiprocessing

        board = self._board
        words = board.words
        words[board.rows[row].state] = MemberState.STARTING
        context = multiprocessing.get_context(self._settings.start_method)
        process = context.Process(target=self._settings.run, args=(row,))  # type: ignore[attr-defined]
        try:
            pid = os.fork()
        except OSError as exc:
            return self._report(row, 0, exc.errno or 0)
        if pid == 0:
            self._become_member(process)
        words[board.rows[row].pid] = pid
        self._members[pid] = row

    def _become_member(self, process: object) -> NoReturn:
        from multiprocessing import util

        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            leave_ctrl_c_to_client()
            die_with_parent(self._pid)
            for fd in (self._wake_r, self._wake_w, self._life_w, self._client_fd):
                if fd >= 0:
                    os.close(fd)
            self._control.close()
            reseed()
            atexit._clear()
            atexit.register(util._exit_function)  # type: ignore[attr-defined]  # since 3.13 `_bootstrap` leaves it to its caller
            code = process._bootstrap(parent_sentinel=self._life_r)  # type: ignore[attr-defined]
        except BaseException:  # noqa: BLE001 - this process ends here
            leave(code)
        try:
            atexit._run_exitfuncs()
        finally:
            leave(code)


def run_forked(control: socket.socket, board: Board, settings: NurserySettings) -> NoReturn:
    """The nursery's life after ``os.fork`` in the client."""
    code = 1
    try:
        leave_parent_behind()
        if SIGNAL is not None:
            signal.signal(
                SIGNAL, signal.SIG_IGN
            )  # until a member has begun and answers it: the default is to end it
        shared = optional.shared
        if shared is not None:
            shared.protect()
        if settings.prepare is not None:
            settings.prepare()
        Nursery(control, board, settings).serve()
        code = 0
    except BaseException:  # noqa: BLE001 - this process ends here
        leave(code)
    leave(code)


class FreshStart(NamedTuple):
    """What a nursery in a fresh interpreter needs to know of the client.  The main module is not imported there."""

    client_pid: int
    start_method: str
    argv: list[str]
    authkey: bytes
    members: MemberSettings
    stacks_fds: Sequence[int] = ()

    @classmethod
    def of_this_process(
        cls, start_method: str, members: MemberSettings, stacks_fds: Sequence[int] = ()
    ) -> FreshStart:
        import multiprocessing

        authkey = bytes(multiprocessing.current_process().authkey)
        return cls(os.getpid(), start_method, sys.argv, authkey, members, stacks_fds)

    def send(self, control: socket.socket) -> None:
        encoded = encode_value(self, what="the initializer")
        parts = parts_of(encoded)
        control.sendall(_LENGTH.pack(len(parts)))
        for part in parts:
            control.sendall(_LENGTH.pack(len(part)))
            control.sendall(raw(part))

    @staticmethod
    def receive(control: socket.socket) -> FreshStart:
        meta, *buffers = [
            _receive(control, _receive_length(control)) for _ in range(_receive_length(control))
        ]
        start = decode(meta, buffers)
        assert isinstance(start, FreshStart)
        return start


_LENGTH = struct.Struct("=Q")


def _receive_length(control: socket.socket) -> int:
    (length,) = _LENGTH.unpack(_receive(control, _LENGTH.size))
    return int(length)


def _receive(control: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = control.recv_into(view)
        if not count:
            raise EOFError("the client went away before the nursery had started")
        view = view[count:]
    return data


def fresh_command(fds: Sequence[int], variables: Mapping[str, str]) -> list[str]:
    """The command line of a nursery in a fresh interpreter; ``fds``: control, wake pipe, segments.

    ``variables`` are set in its environment before anything of the user's is imported.
    """
    from multiprocessing import spawn, util

    executable = os.fsdecode(spawn.get_executable())
    code = (
        f"import os, sys; os.environ.update({dict(variables)!r}); sys.path[:] = {sys.path!r}; "
        f"from repartir.nursery import run_fresh; run_fresh({list(fds)!r})"
    )
    return [executable, *util._args_from_interpreter_flags(), "-c", code]  # type: ignore[attr-defined]


def run_fresh(fds: Sequence[int]) -> None:
    """The nursery's life in a fresh interpreter."""
    import multiprocessing

    control_fd, wake_fd, ring_fd, memory_fd, overflow_fd, *lock_fd = fds
    control = socket.socket(fileno=control_fd)
    start = FreshStart.receive(control)
    sys.argv = start.argv
    multiprocessing.current_process().authkey = start.authkey
    board = Board.attach(ring_fd, (memory_fd, overflow_fd), lock_fd[0] if lock_fd else None)

    def run(row: int) -> None:
        Worker(board, row, wake_fd, start.members, start.stacks_fds).run()

    settings = NurserySettings(start.client_pid, start.start_method, run)
    run_forked(control, board, settings)
