from __future__ import annotations

import random
import sys
from collections.abc import Iterator

import pytest

from tests.shared import LOCK_KINDS, ArenaRoom, Family, Room, arena_room, family, room


@pytest.fixture(params=LOCK_KINDS)
def lock_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture(params=[pytest.param(1, id="fast"), pytest.param(20, id="long", marks=pytest.mark.slow)])
def scale(request: pytest.FixtureRequest) -> int:
    """How many times as much the `slow` variant does."""
    times: int = request.param
    return times


@pytest.fixture
def place(request: pytest.FixtureRequest, lock_kind: str) -> Iterator[Room]:
    with room(lock_kind) as made:
        yield made
    request.node.funcargs.clear()  # they hold the mapping, and the guard looks before pytest lets them go


@pytest.fixture
def arena_place(request: pytest.FixtureRequest, lock_kind: str) -> Iterator[ArenaRoom]:
    with arena_room(1 << 20, lock_kind) as made:
        yield made
    request.node.funcargs.clear()


@pytest.fixture
def children() -> Iterator[Family]:
    with family() as made:
        yield made


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    """The same numbers in each run of a test."""
    return random.Random(request.node.name)


@pytest.fixture(autouse=True)
def hasty() -> Iterator[None]:
    """Threads change places often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)
