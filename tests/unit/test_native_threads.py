"""Limits for the threads of numeric libraries, each in a worker of its own, which takes them with it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import pytest

from repartir import Executor
from repartir.native_threads import VARIABLES, limit_threads


def seen() -> tuple[list[str | None], set[tuple[str, int]]]:
    """The environment's limits, and the threads of what is loaded."""
    import threadpoolctl

    loaded = {(pool["user_api"], pool["num_threads"]) for pool in threadpoolctl.threadpool_info()}
    return [os.environ.get(name) for name in VARIABLES], loaded


def seen_with(initializer: Callable[[], None]) -> tuple[list[str | None], set[tuple[str, int]]]:
    with Executor(1, "fork", initializer=initializer) as ex:
        return ex.submit(seen).result(20)


@pytest.fixture(autouse=True)
def _unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn.svm")  # loads BLAS and OpenMP
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_what_is_loaded_and_what_is_to_come() -> None:
    environment, loaded = seen_with(functools.partial(limit_threads, 1))
    assert environment == ["1"] * len(VARIABLES)
    assert {count for _, count in loaded} == {1}


def test_what_the_environment_says_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    before = seen_with(lambda: None)[1]
    environment, loaded = seen_with(functools.partial(limit_threads, 1))
    assert environment == ["2"] + ["1"] * (len(VARIABLES) - 1)
    assert loaded == before


def test_unless_it_is_to_hold_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    environment, loaded = seen_with(functools.partial(limit_threads, 1, always=True))
    assert environment == ["1"] * len(VARIABLES)
    assert {count for _, count in loaded} == {1}
