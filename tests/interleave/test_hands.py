"""Ranges that are split while their owner works on them: every item is run once, or was in a dead member's hand, once."""

from __future__ import annotations

import functools

import pytest

from repartir.shm import hands, layout
from repartir.shm.hands import Hand
from tests.interleave.explorer import Interrupted, Plan, World, explore

ITEMS = 4
TASK = 7 << layout.ATTEMPT_BITS | 1
PAYLOAD = b"what it is about"
BUFFER_BYTES = 64


class Table:
    """Some hands under one lock; who ran what, and what the dead had reserved."""

    def __init__(self, world: World, members: int, kind: type[Hand] = Hand) -> None:
        size = layout.HAND_HEADER_BYTES + BUFFER_BYTES
        segment = world.segment(members * size + 64, "table")
        self.words = segment.words
        self.raw = segment.raw
        lock = world.lock("splitting")
        claims = range(members * size // layout.WORD, members * size // layout.WORD + members)
        self.hands = [
            kind(segment.words, segment.data, at, at * size, BUFFER_BYTES, lock, claims[at])
            for at in range(members)
        ]
        lock.repair = functools.partial(hands.repair, self.hands)
        for hand in self.hands:
            names = {
                hand.task_word: "task",
                hand.next_word: "next",
                hand.end_word: "end",
                hand.claim: "claim",
            }
            segment.words.names.update({word: f"{name} of {hand.index}" for word, name in names.items()})
        self.ran: list[int] = []
        self.begun: dict[int, int] = {}
        """By member, the item that it is in."""

    def take(self, at: int) -> None:
        """The member of this row begins a range that it has just popped from a deque."""
        self.words[self.hands[at].claim] = TASK
        self.hands[at].take(TASK, PAYLOAD, 0, 0, ITEMS)

    def work(self, at: int, most: int) -> None:
        hand = self.hands[at]
        while reserved := hand.reserve(most):
            for item in range(*reserved):
                self.begun[at] = item
                self.words[hand.first_word] = item + 1
                self.ran.append(item)
                del self.begun[at]
        hand.put_down()

    def steal_and_work(self, at: int, most: int = 1) -> None:
        for victim in self.hands:
            if victim.index != at and victim.has_rest() and (entry := self.hands[at].steal(victim)):
                assert entry == (TASK, PAYLOAD, 0)
                assert self.words[self.hands[at].claim] == TASK
                self.work(at, most)

    def bury(self, at: int) -> list[int]:
        """The items that a dead member had in hand and had not run."""
        hand = self.hands[at]
        hands.is_there_a_rest(self.hands)
        left = []
        if self.words[hand.claim] == TASK:
            if self.words[hand.task_word] == TASK:
                left = list(range(self.words[hand.first_word], hand.take_rest()[1]))
            else:
                left = list(range(ITEMS))
        self.words[hand.claim] = 0
        hand.reset()
        return left


def sharing(world: World, *, members: int = 3, most: int = 1, kind: type[Hand] = Hand) -> Plan:
    """One member has a range, the others take from whoever has some; any may die or be interrupted."""
    table = Table(world, members, kind)

    def owner() -> None:
        table.take(0)
        table.work(0, most)

    def check() -> None:
        world.no_lock_held()
        left: list[int] = []
        for at in range(members):
            if world.gone(names[at]):
                left += table.bury(at)
        again = [item for item in left if item not in table.ran]
        # What a member had run it has noted before its next access; only the note may be missing.
        assert len(left) - len(again) <= len([at for at in range(members) if world.gone(names[at])])
        if not world.gone("owner") or table.ran or again:
            assert sorted(table.ran + again) == list(range(ITEMS)), f"ran {table.ran}, left {left}"

    names = ["owner", *(f"thief {at}" for at in range(1, members))]
    actors = {"owner": owner}
    actors |= {f"thief {at}": functools.partial(table.steal_and_work, at) for at in range(1, members)}
    return Plan(actors, check, mortal=names)


def test_without_deaths() -> None:
    assert explore(functools.partial(sharing, members=2), preemptions=2, faults=0) > 100


@pytest.mark.parametrize("most", [1, 2])
def test_whoever_dies_wherever(most: int) -> None:
    assert explore(functools.partial(sharing, members=2, most=most), preemptions=2, faults=1) > 1000


@pytest.mark.slow
def test_three_members_and_two_deaths() -> None:
    assert explore(functools.partial(sharing, members=3), preemptions=1, faults=2) > 1000


OTHER = 9 << layout.ATTEMPT_BITS | 1


def laying_aside(world: World, *, most: int = 1) -> Plan:
    """The owner turns to another task after each item, and goes on with what thieves have left; any may die."""
    table = Table(world, 2)
    hand = table.hands[0]

    def owner() -> None:
        table.take(0)
        while reserved := hand.reserve(most):
            for item in range(*reserved):
                table.words[hand.first_word] = item + 1
                table.ran.append(item)
            hand.lay_aside()
            table.words[hand.claim] = OTHER
            table.words[hand.claim] = 0
            entry = hand.resume()
            if entry is None:
                assert table.raw[hand.claim] == 0
                return
            assert entry == (TASK, PAYLOAD, 0)
            assert table.raw[hand.claim] == TASK
        hand.put_down()

    def check() -> None:
        world.no_lock_held()
        left: list[int] = []
        for at, name in enumerate(("owner", "thief")):
            if world.gone(name):
                left += bury_all(at)
        again = [item for item in left if item not in table.ran]
        assert len(left) - len(again) <= 1
        if not world.gone("owner") or table.ran or again:
            assert sorted(table.ran + again) == list(range(ITEMS)), f"ran {table.ran}, left {left}"

    def bury_all(at: int) -> list[int]:
        """As the client does: what the dead member claims, then what it had laid aside."""
        mine = table.hands[at]
        hands.is_there_a_rest(table.hands)
        aside = table.raw[mine.claim] != TASK and table.raw[mine.task_word] == TASK
        left = list(range(*mine.take_rest())) if aside else []
        return left + table.bury(at)

    actors = {"owner": owner, "thief": functools.partial(table.steal_and_work, 1)}
    return Plan(actors, check, mortal=["owner", "thief"])


@pytest.mark.parametrize("most", [1, 2])
def test_what_is_laid_aside_is_run_once_whoever_dies(most: int) -> None:
    assert explore(functools.partial(laying_aside, most=most), preemptions=1, faults=1) > 500


@pytest.mark.slow
def test_what_is_laid_aside_with_two_preemptions() -> None:
    assert explore(laying_aside, preemptions=2, faults=1) > 5000


def interrupted_resume(world: World) -> Plan:
    """An exception anywhere in it: the claim says whether the range is this member's, and what thieves take they run."""
    table = Table(world, 2)
    table.take(0)
    hand = table.hands[0]
    hand.lay_aside()

    def owner() -> None:
        hand.resume()

    def check() -> None:
        world.no_lock_held()
        if table.raw[hand.task_word] and not table.raw[hand.claim]:
            hand.resume()
        if table.raw[hand.task_word]:
            table.work(0, 1)
        assert sorted(table.ran) == list(range(ITEMS))

    thief = functools.partial(table.steal_and_work, 1)
    return Plan({"owner": owner, "thief": thief}, check, nervous=["owner"])


def test_a_resumption_that_is_interrupted_can_be_repeated() -> None:
    assert explore(interrupted_resume, preemptions=1, faults=1) > 50


def interrupted_theft(world: World) -> Plan:
    """A thief's section is cut short anywhere by an exception: its claim says whether it has the items."""
    table = Table(world, 2)
    table.take(0)
    got: list[int] = []

    def thief() -> None:
        hand = table.hands[1]
        try:
            hand.steal(table.hands[0])
        except Interrupted:
            note()
            raise
        note()

    def note() -> None:
        hand = table.hands[1]
        assert table.raw[hand.claim] == table.raw[hand.task_word]
        if table.raw[hand.claim]:
            got.extend(range(table.raw[hand.next_word], table.raw[hand.end_word]))

    def check() -> None:
        table.work(0, 1)
        assert sorted(table.ran + got) == list(range(ITEMS))

    return Plan({"thief": thief, "owner": lambda: table.work(0, 1)}, check, nervous=["thief"])


def test_a_theft_that_is_interrupted_is_none_or_whole() -> None:
    assert explore(interrupted_theft, preemptions=1, faults=1) > 50
