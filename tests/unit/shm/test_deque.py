from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from repartir.errors import InternalError
from repartir.shm.deque import Entry, TaskDeque
from repartir.shm.layout import (
    CALL_MANY,
    D_HEAD_W,
    D_TAIL_W,
    DEQUE_HEADER_BYTES,
    IN_BLOCK,
    S_SIZE,
    SLOT_BYTES,
    SLOT_PAYLOAD_BYTES,
    SLOT_WORDS,
    WORD,
)
from tests.shared import LOCK_KINDS, Deadly, Forked, Fuse, Interrupted, Room, room

CAPACITY = 8


@pytest.fixture(params=LOCK_KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Room]:
    with room(request.param) as made:
        yield made
    request.node.funcargs.clear()  # they hold the mapping, and the guard looks before pytest lets them go


@pytest.fixture
def deque(place: Room) -> TaskDeque:
    return place.deque(CAPACITY)


@pytest.fixture
def claim(place: Room) -> int:
    return place.word(0)


def entry(task: int) -> Entry:
    return task, b"payload of %d" % task, 0


def push(deque: TaskDeque, *tasks: int) -> bool:
    return deque.push_tail([entry(task) for task in tasks])


def drain(pop: Callable[[int], Entry | None], claim: int) -> list[int]:
    tasks = []
    while got := pop(claim):
        assert got == entry(got[0])
        tasks.append(got[0])
    return tasks


def test_oldest_first_from_the_head(deque: TaskDeque, claim: int) -> None:
    assert push(deque, 1, 2, 3)
    assert drain(deque.pop_head, claim) == [1, 2, 3]
    assert deque.pop_head(claim) is None


def test_newest_first_from_the_tail(deque: TaskDeque, claim: int) -> None:
    assert push(deque, 1, 2, 3)
    assert drain(deque.pop_tail, claim) == [3, 2, 1]
    assert deque.pop_tail(claim) is None


def test_both_ends(deque: TaskDeque, claim: int) -> None:
    push(deque, 1, 2, 3, 4)
    assert deque.pop_tail(claim) == entry(4)
    assert deque.pop_head(claim) == entry(1)
    push(deque, 5)
    assert drain(deque.pop_head, claim) == [2, 3, 5]


def test_taking_writes_the_claim(place: Room, deque: TaskDeque) -> None:
    push(deque, 11, 12, 13)
    deque.pop_head(place.word(3))
    deque.pop_tail(place.word(4))
    assert place.words[place.word(3)] == 11
    assert place.words[place.word(4)] == 13
    deque.pop_head(place.word(3))
    assert deque.pop_head(place.word(4)) is None
    assert place.words[place.word(4)] == 13, "an empty deque leaves the claim alone"


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, SLOT_PAYLOAD_BYTES - 1, SLOT_PAYLOAD_BYTES])
def test_payload_and_flags_come_back(deque: TaskDeque, claim: int, size: int) -> None:
    entries = [
        (1, os.urandom(size), IN_BLOCK),
        (2**63 - 1, os.urandom(size), CALL_MANY | IN_BLOCK),
        (3, os.urandom(size), 0),
    ]
    deque.push_tail(entries)
    assert [deque.pop_head(claim) for _ in entries] == entries


def test_old_payload_does_not_show_behind_a_short_one(deque: TaskDeque, claim: int) -> None:
    for _ in range(CAPACITY):
        deque.push_tail([(1, b"x" * SLOT_PAYLOAD_BYTES, CALL_MANY)])
        deque.pop_head(claim)
    deque.push_tail([(2, b"ab", 0)])
    assert deque.pop_head(claim) == (2, b"ab", 0)


def test_full(deque: TaskDeque, claim: int) -> None:
    assert push(deque, *range(1, CAPACITY + 1))
    assert deque.room() == 0
    assert not push(deque, 99)
    assert push(deque), "nothing always fits"
    deque.pop_head(claim)
    assert push(deque, 99)
    assert drain(deque.pop_head, claim) == [*range(2, CAPACITY + 1), 99]


def test_all_or_nothing(deque: TaskDeque, claim: int) -> None:
    push(deque, *range(1, CAPACITY))
    assert deque.room() == 1
    assert not push(deque, 50, 51)
    assert deque.size_hint() == CAPACITY - 1
    assert drain(deque.pop_head, claim) == list(range(1, CAPACITY))
    assert not push(deque, *range(1, CAPACITY + 2))


@pytest.mark.parametrize("count", range(1, CAPACITY + 1))
def test_wraps_around_from_everywhere(deque: TaskDeque, claim: int, count: int) -> None:
    task = 0
    for _ in range(3 * CAPACITY):
        tasks = list(range(task + 1, task + count + 1))
        task += count
        assert push(deque, *tasks)
        deque.check()
        assert drain(deque.pop_head, claim) == tasks


