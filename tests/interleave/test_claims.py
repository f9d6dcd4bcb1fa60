"""The whole way of a task, claim → started → run → answer → claim = 0, with a death before each access on it.

Whoever comes first afterwards, a thief or the supervisor: no task is lost, none runs twice, each is settled once, the
dead member's blocks come back, and no lock stays held.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest

from repartir import outcome
from repartir.codec import parts_of
from repartir.shm.deque import Entry, TaskDeque
from repartir.shm.layout import ANSWER, SLOT_WORDS
from tests.interleave.explorer import Plan, ScheduleError, World, explore
from tests.interleave.ring import Client, RingWorker, make_board, on_fake_parts

HIGH_LANE = -2


@pytest.fixture(autouse=True)
def fake_parts() -> Iterator[None]:
    with on_fake_parts():
        yield


def claims(
    world: World,
    *,
    fate: str = "dies",
    tasks: tuple[int, ...] = (1, 2),
    in_blocks: bool = True,
    spawn: bool = False,
    steps: str = "drain repair judge free reset wake",
    kind: type[RingWorker] = RingWorker,
    thieves: int = 1,
    deque_kind: type[TaskDeque] | None = None,
    two_die: bool = False,
    at: int = 0,
) -> Plan:
    """The victim and a thief take tasks from the victim's deque, or that ``at`` this place; the client drains and recovers.

    With ``two_die`` the first thief is a victim too.
    """
    board = make_board(world, 1 + thieves)
    if deque_kind is not None:
        for it in board.deques:
            it.__class__ = deque_kind
    client, ran = Client(board), list[int]()
    for task in tasks:
        client.enter(task, in_block=in_blocks)
    client.post(at, spawn=spawn)
    victim = kind(board, 0, ran)
    others = [RingWorker(board, index, ran) for index in range(1, 1 + thieves)]

    victims = ["victim", "thief0"] if two_die else ["victim"]

    def supervise() -> None:
        for at in range(1 + thieves):
            client.drain(at)
        for at, name in enumerate(victims):
            world.wait_until(lambda name=name: world.actors[name].ended)  # type: ignore[misc]
            if world.gone(name):
                client.recover(at, steps)
                client.post(0)

    def check() -> None:
        client.finish([RingWorker(board, 0, ran), *others])
        client.check(world, ran, deaths=sum(world.gone(name) for name in victims))

    actors: dict[str, Any] = {"victim": lambda: victim.serve(len(tasks))}
    actors.update({f"thief{nth}": functools.partial(one.serve, len(tasks)) for nth, one in enumerate(others)})
    actors["supervisor"] = supervise
    return Plan(
        actors,
        check,
        mortal=victims if fate == "dies" else [],
        nervous=victims if fate == "is interrupted" else [],
    )


@pytest.mark.parametrize("spawn", [False, True], ids=["lane", "spawn deque"])
@pytest.mark.parametrize("fate", ["dies", "is interrupted"])
def test_a_task_is_neither_lost_nor_repeated(fate: str, spawn: bool) -> None:
    assert explore(functools.partial(claims, fate=fate, spawn=spawn), preemptions=0, faults=1) > 300


@pytest.mark.parametrize("fate", ["dies", "is interrupted"])
def test_a_task_in_the_high_lane_is_neither(fate: str) -> None:
    assert explore(functools.partial(claims, fate=fate, at=HIGH_LANE), preemptions=0, faults=1) > 100


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["dies", "is interrupted"])
def test_with_the_thief_or_the_supervisor_in_the_middle(fate: str) -> None:
    build = functools.partial(claims, fate=fate, tasks=(1,), in_blocks=False)
    assert explore(build, preemptions=1, faults=1) > 5000


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["dies", "is interrupted"])
def test_two_deaths(fate: str) -> None:
    """Also the death of a thief that repairs after the first victim."""
    build = functools.partial(claims, fate=fate, tasks=(2,), two_die=True)
    assert explore(build, preemptions=0, faults=2) > 1000


WRONG = {
    "judged before the outbox is drained": ("repair judge drain free reset wake", "came too late"),
    "judged before the repairs": ("drain judge repair free reset wake", "ran 2 times"),
    "freed before the outbox is drained": ("free drain repair judge reset wake", "older generation"),
    "never freed": ("drain repair judge reset wake", "blocks are left"),
    "reset before judged": ("drain repair reset judge free wake", "lost"),
}
"""Another order, and what comes of it."""


@pytest.mark.parametrize("name", WRONG)
def test_every_shortcut_of_the_recovery_is_wrong(name: str) -> None:
    steps, harm = WRONG[name]
    with pytest.raises(ScheduleError, match=harm):
        explore(functools.partial(claims, steps=steps), preemptions=0, faults=1)


class StartsLate(RingWorker):
    """Says that it started only after it ran."""

    def run_one(self, entry: Entry) -> None:
        word, payload, flags = entry
        result = self._call(payload, flags)
        self._words[self._row.started] = word
        self.answer(word, result)


class LetsGoFirst(RingWorker):
    """Lets go of the claim before it answers."""

    def answer(self, word: int, result: outcome.Value | outcome.Error, timed: int = 0) -> None:
        self._words[self._row.claim] = 0
        body = outcome.encode_outcome(result)
        if isinstance(body, bytes) and len(body) <= self._largest_bytes:
            self.send(word, ANSWER, body)
        else:
            self._send_large(word, parts_of(body))


@pytest.mark.parametrize(("kind", "harm"), [(StartsLate, "ran 2 times"), (LetsGoFirst, "lost")])
def test_a_worker_in_another_order_is_found(kind: type[RingWorker], harm: str) -> None:
    with pytest.raises(ScheduleError, match=harm):
        explore(functools.partial(claims, kind=kind), preemptions=0, faults=1)


class ClaimsLast(TaskDeque):
    """Moves the head before it claims."""

    __slots__ = ()

    def pop_head(self, claim: int) -> Entry | None:
        words, lock = self._words, self.lock
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            head = words[self.head_word]
            if head == words[self.tail_word]:
                return None
            slot = self._slots + (head & self._mask) * SLOT_WORDS
            entry = self._read(slot, words[slot])
            words[self.head_word] = head + 1
            words[claim] = entry[0]
            return entry
        finally:
            lock.release()


class NeverRepairs(TaskDeque):
    """Leaves the claims of the dead as they are."""

    __slots__ = ()

    def _void(self, claims: object) -> None:
        pass


@pytest.mark.parametrize(("kind", "harm"), [(ClaimsLast, "lost"), (NeverRepairs, "ran 2 times")])
@pytest.mark.parametrize("fate", ["dies", "is interrupted"])
def test_a_deque_in_another_order_is_found(kind: type[TaskDeque], harm: str, fate: str) -> None:
    with pytest.raises(ScheduleError, match=harm):
        explore(functools.partial(claims, deque_kind=kind, fate=fate), preemptions=0, faults=1)
