"""Sleep and wake as a state machine, searched without a bound: no reachable state has a sleeper beside a queued task.

One row of the model is one atomic step of the code: a section under the parking lock or a deque's lock, or one load
without a lock.  (``_post_and_clear`` is two: the woken member runs between them.)

    F, G   Worker.find_work, one deque a step       S    ParkingLot.start_spinning
    P      Worker._spin, one deque a step           T    ParkingLot.stop_spinning
    A      ParkingLot.announce                      L    TaskDeque.is_empty, one deque a step
    R      ParkingLot.retract                       Z    Semaphore.wait
    I      ParkingLot.is_idle after the wait        X    the task runs; it may end, or not
    H J K  Worker.pass_on: anyone_idle, _hinted (one deque a step), ParkingLot.wake
    push hint wake   Pump._fill: TaskDeque.push_tail, ParkingLot.anyone_idle, ParkingLot.wake
    mail row         Pump._mail: TaskDeque.push_tail, ParkingLot.wake_row

Each worker has a lane and a mailbox, at which it looks first and nobody else does.  The high lane, where there is one,
is the next that each looks at; the low lane is one more that all look at.  A state is bad when every worker sleeps or
runs a task, the client has nothing left to do, and one of them sleeps beside a task that it may take, in a lane or in its
own mailbox: only the end of a running task would get it going.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest

FREE = -1
CLIENT = -2


@dataclass(frozen=True)
class Protocol:
    """The protocol as it is, and which part of it a test leaves out."""

    workers: int = 2
    posts: tuple[int, ...] = (1, 1)
    """How many tasks each push of the client has, to any lane; 0: one task, to any mailbox; -1: one, to the high lane."""
    spinners: int = 1
    strays: int = 0
    """Posts to a semaphore that were for a full outbox, at any time."""
    timeouts: int = 0
    """Waits that end by time or signal."""
    tasks_end: bool = False
    passes_wakes: bool = True
    """``retract`` wakes another when somebody has cleared the idle bit already."""
    passes_on_after_spin: bool = True
    passes_on_after_rest: bool = True
    checks_idle: bool = True
    looks_again: bool = True
    """Between the announcement and the wait."""
    wakes_the_row: bool = True
    """What is put into a mailbox wakes its member, whoever spins; else it is posted as other tasks are."""
    hints_after_push: bool = True
    """The client reads the idle mask after its push, not before."""
    looks_at_high: bool = True
    """Between announcement and wait, at the high lane too."""

    @property
    def has_high(self) -> bool:
        return -1 in self.posts


class Worker(NamedTuple):
    pc: str
    at: int = 0
    """How many deques it has looked at, or the row that it wakes."""


class Client(NamedTuple):
    pc: str
    nth: int = 0
    """Which of the pushes comes next."""
    lane: int = 0
    wanted: int = 0
    target: int = 0
    saw_idle: bool = True


class State(NamedTuple):
    lanes: tuple[int, ...]
    mail: tuple[int, ...]
    idle: int
    spin: int
    tokens: tuple[int, ...]
    lock: int
    """Who holds the parking lock between two steps."""
    client: Client
    workers: tuple[Worker, ...]
    strays: int
    timeouts: int


Step = tuple[str, State]


def start(p: Protocol) -> State:
    none = (0,) * p.workers
    workers = (Worker("F"),) * p.workers
    return State(
        (0,) * (p.workers + p.has_high), none, 0, 0, none, FREE, Client("push"), workers, p.strays, p.timeouts
    )


def put(values: tuple[int, ...], at: int, change: int) -> tuple[int, ...]:
    return (*values[:at], values[at] + change, *values[at + 1 :])


def lowest(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


def steps(p: Protocol, s: State) -> Iterator[Step]:
    yield from client_steps(p, s)
    for me in range(p.workers):
        yield from worker_steps(p, s, me)
    if s.strays:
        for row in range(p.workers):
            yield f"stray post to {row}", s._replace(strays=s.strays - 1, tokens=put(s.tokens, row, 1))


def client_steps(p: Protocol, s: State) -> Iterator[Step]:
    c = s.client
    if c.pc == "push" and c.nth < len(p.posts):
        if not p.hints_after_push and c.saw_idle:
            yield "client hint", s._replace(client=c._replace(saw_idle=False, wanted=int(s.idle != 0)))
            return
        for lane in range(p.workers):
            count = p.posts[c.nth]
            if not count:
                then = Client("row" if p.wakes_the_row else "hint", c.nth, lane, 1)
                yield f"client mails to {lane}", s._replace(mail=put(s.mail, lane, 1), client=then)
                continue
            if count < 0:
                if lane == 0:
                    then = Client("hint", c.nth, p.workers)
                    yield (
                        "client pushes to the high lane",
                        s._replace(lanes=put(s.lanes, p.workers, 1), client=then),
                    )
                continue
            then = Client("hint", c.nth, lane)
            if not p.hints_after_push:
                then = Client("wake" if c.wanted else "push", c.nth + (not c.wanted), lane)
            yield f"client pushes {count} to {lane}", s._replace(lanes=put(s.lanes, lane, count), client=then)
    elif c.pc == "hint":
        then = c._replace(pc="wake") if s.idle else Client("push", c.nth + 1)
        yield "client hint", s._replace(client=then)
    elif c.pc == "wake" and s.lock == FREE:
        wanted = max(p.posts[c.nth], 1) - s.spin.bit_count()
        target = c.lane if s.idle >> c.lane & 1 else lowest(s.idle)  # of the high lane, no member's bit
        yield "client wake", client_posts(s, c, wanted, target)
    elif c.pc == "row" and s.lock == FREE:
        yield f"client wakes {c.lane}", client_posts(s, c, s.idle >> c.lane & 1, c.lane)
    elif c.pc == "clear":
        s = s._replace(idle=s.idle & ~(1 << c.target))
        yield f"client clears {c.target}", client_posts(s, c, c.wanted - 1, lowest(s.idle))


def client_posts(s: State, c: Client, wanted: int, target: int) -> State:
    if wanted <= 0 or not s.idle:
        return s._replace(lock=FREE, client=Client("push", c.nth + 1))
    then = c._replace(pc="clear", wanted=wanted, target=target)
    return s._replace(lock=CLIENT, tokens=put(s.tokens, target, 1), client=then)


def worker_steps(p: Protocol, s: State, me: int) -> Iterator[Step]:
    pc, at = s.workers[me]
    bit = 1 << me

    def go(pc: str, at: int = 0, **changes: object) -> Step:
        workers = (*s.workers[:me], Worker(pc, at), *s.workers[me + 1 :])
        return f"worker {me}: {s.workers[me].pc}{s.workers[me].at}", s._replace(workers=workers, **changes)  # type: ignore[arg-type]

    def posts(then: str) -> Step:
        """The first half of ``_post_and_clear`` for the lowest idle row; nothing if there is none."""
        if not s.idle:
            return go(then)
        row = lowest(s.idle)
        return go({"G": "r", "X": "k"}[then], row, lock=me, tokens=put(s.tokens, row, 1))

    leave = "H" if p.passes_on_after_rest else "X"
    if pc in "FPGL" and at == 0:
        if s.mail[me]:
            leave_mail = {"F": "X", "P": "T", "G": leave, "L": "R"}[pc]
            yield go(leave_mail, mail=s.mail if pc == "L" else put(s.mail, me, -1))
        else:
            yield go(pc, 1)
    elif pc in "FPGLJ":
        nth, count = at - (pc != "J"), p.workers + p.has_high
        lane = p.workers if p.has_high and nth == 0 else (me + nth - p.has_high) % p.workers
        there, last = s.lanes[lane] > 0, nth + 1 == count
        if pc == "L" and lane == p.workers and not p.looks_at_high:
            yield go(pc, at + 1)
        elif pc == "L" and there:
            yield go("R")
        elif pc == "J" and there:
            yield go("K")
        elif there:
            yield go({"F": "X", "P": "T", "G": leave}[pc], lanes=put(s.lanes, lane, -1))
        elif not last:
            yield go(pc, at + 1)
        else:
            yield go({"F": "S", "P": "A", "G": "S", "L": "Z", "J": "X"}[pc])
            if pc == "P":
                yield go("P")
    elif pc == "Z":
        if s.tokens[me]:
            yield go("I" if p.checks_idle else "G", tokens=put(s.tokens, me, -1))
        elif s.timeouts:
            yield go("R", timeouts=s.timeouts - 1)
    elif pc == "I":
        yield go("R" if s.idle & bit else "G")
    elif pc == "H":
        yield go("J" if s.idle else "X")
    elif pc == "X":
        if p.tasks_end:
            yield go("F")
    elif pc in "rk":
        yield go({"r": "G", "k": "X"}[pc], lock=FREE, idle=s.idle & ~(1 << at))
    elif s.lock != FREE:
        return
    elif pc == "S":
        spins = s.spin.bit_count() < p.spinners
        yield go("P", spin=s.spin | bit) if spins else go("A")
    elif pc == "T":
        yield go("H" if p.passes_on_after_spin else "X", spin=s.spin & ~bit)
    elif pc == "A":
        yield go("L" if p.looks_again else "Z", spin=s.spin & ~bit, idle=s.idle | bit)
    elif pc == "R":
        if s.idle & bit:
            yield go("G", idle=s.idle & ~bit)
        else:
            yield posts("G") if p.passes_wakes else go("G")
    elif pc == "K":
        yield posts("X") if not s.spin else go("X")


def is_bad(p: Protocol, s: State) -> bool:
    beside = False
    for row, worker in enumerate(s.workers):
        if worker.pc == "Z" and not s.tokens[row]:
            beside = beside or bool(s.mail[row]) or any(s.lanes)
        elif worker.pc != "X":
            return False
    return beside and s.client.pc == "push" and s.client.nth == len(p.posts)


def search(p: Protocol) -> tuple[int, list[str]]:
    """How many states can be reached, and the steps to a bad one (none if there is none)."""
    first = start(p)
    came: dict[State, tuple[State, str] | None] = {first: None}
    todo = deque([first])
    while todo:
        s = todo.popleft()
        if is_bad(p, s):
            path = []
            while (before := came[s]) is not None:
                s, label = before
                path.append(label)
            return len(came), path[::-1]
        for label, then in steps(p, s):
            if then not in came:
                came[then] = s, label
                todo.append(then)
    return len(came), []


QUICK = [
    Protocol(posts=(1,)),
    Protocol(posts=(1, 1)),
    Protocol(posts=(1, 1), spinners=2),
    Protocol(posts=(1, 1), spinners=0),
    Protocol(posts=(1, 1), strays=1),
    Protocol(posts=(1, 1), timeouts=1),
    Protocol(posts=(2,)),
    Protocol(posts=(0, 0)),
    Protocol(posts=(0, 1)),
    Protocol(posts=(1, 0), strays=1),
    Protocol(posts=(0, 1), spinners=2, timeouts=1),
    Protocol(posts=(-1, -1)),
    Protocol(posts=(-1, 1), spinners=2),
    Protocol(posts=(1, -1), strays=1, spinners=0),
]
LARGE = [
    Protocol(posts=(1, 1), tasks_end=True),
    Protocol(workers=3, posts=(1,)),
    Protocol(posts=(1, 1, 1), spinners=2, strays=1, timeouts=1),
    Protocol(posts=(1, 1, 1), strays=1, tasks_end=True),
    Protocol(posts=(2, 1), spinners=1, timeouts=1, tasks_end=True),
    Protocol(posts=(1, 1, 1), timeouts=1, passes_wakes=False),
    Protocol(posts=(0, 1, 0), strays=1, tasks_end=True),
    Protocol(posts=(1, 0, 1), timeouts=1, passes_wakes=False),
    Protocol(posts=(-1, 1, -1), strays=1, tasks_end=True),
    Protocol(posts=(-1, 0, 1), timeouts=1),
]
HUGE = [
    Protocol(workers=3, posts=(1, 1), spinners=1),
    Protocol(workers=3, posts=(1, 1), spinners=2),
    Protocol(workers=3, posts=(2, 1), spinners=0),
]


def shown(p: Protocol) -> str:
    default = Protocol()
    return ", ".join(f"{k}={v}" for k, v in vars(p).items() if v != getattr(default, k)) or "default"


@pytest.mark.parametrize("protocol", QUICK, ids=shown)
def test_no_member_sleeps_beside_a_queued_task(protocol: Protocol) -> None:
    states, path = search(protocol)
    assert not path, "\n".join(path)
    assert states > 2000


@pytest.mark.slow
@pytest.mark.parametrize("protocol", LARGE, ids=shown)
def test_in_larger_rings(protocol: Protocol) -> None:
    states, path = search(protocol)
    assert not path, "\n".join(path)
    assert states > 20_000


@pytest.mark.soak
@pytest.mark.parametrize("protocol", HUGE, ids=shown)
def test_in_the_largest_rings(protocol: Protocol) -> None:
    """About a million states each."""
    states, path = search(protocol)
    assert not path, "\n".join(path)
    assert states > 500_000


def test_the_wake_that_a_retraction_passes_on_is_spare() -> None:
    """Who leaves its rest with a task wakes another for what is left, which covers it; the reverse does not hold."""
    assert not search(Protocol(passes_wakes=False))[1]
    assert search(Protocol(passes_on_after_rest=False))[1]


WRONG = {
    "nothing is passed on": Protocol(
        passes_wakes=False, passes_on_after_spin=False, passes_on_after_rest=False
    ),
    "who spun does not look for more": Protocol(passes_on_after_spin=False),
    "who rested does not look for more": Protocol(passes_on_after_rest=False),
    "every post is taken for a wake": Protocol(strays=1, checks_idle=False, spinners=0),
    "no look between announcement and sleep": Protocol(posts=(1,), looks_again=False),
    "the high lane is not looked at between announcement and sleep": Protocol(
        posts=(-1,), looks_at_high=False
    ),
    "what only one may take wakes any": Protocol(posts=(0, 1), wakes_the_row=False),
    "the client looks for sleepers before its push": Protocol(posts=(1,), hints_after_push=False),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_part_of_the_protocol_is_needed(name: str) -> None:
    _, path = search(WRONG[name])
    assert path
    assert path[-1].startswith(("worker", "client"))
