"""The real ``Worker._rest`` on the explorer's memory: nobody sleeps beside a queued task, however the steps mix.

A member that has a task runs it for ever here, and there are no more tasks than members, so at the end each task must
have been taken.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest

from repartir.shm.parking import ParkingLot
from tests.interleave.explorer import Plan, ScheduleError, World, explore
from tests.interleave.ring import Client, RingWorker, make_board, on_fake_parts


@pytest.fixture(autouse=True)
def fake_parts() -> Iterator[None]:
    with on_fake_parts():
        yield


def resting(
    world: World,
    *,
    lanes: tuple[int, ...] = (0, 0),
    spinners: int = 1,
    stale: int | None = None,
    patient: bool = False,
    mortal: bool = False,
    steps: str = "drain repair judge free reset wake",
    kind: type[RingWorker] = RingWorker,
    lot: type[ParkingLot] = ParkingLot,
) -> Plan:
    """Two members look for work and rest; the client posts a task to each of ``lanes`` in turn.

    ``stale`` is a member whose semaphore was posted for something that is over.  A ``patient`` client posts a task only
    when the one before has been taken.  With ``mortal`` the first member may die, and the client recovers.
    """
    board = make_board(world, 2)
    board.parking.__class__ = lot
    client, ran = Client(board), list[int]()
    if stale is not None:
        board.semaphores[stale].post()
    workers = [kind(board, index, ran, spinners) for index in range(2)]
    taken: list[int] = []

    def serve(one: RingWorker) -> None:
        entry = one.find_work() or one._rest()
        assert entry is not None
        taken.append(entry[1][0])

    def post() -> None:
        for task, lane in enumerate(lanes, 1):
            client.enter(task)
            client.post(lane)
            if patient:
                world.wait_until(lambda task=task: len(taken) == task)  # type: ignore[misc]
        if mortal:
            world.wait_until(lambda: world.gone("one"))
            client.recover(0, steps)
            client.post(0)

    def check() -> None:
        left = [it.size_hint() for it in board.deques]
        asleep = {"one", "two"}.intersection(world.asleep)
        assert not any(left) or not asleep, f"{asleep} sleeps beside {left} tasks, taken: {taken}"

    actors: dict[str, Any] = {
        "one": lambda: serve(workers[0]),
        "two": lambda: serve(workers[1]),
        "client": post,
    }
    return Plan(actors, check, mortal=["one"] if mortal else [], may_sleep=True)


CASES: dict[str, dict[str, Any]] = {
    "two tasks for one lane": {},
    "two tasks for two lanes": {"lanes": (1, 0)},
    "nobody spins": {"spinners": 0},
    "both spin": {"spinners": 2},
    "two tasks for the high lane": {"lanes": (-2, -2)},
    "one for a lane, one for the low lane": {"lanes": (0, -1)},
    "a high one, then a low one, which two find": {"lanes": (-2, -1), "spinners": 2},
    "late post": {"lanes": (1, 0), "stale": 0, "spinners": 0, "patient": True},
}


@pytest.mark.parametrize("name", CASES)
def test_nobody_sleeps_beside_a_task(name: str) -> None:
    assert explore(functools.partial(resting, **CASES[name]), preemptions=1) > 100


@pytest.mark.soak
@pytest.mark.parametrize("name", CASES)
def test_nobody_sleeps_beside_a_task_with_two_preemptions(name: str) -> None:
    assert explore(functools.partial(resting, **CASES[name]), preemptions=2) > 10_000


@pytest.mark.slow
def test_a_death_while_resting_leaves_no_task_beside_a_sleeper() -> None:
    assert explore(functools.partial(resting, lanes=(0,), mortal=True), preemptions=1, faults=1) > 1000


def test_a_recovery_that_wakes_nobody_is_found() -> None:
    """The dead had been chosen, or counted on as a spinner."""
    build = functools.partial(resting, lanes=(1,), mortal=True, steps="drain repair judge free reset")
    with pytest.raises(ScheduleError, match="sleeps beside"):
        explore(build, preemptions=0, faults=1)


class PassesNothingOn(RingWorker):
    """Leaves its rest without a look at what else there is."""

    def pass_on(self) -> None:
        pass


class SwallowsWakes(ParkingLot):
    """A member that found work keeps the wake that was meant for it."""

    __slots__ = ()

    def _wake_one(self) -> bool:
        return False

    def wake(self, tasks: int = 1, preferred: int | None = None) -> int:
        woken = 0
        while woken < tasks - self._spinning() and super()._wake_one():
            woken += 1
        return woken


class TrustsEveryPost(ParkingLot):
    """Takes every post for a wake that has cleared the idle bit."""

    __slots__ = ()

    def is_idle(self, row: int) -> bool:
        return False

    def wake(self, tasks: int = 1, preferred: int | None = None) -> int:
        lock = self._lock
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            if preferred is not None and super().is_idle(preferred):
                self._post_and_clear(preferred)
                return 1
            return self._wake_one()
        finally:
            lock.release()


class AnnouncesLate(RingWorker):
    """Looks at the deques before it announces, not after."""

    def _rest(self) -> Any:
        while True:
            if (entry := self.find_work()) is not None:
                return entry
            self._board.parking.announce(self._index)
            self._board.semaphores[self._index].wait(1)


WRONG: dict[str, dict[str, Any]] = {
    "nothing passed on": {"kind": PassesNothingOn},
    "wakes are swallowed": {"kind": PassesNothingOn, "lot": SwallowsWakes},
    "every post is trusted": {**CASES["late post"], "lot": TrustsEveryPost},
    "announced late": {"lanes": (0,), "kind": AnnouncesLate},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_protocol_is_found(name: str) -> None:
    with pytest.raises(ScheduleError, match="sleeps beside"):
        explore(functools.partial(resting, **WRONG[name]), preemptions=1)
