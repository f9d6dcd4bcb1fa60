"""Every schedule of a few actors over shared memory, up to a number of preemptions and faults.

The structures of ``repartir.shm`` reach shared memory through ``words[i]``, ``data[i:j]`` and a lock only.  Here all
three are objects that ask the scheduler before each access, so the accesses are the atomic steps.  Actors are threads
of which exactly one holds the baton: nothing here is left to the operating system, and the same choices give the same
run.  An actor that wants a lock which another holds is not ready, so it is never chosen.

``explore`` walks the tree of choices depth first.  A switch away from an actor that is ready costs a preemption; the
fault of an actor (its death, or an exception as a signal handler raises it) costs a fault; a switch away from an actor
that waits or has ended is free.  A schedule that breaks an assertion is reported as a line like

    client:12 thief:9 thief:DIES client:3

(steps in a row of each actor), with a listing of the steps; ``replay`` runs that line again.

Consistency is sequential: that suits structures which order everything by locks, and the hints which they read without
one are argued for in ``repartir/shm/README.md``.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from repartir.errors import InternalError
from repartir.shm.lock import EOWNERDEAD, nothing_to_repair

EDEADLK = 35

RUNS, SLEEPS, DIES, IS_INTERRUPTED = "", "SLEEPS", "DIES", "INTERRUPTED"
Option = tuple["Actor", str]
"""Who does the next step, and what becomes of it."""


_LISTED = 120
"""So many steps before the end are listed."""


class Killed(BaseException):
    """Raised in an actor that dies; nothing that it does afterwards reaches the memory."""


class Interrupted(BaseException):
    """Raised in an actor as a signal handler would raise it."""


class Abandoned(BaseException):
    """Raised in an actor that never ends, when the schedule is over."""


class ScheduleError(AssertionError):
    """A schedule that breaks an assertion: ``schedule`` is what ``replay`` takes."""

    def __init__(self, schedule: str, steps: Sequence[tuple[str, str]], cause: BaseException) -> None:
        listing = "\n".join(f"  {name:<12} {what}" for name, what in steps[-_LISTED:])
        super().__init__(
            f"{type(cause).__name__}: {cause}\nreplay with the schedule\n  {schedule}\n{listing}"
        )
        self.schedule = schedule


class Blocker(Protocol):
    """What an actor may wait for."""

    def ready(self, actor: Actor) -> bool: ...


class Gate:
    """Open while ``condition`` holds."""

    def __init__(self, condition: Callable[[], bool]) -> None:
        self._condition = condition

    def ready(self, actor: Actor) -> bool:
        return self._condition()


class Actor:
    """One of the processes in a schedule."""

    def __init__(self, name: str, job: Callable[[], object], mortal: bool, nervous: bool) -> None:
        self.name = name
        self.job = job
        self.mortal = mortal
        """May die."""
        self.nervous = nervous
        """May be interrupted by an exception, once."""
        self.fresh = True
        self.needless = False
        """It was begun by a preemption: should it have to wait at once, the schedule is the same as without."""
        self.ended = False
        self.dead = False
        self.interrupted = False
        self.blocker: Blocker | None = None
        self.seat: _Seat

    def ready(self) -> bool:
        return not self.ended and (self.blocker is None or self.blocker.ready(self))

    @property
    def gone(self) -> bool:
        """Dead, or ended by an exception: what a supervisor is told as an exit."""
        return self.dead or (self.ended and self.interrupted)


@dataclass
class Plan:
    """What a scenario consists of: actors by name, and what must hold when all have ended or wait for ever."""

    actors: dict[str, Callable[[], object]]
    check: Callable[[], object]
    mortal: Sequence[str] = ()
    nervous: Sequence[str] = ()
    may_sleep: bool = False
    """Actors may be left waiting for a semaphore or a gate; without it that is a failure."""


class World:
    """Memory, locks and actors of one schedule."""

    def __init__(
        self, choose: Callable[[list[Option]], Option], preemptions: int, faults: int, tracing: bool
    ) -> None:
        self.actors: dict[str, Actor] = {}
        self.locks: list[FakeLock] = []
        self.failure: BaseException | None = None
        self.running: Actor | None = None
        self.steps: list[tuple[str, str]] | None = [] if tracing else None
        self.redundant = False
        self.asleep: list[str] = []
        """Who waited for ever; for checks."""
        self._choose = choose
        self._preemptions = preemptions
        self._faults = faults
        self._aborting = False
        self._over = threading.Lock()
        self._over.acquire()

    # ---- for scenarios

    def segment(self, size: int, name: str = "") -> FakeSegment:
        return FakeSegment(self, size, name)

    def lock(self, name: str) -> FakeLock:
        lock = FakeLock(self, name)
        self.locks.append(lock)
        return lock

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """For an actor: go on once ``condition`` holds."""
        self.step("go on", Gate(condition))

    def gone(self, name: str) -> bool:
        """Whether the actor died or left by an exception."""
        return self.actors[name].gone

    def no_lock_held(self) -> None:
        """Assert that every lock can be taken; locks of the dead are repaired.  For checks."""
        for lock in self.locks:
            assert lock.owner is None or lock.owner.dead, f"{lock.name} is held by {lock.owner.name}"

    # ---- steps

    def step(self, what: str, blocker: Blocker | None = None, *, interruptible: bool = True) -> None:
        """Before every access: somebody else may go first, or this actor may meet its fate."""
        me = self.running
        if me is None:
            return
        if self._aborting:
            raise Abandoned
        if me.dead:
            raise Killed
        me.blocker = blocker
        ready = blocker is None or blocker.ready(me)
        fates = []
        if self._faults:
            if me.mortal:
                fates.append((me, DIES))
            if me.nervous and interruptible and not me.interrupted:
                fates.append((me, IS_INTERRUPTED))
        if not ready or (self._preemptions and not me.fresh):
            others = [(other, RUNS) for other in self.actors.values() if other is not me and other.ready()]
        else:
            others = []
        first = (me, RUNS if ready else SLEEPS)
        options = [first, *fates, *others] if ready or not others else [*others, *fates]
        if me.needless and not ready:
            self.redundant = True
            options = [(me, SLEEPS)]
        me.fresh = me.needless = False
        actor, fate = options[0] if len(options) == 1 else self._choose(options)
        if fate == SLEEPS:
            self._over.release()
            me.seat.baton.acquire()
            raise Abandoned
        if actor is not me:
            self._preemptions -= ready
            actor.needless = ready and actor.fresh
            self._hand_to(actor)
            me.seat.baton.acquire()
            if self._aborting:
                raise Abandoned
        if self.steps is not None:
            self.steps.append((me.name, fate or what))
        if fate:
            self._faults -= 1
            if fate == DIES:
                me.dead = True
                raise Killed
            me.interrupted = True
            raise Interrupted

    def run(self, plan: Plan, seats: Sequence[_Seat]) -> None:
        """Run one schedule; whatever breaks is raised."""
        for (name, job), seat in zip(plan.actors.items(), seats, strict=True):
            actor = Actor(name, job, name in plan.mortal, name in plan.nervous)
            actor.seat = seat
            seat.actor, seat.world = actor, self
            self.actors[name] = actor
        self._hand_on()
        self._over.acquire()
        self._aborting = True
        waiting = [actor for actor in self.actors.values() if not actor.ended]
        self.asleep = [actor.name for actor in waiting]
        for actor in waiting:
            if not actor.fresh:
                self.running = actor
                actor.seat.baton.release()
                self._over.acquire()
        self.running = None
        if self.failure is not None:
            raise self.failure
        if self.redundant:
            return
        for actor in waiting:
            if isinstance(actor.blocker, FakeLock) or not plan.may_sleep:
                raise AssertionError(f"{actor.name} waits for ever")
        plan.check()

    def has_ended(self, actor: Actor, failure: BaseException | None) -> None:
        """The actor's job is over; called in its thread, which gives the baton away."""
        actor.ended = True
        if failure is not None and self.failure is None:
            self.failure = failure
        if self._aborting or self.failure is not None:
            self._over.release()
        else:
            self._hand_on()

    def _hand_on(self) -> None:
        options = [(actor, RUNS) for actor in self.actors.values() if actor.ready()]
        if not options:
            self.running = None
            self._over.release()
        else:
            self._hand_to((options[0] if len(options) == 1 else self._choose(options))[0])

    def _hand_to(self, actor: Actor) -> None:
        self.running = actor
        actor.seat.baton.release()


