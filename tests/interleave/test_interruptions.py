"""One operation, cut short before each of its accesses: by death, or by an exception as a signal handler raises it.

What is left is as before the operation or as after it, once the next process has taken the lock (and repaired, if the
owner died in it); and no lock is held.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import pytest

from repartir.errors import InternalError
from repartir.shm import layout
from repartir.shm.layout import H_IDLE_MASK_W, H_SPIN_MASK_W
from repartir.shm.lock import Lock
from repartir.shm.parking import ParkingLot
from tests.interleave import scenarios
from tests.interleave.explorer import Plan, World, explore
from tests.interleave.scenarios import ArenaFixture, DequeFixture, OutboxFixture

FATES = ("dies", "is interrupted")


@dataclass
class Subject:
    """An operation, what it changes, and what the next process does."""

    operation: Callable[[], object]
    state: Callable[[], Hashable]
    lock: Lock
    check: Callable[[], object]


def next_process_locks(lock: Lock) -> None:
    try:
        if code := lock.try_acquire():
            lock.wait(code)
    finally:
        lock.release()


def cut_short(world: World, make: Callable[[World], Subject], fate: str, *, repeated: bool) -> Plan:
    """The victim's operation meets its fate; the next process locks, then perhaps repeats the operation."""
    untouched = make(World(_never, 0, 0, False))
    before = untouched.state()
    untouched.operation()
    after = untouched.state()
    assert before != after
    subject = make(world)

    def following() -> None:
        world.wait_until(lambda: world.actors["victim"].ended)
        next_process_locks(subject.lock)
        if repeated and world.gone("victim"):
            subject.operation()

    def check() -> None:
        state = subject.state()
        if repeated or not world.gone("victim"):
            assert state == after, f"{state} is not as after: {after}"
        else:
            assert state in (before, after), f"{state} is neither {before} nor {after}"
        subject.check()
        world.no_lock_held()

    return Plan(
        {"victim": subject.operation, "following": following},
        check,
        mortal=["victim"] if fate == "dies" else [],
        nervous=["victim"] if fate == "is interrupted" else [],
    )


def _never(options: object) -> Any:
    raise AssertionError("nothing is scheduled here")


def explore_fates(make: Callable[[World], Subject], fate: str, *, repeated: bool = False) -> None:
    assert explore(functools.partial(cut_short, make=make, fate=fate, repeated=repeated), 0, 1) > 3


# ---- deque


def deque_subject(
    world: World, operation: Callable[[DequeFixture], object], tasks: tuple[int, ...], gone: tuple[int, ...]
) -> Subject:
    it = DequeFixture(world, start=3)
    if tasks:
        it.deque.push_tail([scenarios.entry(task) for task in tasks])
    for task in gone:
        it.deque.remove(2 + task, task)
    raw = it.segment.raw

    def state() -> Hashable:
        return tuple(it.left()), tuple(raw[claim] for claim in it.claims)

    return Subject(lambda: operation(it), state, it.deque.lock, it.deque.check)


DEQUE = {
    "push": (lambda it: it.deque.push_tail([scenarios.entry(8), scenarios.entry(9)]), (1,), ()),
    "pop head": (lambda it: it.deque.pop_head(it.claims[1]), (1, 2, 3), ()),
    "pop head behind removed": (lambda it: it.deque.pop_head(it.claims[1]), (1, 2, 3), (1, 2)),
    "pop tail": (lambda it: it.deque.pop_tail(it.claims[1]), (1, 2, 3), ()),
    "pop tail before removed": (lambda it: it.deque.pop_tail(it.claims[1]), (1, 2, 3), (2, 3)),
    "pop the last": (lambda it: it.deque.pop_head(it.claims[1]), (1,), ()),
    "remove": (lambda it: it.deque.remove(4, 2), (1, 2, 3), ()),
}


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("name", DEQUE)
def test_deque(name: str, fate: str) -> None:
    operation, tasks, gone = DEQUE[name]
    explore_fates(lambda world: deque_subject(world, operation, tasks, gone), fate)


@pytest.mark.parametrize("tail", [False, True])
def test_an_interrupted_pop_has_the_task_or_leaves_it_to_others(tail: bool) -> None:
    assert explore(functools.partial(scenarios.interrupted_pop, tail=tail), 1, 1) >= 12


