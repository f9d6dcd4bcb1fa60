from __future__ import annotations

import pickle
from concurrent.futures import BrokenExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest

from repartir import errors


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_survives_pickling(name: str) -> None:
    cls = getattr(errors, name)
    copy = pickle.loads(pickle.dumps(cls("what happened", 3)))
    assert type(copy) is cls
    assert copy.args == ("what happened", 3)


@pytest.mark.parametrize("name", errors.__all__)
def test_the_docstring_draws_every_error(name: str) -> None:
    assert f" {name} " in f"{errors.__doc__} ".replace("\n", " ")


@pytest.mark.parametrize("cls", [errors.WorkerDied, errors.PoisonTask])
def test_a_worker_death_keeps_its_attributes(cls: type[errors.WorkerDied]) -> None:
    error = cls("worker 3 died", exit_code=None, signal=9, task="fit(1)")
    error.add_note("seen twice")
    for protocol in (2, 5):
        copy = pickle.loads(pickle.dumps(error, protocol))
        assert (copy.exit_code, copy.signal, copy.task) == (None, 9, "fit(1)")
        assert copy.__notes__ == ["seen twice"]
        assert str(copy) == "worker 3 died"


def test_a_time_out_keeps_its_attributes() -> None:
    error = errors.TaskTimeout("stopped", task="fit", elapsed=1.5, stack="in fit")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.task, copy.elapsed, copy.stack, str(copy)) == ("fit", 1.5, "in fit", "stopped")
    assert copy.errno is None


def test_a_memory_limit_keeps_its_attributes() -> None:
    error = errors.MemoryLimitExceeded("stopped", task="fit", used=5, limit=3)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.task, copy.used, copy.limit, str(copy)) == ("fit", 5, 3, "stopped")


def test_a_worker_death_without_details() -> None:
    error = errors.WorkerDied("the pool is broken")
    assert (error.exit_code, error.signal, error.task) == (None, None, None)


@pytest.mark.parametrize(
    ("cls", "caught_as"),
    [
        (errors.WorkerDied, (BrokenProcessPool, BrokenExecutor, RuntimeError)),
        (errors.PoisonTask, (errors.WorkerDied,)),
        (errors.TaskTimeout, (TimeoutError,)),
        (errors.MemoryLimitExceeded, (MemoryError,)),
        (errors.SharedMemoryFull, (MemoryError,)),
        (errors.TaskNotSerializable, (pickle.PicklingError, TypeError)),
    ],
)
def test_errors_are_what_users_already_catch(cls: type, caught_as: tuple[type, ...]) -> None:
    assert issubclass(cls, errors.RepartirError)
    for base in caught_as:
        assert issubclass(cls, base)