class _Seat:
    """A thread that plays one actor after the other."""

    def __init__(self) -> None:
        self.baton = threading.Lock()
        self.baton.acquire()
        self.actor: Actor | None = None
        self.world: World
        self._thread = threading.Thread(target=self._play, name="actor", daemon=True)
        self._thread.start()

    def _play(self) -> None:
        while True:
            self.baton.acquire()
            actor = self.actor
            if actor is None:
                return
            failure: BaseException | None = None
            try:
                actor.job()
            except (Killed, Interrupted, Abandoned):
                pass
            except BaseException as exc:  # noqa: BLE001 - raised again by the explorer
                failure = exc
            self.world.has_ended(actor, failure)
            del actor

    def leave(self) -> None:
        self.actor = None
        self.baton.release()
        self._thread.join()


class FakeSegment:
    """What ``repartir.shm.segment.Segment`` offers, on private memory."""

    def __init__(self, world: World, size: int, name: str) -> None:
        self.world = world
        self.size = size
        self.name = name
        self.fd = -1
        self.data = FakeData(size)
        self.raw = memoryview(self.data).cast("Q")
        self.words = FakeWords(self.raw, world, name)
        self.data.world = world

    def discard(self, start: int, end: int) -> int:
        return end - start

    def close(self) -> None:
        pass


