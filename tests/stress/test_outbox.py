"""Members that answer, each in an outbox of its own, and one client that drains them."""

from __future__ import annotations

import random
from itertools import islice

from repartir.shm.outbox import Answer, Outbox, records
from tests.shared import Family, Gate, Patience, Room, Threads, gates

SIZE = 1024
MEMBERS = 4


def answer(nth: int) -> Answer:
    """A record whose length and bytes depend on its number; every length up to the largest comes."""
    return nth, nth % 4, nth.to_bytes(4, "little") * (nth * 7 % (SIZE // 8 // 4 + 1))


def put_all(outbox: Outbox, first: int, last: int) -> None:
    patience = Patience()
    for nth in range(first, last + 1):
        while not outbox.put(*answer(nth)):
            patience()


def drain(outbox: Outbox) -> list[int]:
    """The numbers of all answers that are there, each looked at."""
    numbers = []
    for found in records(outbox.peek()):
        assert found == answer(found[0])
        numbers.append(found[0])
    outbox.consumed()
    return numbers


def drain_until(outbox: Outbox, last: int) -> list[int]:
    numbers: list[int] = []
    patience = Patience()
    while not numbers or numbers[-1] != last:
        if not outbox.has_news():
            patience()
        numbers += drain(outbox)  # which also publishes the room of the round before
    return numbers


def test_smoke(place: Room) -> None:
    outbox = place.outbox(SIZE)
    assert drain(outbox) == []
    put_all(outbox, 1, 3)
    assert drain(outbox) == [1, 2, 3]
    put_all(outbox, 4, 4)
    assert drain(outbox) == [4]
    assert drain(outbox) == []


def test_is_empty(place: Room, children: Family, scale: int) -> None:
    """An answer that was put before the question is seen."""
    outbox = place.outbox(SIZE)
    with gates(2) as (asked, answered):

        def member() -> None:
            for nth in range(1, 300 * scale):
                asked.wait()
                put_all(outbox, nth, nth)
                answered.open()

        children.fork(member)
        for nth in range(1, 300 * scale):
            assert not outbox.has_news()
            assert not outbox.has_news()
            asked.open()
            answered.wait()
            assert outbox.has_news()
            assert outbox.has_news()
            assert drain(outbox) == [nth]
        children.join()


def test_spsc(place: Room, children: Family, scale: int) -> None:
    outbox, steps = place.outbox(SIZE), 5000 * scale
    children.fork(put_all, outbox, 1, steps)
    assert drain_until(outbox, steps) == list(range(1, steps + 1))
    children.join()
    outbox.check()


def test_stampede(place: Room, children: Family, scale: int) -> None:
    """All members at the same moment, into outboxes that lie side by side."""
    steps = 1000 * scale
    outboxes = [place.outbox(SIZE, nth) for nth in range(MEMBERS)]
    with gates(1) as (start,):

        def member(outbox: Outbox, start: Gate) -> None:
            start.wait()
            put_all(outbox, 1, steps)

        for outbox in outboxes:
            children.fork(member, outbox, start)
        start.open(MEMBERS)
        seen: list[list[int]] = [[] for _ in outboxes]
        patience = Patience()
        while any(len(numbers) < steps for numbers in seen):
            for outbox, numbers in zip(outboxes, seen, strict=True):
                numbers += drain(outbox)
            patience()
        children.join()
    assert seen == [list(range(1, steps + 1))] * MEMBERS


def test_stress(place: Room, children: Family, scale: int, dice: random.Random) -> None:
    """Threads of one member share its outbox; the client's rounds are interrupted and come again."""
    steps = 1000 * scale
    outbox = place.outbox(SIZE)

    def member() -> None:
        threads = Threads()
        for part in range(3):
            threads.start(put_all, outbox, part * steps + 1, part * steps + steps)
        threads.join()

    children.fork(member)
    seen: list[int] = []
    patience = Patience()
    while len(seen) < 3 * steps:
        if not outbox.has_news():
            patience()
        act = dice.random()
        copy = outbox.peek()
        if act < 0.2:
            assert all(found == answer(found[0]) for found in islice(records(copy), dice.randrange(5)))
        else:
            assert all(found == answer(found[0]) for found in records(copy))
            seen += [number for number, _, _ in records(copy)]
            outbox.consumed()
        if act > 0.95:
            outbox.consumed()
            assert outbox.has_news() in (True, False)
    children.join()
    for part in range(3):
        own = [number for number in seen if part * steps < number <= part * steps + steps]
        assert own == list(range(part * steps + 1, part * steps + steps + 1))


def test_no_starvation(place: Room, children: Family, scale: int) -> None:
    """Members that flood their outboxes all get on, though the client reads one at a time."""
    share, over = 100 * scale, place.word(100)
    outboxes = [place.outbox(SIZE, nth) for nth in range(MEMBERS)]

    def member(outbox: Outbox) -> None:
        nth, patience = 1, Patience()
        while not place.words[over]:
            if outbox.put(*answer(nth)):
                nth += 1
            else:
                patience()

    for outbox in outboxes:
        children.fork(member, outbox)
    seen = [0] * MEMBERS
    patience = Patience()
    while min(seen) < share:
        patience()
        for nth, outbox in enumerate(outboxes):
            numbers = drain(outbox)
            assert numbers == list(range(seen[nth] + 1, seen[nth] + len(numbers) + 1))
            seen[nth] += len(numbers)
    place.words[over] = 1
    children.join()


def test_destructors(place: Room, children: Family, scale: int, dice: random.Random) -> None:
    """Members are killed at any moment; what is in the outbox by then is all, whole and in order."""
    outbox, deaths, seen = place.outbox(SIZE), 50 * scale, 0
    for _ in range(deaths):
        member = children.fork(put_all, outbox, seen + 1, 1 << 32)
        target = seen + dice.randrange(60)
        patience = Patience()
        while seen < target:
            if not outbox.has_news():
                patience()
            numbers = drain(outbox)
            assert numbers == list(range(seen + 1, seen + len(numbers) + 1))
            seen += len(numbers)
        member.kill()
        numbers = drain(outbox)
        assert numbers == list(range(seen + 1, seen + len(numbers) + 1))
        seen += len(numbers)
        outbox.check()
        assert not outbox.has_news()
