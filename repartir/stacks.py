"""The Python stacks of a member, also of one that hangs in C code: the interpreter's fault handler writes them on a signal.

Members write to one file without a name that the client made, one at a time, when the nursery signals them.
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
from collections.abc import Callable

from repartir.shm.segment import open_unlinked, shm_dir

_LARGEST = 1 << 20
CHECK_S = 0.003
_CAPTURE = r'  File "[^"]*outcome\.py", line \d+ in capture\n'
_BELOW = re.compile(rf"{_CAPTURE}(?!(?:  .*\n)*{_CAPTURE})(  .*\n?)*")
"""From the oldest call of a task on: a task that waits for a child may be running another's."""
SIGNAL = signal.SIGRTMAX - 1 if hasattr(signal, "SIGRTMAX") else None
"""Makes a member write its stacks to the file.  One that programs do not use for themselves."""


def answer_signals(fd: int) -> None:
    """In a member: its stacks go to ``fd`` on ``SIGNAL``, and to its stderr on SIGUSR1."""
    if SIGNAL is not None:
        faulthandler.register(SIGNAL, file=fd)
    try:
        stderr = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return  # there is none, or it is no file
    faulthandler.register(signal.SIGUSR1, file=stderr)


class StackFile:
    """The client's end of the file.  Its offset is shared by all, so it is rewound for each dump."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        """Held from ``rewind`` until the text is read."""
        self.fd = open_unlinked(shm_dir())
        self._size = 0

    def rewind(self) -> None:
        os.ftruncate(self.fd, 0)
        os.lseek(self.fd, 0, os.SEEK_SET)
        self._size = 0

    def of_member(self, ask: Callable[[], None], timeout_s: float) -> str:
        """The stacks of one member, which ``ask`` signals; "" if it does not write them in time."""
        with self.lock:
            if self.fd < 0:
                return ""
            self.rewind()
            ask()
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
        return _BELOW.sub("", os.pread(self.fd, _LARGEST, 0).decode(errors="replace")).strip()

    def close(self) -> None:
        with self.lock:
            fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def of_this_process() -> str:
    """The stacks of this process's threads."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"Thread {names.get(ident, ident)} (most recent call last):\n{''.join(traceback.format_stack(frame)).rstrip()}"
        for ident, frame in sys._current_frames().items()
    )
