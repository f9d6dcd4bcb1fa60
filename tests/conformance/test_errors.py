"""Exceptions of tasks, and things that cannot be sent: an error for that task, nothing for the others."""

from __future__ import annotations

import pickle
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import pytest

from . import tasks
from .kinds import ours, processes, workers
from .sync import LIMIT_S


def error_of(ex: Executor, fn: Callable[..., Any], *args: Any) -> BaseException:
    """Return the exception that the future of fn(*args) holds."""
    error = ex.submit(fn, *args).exception(LIMIT_S)
    assert error is not None
    return error


def whole_text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("text", 5),
        KeyError("missing"),
        FileNotFoundError(2, "No such file", "name"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        ZeroDivisionError(),
        StopIteration(5),
        TimeoutError("the task's own"),
        ExceptionGroup("group", [ValueError(1), KeyError(2)]),
        GeneratorExit("odd"),
        tasks.CustomBaseException("base"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exceptions_keep_type_and_arguments(ex: Executor, error: BaseException) -> None:
    seen = error_of(ex, tasks.throw, error)
    assert type(seen) is type(error)
    assert str(seen) == str(error)
    assert len(seen.args) == len(error.args)


def test_exceptions_keep_their_attributes(ex: Executor) -> None:
    error = tasks.RichError("rich")
    error.code = 77
    seen = error_of(ex, tasks.throw, error)
    assert isinstance(seen, tasks.RichError)
    assert seen.code == 77


def test_exceptions_keep_their_notes(ex: Executor) -> None:
    assert error_of(ex, tasks.throw_noted).__notes__ == ["look here"]


@processes
def test_the_cause_shows_the_remote_traceback(ex: Executor) -> None:
    error = error_of(ex, tasks.fail, "far away")
    assert error.__cause__ is not None
    remote = str(error.__cause__)
    assert "Traceback (most recent call last)" in remote
    assert "tasks.py" in remote
    assert "in fail" in remote
    assert "raise ValueError(message)" in remote
    assert "ValueError: far away" in remote


@processes
def test_the_remote_traceback_is_printed_with_the_exception(ex: Executor) -> None:
    text = whole_text(error_of(ex, tasks.fail, "far away"))
    assert "in fail" in text
    assert text.rstrip().endswith("ValueError: far away")


@processes
def test_the_remote_traceback_shows_the_tasks_own_causes(ex: Executor) -> None:
    error = error_of(ex, tasks.throw_chained)
    assert isinstance(error, KeyError)
    remote = str(error.__cause__)
    assert "ValueError: first" in remote
    assert "direct cause" in remote


def test_an_error_does_not_hurt_the_next_task(ex: Executor) -> None:
    for n in range(20):
        assert isinstance(error_of(ex, tasks.fail, str(n)), ValueError)
        assert ex.submit(pow, n, 2).result(LIMIT_S) == n * n


@pytest.mark.parametrize("code", [0, 3, "text", None])
def test_sys_exit_in_a_task_is_its_exception(ex: Executor, code: object) -> None:
    error = error_of(ex, tasks.exit_soft, code)
    assert isinstance(error, SystemExit)
    assert error.code == code
    assert ex.submit(pow, 2, 5).result(LIMIT_S) == 32


@ours
def test_an_exception_whose_constructor_takes_other_arguments(ex: Executor) -> None:
    """Plain pickle cannot rebuild it, so the stdlib's pool breaks; here it comes, or an error naming it."""
    from repartir import TaskNotSerializable

    error = error_of(ex, tasks.throw_picky)
    assert isinstance(error, tasks.PickyError | TaskNotSerializable)
    assert "salt and pepper" in whole_text(error)
    assert "PickyError" in whole_text(error)
    assert ex.submit(pow, 2, 5).result(LIMIT_S) == 32


class TestNotSerializable:
    """Arguments, results and exceptions that cannot travel. Only processes need to send them."""

    @processes
    def test_an_argument(self, ex: Executor) -> None:
        future = ex.submit(tasks.echo, threading.Lock())
        assert isinstance(future.exception(LIMIT_S), pickle.PicklingError | TypeError)
        assert ex.submit(pow, 2, 5).result(LIMIT_S) == 32

    @processes
    def test_a_result(self, ex: Executor) -> None:
        assert isinstance(error_of(ex, tasks.make_lock), pickle.PicklingError | TypeError)
        assert ex.submit(pow, 2, 5).result(LIMIT_S) == 32

    @processes
    def test_an_exception(self, ex: Executor) -> None:
        assert isinstance(error_of(ex, tasks.throw_unpicklable), Exception)
        assert ex.submit(pow, 2, 5).result(LIMIT_S) == 32

    @processes
    def test_an_argument_whose_pickling_raises(self, ex: Executor) -> None:
        assert "dumping exploded" in whole_text(error_of(ex, tasks.echo, tasks.FailsToDump()))
        assert ex.submit(pow, 2, 5).result(LIMIT_S) == 32

    @workers
    def test_the_error_names_the_argument(self, ex: Executor) -> None:
        from repartir import TaskNotSerializable

        future = ex.submit(tasks.signature, 1, key=threading.Lock())
        error = future.exception(LIMIT_S)
        assert isinstance(error, TaskNotSerializable)
        assert "key" in str(error)
        assert "lock" in whole_text(error)

    @workers
    def test_a_positional_argument_is_named_by_its_place(self, ex: Executor) -> None:
        from repartir import TaskNotSerializable

        error = error_of(ex, tasks.signature, "first", threading.Lock())
        assert isinstance(error, TaskNotSerializable)
        assert any(place in str(error) for place in ("1", "2", "second"))

    @workers
    @pytest.mark.parametrize("task", [tasks.make_lock, tasks.throw_unpicklable])
    def test_results_and_exceptions_get_the_same_class(self, ex: Executor, task: Callable[[], Any]) -> None:
        from repartir import TaskNotSerializable

        error = error_of(ex, task)
        assert isinstance(error, TaskNotSerializable)
        assert "lock" in whole_text(error)

    @workers
    def test_an_argument_that_fails_to_load(self, ex: Executor) -> None:
        pid = ex.submit(tasks.pid).result(LIMIT_S)
        assert "loading exploded" in whole_text(error_of(ex, tasks.echo, tasks.FailsToLoad()))
        pids = {ex.submit(tasks.pid).result(LIMIT_S) for _ in range(50)}
        assert len(pids | {pid}) <= 2

    @workers
    def test_a_result_that_fails_to_load(self, ex: Executor) -> None:
        assert "loading exploded" in whole_text(error_of(ex, tasks.make_unloadable))
        assert ex.submit(pow, 2, 5).result(LIMIT_S) == 32

    @workers
    def test_in_a_map_the_bad_item_raises_and_earlier_ones_are_given(self, ex: Executor) -> None:
        from repartir import TaskNotSerializable

        results = ex.map(tasks.echo, [0, 1, threading.Lock(), 3], chunksize=1)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(TaskNotSerializable):
            next(results)
        assert ex.submit(pow, 2, 5).result(LIMIT_S) == 32


@processes
def test_many_errors_at_once(ex: Executor) -> None:
    futures = [ex.submit(tasks.fail_on, n - n % 2, n) for n in range(200)]
    errors = [f.exception(LIMIT_S) for f in futures]
    assert [str(e) for e in errors if e] == [f"bad {n}" for n in range(0, 200, 2)]
    assert sum(1 for e in errors if e is None) == 100