def test_a_pop_inside_a_pop_is_refused_and_leaves_the_outer_its_claim() -> None:
    """As a signal handler could try it in the worst moment."""

    class Words:
        def __init__(self, words: Any) -> None:
            self._words = words

        def __getitem__(self, index: int) -> int:
            return self._words[index]  # type: ignore[no-any-return]

        def __setitem__(self, index: int, value: int) -> None:
            if index == it.deque.head_word:
                with pytest.raises(InternalError, match="taken again"):
                    it.deque.pop_head(it.claims[0])
            self._words[index] = value

    it = DequeFixture(World(_never, 0, 0, False))
    it.push(1)
    it.deque._words = Words(it.segment.words)
    assert it.pop(0) == 1
    assert it.segment.raw[it.claims[0]] == 1


def test_a_section_inside_a_section_leaves_the_outer_its_lock() -> None:
    """A handler may try it before any access."""
    refused: list[str] = []

    def build(world: World) -> Plan:
        subject = deque_subject(world, lambda it: it.deque.pop_head(it.claims[1]), (1, 2, 3), ())
        lock: Any = subject.lock
        step = world.step

        def handler(what: str, *more: Any, **options: Any) -> None:
            world.step = step  # type: ignore[method-assign]
            try:
                if (owner := lock.owner) is not None:
                    with pytest.raises(InternalError, match="taken again"):
                        next_process_locks(lock)
                    assert lock.owner is owner
                    refused.append(what)
                step(what, *more, **options)
            finally:
                world.step = handler  # type: ignore[method-assign]

        world.step = handler  # type: ignore[method-assign]
        return Plan({"outer": subject.operation}, world.no_lock_held)

    assert explore(build, 0, 0) == 1
    assert len(refused) > 5


# ---- outbox


def outbox_subject(world: World, operation: Callable[[OutboxFixture], object]) -> Subject:
    it = OutboxFixture(world, start=scenarios.OUTBOX_BYTES - 48)
    it.answer(1)

    def state() -> Hashable:
        waiting = it.segment.raw[layout.O_TAIL_W] - it.outbox.consumed_tail
        return waiting, bytes(it.outbox.peek()[-8:])

    return Subject(lambda: operation(it), state, it.outbox.lock, it.outbox.check)


def drain(it: OutboxFixture) -> None:
    it.got.clear()
    it.drain()
    assert it.got == [1]


@pytest.mark.parametrize("fate", FATES)
def test_outbox_put(fate: str) -> None:
    explore_fates(lambda world: outbox_subject(world, lambda it: it.outbox.put(2, 0, b"answer to two")), fate)


@pytest.mark.parametrize("fate", FATES)
def test_outbox_drain(fate: str) -> None:
    explore_fates(lambda world: outbox_subject(world, drain), fate)


def test_an_interrupted_drain_is_repeated_from_the_start() -> None:
    def build(world: World) -> Plan:
        it = OutboxFixture(world)
        it.answer(1)
        it.answer(2)

        def client() -> None:
            it.got.clear()
            it.drain()

        def member() -> None:
            it.answer(3)

        def check() -> None:
            if world.gone("client"):
                it.got.clear()
            it.check()

        return Plan({"client": client, "member": member}, check, nervous=["client"])

    assert explore(build, 2, 1) >= 10


# ---- arena


def arena_subject(world: World, operation: Callable[[ArenaFixture], object]) -> Subject:
    it = ArenaFixture(world)
    for owner in (1, 2, 7):
        it.store(owner, 300)
    it.arena.store([b"another"], 7)
    it.free(2)

    def state() -> Hashable:
        words = it.segment.raw
        return tuple((b, words[b + layout.B_OWNER]) for b in it.arena._blocks() if words[b + layout.B_OWNER])

    return Subject(lambda: operation(it), state, it.arena.lock, it.arena.check)


ARENA = {
    "store in a freed block": lambda it: it.arena.store([b"x" * 300], 9),
    "store in a new block": lambda it: it.arena.store([b"x" * 1000], 9),
    "free": lambda it: it.arena.free(it.live[1][0]),
}


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("name", ARENA)
def test_arena(name: str, fate: str) -> None:
    explore_fates(lambda world: arena_subject(world, ARENA[name]), fate)


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize(
    "operation",
    [lambda it: it.arena.free(it.live[1][0]), lambda it: it.arena.free_owned(7)],
    ids=["free", "free owned"],
)
def test_a_free_that_was_cut_short_may_be_repeated(
    operation: Callable[[ArenaFixture], object], fate: str
) -> None:
    explore_fates(lambda world: arena_subject(world, operation), fate, repeated=True)


