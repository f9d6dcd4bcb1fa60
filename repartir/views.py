"""Results of the client that lie in their blocks: arrays that are views of shared memory, and what becomes of a block after
the last of them has died.

Finalizers tell of deaths, so they take no lock: they append, and whoever pumps next gives back (`Views.sweep`).
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections import deque
from collections.abc import Callable

from repartir import outcome
from repartir.shm.arena import Handle
from repartir.shm.blocks import BlockRef, watch, when_dead
from repartir.shm.board import Board
from repartir.shm.segment import copy_in_place, discard

_SWEEP_BYTES = 16 << 20
"""With so many bytes of dead views somebody is woken for them."""

_with_views: weakref.WeakSet[Views] = weakref.WeakSet()


class Views:
    """Those of one executor.  ``on_death`` rings a bell where much has died, or ``is_wanted`` says that somebody waits for
    room."""

    __slots__ = (
        "__weakref__",
        "_board",
        "_dead",
        "_dead_bytes",
        "_is_wanted",
        "_on_death",
        "bytes",
        "dead",
        "ended",
        "handles",
        "pinned",
    )

    def __init__(self, board: Board, on_death: Callable[[], None], is_wanted: Callable[[], bool]) -> None:
        self.handles: dict[Handle, tuple[int, BlockRef | None]] = {}
        """The blocks: the task word, and what watches over the arrays, once it does."""
        self.dead: deque[BlockRef] = deque()
        """Those whose last array has died."""
        self.pinned: set[Handle] = set()
        """Those that a child of the client may still use."""
        self.bytes = 0
        """Bytes of all of them."""
        self.ended = False
        self._board = board
        self._dead_bytes = 0
        self._on_death = on_death
        self._is_wanted = is_wanted

    def decode(self, handle: Handle, word: int) -> outcome.Value | outcome.Error:
        """A result whose arrays lie in their block, which is given back after the last of them has died.

        It gets private copies where views hold half of the memory already, and where an earlier attempt at this answer
        was interrupted: what that had made of the block may still be alive.
        """
        blocks = self._board.blocks
        seen = self.handles.get(handle)
        if seen is not None or self.bytes + handle.size > blocks.limit // 2:
            meta, *copies = blocks.load(handle)
            return outcome.decode_outcome(meta, copies)
        view, buffers, exporter = blocks.open(handle)
        if exporter is not None:
            self.handles[handle] = word, None
            self.bytes += handle.size
            _with_views.add(self)
            # In this order: the callback of the newest reference comes first, so who is told by the other one finds this.
            when_dead(exporter, self._died, handle, *blocks.extent(handle))
            self.handles[handle] = word, watch(exporter, handle, self.dead)
        return outcome.decode_outcome(view, buffers)

    def settle(self, handle: Handle) -> None:
        """The answer in a block will not be decoded again, though its task goes on: one item of a map."""
        view = self.handles.get(handle)
        if view is not None:
            self.handles[handle] = 0, view[1]

    def free_unless_viewed(self, handle: Handle) -> None:
        """The answer in a block is settled: give the block back, unless something watches over arrays in it."""
        view = self.handles.get(handle)
        if (
            view is None or view[1] is None
        ):  # interrupted before it was watched, then decoded into private copies
            self._forget(handle)
            self._board.blocks.free(handle)

    def has_one_of(self, word: int) -> bool:
        """Whether arrays of the client lie in the result of a task whose member died before it let go of the claim."""
        return any(viewed == word for viewed, _ in list(self.handles.values()))

    def sweep(self, is_settled: Callable[[int], bool]) -> bool:
        """Give back the blocks of dead views; whether there was one."""
        handles, dead, freed = self.handles, self.dead, False
        self._dead_bytes = 0
        for _ in range(len(dead)):
            handle = dead[0].handle
            if handle in handles and handle not in self.pinned:
                if not is_settled(handles[handle][0]):
                    dead.rotate(-1)  # the answer will be decoded once more
                    continue
                freed = self._board.blocks.free(handle) or freed
                self._forget(handle)
            dead.popleft()
        return freed

    def _forget(self, handle: Handle) -> None:
        """No array lies in this block (any more).  May be repeated; takes no lock."""
        if self.handles.pop(handle, None) is not None:
            self.bytes = self.bytes - handle.size if self.handles else 0

    def _died(self, handle: Handle, mapping: weakref.ref[mmap.mmap], start: int, end: int) -> None:
        """The last array in a block has died: a hint, which a signal handler's exception may lose.  Takes no lock."""
        if not self.ended:
            self._dead_bytes += handle.size
            if self._dead_bytes > _SWEEP_BYTES or self._is_wanted():
                self._on_death()  # else whoever pumps next sweeps: a hand-over to the broker's thread costs more
        elif handle not in self.pinned:
            self._forget(handle)
            data = mapping()
            if data is not None:
                discard(data, start, end)

    def pin(self) -> None:
        """The client forks a child, which has the arrays that it has now: their blocks are not used again."""
        for handle, (_, ref) in list(self.handles.items()):
            if ref is None or ref() is not None:
                self.pinned.add(handle)

    def own(self) -> None:
        """In that child: what it writes to them stays its own."""
        if not self.ended:
            self._board.blocks.make_private()
            return
        for _, ref in list(self.handles.values()):
            exporter = None if ref is None else ref()
            if exporter is not None:
                copy_in_place(exporter.__array_interface__["data"][0], exporter.nbytes)


def _before_fork() -> None:
    for views in list(_with_views):
        views.pin()


def _after_fork() -> None:
    for views in list(_with_views):
        views.own()
    _with_views.clear()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