class FakeWords:
    """Words that ask the scheduler before each access."""

    __slots__ = ("_name", "_raw", "_world", "names")

    def __init__(self, raw: memoryview, world: World, name: str) -> None:
        self._raw = raw
        self._world = world
        self._name = name
        self.names: dict[int, str] = {}

    def __getitem__(self, index: int) -> int:
        world = self._world
        if world.running is not None:
            world.step(f"load {self._called(index)}" if world.steps is not None else "")
        return self._raw[index]  # type: ignore[no-any-return]

    def __setitem__(self, index: int, value: int) -> None:
        world = self._world
        if world.running is not None:
            world.step(f"store {self._called(index)} = {value}" if world.steps is not None else "")
        self._raw[index] = value

    def _called(self, index: int) -> str:
        return self.names.get(index) or f"{self._name}[{index}]"


class FakeData(bytearray):
    """Bytes that ask the scheduler before each access; a store that is cut short by a fault is half done."""

    world: World

    def __getitem__(self, where: Any) -> Any:
        if self.world.running is not None:
            self.world.step("load bytes")
        return bytes(memoryview(self)[where])

    def __setitem__(self, where: Any, value: Any) -> None:
        view = memoryview(self)
        if self.world.running is not None:
            try:
                self.world.step("store bytes")
            except (Killed, Interrupted):
                half = len(value) // 2
                view[where.start : where.start + half] = value[:half]
                raise
        view[where] = value


class FakeLock:
    """A robust mutex as ``repartir.shm.lock.Lock`` describes it: its dead owner is told of, then repaired after."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self.name = name
        self.owner: Actor | None = None
        self.refused = 0
        """So many of the owner's sections were refused and have not called ``release`` yet."""
        self.repair: Callable[[], None] = nothing_to_repair

    def ready(self, actor: Actor) -> bool:
        owner = self.owner
        return owner is None or owner.dead or owner is actor

    def create(self) -> None:
        self.owner = None

    def try_acquire(self) -> int:
        world = self._world
        world.step(f"lock {self.name}", self)
        before, me = self.owner, world.running or _NOBODY
        if before is me:
            return EDEADLK
        self.owner = me
        return 0 if before is None else EOWNERDEAD

    def wait(self, code: int) -> None:
        if code != EOWNERDEAD:
            self.refused += 1
            raise InternalError("a lock was taken again by its owner")
        interruption = None
        try:
            self.repair()
        except Interrupted as exc:
            interruption = exc
            self.repair()
        except Killed:
            raise
        if interruption is not None:
            raise interruption

    def release(self) -> None:
        world = self._world
        me = world.running or _NOBODY
        if self.owner is me and not me.dead:
            if self.refused:
                self.refused -= 1
                return
            world.step(f"unlock {self.name}", interruptible=False)
            self.owner = None


_NOBODY = Actor("nobody", lambda: None, False, False)


class NoLock(FakeLock):
    """A lock that does not lock, for tests that the explorer must fail."""

    def try_acquire(self) -> int:
        return 0

    def release(self) -> None:
        pass


