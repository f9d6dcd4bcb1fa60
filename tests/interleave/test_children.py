"""A child's whole way, from the spawner's post to its result there, with the death of spawner, thief or both anywhere.

The real nests, cells and recovery on the explorer's memory.  Who lives and waits gets the value, or is told of the death,
and never sleeps for ever; no child runs twice in one attempt's life; every block is given back once.
"""

from __future__ import annotations

import functools
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from repartir.children import Child, ChildFuture, Level, Nest
from repartir.errors import InternalError, WorkerDied
from repartir.functions import FunctionCache
from repartir.outcome import Error, Value, caught
from repartir.policy import NO_POLICY
from repartir.recovery import judge_children, orphan_children
from repartir.shm.arena import RESULT, Handle
from repartir.shm.board import Board
from repartir.shm.cells import CellTable
from repartir.shm.layout import CELL_IN_BLOCK, IN_BLOCK, task_word
from tests.interleave.explorer import Abandoned, Interrupted, Killed, Plan, ScheduleError, World, explore
from tests.interleave.ring import make_board, on_fake_parts

ROOT = task_word(1, 1)


@pytest.fixture(autouse=True)
def fake_parts() -> Iterator[None]:
    with on_fake_parts():
        yield


class FakeNest(Nest):
    """Children are numbers; the arguments of even ones and their results lie in blocks."""

    def __init__(self, board: Board, index: int, ran: list[int]) -> None:
        super().__init__(board, index, FunctionCache(), None, 1 << 20, {})
        self.ran = ran

    def spawn(self, task: int) -> ChildFuture:
        level = self.level or self._bottom()
        future = ChildFuture(self)
        future.child = child = Child(future, level, 0, NO_POLICY, task)
        child.payload = bytes([task])
        if task % 2 == 0:
            assert self._place(child, child.payload, [bytes([task]) * 300])
        self._enter(child)
        return future

    def _end_children(self, level: Level, *, wait: bool, cancel: bool) -> None:
        """The explorer's own exceptions are none that a task is to survive."""
        try:
            super()._end_children(level, wait=wait, cancel=cancel)
        except (Killed, Abandoned) as exc:
            raise InternalError from exc

    def _call(self, payload: bytes, flags: int, level: Level | None = None) -> Value | Error:
        task = payload[0]
        if flags & IN_BLOCK:
            try:
                (content,) = self._load(Handle.unpack(payload[1:]))
            except InternalError as exc:
                return caught(exc)
            assert content == bytes([task]) * 300, f"the arguments of {task} were overwritten"
        self.ran.append(task)
        return Value(result_of(task))


def result_of(task: int) -> bytes:
    return bytes([task]) * (4 if task % 2 else 400)


class Family:
    """Row 0 runs a task that has children, row 1 steals; the client recovers."""

    nest_kind: type[FakeNest] = FakeNest
    stolen = False
    """The spawner waits until the thief has taken a child."""

    def __init__(self, world: World, tasks: tuple[int, ...]) -> None:
        self.world = world
        self.board = make_board(world, 2)
        self.ran: list[int] = []
        self.tasks = tasks
        self.results: dict[int, ChildFuture] = {}
        self.told: Value | Error | None = None
        self.board.words[self.board.rows[0].claim] = ROOT
        self.board.words[self.board.rows[0].started] = ROOT
        self.recovered: set[str] = set()

    def spawner(self) -> None:
        board, row = self.board, self.board.rows[0]
        nest = self.nest_kind(board, 0, self.ran)
        result: Value | Error = Value(None)
        try:
            for task in self.tasks:
                self.results[task] = nest.spawn(task)
            if self.stolen:
                spawn, raw = board.spawns[0], board.segments[0].raw  # type: ignore[attr-defined]
                self.world.wait_until(
                    lambda: raw[spawn.head_word] > 0 or self.world.actors["thief"].ended,
                )
            for future in self.results.values():
                nest.wait_for(future, None)
        except Interrupted as exc:
            result = caught(exc)
        try:
            self.told = nest.end_bottom(result)
        except InternalError as exc:
            raise exc.__cause__ or exc from None
        board.words[row.claim] = 0

    def thief(self) -> None:
        board, row = self.board, self.board.rows[1]
        nest = self.nest_kind(board, 1, self.ran)
        spawn, raw = board.spawns[0], board.segments[0].raw  # type: ignore[attr-defined]
        for _ in self.tasks:
            self.world.wait_until(
                lambda: raw[spawn.head_word] != raw[spawn.tail_word] or self.world.actors["spawner"].ended
            )
            if entry := spawn.pop_head(row.claim):
                nest.run_stolen(entry)

    def supervisor(self) -> None:
        names = ["spawner", "thief"]
        actors = self.world.actors
        while len(self.recovered) < 2:
            self.world.wait_until(lambda: any(actors[name].ended for name in {*names} - self.recovered))
            for name in names:
                if actors[name].ended and name not in self.recovered:
                    self.recovered.add(name)
                    if self.world.gone(name):
                        self.recover(names.index(name))

    def recover(self, at: int) -> None:
        board = self.board
        board.lock_and_unlock_all()
        claims, started = board.stacks[at].tasks(), board.words[board.rows[at].started]
        judge_children(board, at, claims, started, -9, "SIGKILL")
        orphan_children(board, at)
        board.reset_row(at)
        board.parking.wake_all()

    def check(self) -> None:
        board, world = self.board, self.world
        for task in self.tasks:
            assert self.ran.count(task) <= 1, f"child {task} ran {self.ran.count(task)} times"
        if not world.gone("spawner"):
            for task, future in self.results.items():
                assert future.done()
                error = future.exception(0)
                if error is None:
                    assert future.result(0) == result_of(task)
                    assert self.ran.count(task) == 1
                else:
                    assert isinstance(error, WorkerDied | Interrupted), error
                    assert world.gone("thief")
        for row, cells in enumerate(board.cells):
            cells.check()
            assert not board.stacks[row].tasks()
            assert board.spawns[row].is_empty()
        board.blocks.arenas[0].check()
        assert board.blocks.used() == (0, 0), "blocks are left"
        world.no_lock_held()


