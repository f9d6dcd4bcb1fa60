"""Random generators in workers: no two processes draw from one stream, unless the user seeds them so."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from . import tasks
from .conftest import Make
from .kinds import control_only, every_start, processes, workers
from .sync import LIMIT_S, BellKeeper, GateKeeper

Draws = list[tuple[int, float, float]]


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """The client's generators stand at a known place, which a fork copies."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(7)
    np.random.seed(7)
    yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)


def drawn_by_two_workers(make: Make, bell: BellKeeper, gate: GateKeeper) -> Draws:
    ex = make(2)
    futures = [ex.submit(tasks.draw, bell.bell, gate.gate) for _ in range(2)]
    bell.hear(), bell.hear()
    gate.open()
    draws = [f.result(LIMIT_S) for f in futures]
    ex.shutdown()
    assert len({pid for pid, _, _ in draws}) == 2
    return draws


@processes
def test_random_differs_between_workers_and_client(make: Make, bell: BellKeeper, gate: GateKeeper) -> None:
    draws = drawn_by_two_workers(make, bell, gate)
    assert len({value for _, value, _ in draws} | {random.random()}) == 3


@every_start
@workers
def test_numpy_random_differs_between_workers_and_client(
    make: Make, bell: BellKeeper, gate: GateKeeper
) -> None:
    draws = drawn_by_two_workers(make, bell, gate)
    assert len({value for _, _, value in draws} | {float(np.random.random())}) == 3


@control_only
def test_the_control_shares_the_numpy_stream(make: Make, bell: BellKeeper, gate: GateKeeper) -> None:
    """So the test above would notice."""
    draws = drawn_by_two_workers(make, bell, gate)
    assert len({value for _, _, value in draws} | {float(np.random.random())}) == 1


@workers
def test_the_clients_generators_are_left_alone(make: Make) -> None:
    with make(1) as ex:
        ex.submit(tasks.draw_numpy).result(LIMIT_S)
    values = random.random(), float(np.random.random())
    random.seed(7)
    np.random.seed(7)
    assert values == (random.random(), float(np.random.random()))


@workers
def test_replaced_workers_draw_anew(make: Make) -> None:
    with make(1, max_tasks_per_child=1) as ex:
        assert len({ex.submit(tasks.draw_numpy).result(LIMIT_S) for _ in range(4)}) == 4


@workers
def test_executors_made_one_after_another_draw_anew(make: Make) -> None:
    seen = set()
    for _ in range(2):
        with make(1) as ex:
            seen.add(ex.submit(tasks.draw_numpy).result(LIMIT_S))
    assert len(seen) == 2


@processes
def test_a_seed_set_in_the_initializer_holds(make: Make) -> None:
    with make(1, initializer=tasks.seed_numpy, initargs=(5,)) as ex:
        drawn = [ex.submit(tasks.draw_numpy).result(LIMIT_S) for _ in range(3)]
    np.random.seed(5)
    assert drawn == [float(np.random.random()) for _ in range(3)]


@processes
def test_a_seed_set_in_a_task_holds_for_the_next(make: Make) -> None:
    """Workers are reseeded at their start, not at every task."""
    with make(1) as ex:
        ex.submit(tasks.seed_numpy, 5).result(LIMIT_S)
        drawn = [ex.submit(tasks.draw_numpy).result(LIMIT_S) for _ in range(3)]
    np.random.seed(5)
    assert drawn == [float(np.random.random()) for _ in range(3)]
