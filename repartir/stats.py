"""What an executor is doing and what it holds: a frozen snapshot."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExecutorStats:
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

    workers: int
    queued: int
    running: int
    lost: int
    blocks: int
    arena_bytes: int
    arena_limit: int
    backed_bytes: int
    spills: int
    spilled_bytes: int
    viewed_bytes: int
    kept_bytes: int
    shared_bytes: int


def in_words(size: int) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if unit != "B" else f"{size} B"
        size /= 1024  # type: ignore[assignment]
    return f"{size:.3g} GiB"
