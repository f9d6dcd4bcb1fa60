"""What a member's death means for children: for those that it ran for others, and for its own.

The order of these steps, and which party frees which block, is argued for in ``shm/README.md``.
"""

from __future__ import annotations

from collections.abc import Sequence

from repartir.shm.arena import RESULT, Handle
from repartir.shm.board import Board
from repartir.shm.layout import (
    CELL_DIED,
    CELL_IN_BLOCK,
    CELL_NEVER_BEGUN,
    CHILD,
    cell_of,
    owner_of_arguments,
    owner_of_functions,
    spawner_of,
)


def has_begun(claims: Sequence[int], nth: int, started: int) -> bool:
    """Whether the dead member had begun the ``nth`` task on its stack: all but the highest for certain."""
    return nth + 1 < len(claims) or claims[nth] == started


def judge_children(board: Board, at: int, claims: Sequence[int], started: int, code: int, how: str) -> None:
    """Tell those who wait for a child that the dead member of row ``at`` had claimed; ``how`` it died, in words."""
    unpublished = []
    payload = code.to_bytes(8, "little", signed=True) + how.encode()
    for nth, word in enumerate(claims):
        if not word & CHILD or spawner_of(word) == at:
            continue
        status = CELL_DIED if has_begun(claims, nth, started) else CELL_NEVER_BEGUN
        cells, cell = board.cells[spawner_of(word)], cell_of(word)
        if cells.put(cell, word, status, payload) or cells.read(cell, word) is None:
            unpublished.append(word | RESULT)
        board.parking.wake_waiter(spawner_of(word))
    if unpublished:
        board.blocks.free_owned(*unpublished)


def orphan_children(board: Board, at: int) -> None:
    """Nobody waits for the children of the dead member of row ``at``: take back those that nobody has begun, drop results.

    Who runs one finds that it is not wanted, and frees its result.
    """
    board.spawns[at].clear()
    for ending in board.cells[at].clear():
        if ending.status == CELL_IN_BLOCK:
            board.blocks.free(Handle.unpack(ending.payload))
    board.blocks.free_owned(owner_of_arguments(at), owner_of_functions(at))


def descends(board: Board, word: int, root: int) -> bool:
    """Whether task ``word`` is ``root`` or was submitted by it, or by a child of it, and so on."""
    while word != root:
        if not word & CHILD:
            return False
        word = board.cells[spawner_of(word)].parent_of(cell_of(word), word)
    return True


def condemn_descendants(board: Board, at: int, root: int) -> list[int]:
    """Rows whose members may be killed because all that they run is for ``root``, which was stopped in row ``at``."""
    condemned = []
    for row in board.rows:
        if row.index == at:
            continue
        claims = board.stacks[row.index].tasks()
        if not claims or not all(descends(board, word, root) for word in claims):
            continue
        if board.condemn(row.index, claims[0]):
            if all(descends(board, word, root) for word in board.stacks[row.index].tasks()):
                condemned.append(row.index)
            else:
                board.words[row.condemned] = 0
    return condemned
