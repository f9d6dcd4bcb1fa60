"""How far a map or a sweep has come: told to a callable, a terminal, a notebook or the log.

Everything happens in the thread that takes the results: no thread draws, and nothing is drawn while no result comes.
"""

from __future__ import annotations

import logging
import math
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol, TextIO

from repartir import worker

REFRESH_S = 0.1
LOG_S = 30.0
_log = logging.getLogger("repartir")

Told = Callable[[int, int | None], object]


class Display(Protocol):
    """Where progress is shown."""

    interval_s: float
    """It is told no more often than that."""
    wants_the_end: bool
    """It is told once more at the end."""

    def show(self, done: int, total: int | None, note: str = "") -> object:
        """So many steps of so many are done; of None: nobody knows how many there are.  ``note``: what else is known."""

    def close(self) -> None:
        """Show no more, and leave no trace but what was shown."""


class Reporter:
    """Counts steps, and tells a display now and then.  Close it, or use it in ``with``, however the work ends.

    `done`: steps so far.  `total`: how many there are, None where that is not known (yet).  `note`: says what else is known,
    when something is shown.
    """

    __slots__ = ("__weakref__", "_clock", "_display", "_due", "_told", "done", "note", "total")

    def __init__(self, display: Display | None, total: int | None, clock: Callable[[], float]) -> None:
        self.done = 0
        self.total = total
        self.note: Callable[[], str] | None = None
        self._told = -1
        self._clock = clock
        self._display = display
        self._due = math.inf if display is None else clock() + display.interval_s

    def step(self, n: int = 1) -> None:
        """So many steps more are done."""
        self.done += n
        if self._clock() >= self._due:
            self._show()

    def close(self) -> None:
        """The work has ended, well or not.  May be called again."""
        display, self._due = self._display, math.inf
        if display is None:
            return
        try:
            if display.wants_the_end and self._told != self.done:
                self._told = self.done
                self._tell(display)
        finally:
            self._display = None
            display.close()

    def _show(self) -> None:
        display = self._display
        if display is not None:
            self._told = self.done  # also if that fails: what raised is not asked again at the end
            self._tell(display)
            self._due = self._clock() + display.interval_s

    def _tell(self, display: Display) -> None:
        display.show(self.done, self.total, "" if self.note is None else self.note())

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Silent(Reporter):
    """Tells nobody."""

    __slots__ = ()

    def step(self, n: int = 1) -> None:
        self.done += n


def reporter(
    progress: bool | Told,
    what: str,
    total: int | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    stream: TextIO | None = None,
) -> Reporter:
    """A reporter for work that is called ``what``.

    Args:
        progress: False: tell nobody.  A callable: call it with the steps done and their total (or None), at most ten times
            a second and once at the end.  True: show it in the notebook or terminal; where there is neither, and in
            tasks, a line at most every 30 seconds, logged or, where nobody wants INFO of ``repartir``, to stderr.
        total: how many steps there are, None where that is not known.
        clock: seconds.
        stream: the terminal, if it is one; None: stderr.

    Raises ``TypeError`` for anything else.
    """
    if progress is False:
        return _Silent(None, total, clock)
    if progress is True:
        display = _default_display(what, clock, sys.stderr if stream is None else stream)
    elif callable(progress):
        display = _Callable(progress)
    else:
        raise TypeError(
            f"progress must be True, False or a callable that takes (done, total), not {type(progress).__name__}"
        )
    return Reporter(display, total, clock)


def _default_display(what: str, clock: Callable[[], float], stream: TextIO | None) -> Display:
    if worker.current() is None:
        if (shell := _notebook()) is not None:
            return _Notebook(what, clock, shell)
        if stream is not None and stream.isatty():
            return _Terminal(what, stream)
    return _LogLines(what, clock)


def _notebook() -> Any:
    """The shell of the notebook that this process is the kernel of, None elsewhere.  Loads nothing."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell if hasattr(shell, "kernel") else None


def line(what: str, done: int, total: int | None, elapsed_s: float, note: str = "") -> str:
    """Progress in words: "fit: 30 of 120 (25 %), 2.5/s, 0:36 left", and the note."""
    speed = done / elapsed_s if elapsed_s > 0 else 0.0
    parts = [f"{what}: {done}" if total is None else f"{what}: {done} of {total}"]
    if total:
        parts[0] += f" ({100 * done // total} %)"
    if speed:
        parts.append(f"{speed:.3g}/s" if speed < 1000 else f"{speed:.0f}/s")
        if total is not None and done < total:
            parts.append(f"{_minutes((total - done) / speed)} left")
        else:
            parts.append(_minutes(elapsed_s))
    if note:
        parts.append(note)
    return ", ".join(parts)


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Callable:
    """The user's own."""

    interval_s = REFRESH_S
    wants_the_end = True

    def __init__(self, told: Told) -> None:
        self._told = told

    def show(self, done: int, total: int | None, note: str = "") -> None:
        self._told(done, total)

    def close(self) -> None:
        """Nothing is left of it."""


class _LogLines:
    """Where nobody may be looking: a line now and then, and none of what is over soon."""

    interval_s = LOG_S
    wants_the_end = False

    def __init__(self, what: str, clock: Callable[[], float]) -> None:
        self._what = what
        self._clock = clock
        self._began = clock()

    def show(self, done: int, total: int | None, note: str = "") -> None:
        text = line(self._what, done, total, self._clock() - self._began, note)
        if _log.isEnabledFor(logging.INFO):
            _log.info("%s", text)
        elif sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is left of it."""


class _Notebook:
    """A line of a cell's output that is written over."""

    interval_s = REFRESH_S
    wants_the_end = True

    def __init__(self, what: str, clock: Callable[[], float], shell: Any) -> None:
        self._what = what
        self._clock = clock
        self._began = clock()
        self._publish = shell.display_pub.publish
        self._id = ""

    def show(self, done: int, total: int | None, note: str = "") -> None:
        text = line(self._what, done, total, self._clock() - self._began, note)
        again = bool(self._id)
        self._id = self._id or f"repartir-{id(self)}-{time.time_ns()}"
        self._publish({"text/plain": text}, transient={"display_id": self._id}, update=again)

    def close(self) -> None:
        """What was shown last stays."""


class _Terminal:
    """A bar that rich draws; nothing is loaded, hidden or redirected before it is shown first."""

    interval_s = REFRESH_S
    wants_the_end = True

    def __init__(self, what: str, stream: TextIO) -> None:
        self._what = what
        self._stream = stream
        self._bar: Any = None
        self._task: Any = None

    def show(self, done: int, total: int | None, note: str = "") -> None:
        if self._bar is None:
            self._begin()
        self._bar.update(self._task, completed=done, total=total, note=note)
        self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._end()

    def _begin(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bar = bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(file=self._stream),
            auto_refresh=False,
        )
        self._task = bar.add_task(self._what, total=None, note="")
        # An iterator that nobody exhausts: the cursor comes back when it dies, or with the interpreter's end.
        self._end = weakref.finalize(self, bar.stop)
        bar.start()
