"""Every schedule of at most two preemptions, for each structure, at capacity 4."""

from __future__ import annotations

import pytest

from tests.interleave import scenarios
from tests.interleave.explorer import explore

SCENARIOS = {
    "lane": (scenarios.deque_with_everybody, 4000),
    "full lane": (scenarios.deque_that_fills, 2000),
    "spawn deque": (scenarios.spawn_deque, 40),
    "take back": (scenarios.deque_with_a_doubter, 500),
    "outbox": (scenarios.outbox_that_fills, 150),
    "arena": (scenarios.arena_of_two, 800),
    "full arena": (scenarios.arena_that_is_full, 300),
}
"""What is explored, and how many schedules there are at least."""


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_schedule_of_two_preemptions(name: str) -> None:
    build, at_least = SCENARIOS[name]
    assert explore(build, preemptions=2) >= at_least