def test_hints(deque: TaskDeque, claim: int) -> None:
    assert (deque.size_hint(), deque.tail, deque.room(), deque.is_empty()) == (0, 0, CAPACITY, True)
    push(deque, 1, 2)
    assert (deque.size_hint(), deque.tail, deque.room(), deque.is_empty()) == (2, 2, CAPACITY - 2, False)
    assert not deque.taken(0)
    deque.pop_head(claim)
    assert deque.taken(0)
    assert not deque.taken(1)
    deque.pop_tail(claim)
    assert (deque.size_hint(), deque.tail, deque.room(), deque.is_empty()) == (0, 1, CAPACITY, True)


@pytest.mark.parametrize("gone", range(5))
def test_removed_entry_is_skipped_from_both_ends(place: Room, deque: TaskDeque, gone: int) -> None:
    claim = place.word(0)
    for pop, ordered in ((deque.pop_head, [1, 2, 3, 4, 5]), (deque.pop_tail, [5, 4, 3, 2, 1])):
        first = deque.tail
        push(deque, 1, 2, 3, 4, 5)
        assert deque.remove(first + gone, gone + 1)
        assert not deque.remove(first + gone, gone + 1), "it is gone already"
        deque.check()
        assert drain(pop, claim) == [task for task in ordered if task != gone + 1]


def test_deque_of_removed_entries_only(deque: TaskDeque, claim: int) -> None:
    for pop in (deque.pop_head, deque.pop_tail):
        first = deque.tail
        push(deque, 1, 2, 3)
        assert all(deque.remove(first + nth, nth + 1) for nth in range(3))
        assert pop(claim) is None
        assert deque.is_empty()


def test_remove_takes_back_only_what_waits_there(deque: TaskDeque, claim: int) -> None:
    push(deque, 1, 2, 3)
    assert not deque.remove(1, 3), "another task is there"
    assert not deque.remove(3, 4), "nothing was pushed there yet"
    deque.pop_head(claim)
    assert not deque.remove(0, 1), "it was claimed"
    deque.pop_tail(claim)
    assert not deque.remove(2, 3), "it was claimed"
    assert deque.remove(1, 2)
    assert deque.pop_head(claim) is None


def test_positions_survive_a_wrap(deque: TaskDeque, claim: int) -> None:
    for round_ in range(2 * CAPACITY):
        position = deque.tail
        push(deque, round_ + 1, round_ + 1001)
        assert deque.remove(position + 1, round_ + 1001)
        assert not deque.remove(position + 1 - CAPACITY, round_ + 1001), "that was a lap ago"
        assert drain(deque.pop_head, claim) == [round_ + 1]


def set_word(place: Room, word: int, value: int) -> None:
    place.words[word] = value


@pytest.mark.parametrize(("head", "tail"), [(1, 0), (0, CAPACITY + 1), (5, 5 + 2 * CAPACITY)])
def test_check_refuses_impossible_ends(place: Room, deque: TaskDeque, head: int, tail: int) -> None:
    set_word(place, D_HEAD_W, head)
    set_word(place, D_TAIL_W, tail)
    with pytest.raises(InternalError, match="deque with head"):
        deque.check()


