from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.shared import Fuse, Interrupted, Room

MEMBERS = 67  # more than one word of the masks
rows = st.sampled_from([0, 1, 2, 63, 64, 66])
cuts = st.none() | st.integers(0, 5) | st.integers(0, 12)


class ParkingMachine(RuleBasedStateMachine):
    """The model: who is idle, who spins, and how many posts lie in each semaphore."""

    @initialize()
    def begin(self) -> None:
        self.room = Room(size=1 << 17)
        self.fuse = Fuse(self.room.words)
        self.lot, semaphores = self.room.lot(MEMBERS, self.fuse)
        self.lot._post = [self.poster(row) for row in range(MEMBERS)]
        self.semaphores = semaphores
        self.idle: set[int] = set()
        self.spinning: set[int] = set()
        self.posts = [0] * MEMBERS

    def poster(self, row: int) -> object:
        def post() -> None:
            self.semaphores[row].post()
            self.posted.append(row)

        return post

    def teardown(self) -> None:
        if hasattr(self, "room"):
            self.lot._post = []
            self.room.close()

    def act(self, cut: int | None, name: str, *args: object) -> object:
        """What the act returned; `Interrupted` when it was cut off. The rows that it posted to are in `posted`."""
        self.posted: list[int] = []
        self.fuse.left = -1 if cut is None else cut
        try:
            return getattr(self.lot, name)(*args)
        except Interrupted:
            return Interrupted
        finally:
            self.fuse.left = -1
            for row in self.posted:
                self.posts[row] += 1

    def look(self) -> None:
        """After an act that was cut off the flags are what they are; `agrees` says what they may not be."""
        idle = {row for row in range(MEMBERS) if self.lot.is_idle(row)}
        assert idle <= self.idle
        assert self.idle - idle <= set(self.posted), "somebody lost the flag and got no post"
        self.idle = idle

    @rule(row=rows, cut=cuts)
    def announce(self, row: int, cut: int | None) -> None:
        if self.act(cut, "announce", row) is Interrupted:
            self.spinning -= set() if self.lot.is_spinning(row) else {row}
        else:
            self.idle.add(row)
            self.spinning.discard(row)
        assert not self.posted

    @rule(row=rows, cut=cuts)
    def retract(self, row: int, cut: int | None) -> None:
        first = min(self.idle, default=None)
        if self.act(cut, "retract", row) is Interrupted:
            self.look()
        elif row in self.idle:
            self.idle.discard(row)
            assert not self.posted
        else:
            assert self.posted == ([] if first is None else [first])
            self.idle.discard(first)  # type: ignore[arg-type]

    @rule(row=rows)
    def forget(self, row: int) -> None:
        self.act(None, "forget", row)
        self.idle.discard(row)
        self.spinning.discard(row)
        assert not self.posted

    @rule(tasks=st.integers(0, 5), preferred=st.none() | rows, cut=cuts)
    def wake(self, tasks: int, preferred: int | None, cut: int | None) -> None:
        wanted = max(0, tasks - len(self.spinning))
        expected = [preferred] if wanted and preferred in self.idle else []
        expected += sorted(self.idle - {preferred})[: wanted - len(expected)]
        woken = self.act(cut, "wake", tasks, preferred)
        if woken is Interrupted:
            assert self.posted == expected[: len(self.posted)]
            self.look()
        else:
            assert woken == len(self.posted)
            assert self.posted == expected
            self.idle -= set(self.posted)

    @rule(cut=cuts)
    def wake_all(self, cut: int | None) -> None:
        if self.act(cut, "wake_all") is Interrupted:
            self.look()
        else:
            assert self.posted == sorted(self.idle)
            self.idle.clear()

    @rule(row=rows, most=st.integers(0, 3), cut=cuts)
    def start_spinning(self, row: int, most: int, cut: int | None) -> None:
        begun = self.act(cut, "start_spinning", row, most)
        if begun is not Interrupted:
            assert begun == (len(self.spinning) < most)
            self.spinning |= {row} if begun else set()

    @rule(row=rows, cut=cuts)
    def stop_spinning(self, row: int, cut: int | None) -> None:
        if self.act(cut, "stop_spinning", row) is not Interrupted:
            self.spinning.discard(row)

    @rule(row=rows)
    def sleep(self, row: int) -> None:
        """A post that lies there ends a wait at once; without one it takes its time, here none."""
        assert self.semaphores[row].wait(0) == bool(self.posts[row])
        self.posts[row] -= bool(self.posts[row])

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "room"):
            return
        assert {row for row in range(MEMBERS) if self.lot.is_idle(row)} == self.idle
        assert {row for row in range(MEMBERS) if self.lot.is_spinning(row)} == self.spinning
        assert self.lot.anyone_idle() == bool(self.idle)


TestParking = ParkingMachine.TestCase
TestParking.settings = settings(stateful_step_count=30)
