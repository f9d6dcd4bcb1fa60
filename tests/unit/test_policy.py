"""What may be asked for a task: decisions without a clock, chance from a generator that the test gives."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest

from repartir.policy import LONGEST_BACKOFF_S, MOST_RETRIES, NO_POLICY, ORDERS, TURNS, UNSET, Policy, Priority
from repartir.shm.layout import AT_HIGH, AT_LOW, AT_NORMAL, HIGH, LEVELS, LOW, level_of


class Always(random.Random):
    """Draws the same each time."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def random(self) -> float:
        return self.value


def test_a_back_off_doubles_up_to_a_minute() -> None:
    policy = Policy(retries=100, backoff=0.5)
    delays = [policy.delay(failures, Always(0.0)) for failures in range(1, 12)]
    assert delays[:8] == [0.5, 1, 2, 4, 8, 16, 32, LONGEST_BACKOFF_S]
    assert set(delays[7:]) == {LONGEST_BACKOFF_S}
    assert policy.delay(10**6, Always(0.0)) == LONGEST_BACKOFF_S


def test_it_is_varied_by_half() -> None:
    policy = Policy(backoff=1.0)
    assert policy.delay(1, Always(0.0)) == 1.0
    assert policy.delay(1, Always(1.0)) == 0.5
    delays = [policy.delay(1, random.Random(seed)) for seed in range(200)]
    assert 0.5 <= min(delays) < 0.55
    assert 0.95 < max(delays) <= 1.0


def test_none_is_none() -> None:
    assert Policy(backoff=0).delay(5, Always(0.3)) == 0


@pytest.mark.parametrize(
    ("bad", "error"), [(-1.0, ValueError), (float("inf"), ValueError), ("soon", TypeError)]
)
def test_a_function_that_returns_nonsense_is_told_so(bad: float, error: type[Exception]) -> None:
    with pytest.raises(error, match="what backoff returns"):
        Policy(backoff=lambda _: bad).delay(1, Always(0.0))


def test_seconds_are_floats_whatever_numbers_are_given() -> None:
    half = Fraction(1, 2)
    policy = Policy(timeout=half, warn_after=Fraction(1, 4), grace=np.float32(2), backoff=half)  # type: ignore[arg-type]
    assert (policy.timeout, policy.warn_after, policy.grace, policy.backoff) == (0.5, 0.25, 2.0, 0.5)
    values = (policy.timeout, policy.warn_after, policy.grace, policy.backoff)
    assert {type(value) for value in values} == {float}
    assert type(Policy(backoff=lambda _: half).delay(1, Always(0.0))) is float  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("number", [10**400, Fraction(1, 10**400)])
def test_what_no_float_can_hold_is_no_time(number: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        Policy(timeout=number)


def test_retries_are_counted_and_only_for_what_is_worth_it() -> None:
    policy = Policy(retries=2, retry_on=(ValueError,))
    assert [policy.retries_after(ValueError(), failures) for failures in (1, 2, 3)] == [True, True, False]
    assert not policy.retries_after(KeyError(), 1)
    assert not NO_POLICY.retries_after(ValueError(), 1)


def test_what_is_not_given_stays() -> None:
    policy = Policy(retries=2, timeout=3.0)
    assert policy.changed(retries=UNSET, timeout=UNSET) is policy
    changed = policy.changed(retries=0, timeout=UNSET, name="fit")
    assert (changed.retries, changed.timeout, changed.name) == (0, 3.0, "fit")
    assert policy.changed(timeout=None).timeout is None
    assert policy.changed(memory_limit="2KiB").memory_limit == 2048


def test_who_must_be_looked_after() -> None:
    assert not NO_POLICY.is_watched
    assert Policy(timeout=3.0, warn_after=1.0).look_after == 1.0
    assert Policy(timeout=0.1, memory_limit=5).look_after == 0.1
    assert Policy(timeout=3.0).one_by_one
    assert Policy(idempotent=True).one_by_one
    assert not Policy(name="fit").one_by_one


def test_so_many_retries_as_there_are_attempts() -> None:
    assert Policy(retries=MOST_RETRIES).retries == MOST_RETRIES == 65_534
    with pytest.raises(ValueError, match="retries must be at most 65534"):
        Policy(retries=MOST_RETRIES + 1)


def test_integers_of_any_kind_are_taken_as_such() -> None:
    policy = Policy(retries=np.int64(2), poison_limit=np.int8(1), memory_limit=np.uint64(5))  # type: ignore[arg-type]
    assert [type(value) for value in (policy.retries, policy.poison_limit, policy.memory_limit)] == [int] * 3


def test_each_priority_is_first_at_some_turn() -> None:
    assert len(ORDERS) == TURNS
    assert all(sorted(order) == list(LEVELS) for order in ORDERS)
    firsts = [order[0] for order in ORDERS]
    assert (firsts.count(AT_NORMAL), firsts.count(AT_LOW)) == (1, 1)
    assert firsts[:3] == [AT_HIGH] * 3


def test_a_priority_is_a_flag() -> None:
    flags = [Policy(priority=priority).flag for priority in ("high", Priority.NORMAL, "low")]  # type: ignore[arg-type]
    assert flags == [HIGH, 0, LOW]
    assert [level_of(flag) for flag in flags] == [AT_HIGH, AT_NORMAL, AT_LOW]
    assert Policy(priority="normal") == NO_POLICY  # type: ignore[arg-type]


def test_a_limit_makes_items_tasks_of_their_own() -> None:
    policy = NO_POLICY.changed(limit=("licence", 2))
    assert policy.one_by_one
    assert policy.why_one_by_one == "limit"
    assert policy.changed(limit=None) == NO_POLICY
    assert not Policy(priority=Priority.HIGH).one_by_one
