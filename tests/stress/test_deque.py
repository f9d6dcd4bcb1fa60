"""One owner that pushes and pops the tail, thieves that take from the head."""

from __future__ import annotations

import random
from collections.abc import Iterable

from repartir.shm.deque import Entry, TaskDeque
from tests.shared import Family, Forked, Gate, Patience, Room, Tally, Threads, gates

CAPACITY = 256
OWNER, *THIEVES = range(4)


def entry(task: int) -> Entry:
    return task, payload(task), 0


def payload(task: int) -> bytes:
    return task.to_bytes(8, "little") * (task % 25 + 1)


def whole(got: Entry) -> int:
    """The task, after a look whether its payload is the one that was pushed."""
    assert got == entry(got[0])
    return got[0]


def push_all(deque: TaskDeque, tasks: Iterable[int]) -> None:
    patience = Patience()
    for task in tasks:
        while not deque.push_tail([entry(task)]):
            patience()


def steal(place: Room, deque: TaskDeque, me: int, tally: Tally) -> None:
    """Take tasks until the last one, 0 in the test's word 100, was given out; count each."""
    words, claim, over = place.words, place.word(me), place.word(100)
    patience = Patience()
    while True:
        finished = words[over]
        got = deque.pop_head(claim)
        if got:
            tally.count(me, whole(got))
            words[claim] = 0
        elif finished:
            return
        else:
            patience()


def check(deque: TaskDeque) -> None:
    try:
        if code := deque.lock.try_acquire():
            deque.lock.wait(code)
        deque.check()
    finally:
        deque.lock.release()


def finish(place: Room) -> None:
    place.words[place.word(100)] = 1


def test_smoke(place: Room) -> None:
    deque, claim = place.deque(CAPACITY), place.word(OWNER)
    assert deque.pop_head(claim) is None
    assert deque.pop_tail(claim) is None
    push_all(deque, [1, 2, 3])
    assert deque.pop_head(claim) == entry(1)
    assert deque.pop_tail(claim) == entry(3)
    push_all(deque, [4])
    assert deque.pop_head(claim) == entry(2)
    assert deque.pop_head(claim) == entry(4)
    assert deque.pop_head(claim) is None


def test_is_empty(place: Room, children: Family, scale: int) -> None:
    """A push that was over before the question is seen, and a pop that was over too."""
    deque = place.deque(CAPACITY)
    with gates(2) as (asked, answered):

        def observer() -> None:
            for nth in range(300 * scale):
                asked.wait()
                assert deque.is_empty() == (nth % 2 == 1)
                answered.open()

        children.fork(observer)
        for nth in range(300 * scale):
            if nth % 2:
                deque.pop_head(place.word(OWNER))
            else:
                push_all(deque, [nth + 1])
            asked.open()
            answered.wait()
        children.join()


def test_spsc(place: Room, children: Family, scale: int) -> None:
    deque, steps = place.deque(16), 20_000 * scale
    children.fork(push_all, deque, range(1, steps + 1))
    patience = Patience()
    for expected in range(1, steps + 1):
        while not (got := deque.pop_head(place.word(OWNER))):
            patience()
        assert whole(got) == expected
    children.join()
    assert deque.is_empty()


def test_stampede(place: Room, children: Family, scale: int) -> None:
    """Thieves find ever later tasks, the owner ever earlier ones, and each task is found once."""
    deque, tasks = place.deque(CAPACITY), CAPACITY

    for _ in range(15 * scale):
        tally = Tally(4, tasks + 1)
        push_all(deque, range(1, tasks + 1))
        with gates(1) as (start,):

            def thief(me: int, start: Gate = start, tally: Tally = tally) -> None:
                start.wait()
                last = 0
                while got := deque.pop_head(place.word(me)):
                    task = whole(got)
                    assert task > last
                    last = task
                    tally.count(me, task)

            for me in THIEVES:
                children.fork(thief, me)
            start.open(len(THIEVES))
            last = tasks + 1
            while got := deque.pop_tail(place.word(OWNER)):
                task = whole(got)
                assert task < last
                last = task
                tally.count(OWNER, task)
            children.join()
            assert tally.totals() == [0, *[1] * tasks]


def test_stress(place: Room, children: Family, scale: int, dice: random.Random) -> None:
    deque, tasks = place.deque(32), 20_000 * scale
    tally = Tally(6, tasks + 1)

    def two_threads(first: int, second: int) -> None:
        threads = Threads()
        threads.start(steal, place, deque, first, tally)
        threads.start(steal, place, deque, second, tally)
        threads.join()

    for me in THIEVES[:2]:
        children.fork(steal, place, deque, me, tally)
    children.fork(two_threads, 3, 4)
    patience = Patience()
    task = 1
    while task <= tasks:
        act = dice.random()
        if act < 0.6:
            batch = list(range(task, min(task + dice.randrange(1, 6), tasks + 1)))
            position = deque.tail
            if deque.push_tail([entry(each) for each in batch]):
                task += len(batch)
                if act < 0.1 and deque.remove(position, batch[0]):
                    tally.count(5, batch[0])
            else:
                patience()
        elif act < 0.8:
            if got := deque.pop_tail(place.word(OWNER)):
                tally.count(OWNER, whole(got))
        else:
            check(deque)
    finish(place)
    children.join()
    assert deque.is_empty()
    assert tally.totals() == [0, *[1] * tasks]


def test_no_starvation(place: Room, children: Family, scale: int) -> None:
    """The owner works until every thief had its share."""
    deque, share, task = place.deque(64), 200 * scale, 0
    hits = [place.word(200 + me) for me in range(4)]

    def thief(me: int) -> None:
        patience = Patience()
        while not place.words[place.word(100)]:
            if deque.pop_head(place.word(me)):
                place.words[hits[me]] += 1
            else:
                patience()

    for me in THIEVES:
        children.fork(thief, me)
    patience = Patience()
    while min(place.words[hits[me]] for me in THIEVES) < share:
        task += 1
        deque.push_tail([entry(task)])
        if task % 8 == 0 and deque.pop_tail(place.word(OWNER)):
            place.words[hits[OWNER]] += 1
        if not deque.room():
            patience()
    finish(place)
    children.join()
    assert place.words[hits[OWNER]] > 0


def test_destructors(place: Room, children: Family, scale: int, dice: random.Random) -> None:
    """Thieves are killed at any moment; each task is run once, by a thief or in a dead thief's place."""
    deque, deaths = place.deque(32), 80 * scale
    tasks = deaths * 20
    tally = Tally(4, tasks + 1)
    thieves: dict[int, Forked] = {me: children.fork(steal, place, deque, me, tally) for me in THIEVES}
    task = 0
    for _ in range(deaths):
        for _ in range(dice.randrange(1, 20)):
            task += 1
            push_all(deque, [task])
        me = dice.choice(THIEVES)
        thieves[me].kill()
        recover(place, deque, me, tally)
        thieves[me] = children.fork(steal, place, deque, me, tally)
    finish(place)
    for thief in thieves.values():
        thief.join()
    assert deque.is_empty()
    assert tally.totals() == [0, *[1] * task, *[0] * (tasks - task)]


def recover(place: Room, deque: TaskDeque, me: int, tally: Tally) -> None:
    """Take the lock, which repairs; then run what the dead thief had claimed and not counted."""
    deque.is_empty()
    claimed = place.words[place.word(me)]
    if claimed and not tally.total(claimed):
        tally.count(OWNER, claimed)
    place.words[place.word(me)] = 0
