"""Time-outs, retries, back-off, poison, names, and stopping a task that runs."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import io
import logging
import operator
import os
import signal
import subprocess
import time
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repartir import Executor as Executor_
from repartir import (
    MemoryLimitExceeded,
    PoisonTask,
    SerialExecutor,
    TaskTimeout,
    WorkerDied,
)
from repartir.shm.board import MemberState
from repartir.stacks import SIGNAL
from tests.shared import family

from . import option_tasks as tasks
from .conftest import Make
from .kinds import only_fork, ours, workers
from .sync import LIMIT_S

pytestmark = pytest.mark.any_start

AT_ONCE = 0.01
"""A back-off that tests do not wait for."""


def until(path: Path) -> None:
    """Until a task says by this file that it has begun."""
    deadline = time.monotonic() + LIMIT_S
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def while_a_stack_is_asked_for(executor: Any) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not executor._broker._attempts._overdue:
        assert time.monotonic() < deadline


@pytest.fixture
def own(make: Make) -> Any:
    """An executor of this test alone: its workers die."""
    return make(2)


class TestTimeOut:
    @workers
    @pytest.mark.parametrize("hang", [tasks.sleep_long, tasks.spin_long])
    def test_stops_the_task_and_says_where_it_was(self, own: Any, hang: Any) -> None:
        began = time.monotonic()
        error = own.options(timeout=0.2, name="fit").submit(hang).exception(LIMIT_S)
        assert isinstance(error, TaskTimeout)
        assert isinstance(error, TimeoutError)
        assert 0.2 <= error.elapsed <= time.monotonic() - began < 5
        assert error.task == "fit"
        assert "'fit'" in str(error)
        assert f"in {hang.__name__}" in error.stack
        assert error.stack in str(error)
        assert "in run_one" not in error.stack

    @workers
    def test_holds_while_the_result_is_pickled(self, own: Any) -> None:
        error = own.options(timeout=0.2).submit(tasks.HangsPickling).exception(LIMIT_S)
        assert isinstance(error, TaskTimeout)
        assert "in __reduce__" in error.stack

    @workers
    def test_of_a_function_in_c_says_so(self, own: Any) -> None:
        error = own.options(timeout=0.1).submit(time.sleep, 60).exception(LIMIT_S)
        assert isinstance(error, TaskTimeout)
        assert error.stack.endswith("the function of the task, which is not written in Python")

    @workers
    def test_costs_no_other_task(self, own: Any, tmp_path: Path) -> None:
        """One that runs beside it, and many that wait behind it."""
        beside = own.submit(time.sleep, 0.5)
        stopped = own.options(timeout=0.1).submit(tasks.sleep_long)
        behind = [own.submit(pow, n, 2) for n in range(50)]
        assert isinstance(stopped.exception(LIMIT_S), TaskTimeout)
        assert beside.result(LIMIT_S) is None
        assert [future.result(LIMIT_S) for future in behind] == [n * n for n in range(50)]
        assert own.stats().lost == 0

    @workers
    def test_counts_from_the_call(self, make: Make) -> None:
        """Not from the submit: those behind wait longer than they may run."""
        limited = make(1).options(timeout=0.5)  # type: ignore[attr-defined]
        futures = [limited.submit(time.sleep, 0.15) for _ in range(6)]
        assert [future.exception(LIMIT_S) for future in futures] == [None] * 6

    @workers
    def test_each_attempt_has_its_own(self, own: Any, tmp_path: Path) -> None:
        limited = own.options(timeout=0.2, retries=2, backoff=AT_ONCE)
        assert limited.submit(tasks.hangs_first, tmp_path / "calls", 2).result(LIMIT_S) == 3

    @workers
    def test_of_many_tasks_at_once(self, own: Any) -> None:
        limited = own.options(timeout=0.1)
        futures = [limited.submit(tasks.sleep_if, n, n - n % 3) for n in range(9)]
        errors = [future.exception(LIMIT_S) for future in futures]
        assert [isinstance(error, TaskTimeout) for error in errors] == [n % 3 == 0 for n in range(9)]

    @workers
    def test_in_a_map_concerns_one_item(self, own: Any) -> None:
        limited = own.options(timeout=0.2)
        results = limited.map(tasks.sleep_if, range(6), [3] * 6)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(TaskTimeout):
            next(results)
        assert list(own.map(abs, [-1])) == [1]

    @workers
    def test_after_sigterm_and_a_grace(self, own: Any, tmp_path: Path) -> None:
        polite = own.options(timeout=0.1, grace=10)
        error = polite.submit(tasks.clean_up_on_sigterm, tmp_path / "said").exception(LIMIT_S)
        assert isinstance(error, TaskTimeout)
        assert (tmp_path / "said").read_text() == "clean"

    @workers
    def test_who_ignores_sigterm_is_killed_after_the_grace(self, own: Any) -> None:
        began = time.monotonic()
        error = own.options(timeout=0.1, grace=0.3).submit(tasks.ignore_sigterm_and_sleep).exception(LIMIT_S)
        assert isinstance(error, TaskTimeout)
        assert 0.4 <= time.monotonic() - began < 5

    @workers
    def test_not_reached_changes_nothing(self, ex: Any) -> None:
        limited = ex.options(timeout=30)
        assert [limited.submit(pow, n, 2).result(LIMIT_S) for n in range(100)] == [n * n for n in range(100)]
        assert list(limited.map(operator.neg, range(100))) == [-n for n in range(100)]

    @workers
    @pytest.mark.parametrize("limit", [30 * 86_400, 1e12, 1e300])
    def test_of_a_month_and_more(self, own: Any, limit: float) -> None:
        """Too long for a single sleep."""
        limited = own.options(timeout=limit, warn_after=limit, retries=1, backoff=lambda _: limit)
        assert limited.submit(time.sleep, 0.05).result(LIMIT_S) is None
        assert own.submit(time.sleep, 0.05).result(limit) is None
        waiting = limited.submit(operator.truediv, 1, 0)
        while not waiting.cancel():
            time.sleep(0.001)
        observed = own.submit(time.sleep, 0.05)
        observed.add_done_callback(repr)  # so that it has a condition, on which is waited
        assert observed.result(limit) is None

    @workers
    def test_with_somebody_in_wait(self, own: Any) -> None:
        future = own.options(timeout=0.1).submit(tasks.sleep_long)
        assert concurrent.futures.wait([future], LIMIT_S).done == {future}

    @workers
    def test_while_another_thread_waits_for_something_else(self, own: Any) -> None:
        """The waiter drives; the time-out is kept all the same."""
        words, rows = own._broker.board.words, own._broker.board.rows
        deadline = time.monotonic() + LIMIT_S
        while any(words[row.state] != MemberState.READY for row in rows):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        slow = own.submit(time.sleep, 1.0)
        stopped = own.options(timeout=0.1).submit(tasks.sleep_long)
        seen: list[float] = []
        stopped.add_done_callback(lambda _: seen.append(time.monotonic()))
        began = time.monotonic()
        slow.result(LIMIT_S)
        assert seen
        assert seen[0] - began < 0.8


class TestRetries:
    @ours
    def test_until_it_succeeds(self, ex: Any, tmp_path: Path) -> None:
        again = ex.options(retries=3, backoff=AT_ONCE)
        assert again.submit(tasks.fails_first, tmp_path / "calls", 2).result(LIMIT_S) == 3

    @ours
    def test_as_often_as_asked_and_the_error_lists_the_attempts(self, ex: Any, tmp_path: Path) -> None:
        again = ex.options(retries=2, backoff=AT_ONCE)
        error = again.submit(tasks.fails_first, tmp_path / "calls", 9).exception(LIMIT_S)
        assert isinstance(error, ValueError)
        assert str(error) == "call 3"
        assert (tmp_path / "calls").stat().st_size == 3

    @workers
    def test_the_error_lists_the_attempts(self, ex: Any, tmp_path: Path) -> None:
        again = ex.options(retries=2, backoff=AT_ONCE)
        error = again.submit(tasks.fails_first, tmp_path / "calls", 9).exception(LIMIT_S)
        assert error.__notes__ == [
            "attempt 1 of 3 failed with ValueError: call 1",
            "attempt 2 of 3 failed with ValueError: call 2",
            "attempt 3 of 3 failed with this error",
        ]

    @ours
    def test_only_for_what_is_worth_it(self, ex: Any, tmp_path: Path) -> None:
        again = ex.options(retries=5, backoff=AT_ONCE, retry_on=(KeyError, OSError))
        assert isinstance(again.submit(tasks.fails_first, tmp_path / "a", 9).exception(LIMIT_S), ValueError)
        assert (tmp_path / "a").stat().st_size == 1
        assert again.submit(tasks.fails_first, tmp_path / "b", 1, OSError).result(LIMIT_S) == 2

    @ours
    def test_none_unless_asked(self, ex: Any, tmp_path: Path) -> None:
        assert isinstance(ex.submit(tasks.fails_first, tmp_path / "calls", 1).exception(LIMIT_S), ValueError)

    @workers
    def test_after_a_death(self, own: Any, tmp_path: Path) -> None:
        again = own.options(retries=2, backoff=AT_ONCE)
        assert again.submit(tasks.dies_first, tmp_path / "calls", 2).result(LIMIT_S) == 3

    @workers
    def test_of_a_task_that_kills_is_given_up(self, own: Any, tmp_path: Path) -> None:
        again = own.options(retries=9, backoff=AT_ONCE)
        error = again.submit(tasks.dies_first, tmp_path / "calls", 9).exception(LIMIT_S)
        assert isinstance(error, PoisonTask)
        assert (tmp_path / "calls").stat().st_size == 3
        assert "3 workers" in str(error)
        assert str(error).count("SIGKILL") == 3

    @workers
    def test_without_a_limit_on_poison(self, own: Any, tmp_path: Path) -> None:
        again = own.options(retries=4, backoff=0, poison_limit=None)
        assert again.submit(tasks.dies_first, tmp_path / "calls", 4).result(LIMIT_S) == 5

    @workers
    def test_of_what_is_idempotent_deaths_are_not_counted(self, own: Any, tmp_path: Path) -> None:
        again = own.options(idempotent=True, backoff=AT_ONCE)
        assert again.submit(tasks.dies_first, tmp_path / "a", 2).result(LIMIT_S) == 3
        assert isinstance(again.submit(tasks.fails_first, tmp_path / "b", 1).exception(LIMIT_S), ValueError)
        assert isinstance(again.submit(tasks.dies_first, tmp_path / "c", 9).exception(LIMIT_S), PoisonTask)

    @workers
    def test_a_death_without_retries_costs_the_task(self, own: Any, tmp_path: Path) -> None:
        error = own.submit(tasks.dies_first, tmp_path / "calls", 1).exception(LIMIT_S)
        assert type(error) is WorkerDied
        assert (tmp_path / "calls").stat().st_size == 1

    @workers
    @pytest.mark.parametrize("elements", [10, 100_000])
    def test_see_the_original_arguments(self, ex: Any, tmp_path: Path, elements: int) -> None:
        array = np.ones(elements)
        again = ex.options(retries=2, backoff=AT_ONCE)
        future = again.submit(tasks.writes_and_fails_first, array, tmp_path / "calls", 2)
        array[:] = 7
        assert future.result(LIMIT_S) == elements

    @ours
    def test_in_a_map(self, ex: Any, tmp_path: Path) -> None:
        again = ex.options(retries=2, backoff=AT_ONCE)
        paths = [tmp_path / str(n) for n in range(5)]
        assert list(again.map(tasks.fails_first, paths, [2] * 5)) == [3] * 5

    @workers
    def test_wait_as_long_as_the_back_off_says(self, ex: Any, tmp_path: Path) -> None:
        asked: list[int] = []

        def backoff(failures: int) -> float:
            asked.append(failures)
            return 0.15

        began = time.monotonic()
        again = ex.options(retries=2, backoff=backoff)
        assert again.submit(tasks.fails_first, tmp_path / "calls", 2).result(LIMIT_S) == 3
        assert asked == [1, 2]
        assert time.monotonic() - began >= 0.3

    @workers
    def test_a_back_off_that_fails_fails_the_task(self, ex: Any, tmp_path: Path) -> None:
        again = ex.options(retries=2, backoff=lambda failures: failures / 0)
        error = again.submit(tasks.fails_first, tmp_path / "calls", 2).exception(LIMIT_S)
        assert isinstance(error, ZeroDivisionError)
        assert ex.submit(pow, 2, 3).result(LIMIT_S) == 8

    @workers
    @pytest.mark.parametrize("error", [tasks.BadNotesError, tasks.ReadOnlyNotesError])
    def test_an_error_that_takes_no_notes_costs_its_task_only(
        self, ex: Any, tmp_path: Path, error: type[Exception]
    ) -> None:
        again = ex.options(retries=1, backoff=0)
        assert again.submit(tasks.fails_first, tmp_path / "calls", 9, error).exception(LIMIT_S) is not None
        assert again.submit(pow, 2, 3).result(LIMIT_S) == 8

    @ours
    def test_a_class_that_cannot_tell_its_instances_costs_its_task_only(
        self, ex: Any, tmp_path: Path
    ) -> None:
        again = ex.options(retries=1, backoff=0, retry_on=tasks.UndecidedError)
        with pytest.raises(RuntimeError, match="cannot tell"):
            again.submit(tasks.fails_first, tmp_path / "calls", 9).result(LIMIT_S)
        assert again.submit(pow, 2, 3).result(LIMIT_S) == 8

    @workers
    def test_a_cancel_during_the_back_off(self, own: Any, tmp_path: Path) -> None:
        calls = tmp_path / "calls"
        future = own.options(retries=2, backoff=0.5).submit(tasks.fails_first, calls, 9)
        until(calls)
        while not future.cancel():
            time.sleep(0.005)
        assert future.cancelled()
        time.sleep(0.6)
        assert calls.stat().st_size == 1
        assert own.stats().queued == 0

    @workers
    def test_shutdown_waits_for_them(self, own: Any, tmp_path: Path) -> None:
        future = own.options(retries=2, backoff=0.1).submit(tasks.fails_first, tmp_path / "calls", 2)
        own.shutdown()
        assert future.result(0) == 3

    @workers
    def test_shutdown_begins_none_where_it_cancels(self, own: Any, tmp_path: Path) -> None:
        calls = tmp_path / "calls"
        future = own.options(retries=5, backoff=0.1).submit(tasks.sleep_and_fail, calls, 0.2)
        until(calls)
        own.shutdown(cancel_futures=True)
        assert isinstance(future.exception(0), ValueError)
        assert calls.stat().st_size == 1

    @workers
    def test_shutdown_may_cancel_them(self, own: Any, tmp_path: Path) -> None:
        calls = tmp_path / "calls"
        future = own.options(retries=2, backoff=30).submit(tasks.fails_first, calls, 2)
        until(calls)
        while own.stats().running:
            time.sleep(0.005)
        time.sleep(0.1)
        own.shutdown(cancel_futures=True)
        assert future.cancelled()


class TestStopping:
    @workers
    def test_a_task_that_runs(self, own: Any, tmp_path: Path) -> None:
        future = own.submit(tasks.ring_and_sleep, tmp_path / "pid")
        until(tmp_path / "pid")
        assert not future.cancel()
        assert future.cancel(running=True)
        assert future.cancelled()
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(0)
        assert concurrent.futures.wait([future], LIMIT_S).done == {future}
        assert [own.submit(pow, n, 2).result(LIMIT_S) for n in range(20)] == [n * n for n in range(20)]
        assert own.stats().lost == 0

    @workers
    def test_leaves_the_worker_dead_and_its_arguments_freed(self, own: Any, tmp_path: Path) -> None:
        future = own.submit(tasks.ring_and_sleep, tmp_path / "pid", np.ones(200_000))
        until(tmp_path / "pid")
        assert future.cancel(running=True)
        deadline = time.monotonic() + LIMIT_S
        while own.stats().arena_bytes > 1_000_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert own.stats().arena_bytes < 1_000_000
        with pytest.raises(ProcessLookupError):
            while time.monotonic() < deadline:
                os.kill(int((tmp_path / "pid").read_text()), 0)
                time.sleep(0.01)

    @workers
    def test_one_that_waits_is_simply_cancelled(self, make: Make, tmp_path: Path) -> None:
        executor = make(1)
        running = executor.submit(tasks.ring_and_sleep, tmp_path / "pid")
        until(tmp_path / "pid")
        waiting: Any = executor.submit(pow, 2, 3)
        assert waiting.cancel(running=True)
        assert running.running()
        assert running.cancel(running=True)  # type: ignore[call-arg]

    @ours
    def test_one_that_is_done_is_not_stopped(self, ex: Any) -> None:
        future = ex.submit(pow, 2, 3)
        assert future.result(LIMIT_S) == 8
        assert not future.cancel(running=True)
        assert future.result() == 8

    @workers
    def test_is_told_to_callbacks(self, own: Any, tmp_path: Path) -> None:
        future = own.submit(tasks.ring_and_sleep, tmp_path / "pid")
        told: list[bool] = []
        future.add_done_callback(lambda done: told.append(done.cancelled()))
        until(tmp_path / "pid")
        assert future.cancel(running=True)
        deadline = time.monotonic() + LIMIT_S
        while not told and time.monotonic() < deadline:
            time.sleep(0.005)
        assert told == [True]


MIB = 1 << 20


class TestMemory:
    @workers
    def test_a_task_that_takes_too_much_is_stopped(self, own: Any) -> None:
        beside = own.submit(time.sleep, 0.6)
        limited = own.options(memory_limit="200MiB", name="fit")
        error = limited.submit(tasks.take_memory_and_sleep, 300 * MIB).exception(LIMIT_S)
        assert isinstance(error, MemoryLimitExceeded)
        assert isinstance(error, MemoryError)
        assert error.used > error.limit == 200 * MIB
        assert "'fit'" in str(error)
        assert "200 MiB" in str(error)
        assert beside.result(LIMIT_S) is None
        assert own.stats().lost == 0

    @workers
    def test_also_while_its_result_is_pickled(self, own: Any) -> None:
        limited = own.options(memory_limit="200MiB")
        assert isinstance(limited.submit(tasks.TakesMemoryPickling).exception(LIMIT_S), MemoryLimitExceeded)

    @workers
    def test_what_stays_below_is_not(self, own: Any) -> None:
        limited = own.options(memory_limit="1GiB", timeout=0.7)
        error = limited.submit(tasks.take_memory_and_sleep, 100 * MIB).exception(LIMIT_S)
        assert isinstance(error, TaskTimeout)

    @workers
    def test_shared_memory_is_not_counted(self, own: Any) -> None:
        with own.share(np.ones(300 * MIB // 8)) as array:
            limited = own.options(memory_limit="200MiB")
            future = limited.submit(tasks.map_shared_and_sleep, array, 0.7)
            assert future.result(LIMIT_S) == 300 * MIB // 8

    @workers
    def test_nor_is_what_a_worker_inherits(self, make: Make) -> None:
        """Written to or not."""
        inherited = bytearray(b"x") * (300 * MIB)
        limited = make(1).options(memory_limit="200MiB", timeout=0.7)  # type: ignore[attr-defined]
        error = limited.submit(tasks.take_memory_and_sleep, 50 * MIB).exception(LIMIT_S)
        assert isinstance(error, TaskTimeout)
        assert inherited[0] == inherited[-1]

    @workers
    def test_a_worker_that_grew_between_tasks_is_replaced(self, make: Make) -> None:
        executor = make(1, max_rss_growth="160MiB")
        pids = [executor.submit(tasks.keep_memory, 60 * MIB).result(LIMIT_S) for _ in range(6)]
        assert pids == [pids[0]] * 3 + [pids[-1]] * 3
        assert pids[0] != pids[-1]
        assert executor.stats().lost == 0  # type: ignore[attr-defined]

    @workers
    def test_a_limit_of_the_operating_system(self, make: Make) -> None:
        """The task gets the error, and the worker lives."""
        executor = make(1, address_space_limit="8GiB")
        pid = executor.submit(os.getpid).result(LIMIT_S)
        assert isinstance(executor.submit(tasks.take_memory, 9000 * MIB).exception(LIMIT_S), MemoryError)
        assert executor.submit(tasks.take_memory, 200 * MIB).result(LIMIT_S) == 200 * MIB
        assert isinstance(executor.submit(bytes, 5000 * MIB).exception(LIMIT_S), MemoryError)
        assert executor.submit(tasks.total, np.ones(1_000_000)).result(LIMIT_S) == 1_000_000
        assert executor.submit(os.getpid).result(LIMIT_S) == pid

    @workers
    def test_a_kill_by_the_kernel_for_want_of_memory_is_recognised(
        self, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        kills = iter([4, 5, 5])
        monkeypatch.setattr("repartir.attempts.oom_kills", lambda: next(kills))
        executor = make(1)
        error = executor.submit(tasks.dies_first, tmp_path / "a", 1).exception(LIMIT_S)
        assert isinstance(error, WorkerDied)
        assert "memory ran out" in str(error)
        assert "memory" not in str(executor.submit(tasks.dies_first, tmp_path / "b", 1).exception(LIMIT_S))


class TestWatching:
    @workers
    def test_a_task_that_runs_long_is_logged_once(self, own: Any, caplog: pytest.LogCaptureFixture) -> None:
        watched = own.options(warn_after=0.1, name="fit")
        futures = [watched.submit(time.sleep, seconds) for seconds in (0.5, 0.0)]
        assert [future.result(LIMIT_S) for future in futures] == [None, None]
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == 1
        assert told[0].startswith("task 'fit' has been running for 0.1")

    @workers
    def test_a_filter_that_raises_ends_nothing(self, own: Any, capsys: pytest.CaptureFixture[str]) -> None:
        def broken(record: logging.LogRecord) -> bool:
            raise RuntimeError("bad filter")

        logger = logging.getLogger("repartir")
        logger.addFilter(broken)
        try:
            assert own.options(warn_after=0.05).submit(time.sleep, 0.2).result(LIMIT_S) is None
            assert own.submit(pow, 2, 3).result(LIMIT_S) == 8
        finally:
            logger.removeFilter(broken)
        assert capsys.readouterr().err.count("RuntimeError: bad filter") == 1

    @workers
    def test_a_callable_without_a_name_can_be_stopped(self, own: Any) -> None:
        error = own.options(timeout=0.05).submit(tasks.Untold()).exception(LIMIT_S)
        assert isinstance(error, TaskTimeout)
        assert "Untold" in str(error)

    @workers
    def test_stacks_of_all(self, own: Any, tmp_path: Path) -> None:
        future = own.submit(tasks.ring_and_sleep, tmp_path / "pid")
        until(tmp_path / "pid")
        text = io.StringIO()
        own.dump_stacks(text)
        client, *members = text.getvalue().split("\nworker ")
        assert client.startswith(f"client, process {os.getpid()}:")
        assert "in test_stacks_of_all" in client
        assert len(members) == 2
        pid = (tmp_path / "pid").read_text()
        (busy,) = [member for member in members if f"process {pid}, at task 'ring_and_sleep'" in member]
        assert "in sleep_long" in busy
        assert future.cancel(running=True)

    def test_stacks_of_the_serial_executor(self) -> None:
        text = io.StringIO()
        SerialExecutor().dump_stacks(text)
        assert text.getvalue().startswith(f"client, process {os.getpid()}:")
        assert "in test_stacks_of_the_serial_executor" in text.getvalue()

    @workers
    def test_stacks_while_workers_end_wait_for_none_that_has(self, own: Any) -> None:
        assert own.run_on_all(pow, 2, 3) == [8, 8]
        words, rows = own._broker.board.words, own._broker.board.rows
        pids = [words[row.pid] for row in rows]
        for row in rows:
            words[row.pid] = 0  # as after its exit
        text, began = io.StringIO(), time.monotonic()
        own.dump_stacks(text)
        took = time.monotonic() - began
        for row, pid in zip(rows, pids, strict=True):
            words[row.pid] = pid
        assert text.getvalue().count("it has no process now") == 2
        assert took < 0.4

    @workers
    def test_the_nurserys_death_while_stacks_are_asked_for(self, own: Any) -> None:
        """Of a worker that is stopped, so it does not answer: nothing waits for it."""
        future = own.options(timeout=0.05).submit(signal.raise_signal, signal.SIGSTOP)
        while_a_stack_is_asked_for(own)
        os.kill(own._broker._supervisor.nursery_pid, signal.SIGKILL)
        assert future.exception(LIMIT_S) is not None
        own.shutdown()

    @only_fork
    def test_a_fork_while_stacks_are_asked_for(self, own: Any) -> None:
        future = own.options(timeout=0.05).submit(signal.raise_signal, signal.SIGSTOP)
        while_a_stack_is_asked_for(own)
        with family() as children:
            children.fork(lambda: None)
            children.join()
        assert isinstance(future.exception(LIMIT_S), TaskTimeout)

    @workers
    @pytest.mark.slow
    def test_stacks_in_a_callback_while_another_task_is_stopped(self, own: Any) -> None:
        """The callback runs in the thread that stops tasks."""
        limited = own.options(timeout=0.2)
        futures = [limited.submit(tasks.sleep_long) for _ in range(2)]
        told: list[str] = []
        for future in futures:
            future.add_done_callback(lambda _: own._broker.dump_stacks(told.append))
        assert all(isinstance(future.exception(LIMIT_S), TaskTimeout) for future in futures)
        own.shutdown()
        assert len(told) == 6

    @workers
    def test_stacks_of_workers_that_begin_cost_none(self, make: Make) -> None:
        executor: Any = make(1)
        row, words = executor._broker.board.rows[0], executor._broker.board.words
        deadline = time.monotonic() + LIMIT_S
        while not words[row.state]:
            assert time.monotonic() < deadline
        for _ in range(100):
            executor._broker._supervisor.dump(0)
        assert executor.submit(pow, 2, 3).result(LIMIT_S) == 8
        assert executor.stats().lost == 0

    @workers
    def test_their_signal_is_as_usual_in_what_a_task_starts(self, ex: Any) -> None:
        ignored = ex.submit(subprocess.run, ["cat", "/proc/self/status"], capture_output=True, text=True)
        (mask,) = [line for line in ignored.result(LIMIT_S).stdout.splitlines() if line.startswith("SigIgn:")]
        assert SIGNAL is not None
        assert not int(mask.split()[1], 16) >> (SIGNAL - 1) & 1

    @workers
    def test_stacks_after_the_end(self, own: Any) -> None:
        own.shutdown()
        text = io.StringIO()
        own.dump_stacks(text)
        assert text.getvalue().startswith("client")


class TestOptions:
    @ours
    def test_are_an_executor_whose_end_ends_nothing(self, own: Any) -> None:
        with own.options(name="fit") as named:
            assert isinstance(named, Executor)
            assert named.submit(pow, 2, 3).result(LIMIT_S) == 8
            named.shutdown()
        assert named.submit(pow, 2, 3).result(LIMIT_S) == 8
        assert own.submit(pow, 2, 3).result(LIMIT_S) == 8
        own.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            named.submit(pow, 2, 3)

    @ours
    def test_are_inherited(self, ex: Any, tmp_path: Path) -> None:
        again = ex.options(retries=1, backoff=AT_ONCE).options(name="fit")
        assert again.submit(tasks.fails_first, tmp_path / "calls", 1).result(LIMIT_S) == 2

    @workers
    def test_of_the_executor_hold_for_all_its_tasks(self, make: Make, tmp_path: Path) -> None:
        executor: Any = make(2, retries=1, backoff=AT_ONCE, timeout=0.3)
        assert executor.submit(tasks.fails_first, tmp_path / "a", 1).result(LIMIT_S) == 2
        assert isinstance(
            executor.options(retries=0).submit(tasks.sleep_long).exception(LIMIT_S), TaskTimeout
        )
        assert isinstance(
            executor.options(retries=0).submit(tasks.fails_first, tmp_path / "b", 1).exception(LIMIT_S),
            ValueError,
        )

    def test_the_serial_executor_takes_them_all(self) -> None:
        keywords = {
            name: parameter.default
            for name, parameter in inspect.signature(Executor_).parameters.items()
            if parameter.default is not inspect.Parameter.empty
        }
        with SerialExecutor(**{**keywords, "max_workers": 2, "memory_limit": "1GiB"}) as executor:
            assert executor.submit(pow, 2, 3).result() == 8
        with pytest.raises(TypeError, match=r"^SerialExecutor\(\) got an unexpected .*'speed'"):
            SerialExecutor(speed=3)
        with pytest.raises(TypeError, match=r"^SerialExecutor\.options\(\) got an unexpected .*'speed'"):
            SerialExecutor().options(speed=3)

    def test_the_serial_executor_never_retries_after_ctrl_c(self) -> None:
        calls: list[int] = []

        def interrupted() -> None:
            calls.append(1)
            raise KeyboardInterrupt

        again = SerialExecutor(retries=3, retry_on=BaseException, backoff=0)
        with pytest.raises(KeyboardInterrupt):
            again.submit(interrupted)
        assert calls == [1]

    @workers
    def test_show_in_repr(self, ex: Any) -> None:
        assert "retries=2" in repr(ex.options(retries=2, timeout=5))
        assert "timeout=5" in repr(ex.options(retries=2, timeout=5))

    @workers
    def test_with_asyncio(self, ex: Any, tmp_path: Path) -> None:
        async def main() -> int:
            again = ex.options(retries=1, backoff=AT_ONCE)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(again, tasks.fails_first, tmp_path / "calls", 1)

        assert asyncio.run(main()) == 2

    @ours
    @pytest.mark.parametrize(
        ("bad", "error"),
        [
            ({"timeout": 0}, ValueError),
            ({"timeout": -1}, ValueError),
            ({"timeout": float("nan")}, ValueError),
            ({"timeout": "1"}, TypeError),
            ({"timeout": True}, TypeError),
            ({"timeout": 10**400}, ValueError),
            ({"grace": -1}, ValueError),
            ({"retries": -1}, ValueError),
            ({"retries": 1.5}, TypeError),
            ({"retries": True}, TypeError),
            ({"retries": 65_535}, ValueError),
            ({"idempotent": "no"}, TypeError),
            ({"idempotent": 1}, TypeError),
            ({"retry_on": 3}, TypeError),
            ({"retry_on": (ValueError, "x")}, TypeError),
            ({"backoff": -1}, ValueError),
            ({"backoff": "x"}, TypeError),
            ({"poison_limit": 0}, ValueError),
            ({"memory_limit": 0}, ValueError),
            ({"memory_limit": "much"}, ValueError),
            ({"warn_after": 0}, ValueError),
            ({"name": 3}, TypeError),
            ({"speed": 3}, TypeError),
        ],
    )
    def test_that_make_no_sense_are_named(self, ex: Any, bad: dict[str, Any], error: type[Exception]) -> None:
        with pytest.raises(error, match=next(iter(bad))):
            ex.options(**bad)

    @workers
    @pytest.mark.parametrize(
        "option", [{"timeout": 3}, {"memory_limit": "1GiB"}, {"retries": 1}, {"idempotent": True}]
    )
    def test_a_chunk_size_does_not_go_with_some(self, ex: Any, option: dict[str, Any]) -> None:
        (name,) = option
        with pytest.raises(ValueError, match=f"^with {name} each item .* chunksize must be None or 1, not 2"):
            ex.options(**option).map(abs, [1, 2], chunksize=2)
        assert list(ex.options(**option).map(abs, [-1], chunksize=1)) == [1]

    @only_fork
    def test_numbers_of_numpy_are_numbers(self, make: Make) -> None:
        executor: Any = make(
            np.int64(1),  # type: ignore[arg-type]
            max_tasks_per_child=np.int64(100),
            shm_limit=np.int64(64 * MIB),
            retries=np.int64(1),
            poison_limit=np.uint8(2),
            memory_limit=np.int64(1 << 32),
            timeout=np.float32(30),
            warn_after=np.int16(30),
        )
        assert "1 workers" in repr(executor)
        assert list(executor.map(abs, [-1, 2], buffersize=np.int64(2))) == [1, 2]
        assert list(
            executor.options(retries=0, timeout=None, memory_limit=None, warn_after=None).map(
                abs, [-1, 2], chunksize=np.int64(2)
            )
        ) == [1, 2]
