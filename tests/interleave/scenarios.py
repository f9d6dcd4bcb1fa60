"""What the actors do to each structure, and what must hold afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from repartir.shm import layout
from repartir.shm.arena import Arena, Handle
from repartir.shm.deque import Entry, TaskDeque
from repartir.shm.outbox import Outbox, records
from tests.interleave.explorer import FakeLock, Interrupted, Plan, World

CAPACITY = 4
OUTBOX_BYTES = 128


def entry(task: int, flags: int = 0) -> Entry:
    """A task whose payload can be told from every other's."""
    return task, bytes([task]) * (task % 5 + 1), flags


class DequeFixture:
    """A deque of ``CAPACITY`` slots, claim words of four actors, and what was taken, in the order of the commits."""

    def __init__(
        self,
        world: World,
        kind: type[TaskDeque] = TaskDeque,
        lock: type[FakeLock] = FakeLock,
        start: int = 0,
    ) -> None:
        self.world = world
        size = layout.DEQUE_HEADER_BYTES + CAPACITY * layout.SLOT_BYTES
        self.segment = world.segment(size + 64, "deque")
        first_claim = size // layout.WORD
        self.claims = range(first_claim, first_claim + 4)
        words = self.segment.words
        self.lock = lock(world, "deque") if lock is not FakeLock else world.lock("deque")
        self.segment.raw[layout.D_HEAD_W] = self.segment.raw[layout.D_TAIL_W] = start
        self.deque = kind(words, self.segment.data, 0, CAPACITY, self.lock, self.claims)
        self.pushed: list[int] = []
        self.taken: list[int] = []
        self.removed: list[int] = []
        words.names.update({layout.D_HEAD_W: "head", layout.D_TAIL_W: "tail"})
        words.names.update({word: f"claim {nth}" for nth, word in enumerate(self.claims)})

    def push(self, *tasks: int) -> bool:
        done = self.deque.push_tail([entry(task) for task in tasks])
        if done:
            self.pushed += tasks
        return done

    def pop(self, nth: int, *, tail: bool = False) -> int:
        """Take a task as the actor with claim word ``nth``; 0 when there is none."""
        claim = self.claims[nth]
        got = self.deque.pop_tail(claim) if tail else self.deque.pop_head(claim)
        if got is None:
            return 0
        assert got == entry(got[0]), f"the payload of task {got[0]} is {got[1]!r}"
        assert self.segment.raw[claim] == got[0]
        self.taken.append(got[0])
        return got[0]

    def remove(self, position: int, task: int) -> bool:
        done = self.deque.remove(position, task)
        if done:
            self.removed.append(task)
        return done

    def left(self) -> list[int]:
        """What is in the deque; call it when nobody else is at work."""
        raw = self.segment.raw
        slots = layout.DEQUE_HEADER_BYTES // layout.WORD
        positions = range(raw[layout.D_HEAD_W], raw[layout.D_TAIL_W])
        tasks = [raw[slots + position % CAPACITY * layout.SLOT_WORDS] for position in positions]
        return [task for task in tasks if task]

    def check(self) -> None:
        """The structure is whole, and each task is in just one place."""
        self.deque.check()
        everywhere = sorted(self.taken + self.removed + self.left())
        assert everywhere == sorted(self.pushed), (
            f"pushed {self.pushed}, taken {self.taken}, removed {self.removed}, left {self.left()}"
        )

    def check_fifo(self) -> None:
        self.check()
        assert self.taken == sorted(self.taken), f"taken in the order {self.taken}"


def deque_with_everybody(
    world: World, kind: type[TaskDeque] = TaskDeque, lock: type[FakeLock] = FakeLock
) -> Plan:
    """A lane: the client pushes 1, then 2 and 3 at once, and takes 2 back; owner and thief take from the head."""
    it = DequeFixture(world, kind, lock, start=3)

    def client() -> None:
        assert it.push(1)
        assert it.push(2, 3)
        it.remove(4, 2)

    def taker(nth: int) -> None:
        for _ in range(2):
            if it.deque.size_hint():
                it.pop(nth)

    return Plan({"client": client, "owner": lambda: taker(0), "thief": lambda: taker(1)}, it.check_fifo)


def deque_that_fills(world: World) -> Plan:
    """The client pushes into a lane with one free slot, as often as ``room`` says that it can; two take."""
    it = DequeFixture(world, start=2)
    for task in (1, 2, 3):
        it.push(task)

    def client() -> None:
        for tasks in ((4, 5), (6,)):
            room, position = it.deque.room(), it.deque.tail
            done = it.push(*tasks)
            assert done or room < len(tasks), "room() promised too much"
            if done:
                assert it.deque.tail == position + len(tasks)

    def taker(nth: int) -> None:
        it.pop(nth)
        it.pop(nth)

    return Plan({"client": client, "owner": lambda: taker(0), "thief": lambda: taker(1)}, it.check_fifo)


def spawn_deque(world: World) -> Plan:
    """The owner pushes and pops at the tail while two thieves take from the head."""
    it = DequeFixture(world, start=3)

    def owner() -> None:
        it.push(1)
        it.push(2)
        got = it.pop(0, tail=True)
        assert got in (0, 1, 2)
        it.push(3)
        it.pop(0, tail=True)

    def thief(nth: int) -> None:
        it.pop(nth)

    return Plan({"owner": owner, "thief": lambda: thief(1), "robber": lambda: thief(2)}, it.check)


