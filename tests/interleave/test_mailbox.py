"""What lies in a member's mailbox is run by that member or its successor, once, and nobody sleeps beside it."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from repartir.shm.parking import ParkingLot
from tests.interleave.explorer import Plan, ScheduleError, World, explore
from tests.interleave.ring import Client, RingWorker, make_board, on_fake_parts

TASKS = (1, 2)


@pytest.fixture(autouse=True)
def fake_parts() -> Iterator[None]:
    with on_fake_parts():
        yield


def mailed(world: World) -> Plan:
    """The owner takes two tasks from its mailbox and may die anywhere; another member looks for work beside it."""
    board = make_board(world, 2)
    client, ran, stolen = Client(board), list[int](), list[int]()
    for task in TASKS:
        client.enter(task, in_block=True)
    client.mail(0)
    owner, other = RingWorker(board, 0, ran), RingWorker(board, 1, stolen)

    def check() -> None:
        died = world.gone("owner")
        if died:
            client.recover(0)
            client.mail(0)
        successor = RingWorker(board, 0, ran)
        for _ in range(2):
            successor.serve(2)
            client.drain(0)
        assert not stolen
        assert not client.ledger.records
        client.check(world, ran, deaths=int(died))

    actors = {"owner": lambda: owner.serve(len(TASKS)), "other": lambda: other.serve(len(TASKS))}
    return Plan(actors, check, mortal=["owner"])


def resting(world: World, *, lot: type[ParkingLot] = ParkingLot) -> Plan:
    """Both members look for work and rest, one of them awake; the client mails to one and posts a task for any."""
    board = make_board(world, 2)
    board.parking.__class__ = lot
    client, ran = Client(board), list[int]()
    workers = [RingWorker(board, index, ran) for index in range(2)]
    taken: list[int] = []

    def serve(one: RingWorker) -> None:
        entry = one.find_work() or one._rest()
        assert entry is not None
        taken.append(entry[1][0])

    def post() -> None:
        client.enter(1)
        client.mail(0)
        client.enter(2)
        client.post(0)

    def check() -> None:
        assert "one" not in world.asleep or not board.mailboxes[0].size_hint(), "one sleeps beside its mail"
        assert not world.asleep or not board.lanes[0].size_hint(), f"{world.asleep} sleep beside a task"

    actors = {"one": lambda: serve(workers[0]), "two": lambda: serve(workers[1]), "client": post}
    return Plan(actors, check, may_sleep=True)


def test_mail_is_run_once_whatever_dies() -> None:
    assert explore(mailed, preemptions=0, faults=1) > 100


@pytest.mark.slow
def test_mail_is_run_once_whatever_dies_with_a_preemption() -> None:
    assert explore(mailed, preemptions=1, faults=1) > 500


def test_nobody_sleeps_beside_mail() -> None:
    assert explore(resting, preemptions=1) > 100


@pytest.mark.soak
def test_with_two_preemptions() -> None:
    assert explore(mailed, preemptions=2, faults=1) > 10_000
    assert explore(resting, preemptions=2) > 10_000


class WakesAny(ParkingLot):
    """What is mailed wakes a member as other tasks do: the lowest, and none where one is awake."""

    __slots__ = ()

    def wake_row(self, row: int) -> None:
        self.wake()


def test_a_wake_of_any_member_is_found() -> None:
    with pytest.raises(ScheduleError, match="sleeps beside its mail"):
        explore(functools.partial(resting, lot=WakesAny), preemptions=1)