def test_a_death_in_the_arena_loses_no_block() -> None:
    """Whatever the dead held, half took or half gave back is free or owned, and can be had again."""

    def build(world: World) -> Plan:
        it = ArenaFixture(world)
        it.store(1, 900)
        it.store(2, 900)
        it.free(1)
        whole = it.segment.size - layout.ARENA_HEADER_BYTES

        def victim() -> None:
            it.arena.store([b"x" * 900], 9)
            it.arena.free(it.live[2][0])
            it.arena.store([b"x" * 300], 9)

        def client() -> None:
            world.wait_until(lambda: world.actors["victim"].ended)
            it.arena.free_owned(9)
            it.arena.free_owned(2)

        def check() -> None:
            it.arena.check()
            assert it.arena.used() == (0, 0)
            sizes = 0
            for size in (900, 300):
                while handle := it.arena.store([b"y" * size], 5):
                    block = (handle.offset - layout.BLOCK_HEADER_BYTES) // layout.WORD
                    sizes += it.segment.raw[block + layout.B_SIZE]
            assert sizes > whole - 512, f"{whole - sizes} bytes are lost"

        return Plan({"victim": victim, "client": client}, check, mortal=["victim"])

    assert explore(build, 0, 1) > 30


def test_a_stale_handle_is_refused_after_a_death() -> None:
    """The block that a handle names may be another's by now; whatever died in between, the handle does not open it."""

    def build(world: World) -> Plan:
        it = ArenaFixture(world)
        handle = it.store(1, 300)
        assert handle is not None

        def victim() -> None:
            it.arena.free(handle)

        def client() -> None:
            world.wait_until(lambda: world.actors["victim"].ended)
            it.arena.free(handle)
            again = it.arena.store([b"new" * 100], 2)
            assert again is not None
            assert again.offset == handle.offset
            assert not it.arena.free(handle)
            with pytest.raises(Exception, match="older generation"):
                it.arena.load(handle)
            it.arena.load(again)

        return Plan({"victim": victim, "client": client}, it.arena.check, mortal=["victim"])

    assert explore(build, 0, 1) > 5


# ---- parking lot


def lot_subject(
    world: World,
    operation: Callable[[ParkingLot], object],
    idle: int,
    spinning: int,
) -> Subject:
    segment = world.segment(layout.HEADER_BYTES, "board")
    tokens = [0, 0, 0]

    def post(row: int) -> None:
        world.step("post")
        tokens[row] = 1

    lock = world.lock("parking")
    lot = ParkingLot(segment.words, lock, [functools.partial(post, row) for row in range(3)])
    raw = segment.raw
    raw[H_IDLE_MASK_W], raw[H_SPIN_MASK_W] = idle, spinning

    def state() -> Hashable:
        return raw[H_IDLE_MASK_W], raw[H_SPIN_MASK_W]

    def check() -> None:
        """A row that lost its idle bit to a waker has been woken."""
        for row in range(3):
            woken = idle >> row & 1 and not raw[H_IDLE_MASK_W] >> row & 1
            assert tokens[row] or not woken

    return Subject(lambda: operation(lot), state, lock, check)


LOT = {
    "announce": (lambda lot: lot.announce(0), 0b010, 0b000),
    "start spinning": (lambda lot: lot.start_spinning(0, 2), 0b010, 0b100),
    "stop spinning": (lambda lot: lot.stop_spinning(0), 0b010, 0b101),
    "wake": (lambda lot: lot.wake(), 0b110, 0b000),
    "wake a preferred one": (lambda lot: lot.wake(2, 2), 0b100, 0b001),
    "pass a wake on": (lambda lot: lot.retract(0), 0b110, 0b000),
}


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("name", LOT)
def test_parking_lot(name: str, fate: str) -> None:
    operation, idle, spinning = LOT[name]
    explore_fates(lambda world: lot_subject(world, operation, idle, spinning), fate)


@pytest.mark.parametrize("fate", FATES)
def test_an_interrupted_retraction_leaves_an_idle_bit_or_none(fate: str) -> None:
    def make(world: World) -> Subject:
        subject = lot_subject(world, lambda lot: lot.retract(0), 0b011, 0b000)
        subject.check = lambda: None
        return subject

    explore_fates(make, fate)


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("name", ["forget", "wake all"])
def test_a_recovery_step_that_was_cut_short_may_be_repeated(name: str, fate: str) -> None:
    def make(world: World) -> Subject:
        operation = (lambda lot: lot.forget(0)) if name == "forget" else (lambda lot: lot.wake_all())
        subject = lot_subject(world, operation, 0b011, 0b001)
        if name == "forget":
            subject.check = lambda: None
        return subject

    explore_fates(make, fate, repeated=True)
