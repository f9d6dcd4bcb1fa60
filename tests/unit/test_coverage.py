"""That intervals hold the true mean as often as they say: 2,000 runs, so a true 95 % is between 93.5 and 96.5 here."""

from __future__ import annotations

import pytest

from bench.coverage import CASES, Case, coverage
from repartir import SerialExecutor


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case.name)
def test_intervals_of_so_many_samples(case: Case) -> None:
    share, _ = coverage(SerialExecutor(), case, {"samples": 2_000})
    assert 0.935 <= share <= 0.965


@pytest.mark.slow
def test_a_skewed_one_shows_that_the_test_would_notice() -> None:
    share, _ = coverage(SerialExecutor(), CASES[3], {"samples": 100}, replications=500)
    assert share < 0.935
