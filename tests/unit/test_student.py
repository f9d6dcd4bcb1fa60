from __future__ import annotations

from typing import Any

import pytest

from repartir.student import two_sided

CONFIDENCES = [0.001, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999999, 1 - 1e-9]
FREEDOMS = [*range(1, 40), 100, 333, 999, 1000, 1001, 5000, 10**5, 10**7, 10**9]


@pytest.fixture(scope="module")
def scipy() -> Any:
    """Loaded in no test's own time."""
    return pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_it_is_scipys(confidence: float, scipy: Any) -> None:
    expected = -scipy.t.ppf((1 - confidence) / 2, FREEDOMS)
    assert [two_sided(confidence, freedom) for freedom in FREEDOMS] == pytest.approx(expected, rel=1e-10)


def test_a_printed_table() -> None:
    table = {1: 12.706, 2: 4.303, 5: 2.571, 10: 2.228, 30: 2.042, 100: 1.984}
    assert {freedom: round(two_sided(0.95, freedom), 3) for freedom in table} == table
    assert round(two_sided(0.95, 10**9), 6) == 1.959964
