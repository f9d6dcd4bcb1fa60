"""Loads and stores of aligned 64-bit words: the seam where tests put an interleaving explorer.

In production ``Words`` is a ``memoryview`` cast to ``"Q"``: an item assignment is one aligned 8-byte store, which no
death of the process can tear.  Everything in this package reaches shared words through ``words[i]`` only, so a test
may hand in any object with ``__getitem__`` and ``__setitem__``.
"""

from __future__ import annotations

from typing import Protocol


class Words(Protocol):
    """Indexable 64-bit words."""

    def __getitem__(self, index: int, /) -> int: ...

    def __setitem__(self, index: int, value: int, /) -> None: ...


class Data(Protocol):
    """The same memory as bytes."""

    def __getitem__(self, where: slice, /) -> bytes: ...

    def __setitem__(self, where: slice, value: bytes, /) -> None: ...
