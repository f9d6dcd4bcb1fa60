"""The Python stacks of a member, also of one that hangs in C code: the interpreter's fault handler writes them on a signal.

Each row of the board has a file without a name that the client made, into which its member writes when the nursery
signals it: so what a member writes late is never taken for another's.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from repartir.shm.segment import open_unlinked, shm_dir

_LARGEST = 1 << 20
CHECK_S = 0.003
_CAPTURE = r'  File "[^"]*outcome\.py", line \d+ in capture\n'
_BELOW = re.compile(rf"{_CAPTURE}(?!(?:  .*\n)*{_CAPTURE})(  .*\n?)*")
"""From the oldest call of a task on: a task that waits for a child may be running another's."""
_NONE_ABOVE = re.compile(rf"(\(most recent call first\):\n)(?={_CAPTURE})")
SIGNAL = signal.SIGRTMAX - 1 if hasattr(signal, "SIGRTMAX") else None
"""Makes a member write its stacks to the file.  One that programs do not use for themselves."""


def answer_signals(fds: Sequence[int], row: int) -> None:
    """In a member: its stacks go to its row's of ``fds`` on ``SIGNAL``, and to its stderr on SIGUSR1."""
    for at, fd in enumerate(fds):
        if at != row:
            os.close(fd)
        elif SIGNAL is not None:
            faulthandler.register(SIGNAL, file=fd)
    try:
        stderr = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return  # there is none, or it is no file
    faulthandler.register(signal.SIGUSR1, file=stderr)


class StackFile:
    """The client's end of one row's file.  Its offset is the member's, too, so it is rewound for each dump.

    There is no lock: of two threads that ask the same member at a time, one may find what the other asked for.  The file is
    closed when nobody refers to it any more, lest a thread that still waits for the stacks reads or cuts another file.
    """

    fd = -1

    def __init__(self) -> None:
        self.fd = open_unlinked(shm_dir())
        self._size = 0

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def ask(self, dump: Callable[[], None]) -> None:
        """Have the member signalled by ``dump``; what it wrote before is gone."""
        os.ftruncate(self.fd, 0)
        os.lseek(self.fd, 0, os.SEEK_SET)
        self._size = 0
        dump()

    def of_member(self, dump: Callable[[], None], timeout_s: float) -> str:
        """The member's stacks; "" if it does not write them in time."""
        self.ask(dump)
        until = time.monotonic() + timeout_s
        while not self.is_written() and time.monotonic() < until:
            time.sleep(CHECK_S)
        return self.text()

    def is_written(self) -> bool:
        """Whether there is something, and nothing was added since this was asked last, ``CHECK_S`` ago."""
        before, self._size = self._size, os.fstat(self.fd).st_size
        return 0 < self._size == before

    def text(self) -> str:
        """Without the frames below a task's own."""
        text = os.pread(self.fd, _LARGEST, 0).decode(errors="replace")
        return _BELOW.sub(
            "", _NONE_ABOVE.sub(r"\1  the function of the task, which is not written in Python\n", text)
        ).strip()


def of_this_process() -> str:
    """The stacks of this process's threads."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"Thread {names.get(ident, ident)} (most recent call last):\n{''.join(traceback.format_stack(frame)).rstrip()}"
        for ident, frame in sys._current_frames().items()
    )


def told_of_client() -> str:
    """The same, with which process it is."""
    return f"client, process {os.getpid()}:\n{of_this_process()}\n"
