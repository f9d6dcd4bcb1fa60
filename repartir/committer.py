"""Rows gathered for a moment and written together by a thread, so that who records them does not wait for a disk.

A row is written within `GATHER_S` and the time that one batch takes.  What cannot be written is kept: the failure is
raised by whoever records, flushes or closes next, and a flush tries again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

GATHER_S = 0.2
ROOM_BYTES = 64 << 20  # beyond it `add` waits for the disk

_Row = TypeVar("_Row")


class Committer(Generic[_Row]):
    """``write`` gets batches of rows, in order, in one thread; it writes all of a batch or raises."""

    def __init__(self, write: Callable[[list[_Row]], None], gather_s: float = GATHER_S) -> None:
        self._write = write
        self._gather_s = gather_s
        self._changed = threading.Condition()
        self._rows: list[_Row] = []
        self._size_bytes = 0
        self._writing = 0  # rows of the batch that the thread is at
        self._hurried = False
        self._closing = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="repartir-journal", daemon=True)
        """Begins with the first row: Ctrl-C before leaves none behind."""

    def add(self, row: _Row, size_bytes: int) -> None:
        """Have ``row`` written soon.  Raises the failure of an earlier batch, which is kept together with ``row``."""
        with self._changed:
            if self._thread.ident is None:
                self._thread.start()
            while self._size_bytes > ROOM_BYTES and self._failure is None:
                self._changed.wait()
            self._rows.append(row)
            self._size_bytes += size_bytes
            if len(self._rows) == 1 or self._size_bytes > ROOM_BYTES:
                self._changed.notify_all()
            if self._failure is not None:
                raise self._failure

    def flush(self) -> None:
        """Return when all rows are written; raises why they cannot be."""
        with self._changed:
            self._failure = None
            self._hurried = True
            self._changed.notify_all()
            while (self._rows or self._writing) and self._failure is None:
                self._changed.wait()
            if self._failure is not None:
                raise self._failure

    def close(self) -> None:
        """Write what is left and end the thread; raises what `flush` does."""
        try:
            self.flush()
        finally:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            if self._thread.ident is not None:
                self._thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            failure: BaseException | None = None
            try:
                self._write(batch)
            except BaseException as error:  # noqa: BLE001 - raised by who records, flushes or closes
                failure = error
            with self._changed:
                self._writing = 0
                self._failure = failure
                if failure is not None:
                    self._rows[:0] = batch
                if failure is not None or not self._rows:
                    self._hurried = False
                self._changed.notify_all()

    def _next_batch(self) -> list[_Row]:
        """The rows of the next moment; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or (self._rows and self._failure is None))
            if not self._rows or self._failure is not None:
                return []
            self._changed.wait_for(
                lambda: self._hurried or self._closing or self._size_bytes > ROOM_BYTES, self._gather_s
            )
            batch, self._rows = self._rows, []
            self._writing, self._size_bytes = len(batch), 0
            return batch
