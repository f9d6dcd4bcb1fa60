"""The public names are a promise: this list changes on purpose or not at all."""

from __future__ import annotations

import tomllib
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from pickle import PicklingError

import pytest

import repartir
from repartir import errors

NAMES = [
    "Estimate",
    "Executor",
    "Future",
    "Interrupted",
    "JournalError",
    "JournalMismatch",
    "MemoryLimitExceeded",
    "NestingTooDeep",
    "PoisonTask",
    "Priority",
    "RepartirError",
    "SerialExecutor",
    "SharedArray",
    "SharedMemoryFull",
    "SweepResult",
    "SweepRow",
    "TaskNotSerializable",
    "TaskTimeout",
    "WorkerDied",
    "__version__",
    "checkpoint",
    "current_executor",
    "grid",
    "halving",
    "latin_hypercube",
    "monte_carlo",
    "restored",
    "rng",
    "sampled",
    "shared",
    "sweep",
    "task_rng",
    "worker_state",
    "zipped",
]


def test_all_is_the_promised_list() -> None:
    assert sorted(repartir.__all__) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_there(name: str) -> None:
    assert getattr(repartir, name) is not None


def test_each_error_is_also_in_its_module() -> None:
    for name in ("RepartirError", "WorkerDied", "PoisonTask", "TaskNotSerializable", "SharedMemoryFull"):
        assert getattr(repartir, name) is getattr(errors, name)


@pytest.mark.parametrize(
    ("name", "bases"),
    [
        ("RepartirError", (Exception,)),
        ("WorkerDied", (errors.RepartirError, BrokenProcessPool)),
        ("PoisonTask", (errors.WorkerDied,)),
        ("TaskNotSerializable", (errors.RepartirError, PicklingError, TypeError)),
        ("NestingTooDeep", (errors.RepartirError, RecursionError)),
        ("SharedMemoryFull", (errors.RepartirError, MemoryError)),
    ],
)
def test_errors_are_what_users_already_catch(name: str, bases: tuple[type[Exception], ...]) -> None:
    assert all(issubclass(getattr(repartir, name), base) for base in bases)


def test_the_version_is_the_project_s() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert repartir.__version__ == project["version"]
