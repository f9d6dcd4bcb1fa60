"""The explorer itself: it visits what it says, and it finds faults that were put there."""

from __future__ import annotations

from math import comb

import pytest

from repartir.shm.deque import Entry, TaskDeque
from repartir.shm.layout import S_SIZE, SLOT_HEADER_BYTES, SLOT_WORDS, WORD
from repartir.shm.outbox import Outbox
from repartir.shm.words import Words
from tests.interleave import scenarios
from tests.interleave.explorer import (
    FakeSemaphore,
    Interrupted,
    NoLock,
    Plan,
    ScheduleError,
    World,
    explore,
    replay,
)


def counting(world: World) -> Plan:
    """Two actors of three steps each, over words of their own."""
    words = world.segment(64, "m").words

    def touch(index: int) -> None:
        for value in range(3):
            words[index] = value

    return Plan({"a": lambda: touch(0), "b": lambda: touch(1)}, lambda: None)


def test_without_a_bound_every_interleaving_is_visited_once() -> None:
    assert explore(counting, preemptions=99) == comb(6, 3)


def test_preemptions_are_bounded() -> None:
    assert explore(counting, preemptions=0) == 2
    # A first: preempted at one of 2 points for all of B; then B first.
    assert explore(counting, preemptions=1) == 2 + 2 * 2


def test_an_actor_dies_before_each_of_its_steps() -> None:
    def build(world: World) -> Plan:
        plan = counting(world)
        plan.mortal = ["a"]
        return plan

    # In the two orders: nobody dies, or A before its first, second or third step; then B is chosen in each.
    assert explore(build, preemptions=0, faults=1) == 2 * 4


def lost_update(world: World) -> Plan:
    words = world.segment(64, "m").words

    def add() -> None:
        words[0] = words[0] + 1

    def check() -> None:
        assert words[0] == 2, f"the sum is {words[0]}"

    return Plan({"a": add, "b": add}, check)


def test_a_lost_update_is_found_and_replayed() -> None:
    with pytest.raises(ScheduleError, match=r"the sum is 1(.|\n)*\n  a:1 b:2 a:1\n") as found:
        explore(lost_update, preemptions=1)
    with pytest.raises(ScheduleError, match="the sum is 1") as again:
        replay(lost_update, found.value.schedule)
    assert again.value.schedule == found.value.schedule
    replay(lost_update, "a:2 b:2")


def test_a_schedule_that_does_not_fit_is_refused() -> None:
    with pytest.raises(Exception, match="does not fit"):
        replay(lost_update, "a:2 a:1 b:2")


def test_a_lock_keeps_others_out_and_costs_no_schedule() -> None:
    def build(world: World) -> Plan:
        words, lock = world.segment(64, "m").words, world.lock("lock")

        def add() -> None:
            try:
                if code := lock.try_acquire():
                    lock.wait(code)
                words[0] = words[0] + 1
            finally:
                lock.release()

        def check() -> None:
            assert words[0] == 2

        return Plan({"a": add, "b": add}, check)

    assert explore(build, preemptions=2) == 2


def test_a_deadlock_is_found() -> None:
    def build(world: World) -> Plan:
        one, two = world.lock("one"), world.lock("two")

        def both(first: object, second: object) -> None:
            for lock in (first, second):
                assert lock.try_acquire() == 0
            for lock in (second, first):
                lock.release()

        return Plan({"a": lambda: both(one, two), "b": lambda: both(two, one)}, lambda: None)

    with pytest.raises(ScheduleError, match="waits for ever"):
        explore(build, preemptions=1)


def test_sleepers_are_told_from_deadlocks() -> None:
    def build(world: World) -> Plan:
        semaphore = FakeSemaphore(world, "semaphore")
        return Plan(
            {"a": lambda: semaphore.wait(1), "b": lambda: semaphore.wait(1), "c": semaphore.post},
            lambda: None,
            may_sleep=True,
        )

    assert explore(build, preemptions=0) > 2


def test_the_dead_change_nothing_more_and_their_lock_is_repaired() -> None:
    repairs = []

    def build(world: World) -> Plan:
        words, lock = world.segment(64, "m").words, world.lock("lock")
        lock.repair = lambda: repairs.append(words[0])

        def add() -> None:
            try:
                if code := lock.try_acquire():
                    lock.wait(code)
                try:
                    words[0] = 1
                    words[0] = 2
                finally:
                    words[1] = 1
            finally:
                lock.release()

        def look() -> None:
            world.wait_until(lambda: world.gone("a") or words[1] == 1)
            add()

        def check() -> None:
            assert words[0] == 2

        return Plan({"a": add, "b": look}, check, mortal=["a"])

    explore(build, preemptions=0, faults=1)
    assert set(repairs) == {0, 1, 2}


def test_an_interrupted_actor_runs_its_clean_up() -> None:
    seen = []

    def build(world: World) -> Plan:
        words = world.segment(64, "m").words

        def job() -> None:
            try:
                words[0] = 1
                words[0] = 2
            except Interrupted:
                seen.append(words[0])
                raise

        return Plan({"a": job}, lambda: None, nervous=["a"])

    assert explore(build, preemptions=0, faults=1) == 3
    assert sorted(seen) == [0, 1]


class CommitsFirst(TaskDeque):
    """Moves the tail before the payload is there, and does not lock."""

    __slots__ = ()

    def push_tail(self, entries: list[Entry]) -> bool:  # type: ignore[override]
        words, data = self._words, self._data
        tail = words[self.tail_word]
        if tail - words[self.head_word] + len(entries) > self._capacity:
            return False
        words[self.tail_word] = tail + len(entries)
        for task, payload, flags in entries:
            slot = self._slots + (tail & self._mask) * SLOT_WORDS
            start = slot * WORD + SLOT_HEADER_BYTES
            data[start : start + len(payload)] = payload
            words[slot + S_SIZE] = len(payload) | flags
            words[slot] = task
            tail += 1
        return True


def test_a_commit_before_the_payload_without_the_lock_is_found() -> None:
    def build(world: World) -> Plan:
        return scenarios.deque_with_everybody(world, CommitsFirst)

    with pytest.raises(ScheduleError, match="replay with") as found:
        explore(build, preemptions=1)
    with pytest.raises(ScheduleError):
        replay(build, found.value.schedule)


def test_a_deque_without_a_lock_is_found() -> None:
    with pytest.raises(ScheduleError, match="replay with"):
        explore(lambda world: scenarios.deque_with_everybody(world, lock=NoLock), preemptions=1)


class ReusesAtOnce(Outbox):
    """Publishes the head before the copy is made, and copies without the lock."""

    __slots__ = ()

    def peek(self) -> bytes:
        words, size = self._words, self._size
        head, tail = self.consumed_tail, words[self.tail_word]
        words[self._head] = tail
        ring = [
            self._data[self._ring + at % size : self._ring + at % size + 8] for at in range(head, tail, 8)
        ]
        self._copied = tail
        return b"".join(ring)


def test_an_outbox_that_makes_room_before_it_has_copied_is_found() -> None:
    with pytest.raises(ScheduleError):
        explore(lambda world: scenarios.outbox_that_fills(world, ReusesAtOnce))


def test_an_arena_without_a_lock_is_found() -> None:
    with pytest.raises(ScheduleError):
        explore(lambda world: scenarios.arena_of_two(world, lock=NoLock), preemptions=1)


def test_words_are_what_the_structures_ask_for() -> None:
    def build(world: World) -> Plan:
        words: Words = world.segment(64, "m").words
        return Plan({"a": lambda: words[0]}, lambda: None)

    assert explore(build) == 1
