"""Random workers are killed while tasks run: with retries nothing is lost, without them a death costs one task at most."""

from __future__ import annotations

import pytest

from bench.faults import RETRIES, chaos


def test_with_retries_every_task_settles_once() -> None:
    _, failed, kills = chaos(2, 600, kills=True, retries=RETRIES)
    assert failed == 0
    assert kills >= 2


def test_without_retries_a_death_costs_at_most_its_own_task() -> None:
    _, failed, kills = chaos(2, 600, kills=True, retries=0)
    assert failed <= kills


@pytest.mark.slow
def test_for_longer() -> None:
    _, failed, kills = chaos(2, 20_000, kills=True, retries=RETRIES)
    assert failed == 0
    assert kills >= 50