class FakeSemaphore:
    """A semaphore whose waiter is not ready while it is 0."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self.name = name
        self.count = 0

    def ready(self, actor: Actor) -> bool:
        return self.count > 0

    def create(self) -> None:
        self.count = 0

    def post(self) -> int:
        self._world.step(f"post {self.name}")
        self.count += 1
        return 0

    def wait(self, timeout_s: float) -> bool:
        self._world.step(f"wait for {self.name}", self)
        self.count -= 1
        return True


class FakeLockFactory:
    """Stands in for ``repartir.shm.lock.LockFactory``."""

    def __init__(self, segment: FakeSegment, lock_fd: int | None = None, first_byte: int = 0) -> None:
        self._segment = segment

    def __call__(self, offset: int, dirty: int) -> FakeLock:
        return self._segment.world.lock(f"{self._segment.name}+{offset}")


Build = Callable[[World], Plan]


@dataclass
class _Tree:
    """The choices of the schedule that runs, and how many there were at each point."""

    taken: list[list[int]] = field(default_factory=list)
    depth: int = 0

    def choose(self, options: list[Option]) -> Option:
        if self.depth == len(self.taken):
            self.taken.append([0, len(options)])
        at, of = self.taken[self.depth]
        if of != len(options):
            raise InternalError("the scenario is not deterministic")
        self.depth += 1
        return options[at]

    def next(self) -> bool:
        """Go to the next schedule; False when there is none."""
        taken = self.taken
        self.depth = 0
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        if taken:
            taken[-1][0] += 1
        return bool(taken)


def explore(build: Build, preemptions: int = 2, faults: int = 0) -> int:
    """Run every schedule; how many there were.  Raises ``ScheduleError`` for the first that breaks an assertion."""
    tree = _Tree()
    seats: list[_Seat] = []
    try:
        count = 0
        while True:
            world = World(tree.choose, preemptions, faults, False)
            try:
                _run(build, world, seats)
            except Exception as exc:
                tree.depth = 0
                found = _found(build, World(tree.choose, preemptions, faults, True), seats)
                if found is None:
                    raise InternalError("the scenario is not deterministic") from exc
                raise found from exc
            count += not world.redundant
            if not tree.next():
                return count
    finally:
        for seat in seats:
            seat.leave()


def replay(build: Build, schedule: str) -> None:
    """Run the one schedule that ``ScheduleError`` names; raises ``ScheduleError`` again while the fault is there."""
    tokens: list[tuple[str, str]] = []
    for part in schedule.split():
        name, _, what = part.partition(":")
        tokens += [(name, what)] if what in (DIES, IS_INTERRUPTED) else [(name, RUNS)] * int(what)
    seats: list[_Seat] = []

    def choose(options: list[Option]) -> Option:
        assert world.steps is not None
        at = len(world.steps)
        name, fate = tokens[at] if at < len(tokens) else (options[0][0].name, RUNS)
        for actor, its_fate in options:
            if actor.name == name and (its_fate == fate or actor is not world.running):
                return actor, its_fate
        raise InternalError(f"the schedule does not fit the scenario: {name} cannot run at step {at}")

    world = World(choose, len(tokens), len(tokens), True)
    try:
        found = _found(build, world, seats)
        if found is not None:
            raise found
        steps = [(name, what if what in (DIES, IS_INTERRUPTED) else RUNS) for name, what in world.steps or []]
        if steps != tokens:
            raise InternalError("the schedule does not fit the scenario, which does other steps")
    finally:
        for seat in seats:
            seat.leave()


def _run(build: Build, world: World, seats: list[_Seat]) -> None:
    plan = build(world)
    while len(seats) < len(plan.actors):
        seats.append(_Seat())
    world.run(plan, seats)


def _found(build: Build, world: World, seats: list[_Seat]) -> ScheduleError | None:
    try:
        _run(build, world, seats)
    except Exception as exc:  # noqa: BLE001 - reported with the schedule
        steps = world.steps or []
        runs = [
            (name, sum(1 for _ in group), what)
            for (name, what), group in itertools.groupby(
                (name, what if what in (DIES, IS_INTERRUPTED) else RUNS) for name, what in steps
            )
        ]
        schedule = " ".join(f"{name}:{what or count}" for name, count, what in runs)
        found = ScheduleError(schedule, steps, exc)
        found.__cause__ = exc
        return found
    return None