def test_impossible_size_is_refused(place: Room, deque: TaskDeque, claim: int) -> None:
    push(deque, 1)
    set_word(place, DEQUE_HEADER_BYTES // WORD + S_SIZE, SLOT_PAYLOAD_BYTES + 1)
    with pytest.raises(InternalError):
        deque.check()
    for pop in (deque.pop_head, deque.pop_tail):
        with pytest.raises(InternalError):
            pop(claim)
    assert place.words[claim] == 0, "what cannot be read is not claimed"
    assert deque.size_hint() == 1


def test_slot_is_as_large_as_the_layout_says(deque: TaskDeque, place: Room) -> None:
    deque.push_tail([(1, b"\xff" * SLOT_PAYLOAD_BYTES, 0)])
    first = DEQUE_HEADER_BYTES // WORD
    assert place.words[first + SLOT_WORDS - 1] == 2**64 - 1
    assert place.words[first + SLOT_WORDS] == 0
    assert SLOT_WORDS * WORD == SLOT_BYTES


def test_repair_voids_claims_on_what_still_waits_at_an_end(place: Room, deque: TaskDeque) -> None:
    push(deque, 1, 2, 3)
    for row, task in enumerate((1, 2, 3, 9)):
        set_word(place, place.word(row), task)
    deque.lock.repair()
    assert [place.words[place.word(row)] for row in range(4)] == [0, 2, 0, 9]


def test_repair_of_an_empty_deque_voids_nothing(place: Room, deque: TaskDeque, claim: int) -> None:
    push(deque, 1)
    deque.pop_head(claim)
    deque.lock.repair()
    assert place.words[claim] == 1


def test_removed_entries_match_no_claim(place: Room, deque: TaskDeque, claim: int) -> None:
    push(deque, 1, 2)
    deque.remove(0, 1)
    set_word(place, claim, 0)
    deque.lock.repair()
    assert place.words[claim] == 0
    assert drain(deque.pop_head, claim) == [2]


State = tuple[int, tuple[int, ...]]
"""The claim of row 0 and the tasks that wait, oldest first."""
Act = Callable[[TaskDeque, int], object]

ACTS: dict[
    str, tuple[Act, State]
] = {  # what is done to a deque of 1, 2, 3 whose 2 is removed; the claim is 77
    "push one": (lambda deque, _: push(deque, 4), (77, (1, 3, 4))),
    "push many": (lambda deque, _: push(deque, 4, 5, 6), (77, (1, 3, 4, 5, 6))),
    "pop head": (TaskDeque.pop_head, (1, (3,))),
    "pop tail": (TaskDeque.pop_tail, (3, (1,))),
    "remove": (lambda deque, _: deque.remove(deque.tail - 1, 3), (77, (1,))),
    "is empty": (lambda deque, _: deque.is_empty(), (77, (1, 3))),
    "pop two heads": (lambda deque, claim: (deque.pop_head(claim), deque.pop_head(claim)), (3, ())),
}


def prepared(place: Room, words: object = None) -> TaskDeque:
    """A deque at its first wrap, holding 1, 2 and 3, of which 2 was removed."""
    deque = place.deque(8, words=words)
    for word in (D_HEAD_W, D_TAIL_W):
        place.words[word] = 7
    push(deque, 1, 2, 3)
    deque.remove(deque.tail - 2, 2)
    place.words[place.word(0)] = 77
    return deque


def state(place: Room, deque: TaskDeque) -> State:
    claimed = place.words[place.word(0)]
    deque.check()
    return claimed, tuple(drain(deque.pop_head, place.word(1)))


def allowed(act: str) -> set[State]:
    """What may be found after `act` was cut off: as before (a claim that was begun is void), or done."""
    steps: set[State] = {(77, (1, 3)), (0, (1, 3)), ACTS[act][1]}
    if act == "pop two heads":
        steps |= {(1, (3,)), (0, (3,))}
    return steps


@pytest.mark.parametrize("act", ACTS)
def test_interrupted_at_any_word(place: Room, act: str) -> None:
    """An exception is a death without the dying: the repair that a death calls for leaves the old or the new state."""
    for nth in range(100):
        fuse = Fuse(place.words)
        deque = prepared(place, fuse)
        fuse.left = nth
        try:
            ACTS[act][0](deque, place.word(0))
        except Interrupted:
            deque.lock.repair()
            assert state(place, deque) in allowed(act), f"cut off at access {nth}"
        else:
            assert fuse.left >= 0, "the last round is not cut off"
            fuse.left = -1
            assert state(place, deque) == ACTS[act][1]
            return
    raise AssertionError(f"{act} needs more than 100 accesses")


@pytest.mark.parametrize("act", ACTS)
def test_killed_at_any_word(place: Room, act: str) -> None:
    """Whoever takes the lock next repairs."""
    for nth in range(100):
        deadly = Deadly(place.words)
        deque = prepared(place, deadly)

        def child(deque: TaskDeque = deque, deadly: Deadly = deadly, nth: int = nth) -> None:
            deadly.left = nth
            ACTS[act][0](deque, place.word(0))
            assert deadly.left >= 0

        status = Forked(child).wait()
        deque.is_empty()
        found = state(place, deque)
        if status == 0:
            assert found == ACTS[act][1]
            return
        assert status == -signal.SIGKILL
        assert found in allowed(act), f"killed at access {nth}"
    raise AssertionError(f"{act} needs more than 100 accesses")


def test_two_processes_see_one_deque(place: Room, deque: TaskDeque, claim: int) -> None:
    push(deque, 1, 2)
    Forked(partial(push, deque, 3)).join()
    Forked(deque.pop_head, place.word(1)).join()
    assert place.words[place.word(1)] == 1
    assert drain(deque.pop_head, claim) == [2, 3]


def test_trimming_lets_go_of_what_was_taken_back_at_the_head(deque: TaskDeque, claim: int) -> None:
    push(deque, *range(1, CAPACITY + 1))
    for position in (0, 1, 3):
        assert deque.remove(position, position + 1)
    assert deque.room() == 0
    assert deque.trim() == deque.room() == 2
    assert deque.trim() == 2
    deque.check()
    assert drain(deque.pop_head, claim) == [3, 5, 6, 7, 8]
    assert deque.trim() == CAPACITY
