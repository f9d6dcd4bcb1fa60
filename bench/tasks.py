"""What the benchmarks run in workers: functions of an importable module, which all send by reference."""

from __future__ import annotations

import os


def noop() -> None:
    """Nothing: what is left is the executor's own cost."""


def noop_item(item: object) -> None:
    """The no-op of `map`: takes the item, gives nothing back."""


def burn(turns: int) -> int:
    """A fixed amount of CPU work: `turns` turns of a small loop, however long they take."""
    value = 1
    for turn in range(turns):
        value = (value * 3 + turn) & 0xFFFF
    return value


def pass_gate(path: str) -> int:
    """Block until somebody holds the FIFO at `path` open for writing; the worker's process id."""
    os.close(os.open(path, os.O_RDONLY))
    return os.getpid()
