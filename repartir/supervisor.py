"""The client's end of the nursery: start it, tell it what to fork and kill, hear of exits."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import contextlib
import errno
import itertools
import os
import signal
import socket
import struct
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

from repartir.hygiene import quiet_parent
from repartir.nursery import (
    COMMAND,
    EVERY_ROW,
    REPORT,
    FreshStart,
    NurserySettings,
    Operation,
    fresh_command,
    run_forked,
)
from repartir.shm.board import Board, MemberState
from repartir.worker import MemberSettings, Worker

STARTS = 3
"""How often the nursery, or a member of one row, is started before the executor gives up."""
_FORKED_START_S = 10.0
_FRESH_START_S = 60.0
_SEND_S = 60
"""A nursery that reads nothing for so many seconds hangs."""
_REPORTS_BYTES = 1 << 16
_sigmask = _signal.pthread_sigmask
"""That of ``signal`` is written in Python: a handler may raise in it before it has done anything."""


class MemberExited(NamedTuple):
    """The member of ``row`` has ended; ``status`` is what ``waitpid`` gave, ``pid`` 0 when it could not be forked."""

    row: int
    pid: int
    status: int

    @property
    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(self.status)


class NurseryExited(NamedTuple):
    """The nursery is gone, and every member with it."""


Report = MemberExited | NurseryExited


class Supervisor:
    """Starts the nursery of one executor, after ``connect`` by ``start``, and talks to it."""

    def __init__(
        self,
        board: Board,
        start_method: str,
        members: MemberSettings,
        wake_fd: int,
        stacks_fds: Sequence[int] = (),
    ) -> None:
        self._board = board
        self._start_method = start_method
        self._members = members
        self._wake_fd = wake_fd
        self._stacks_fds = stacks_fds
        self._deadlines = [0.0] * len(board.rows)
        """By row, until when its member should have begun."""
        self._starts = 0
        self._quitting = False
        self._pending = b""
        self._nurseries: list[int] = []
        """Pids that nobody has waited for."""
        self.forking = False
        """A child that is made now is this executor's nursery."""
        self.control: socket.socket
        self._theirs: socket.socket

    @property
    def nursery_pid(self) -> int:
        """0 when there is none."""
        return self._nurseries[-1] if self._nurseries else 0

    def connect(self) -> None:
        """Make the line to the nursery that is started next."""
        self.control, self._theirs = socket.socketpair()
        self.control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_S, 0))

    def start(self) -> None:
        """Start the nursery.  Interrupted, here or right after, it is ended by ``close``."""
        self._starts += 1
        try:
            if self._start_method == "fork":
                self._fork_nursery()
            else:
                self._spawn_nursery()
        finally:
            self._theirs.close()
        self.extend_deadlines(range(len(self._deadlines)))

    def close(self, *, kill: bool = True) -> None:
        """End what ``connect`` and ``start`` began, however far they came; without ``kill`` wait until it ends."""
        self.reap(kill=kill)
        self.control.close()
        self._theirs.close()

    def fileno(self) -> int:
        """Readable when there are reports."""
        return self.control.fileno()

    def fork(self, row: int) -> None:
        self.extend_deadlines([row])
        self._send(Operation.FORK, row)

    def terminate(self, row: int) -> None:
        self._send(Operation.TERMINATE, row)

    def kill(self, row: int) -> None:
        self._send(Operation.KILL, row)

    def dump(self, row: int) -> None:
        """Have the member of ``row`` write its stacks to its file for them."""
        self._send(Operation.DUMP, row)

    def quit(self) -> None:
        """Have the nursery end once all members have."""
        self._quitting = True
        self._send(Operation.QUIT, EVERY_ROW)

    def reports(self) -> Sequence[Report]:
        """What the nursery reported since the last call; never waits."""
        try:
            data = self.control.recv(_REPORTS_BYTES, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return ()
        except OSError:
            data = b""
        if not data:
            return (NurseryExited(),)
        data = self._pending + data
        whole = len(data) - len(data) % REPORT.size
        self._pending = data[whole:]
        return [MemberExited(*fields) for fields in REPORT.iter_unpack(data[:whole])]

    def late_starters(self) -> list[int] | None:
        """Rows whose member hangs before it runs Python code of ours; None while all others may still be on their way."""
        words, rows = self._board.words, self._board.rows
        waiting = [
            row.index for row in rows if words[row.state] in (MemberState.ABSENT, MemberState.STARTING)
        ]
        if not waiting:
            return []
        now = time.monotonic()
        return [row for row in waiting if now > self._deadlines[row]] or None

    def extend_deadlines(self, rows: Iterable[int]) -> None:
        """The members of these rows, which are forked from now on, have their time to start."""
        fresh = self._start_method != "fork" and not self._started
        deadline = time.monotonic() + (_FRESH_START_S if fresh else _FORKED_START_S)
        for row in rows:
            self._deadlines[row] = deadline

    @property
    def _started(self) -> bool:
        return any(self._board.words[row.pid] for row in self._board.rows)

    def restart_hung_nursery(self) -> bool:
        """Replace a nursery that has not forked anything in its time; False if it is at work.

        One that was told to quit, or the last of several, is killed: then its exit is reported.
        """
        if self._started:
            return False
        if self._quitting or self._starts >= STARTS:
            self._kill_nursery()
            return False
        self.close()
        self.connect()
        self.start()
        return True

    def reap(self, *, kill: bool = False) -> None:
        """Wait for the nursery's end."""
        if kill:
            self._kill_nursery()
        for pid in self._nurseries:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self._nurseries.clear()

    def _kill_nursery(self) -> None:
        for pid in self._nurseries:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _fork_nursery(self) -> None:
        board, members, theirs = self._board, self._members, self._theirs
        wake_fd, stacks_fds = self._wake_fd, self._stacks_fds

        def run(row: int) -> None:
            Worker(board, row, wake_fd, members, stacks_fds).run()

        settings = NurserySettings(os.getpid(), self._start_method, run, members.cores.limiter())
        mask = _sigmask(signal.SIG_BLOCK, ())
        try:
            # Within the block, as it may raise what a handler raises although the signals are blocked by then.
            _sigmask(signal.SIG_BLOCK, signal.valid_signals())
            with quiet_parent() as let_go, warnings.catch_warnings():
                # The child undoes what it inherits of threads: see hygiene.py.
                warnings.simplefilter("ignore", DeprecationWarning)
                self.forking = True
                # Forked and noted in one call into C: another thread may have received a signal, whose handler runs here
                # although signals are blocked, and an interruption right after the fork must find the pid, to end it.
                self._nurseries.extend(itertools.starmap(os.fork, ((),)))
                if self.nursery_pid == 0:
                    try:
                        let_go()
                        self.control.close()
                        run_forked(theirs, board, settings)
                    finally:
                        os._exit(1)
        finally:
            _sigmask(signal.SIG_SETMASK, mask)
            self.forking = False

    def _spawn_nursery(self) -> None:
        from multiprocessing.util import spawnv_passfds

        fds = [self._theirs.fileno(), self._wake_fd, *self._board.descriptors()]
        command = fresh_command(fds, self._members.cores.variables(os.environ))
        start = FreshStart.of_this_process(self._start_method, self._members, self._stacks_fds)
        self._nurseries.append(spawnv_passfds(os.fsencode(command[0]), command, [*fds, *self._stacks_fds]))
        self._theirs.close()  # else a nursery that fails at its start would not be noticed below
        try:
            start.send(self.control)
        except BlockingIOError:
            raise BrokenProcessPool("the process that forks the workers does not start") from None
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended already: `reports` says so

    def _send(self, operation: Operation, row: int) -> None:
        try:
            self.control.sendall(COMMAND.pack(operation, row))
        except BlockingIOError:
            self._kill_nursery()  # it hangs: that it ended is reported by `reports`
        except OSError as exc:
            # A nursery that has gone is reported by `reports`; after the end nobody is left to tell.
            if exc.errno not in (errno.EPIPE, errno.ECONNRESET, errno.EBADF):
                raise


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"


__all__ = [
    "EVERY_ROW",
    "STARTS",
    "MemberExited",
    "NurseryExited",
    "Report",
    "Supervisor",
    "describe_exit",
]
