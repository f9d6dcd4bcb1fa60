"""The C library, twice: for calls of nanoseconds, which keep the GIL, and for calls that may sleep."""

from __future__ import annotations

import ctypes
import functools


@functools.cache
def holding_gil() -> ctypes.PyDLL:
    """For calls that return at once and do not report by errno, which would cost as much as such a call itself."""
    return ctypes.PyDLL(None)


@functools.cache
def releasing_gil() -> ctypes.CDLL:
    """For calls that may sleep; their error is in ``ctypes.get_errno()``."""
    return ctypes.CDLL(None, use_errno=True)


class Timespec(ctypes.Structure):
    """A point in time, for the calls that take a deadline."""

    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))

    def set(self, seconds: float) -> None:
        self.tv_sec, self.tv_nsec = int(seconds), int(seconds % 1 * 1e9)
