"""Deaths that need their moment: while it starts, with a full outbox, task after task, of the nursery."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

import repartir
from repartir import PoisonTask, WorkerDied
from repartir.members import MOST_STARTS
from repartir.policy import MAX_REPOSTS
from repartir.supervisor import STARTS
from tests.faults.conftest import Make
from tests.faults.mortal import Fact, Facts, Fate, bring_up, run
from tests.faults.waits import LIMIT_S, check_goes_on, until, until_ended, until_lost


def die_so_often(facts: Facts, times: int) -> None:
    """As an initializer: the first `times` workers that come here die."""
    for nth in range(times):
        try:
            os.mkdir(f"{facts.path}.{nth}")
        except FileExistsError:
            continue
        os.kill(os.getpid(), signal.SIGKILL)


def pages(task: int, size: int) -> bytes:
    return bytes([task]) * size


class TestStart:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_deaths_before_ready_are_made_good(self, make: Make, tmp_path: Path, workers: int) -> None:
        ex = make(workers, initializer=die_so_often, initargs=(Facts(tmp_path / "facts"), STARTS - 1))
        assert [ex.submit(pow, n, 2).result(LIMIT_S) for n in range(10)] == [n * n for n in range(10)]
        until_lost(ex, STARTS - 1)
        check_goes_on(ex)

    def test_one_row_that_never_comes_up_breaks_the_pool(self, make: Make, tmp_path: Path) -> None:
        ex = make(1, initializer=die_so_often, initargs=(Facts(tmp_path / "facts"), MOST_STARTS))
        error = ex.submit(pow, 2, 2).exception(LIMIT_S)
        assert isinstance(error, BrokenProcessPool)
        assert "SIGKILL" in str(error)
        assert f"{MOST_STARTS} in a row" in str(error)
        with pytest.raises(BrokenProcessPool):
            ex.submit(pow, 2, 2)

    def test_deaths_that_are_not_in_a_row_break_nothing(self, make: Make) -> None:
        """Every worker is killed when it is ready, more often than would break the pool before."""
        ex = make(1)
        for n in range(STARTS + 2):
            pid = ex.submit(os.getpid).result(LIMIT_S)
            os.kill(pid, signal.SIGKILL)
            until_lost(ex, n + 1)
        check_goes_on(ex)


class TestFullOutbox:
    SIZE = 4000

    def test_a_worker_that_waits_for_room_is_killed(self, make: Make) -> None:
        """What it had answered arrives, the task whose answer had no room is told, the others run elsewhere."""
        ex = make(1)
        pid = ex.submit(os.getpid).result(LIMIT_S)
        board = ex._broker.board
        row = board.rows[0]
        count = 3 * board.shape.outbox_bytes // self.SIZE
        with ex._broker.pump.mutex:  # the client does not look
            futures = [ex.submit(pages, n % 256, self.SIZE) for n in range(count)]
            ex._broker.pump._flush()
            until(lambda: board.words[row.blocked], "the worker's outbox never was full")
            told = board.words[row.started] >> 16
            os.kill(pid, signal.SIGKILL)
            until_ended(pid)
        died = [future for future in futures if future.exception(LIMIT_S) is not None]
        assert [type(future.exception()) for future in died] == [WorkerDied]
        assert died[0].task_id == told
        for n, future in enumerate(futures):
            assert future in died or future.result(0) == pages(n % 256, self.SIZE)
        check_goes_on(ex)

    def test_one_that_is_not_killed_goes_on_by_itself(self, make: Make) -> None:
        ex = make(1)
        ex.submit(os.getpid).result(LIMIT_S)
        board = ex._broker.board
        count = 3 * board.shape.outbox_bytes // self.SIZE
        with ex._broker.pump.mutex:
            futures = [ex.submit(pages, n % 256, self.SIZE) for n in range(count)]
            ex._broker.pump._flush()
            until(lambda: board.words[board.rows[0].blocked], "the worker's outbox never was full")
        assert [future.result(LIMIT_S) for future in futures] == [
            pages(n % 256, self.SIZE) for n in range(count)
        ]
        check_goes_on(ex)

    def test_the_client_finds_it_full_of_a_dead_workers_answers(self, make: Make) -> None:
        """All of a dead worker's answers are delivered, and none of its tasks runs again."""
        ex = make(1)
        pid = ex.submit(os.getpid).result(LIMIT_S)
        with ex._broker.pump.mutex:
            futures = [ex.submit(pages, n, 100) for n in range(50)]
            ex._broker.pump._flush()
            board = ex._broker.board
            idle = lambda: not board.lanes[0].size_hint() and not board.words[board.rows[0].claim]  # noqa: E731
            until(idle, "the tasks did not run")
            os.kill(pid, signal.SIGKILL)
            until_ended(pid)
        assert [future.result(LIMIT_S) for future in futures] == [pages(n, 100) for n in range(50)]
        check_goes_on(ex)


