"""Which task of a name is the next to be posted, and when: decisions without a pump."""

from __future__ import annotations

from typing import Any

import pytest

from repartir.ledger import Record
from repartir.limits import Limits
from repartir.policy import Policy, Priority
from repartir.shm.layout import AT_HIGH, AT_LOW


def record(task: int, priority: str = "normal", most: int = 2) -> Record[Any]:
    policy = Policy(priority=Priority(priority), limit=("licence", most))
    return Record(task, None, b"", policy.flag, None, None, policy)


def wait(limits: Limits, *records: Record[Any]) -> None:
    for each in records:
        limits.queue_of(each).append(each)


def post(limits: Limits) -> list[int]:
    """Post what can be posted."""
    posted = []
    (limit,) = limits.all()
    while (queue := limit.next()) is not None:
        limits.hold(queue[0])
        posted.append(queue.popleft().task_id)
        limit.turn += 1
    return posted


def test_as_many_as_have_places_by_priority() -> None:
    limits = Limits()
    records = [record(1, "low"), record(2), record(3, "high"), record(4, "high"), record(5)]
    wait(limits, *records)
    assert post(limits) == [3, 4]
    assert limits.let_go(records[2], 3)
    assert limits.let_go(records[2], 3), "it may be repeated"
    assert post(limits) == [2]
    limits.let_go(records[3], 4)
    limits.let_go(records[1], 2)
    assert post(limits) == [5, 1]
    assert not limits.let_go(records[4], 5)


def test_none_waits_for_ever_while_higher_ones_keep_coming() -> None:
    limits = Limits()
    wait(limits, record(1, "low", 1), record(2, "normal", 1))
    came = []
    for task in range(3, 40):
        high = record(task, "high", 1)
        wait(limits, high)
        came += post(limits)
        limits.let_go(high, came[-1])
    assert came.index(2) < came.index(1) < 16


def test_who_was_interrupted_is_the_next() -> None:
    """It holds a place, and waits still."""
    limits = Limits()
    low = record(1, "low", 1)
    wait(limits, low, record(2, "high", 1))
    limits.hold(low)
    (limit,) = limits.all()
    assert limit.next() is limit.waiting[AT_LOW]
    assert post(limits) == [1]
    assert limit.next() is None
    limits.let_go(low, 1)
    assert limit.next() is limit.waiting[AT_HIGH]


def test_a_place_is_held_until_the_member_is_dead() -> None:
    limits = Limits()
    first, second = record(1, most=1), record(2, most=1)
    wait(limits, first, second)
    assert post(limits) == [1]
    token = limits.hold_until_dead(first)
    limits.let_go(first, first.task_id)
    assert post(limits) == []
    limits.let_go(first, token)
    assert post(limits) == [2]


def test_the_hint() -> None:
    limits = Limits()
    limit = limits.admit(("licence", 1))
    assert not limit.may_post()
    wait(limits, record(1, most=1))
    assert limit.may_post()
    limit.stuck = True
    assert not limit.may_post()
    limit.stuck = False
    limit.held.add(7)
    assert not limit.may_post()
    assert [len(queue) for queue in limits.queues()] == [1, 0, 0]


def test_one_name_has_one_number() -> None:
    limits = Limits()
    assert limits.admit(("a", 1)) is limits.admit(("a", 1))
    assert limits.admit(("b", 2)).most == 2
    with pytest.raises(ValueError, match="limit 'a' is 1 in this executor already, so it cannot be 2"):
        limits.admit(("a", 2))