def family(
    world: World,
    tasks: tuple[int, ...] = (2,),
    mortal: tuple[str, ...] = (),
    nervous: tuple[str, ...] = (),
    kind: type[FakeNest] = FakeNest,
    cells: type[CellTable] | None = None,
    stolen: bool = False,
) -> Plan:
    it = Family(world, tasks)
    it.stolen = stolen
    it.nest_kind = kind
    if cells is not None:
        for table in it.board.cells:
            table.__class__ = cells
    actors: dict[str, Callable[[], Any]] = {"spawner": it.spawner, "thief": it.thief}
    return Plan({**actors, "supervisor": it.supervisor}, it.check, mortal=mortal, nervous=nervous)


BOTH = ("spawner", "thief")


@pytest.mark.parametrize("stolen", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_preemptions(stolen: bool) -> None:
    assert explore(functools.partial(family, tasks=(1,), stolen=stolen), preemptions=2) > 500


@pytest.mark.parametrize("stolen", [False, True])
@pytest.mark.parametrize("who", [("spawner",), ("thief",)])
def test_one_death(who: tuple[str, ...], stolen: bool) -> None:
    assert explore(functools.partial(family, mortal=who, stolen=stolen), preemptions=0, faults=1) > 50


def test_one_death_and_more_children_than_cells() -> None:
    build = functools.partial(family, tasks=(2, 3, 4), mortal=BOTH)
    assert explore(build, preemptions=0, faults=1) > 200


@pytest.mark.slow
@pytest.mark.parametrize("stolen", [False, True])
def test_two_deaths(stolen: bool) -> None:
    build = functools.partial(family, tasks=(1,), mortal=BOTH, stolen=stolen)
    assert explore(build, preemptions=0, faults=2) > 1000


@pytest.mark.parametrize("stolen", [False, True])
@pytest.mark.parametrize("who", BOTH)
def test_an_interruption(who: str, stolen: bool) -> None:
    build = functools.partial(family, tasks=(2, 3), nervous=(who,), stolen=stolen)
    assert explore(build, preemptions=0, faults=1) > 50


@pytest.mark.slow
@pytest.mark.parametrize("who", BOTH)
def test_a_death_with_somebody_in_the_middle(who: str) -> None:
    build = functools.partial(family, tasks=(1,), mortal=(who,), stolen=True)
    assert explore(build, preemptions=1, faults=1) > 5000


@pytest.mark.slow
def test_an_interruption_with_somebody_in_the_middle() -> None:
    build = functools.partial(family, tasks=(1,), nervous=("spawner",), stolen=True)
    assert explore(build, preemptions=1, faults=1) > 5000


class SeesBeforeTheLock(FakeNest):
    """Believes the word that says that children have ended, and then looks at each cell without the lock."""

    def _collect(self) -> bool:
        seen = self._words[self._ended_word]
        found = super()._collect() if any(map(self._words.__getitem__, self._statuses())) else False
        self._seen = seen
        return found

    def _statuses(self) -> list[int]:
        return [self._cells.status_word(cell) for cell in range(self._cells.count)]


class KeepsWhatNobodyWants(FakeNest):
    """Leaves a result that nobody waits for where it is."""

    def answer(self, word: int, result: Value | Error) -> None:
        assert isinstance(result, Value)
        handle = self._board.blocks.store([pickle.dumps(result.value)], word | RESULT)
        assert handle is not None
        self._tell(word, CELL_IN_BLOCK, handle.pack())


class Overwrites(CellTable):
    """Does not look whose cell it is."""

    __slots__ = ()

    def put(self, cell: int, word: int, status: int, payload: bytes) -> bool:
        self._words[self.status_word(cell) - 1] = word
        return super().put(cell, word, status, payload)


@pytest.mark.parametrize(
    ("kind", "cells", "preemptions", "faults", "harm"),
    [
        (SeesBeforeTheLock, None, 2, 0, "waits for ever"),
        pytest.param(KeepsWhatNobodyWants, None, 1, 1, "blocks are left", marks=pytest.mark.slow),
        (FakeNest, Overwrites, 0, 1, "is left"),
    ],
)
def test_a_shortcut_is_found(
    kind: type[FakeNest], cells: type[CellTable] | None, preemptions: int, faults: int, harm: str
) -> None:
    build = functools.partial(family, tasks=(1,), kind=kind, cells=cells, mortal=BOTH, stolen=True)
    with pytest.raises(ScheduleError, match=harm):
        explore(build, preemptions=preemptions, faults=faults)


def test_an_actor_is_the_main_thread_of_its_nest() -> None:
    """What another thread waits for is looked at by polling, which would hide a lost wake."""

    def build(world: World) -> Plan:
        board = make_board(world, 1)

        def actor() -> None:
            assert FakeNest(board, 0, [])._main == threading.get_ident()

        return Plan({"actor": actor}, lambda: None)

    assert explore(build, preemptions=0) == 1