def deque_with_a_doubter(world: World) -> Plan:
    """The client looks, without the lock, whether its task was taken, and takes it back while others take it."""
    it = DequeFixture(world, start=3)
    it.push(1, 2)

    def client() -> None:
        seen = it.deque.taken(4)
        if it.remove(4, 2):
            assert not seen
            assert not it.remove(4, 2)
        else:
            assert it.deque.taken(4)
        assert it.deque.taken(4) or not seen

    def taker(nth: int) -> None:
        it.pop(nth)
        assert it.deque.taken(3)

    return Plan({"client": client, "owner": lambda: taker(0), "thief": lambda: taker(1)}, it.check_fifo)


def interrupted_pop(world: World, *, tail: bool) -> Plan:
    """The owner's pop is interrupted anywhere; afterwards its claim says whether it has the task, and others agree."""
    it = DequeFixture(world, start=3)
    it.push(1)
    it.push(2)
    it.remove(4 if tail else 3, 2 if tail else 1)

    def owner() -> None:
        try:
            it.pop(0, tail=tail)
        except Interrupted:
            if claimed := it.segment.raw[it.claims[0]]:
                it.taken.append(claimed)
            raise

    return Plan({"owner": owner, "thief": lambda: it.pop(1)}, it.check, nervous=["owner"])


class OutboxFixture:
    """A member's outbox: what was put, and what the client got."""

    def __init__(self, world: World, kind: type[Outbox] = Outbox, start: int = 0) -> None:
        self.segment = world.segment(layout.OUTBOX_HEADER_BYTES + OUTBOX_BYTES, "outbox")
        raw = self.segment.raw
        raw[layout.O_HEAD_W] = raw[layout.O_TAIL_W] = start
        self.segment.words.names.update({layout.O_HEAD_W: "head", layout.O_TAIL_W: "tail"})
        self.outbox = kind(self.segment.words, self.segment.data, 0, OUTBOX_BYTES, world.lock("outbox"))
        self.put: list[int] = []
        self.got: list[int] = []

    def answer(self, task: int) -> bool:
        done = self.outbox.put(task, task % 3, _answer(task))
        if done:
            self.put.append(task)
        return done

    def drain(self) -> None:
        for task, status, payload in records(self.outbox.peek()):
            assert (status, payload) == (task % 3, _answer(task)), f"task {task} got {status} {payload!r}"
            self.got.append(task)
        self.outbox.consumed()

    def check(self) -> None:
        self.drain()
        self.drain()
        self.outbox.check()
        assert self.got == self.put, f"put {self.put}, got {self.got}"


def _answer(task: int) -> bytes:
    return bytes([task]) * (7 + 5 * (task % 4))


def outbox_that_fills(world: World, kind: type[Outbox] = Outbox) -> Plan:
    """A member answers until there is no room, over the end of the ring, while the client drains."""
    it = OutboxFixture(world, kind, start=OUTBOX_BYTES - 24)

    def member() -> None:
        refused = [task for task in range(1, 6) if not it.answer(task)]
        assert len(refused) < 3

    def client() -> None:
        for _ in range(3):
            if it.segment.words[it.outbox.tail_word] != it.outbox.consumed_tail:
                it.drain()
        if not it.outbox.has_news():
            assert it.got == it.put

    return Plan({"member": member, "client": client}, it.check)


class ArenaFixture:
    """An arena of 8 kB, what was stored in it, and by whom."""

    SIZE = layout.ARENA_HEADER_BYTES + 4096

    def __init__(self, world: World, lock: type[FakeLock] = FakeLock) -> None:
        self.segment = world.segment(self.SIZE, "arena")
        self.arena = Arena(
            self.segment,  # type: ignore[arg-type]
            lock(world, "arena") if lock is not FakeLock else world.lock("arena"),
        )
        self.arena.create()
        self.segment.raw[layout.A_RESERVED] = self.SIZE
        self.segment.words.names.update({layout.A_CARVED: "carved", layout.A_LIMIT: "limit"})
        self.live: dict[int, tuple[Handle, bytes]] = {}

    def store(self, owner: int, size: int) -> Handle | None:
        content = bytes([owner % 251]) * size
        handle = self.arena.store([content], owner)
        if handle is not None:
            self.live[owner] = handle, content
        return handle

    def load(self, owner: int) -> None:
        handle, content = self.live[owner]
        assert self.arena.load(handle) == [content], f"the block of {owner} was overwritten"

    def free(self, owner: int) -> None:
        handle, _ = self.live[owner]
        assert self.arena.free(handle)
        assert not self.arena.free(handle)
        del self.live[owner]

    def check(self) -> None:
        self.arena.check()
        for owner in self.live:
            self.load(owner)
        spans = sorted((handle.offset, handle.offset + handle.size) for handle, _ in self.live.values())
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        assert self.arena.used()[0] == len(self.live)


def arena_of_two(world: World, lock: type[FakeLock] = FakeLock) -> Plan:
    """One process carves while the other frees, takes from the free list, and carves too."""
    it = ArenaFixture(world, lock)
    it.store(1, 300)
    it.store(2, 300)
    it.free(1)

    def one() -> None:
        it.store(11, 300)
        it.load(11)
        it.store(12, 700)
        it.free(11)

    def two() -> None:
        it.free(2)
        it.store(21, 300)
        it.store(22, 300)
        it.load(21)
        it.free(22)

    return Plan({"one": one, "two": two}, it.check)


def arena_that_is_full(world: World) -> Plan:
    """Two processes want the last block; who gets none gets one when the other has freed its own."""
    it = ArenaFixture(world)
    for owner in range(1, 4):
        it.store(owner, 900)
    assert it.store(4, 3000) is None

    def process(mine: int, freed: int) -> None:
        it.free(freed)
        if it.store(mine, 900) is not None:
            it.load(mine)
        else:
            raise AssertionError("a block was free")

    return Plan({"one": lambda: process(11, 1), "two": lambda: process(12, 2)}, it.check)


Scenario = Callable[[World], Plan]