class TestPoison:
    def test_a_task_that_no_worker_lives_to_start(self, make: Make, tmp_path: Path) -> None:
        facts = Facts(tmp_path / "facts")
        ex = make(2, initializer=bring_up, initargs=(Fate(facts, 0, always_at_start=True),))
        future = ex.submit(run, facts, 0, 5)
        error = future.exception(LIMIT_S)
        assert isinstance(error, PoisonTask)
        assert error.signal == signal.SIGKILL
        assert f"{MAX_REPOSTS + 1} workers died before" in str(error)
        assert facts[Fact.DIED] == MAX_REPOSTS + 1
        assert facts.runs(0) == 0

    def test_each_of_several_is_told(self, make: Make, tmp_path: Path) -> None:
        facts = Facts(tmp_path / "facts")
        ex = make(2, initializer=bring_up, initargs=(Fate(facts, 0, always_at_start=True),))
        futures = [ex.submit(run, facts, n, n) for n in range(3)]
        assert [type(future.exception(LIMIT_S)) for future in futures] == [PoisonTask] * 3
        assert facts[Fact.DIED] == 3 * (MAX_REPOSTS + 1)

    def test_a_task_that_kills_at_every_run_runs_once(self, make: Make, tmp_path: Path) -> None:
        """A task that was started is never tried again."""
        facts = Facts(tmp_path / "facts")
        ex = make(2)
        assert type(ex.submit(run_and_die, facts).exception(LIMIT_S)) is WorkerDied
        assert facts.runs(0) == 1
        check_goes_on(ex)


def run_and_die(facts: Facts) -> None:
    facts[Fact.RUNS] += 1
    os.kill(os.getpid(), signal.SIGKILL)


class TestBigResults:
    def test_a_death_in_the_middle_of_many(self, make: Make) -> None:
        """No block of the arena is lost with the worker."""
        ex = make(2)
        futures = [ex.submit(pages, n, 200_000) for n in range(20)]
        futures.insert(10, ex.submit(os._exit, 1))
        died = [future for future in futures if future.exception(LIMIT_S) is not None]
        assert died == [futures[10]]
        check_goes_on(ex)


class TestNursery:
    def kill(self, ex: repartir.Executor) -> None:
        os.kill(ex._broker._supervisor.nursery_pid, signal.SIGKILL)

    def test_its_death_breaks_the_executor(self, make: Make, tmp_path: Path) -> None:
        ex = make(2)
        running = [ex.submit(time.sleep, LIMIT_S) for _ in range(4)]
        until(lambda: running[0].running(), "the task did not begin")
        self.kill(ex)
        errors = [future.exception(LIMIT_S) for future in running]
        assert all(isinstance(error, BrokenProcessPool) for error in errors)
        assert "forks the workers died" in str(errors[0])
        with pytest.raises(BrokenProcessPool):
            ex.submit(pow, 2, 2)
        assert "broken" in repr(ex)

    def test_idle(self, make: Make) -> None:
        """Nobody waits: whoever comes next is told."""
        ex = make(2)
        pids = {ex.submit(os.getpid).result(LIMIT_S) for _ in range(8)}
        self.kill(ex)
        for pid in pids:
            until_ended(pid)
        try:
            error = ex.submit(pow, 2, 2).exception(LIMIT_S)
        except BrokenProcessPool as refused:
            error = refused
        assert isinstance(error, BrokenProcessPool)

    def test_in_the_middle_of_a_shutdown(self, make: Make) -> None:
        ex = make(2)
        future = ex.submit(time.sleep, LIMIT_S)
        until(future.running, "the task did not begin")
        ex.shutdown(wait=False)
        self.kill(ex)
        assert isinstance(future.exception(LIMIT_S), BrokenProcessPool)
        ex.shutdown()

    def test_and_waiters_of_every_kind_are_told(self, make: Make) -> None:
        ex = make(2)
        futures = [ex.submit(time.sleep, LIMIT_S) for _ in range(3)]
        until(futures[0].running, "the task did not begin")
        with concurrent.futures.ThreadPoolExecutor(3) as waiters:
            told = [
                waiters.submit(concurrent.futures.wait, futures, LIMIT_S),
                waiters.submit(lambda: list(concurrent.futures.as_completed(futures, LIMIT_S))),
                waiters.submit(futures[0].exception, LIMIT_S),
            ]
            self.kill(ex)
            assert told[0].result(LIMIT_S).not_done == set()
            assert set(told[1].result(LIMIT_S)) == set(futures)
            assert isinstance(told[2].result(LIMIT_S), BrokenProcessPool)
