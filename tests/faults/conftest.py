"""A time limit for every test here, and executors that are always ended."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import repartir

Make = Callable[..., repartir.Executor]


@pytest.fixture
def make() -> Iterator[Make]:
    """A factory of executors; those that the test leaves open are shut down after it."""
    made: list[repartir.Executor] = []

    def factory(max_workers: int = 2, **options: Any) -> repartir.Executor:
        made.append(repartir.Executor(max_workers, mp_context="fork", **options))
        return made[-1]

    yield factory
    for executor in made:
        executor.shutdown(cancel_futures=True)
    made.clear()
    gc.collect()
