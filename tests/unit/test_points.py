from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import repartir
from repartir import points
from repartir.points import Antithetic, Plan, Sobol, Streams, batches_of


@pytest.fixture(scope="module")
def scipy() -> Any:
    """Loaded in no test's own time."""
    return pytest.importorskip("scipy.stats")


PLANS = [Streams(None), Streams(100), Antithetic(None, 2), Antithetic(10, 2), Sobol(2, None), Sobol(2, 8)]


def sizes(plan: Plan, count: int) -> list[int]:
    return [plan.start(batch + 1) - plan.start(batch) for batch in range(count)]


def test_batches_are_as_promised() -> None:
    assert sizes(Streams(None), 1200) == [min(2 ** (i // 64), 65_536) for i in range(1200)]
    assert sizes(Antithetic(None, 1), 1200) == [2 * min(2 ** (i // 64), 32_768) for i in range(1200)]
    assert sizes(Streams(7), 5) == [7] * 5
    assert sizes(Antithetic(8, 1), 5) == [8] * 5
    assert sizes(Sobol(1, None), 64) == [64] * 32 + [128] * 16 + [256] * 16
    assert sizes(Sobol(1, 8), 16) == [8] * 16


@pytest.mark.parametrize("plan", PLANS)
def test_batches_cover_any_number_of_samples(plan: Plan) -> None:
    for samples in (1, 2, 63, 64, 65, 5000, 10**7):
        count = batches_of(plan, samples)
        assert plan.start(count - 1) < samples <= plan.start(count)


@pytest.mark.parametrize("plan", PLANS)
def test_looks_are_half_as_many_samples_apart(plan: Plan) -> None:
    looks = list(itertools.islice(plan.looks(), 20))
    starts = [plan.start(look) for look in looks]
    assert looks == sorted(set(looks))
    for before, after in itertools.pairwise(starts):
        assert 1.5 * before <= after
        assert plan.scrambled or after <= 1.5 * before + plan.start(batches_of(plan, after)) - plan.start(
            batches_of(plan, after) - 1
        )


def test_antithetic_points_are_partners_in_the_open_cube() -> None:
    u = points.antithetic(repartir.rng(1), 1000, 3)
    assert u.shape == (1000, 3)
    assert np.array_equal(u[:500] + u[500:], np.ones((500, 3)))
    assert u.min() > 0
    assert u.max() < 1


def test_sobol_points_go_on_where_they_ended_and_are_in_the_open_cube(scipy: Any) -> None:
    whole = points.sobol(repartir.rng(1), 256, 3)
    assert np.array_equal(points.sobol(repartir.rng(1), 128, 3, begin=128), whole[128:])
    assert whole.min() > 0
    assert whole.max() < 1
    assert not np.array_equal(points.sobol(repartir.rng(2), 256, 3), whole)


def test_what_a_plan_draws_is_what_its_replay_says(scipy: Any) -> None:
    for plan, batch in itertools.product([Antithetic(None, 2), Sobol(2, None)], [0, 33, 70]):
        n = sizes(plan, batch + 1)[-1]
        (call,) = plan.calls(7, batch, n)
        replayed = eval(plan.replay(7, batch, n), {"repartir": repartir, "fn": lambda u: u})
        assert np.array_equal(call.args[0], replayed)
