"""Workers that die: the task is told, the others finish, the pool goes on; the stdlib's pool breaks."""

from __future__ import annotations

import os
import signal
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest

from . import tasks
from .conftest import Make
from .kinds import control_only, every_start, processes, workers
from .sync import LIMIT_S, BellKeeper, GateKeeper, wait_for_end

pytestmark = pytest.mark.any_start


@pytest.fixture
def fresh(make: Make) -> Executor:
    """An executor of this test alone: its workers die."""
    return make(2)


def death_of(future: Future[Any]) -> Any:
    """Return the WorkerDied that `future` holds."""
    from repartir import WorkerDied

    error = future.exception(LIMIT_S)
    assert isinstance(error, WorkerDied)
    assert isinstance(error, BrokenProcessPool)
    return error


@processes
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_signal_is_a_broken_process_pool_for_that_task(fresh: Executor, signum: signal.Signals) -> None:
    assert isinstance(fresh.submit(tasks.kill_self, signum).exception(LIMIT_S), BrokenProcessPool)


@control_only
def test_the_control_breaks(fresh: Executor) -> None:
    """What the tests below would not notice, were the tasks that die not deadly."""
    fresh.submit(tasks.kill_self, signal.SIGKILL).exception(LIMIT_S)
    with pytest.raises(BrokenProcessPool):
        fresh.submit(pow, 2, 5)


@workers
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV])
def test_the_error_names_signal_and_task(fresh: Executor, signum: signal.Signals) -> None:
    error = death_of(fresh.submit(tasks.kill_self, signum))
    assert error.signal == signum
    assert error.task is not None
    assert "kill_self" in str(error)
    assert signum.name in str(error)


@workers
@pytest.mark.parametrize("code", [0, 7])
def test_os_exit_names_its_code(fresh: Executor, code: int) -> None:
    error = death_of(fresh.submit(tasks.exit_hard, code))
    assert error.exit_code == code
    assert error.signal is None
    assert "exit_hard" in str(error)
    assert fresh.submit(pow, 2, 5).result(LIMIT_S) == 32


@every_start
@workers
def test_all_others_finish(fresh: Executor) -> None:
    before = [fresh.submit(pow, n, 2) for n in range(100)]
    deadly = fresh.submit(tasks.kill_self, signal.SIGKILL)
    after = [fresh.submit(pow, n, 3) for n in range(100)]
    assert [f.result(LIMIT_S) for f in before] == [n**2 for n in range(100)]
    assert [f.result(LIMIT_S) for f in after] == [n**3 for n in range(100)]
    death_of(deadly)


@workers
def test_a_task_beside_it_is_not_disturbed(fresh: Executor, bell: BellKeeper, gate: GateKeeper) -> None:
    beside = fresh.submit(tasks.ring_and_wait, bell.bell, gate.gate, 5)
    pid = bell.hear()
    death_of(fresh.submit(tasks.kill_self, signal.SIGKILL))
    gate.open()
    assert beside.result(LIMIT_S) == 5
    assert pid != ""
    assert bell.hear_all() == []


@workers
def test_nothing_runs_twice(fresh: Executor, bell: BellKeeper) -> None:
    futures: list[Future[Any]] = []
    for n in range(200):
        futures.append(fresh.submit(tasks.ring, bell.bell, n))
        if n % 50 == 25:
            futures.append(fresh.submit(tasks.exit_hard, 1))
    died = [f for f in futures if f.exception(LIMIT_S) is not None]
    assert len(died) == 4
    assert sorted(map(int, bell.hear_all())) == list(range(200))


@workers
def test_both_workers_are_replaced(fresh: Executor, bell: BellKeeper, gate: GateKeeper) -> None:
    for n in range(4):
        death_of(fresh.submit(tasks.exit_hard, n))
    held = [fresh.submit(tasks.ring_and_wait, bell.bell, gate.gate) for _ in range(2)]
    assert len({bell.hear(), bell.hear()}) == 2
    gate.open()
    assert [f.result(LIMIT_S) for f in held] == [None, None]


