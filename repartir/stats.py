"""What an executor is doing and what it holds: a frozen snapshot."""

from __future__ import annotations

from typing import NamedTuple

from repartir import optional


class ExecutorStats(NamedTuple):
    """Numbers of tasks and workers, and bytes of memory, at one moment.

    Attributes:
        workers: how many the executor has.
        queued, running: tasks that wait, and that a worker has taken.
        lost: workers that died.
        blocks, arena_bytes: blocks in use in shared memory (arguments, results, functions), and the bytes in them.
        arena_limit: bytes that blocks may take in shared memory.
        backed_bytes: bytes of shared memory that the arena has now, used or kept warm for the next task.
        spills, spilled_bytes: blocks in use in a file of the folder for temporary files, and the bytes in them.
        viewed_bytes: bytes of blocks that results which this program keeps lie in.
        kept_bytes: bytes of blocks that workers keep because an array of an earlier task is still alive there.
        shared_bytes: bytes that `share` and `repartir.shared` hold in this process, whatever the executor.
    """

    workers: int = 0
    queued: int = 0
    running: int = 0
    lost: int = 0
    blocks: int = 0
    arena_bytes: int = 0
    arena_limit: int = 0
    backed_bytes: int = 0
    spills: int = 0
    spilled_bytes: int = 0
    viewed_bytes: int = 0
    kept_bytes: int = 0
    shared_bytes: int = 0


def shared_bytes() -> int:
    """Bytes that this process has put into shared memory by `share` and `repartir.shared`, and not freed."""
    shared = optional.shared
    return 0 if shared is None else int(shared.total_bytes())


def in_words(size: int) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if unit != "B" else f"{size} B"
        size /= 1024  # type: ignore[assignment]
    return f"{size:.3g} GiB"


def in_seconds(seconds: float) -> str:
    """A time for people: three digits, or all of whole seconds."""
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"