@workers
def test_a_worker_killed_from_outside_while_it_runs(
    fresh: Executor, bell: BellKeeper, gate: GateKeeper
) -> None:
    future = fresh.submit(tasks.ring_and_wait, bell.bell, gate.gate)
    os.kill(int(bell.hear()), signal.SIGKILL)
    assert death_of(future).signal == signal.SIGKILL
    assert fresh.submit(pow, 2, 5).result(LIMIT_S) == 32


@workers
def test_a_worker_killed_while_idle_costs_nothing(fresh: Executor) -> None:
    for _ in range(3):
        pid = fresh.submit(tasks.pid).result(LIMIT_S)
        os.kill(pid, signal.SIGKILL)
        assert wait_for_end(pid)
        assert [fresh.submit(pow, n, 2).result(LIMIT_S) for n in range(20)] == [n * n for n in range(20)]


@workers
def test_an_argument_that_kills_at_its_loading_costs_its_own_task(fresh: Executor) -> None:
    """Unpickling runs user code, so it counts as started: no second worker is sent after the first."""
    deadly = fresh.submit(tasks.echo, tasks.KillsAtLoad())
    others = [fresh.submit(pow, n, 2) for n in range(50)]
    assert death_of(deadly).exit_code == 9
    assert [f.result(LIMIT_S) for f in others] == [n * n for n in range(50)]


@workers
def test_a_death_in_a_map_ends_it_and_spares_the_pool(fresh: Executor) -> None:
    results = fresh.map(_exit_on_five, range(10), chunksize=1)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(BrokenProcessPool):
        next(results)
    assert list(fresh.map(abs, range(10))) == list(range(10))


def _exit_on_five(value: int) -> int:
    if value == 5:
        os._exit(5)
    return value


@workers
def test_a_death_with_the_only_worker(make: Make) -> None:
    with make(1) as ex:
        deadly = ex.submit(tasks.exit_hard, 1)
        later = [ex.submit(pow, n, 2) for n in range(20)]
        death_of(deadly)
        assert [f.result(LIMIT_S) for f in later] == [n * n for n in range(20)]


@workers
def test_shutdown_after_a_death(make: Make) -> None:
    ex = make(2)
    deadly = ex.submit(tasks.exit_hard, 1)
    later = [ex.submit(pow, n, 2) for n in range(20)]
    ex.shutdown()
    death_of(deadly)
    assert [f.result(0) for f in later] == [n * n for n in range(20)]


def error_of_submit(ex: Executor) -> BaseException | None:
    """Return the error of one task: its future's, or what submit raised if the pool is broken by then."""
    try:
        return ex.submit(pow, 2, 2).exception(LIMIT_S)
    except BrokenProcessPool as error:
        return error


class TestInitializer:
    @every_start
    @processes
    def test_a_failing_one_breaks_the_pool(self, make: Make) -> None:
        ex = make(2, initializer=tasks.initialise_badly)
        assert all(isinstance(error_of_submit(ex), BrokenProcessPool) for _ in range(5))
        with pytest.raises(BrokenProcessPool):
            ex.submit(pow, 2, 2)
        ex.shutdown()

    @processes
    def test_one_that_dies_breaks_the_pool(self, make: Make) -> None:
        ex = make(2, initializer=tasks.exit_hard, initargs=(3,))
        assert isinstance(error_of_submit(ex), BrokenProcessPool)
        with pytest.raises(BrokenProcessPool):
            ex.submit(pow, 2, 2)
        ex.shutdown()

    @workers
    def test_the_error_says_what_the_initializer_raised(self, make: Make) -> None:
        import traceback

        ex = make(1, initializer=tasks.initialise_badly)
        error = error_of_submit(ex)
        assert isinstance(error, BrokenProcessPool)
        assert "initializer exploded" in "".join(traceback.format_exception(error))

    @workers
    def test_a_replacement_is_initialised_too(self, make: Make) -> None:
        with make(1, initializer=tasks.initialise, initargs=("ready",)) as ex:
            death_of(ex.submit(tasks.exit_hard, 1))
            assert ex.submit(tasks.get_initialised).result(LIMIT_S) == ["ready"]
