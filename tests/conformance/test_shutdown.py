"""shutdown, `with`, terminate_workers, kill_workers, garbage-collected executors."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from concurrent.futures import CancelledError, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest

from . import tasks
from .conftest import Make
from .kinds import Kind, every_start, processes, workers
from .sync import LIMIT_S, BellKeeper, GateKeeper, wait_for_end

pytestmark = pytest.mark.any_start

AFTER_SHUTDOWN = r"^cannot schedule new futures after shutdown$"


def settled(futures: list[Future[Any]]) -> list[object]:
    """Return each future's outcome, once it has one: a value, an exception, or the word `cancelled`."""
    return [outcome(future) for future in futures]


def outcome(future: Future[Any]) -> object:
    try:
        return future.exception(LIMIT_S) or future.result(0)
    except CancelledError:
        return "cancelled"


@every_start
def test_with_waits_for_all(make: Make) -> None:
    with make(2) as ex:
        futures = [ex.submit(pow, n, 2) for n in range(100)]
    assert all(f.done() for f in futures)
    assert [f.result(0) for f in futures] == [n * n for n in range(100)]


def test_with_gives_the_executor_itself(make: Make) -> None:
    ex = make(2)
    with ex as entered:
        assert entered is ex


def test_with_waits_also_after_an_exception(make: Make) -> None:
    with pytest.raises(KeyError, match="user"), make(2) as ex:
        futures = [ex.submit(pow, n, 2) for n in range(50)]
        raise KeyError("user")
    assert [f.result(0) for f in futures] == [n * n for n in range(50)]


@every_start
def test_submit_after_shutdown(make: Make) -> None:
    ex = make(2)
    ex.submit(pow, 2, 2).result(LIMIT_S)
    ex.shutdown()
    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        ex.submit(pow, 2, 2)


def test_map_after_shutdown(make: Make) -> None:
    ex = make(2)
    ex.shutdown()
    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        list(ex.map(abs, [1]))


def test_submit_after_with(make: Make) -> None:
    with make(2) as ex:
        pass
    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        ex.submit(pow, 2, 2)


def test_shutdown_twice(make: Make) -> None:
    ex = make(2)
    ex.submit(pow, 2, 2).result(LIMIT_S)
    ex.shutdown()
    ex.shutdown()
    ex.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        ex.submit(pow, 2, 2)


def test_shutdown_of_an_unused_executor(make: Make) -> None:
    ex = make(2)
    ex.shutdown()
    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        ex.submit(pow, 2, 2)


def test_results_stay_after_shutdown(make: Make) -> None:
    ex = make(2)
    good, bad = ex.submit(pow, 2, 5), ex.submit(tasks.fail, "kept")
    ex.shutdown()
    assert good.result(0) == 32
    with pytest.raises(ValueError, match="kept"):
        bad.result(0)


@every_start
@processes
def test_workers_are_gone_after_shutdown(make: Make) -> None:
    ex = make(2)
    pids = {ex.submit(tasks.pid).result(LIMIT_S) for _ in range(10)}
    ex.shutdown()
    assert all(wait_for_end(pid, 0.5) for pid in pids)


@processes
def test_shutdown_without_waiting_returns_and_lets_work_end(
    make: Make, bell: BellKeeper, gate: GateKeeper
) -> None:
    ex = make(2)
    futures = [ex.submit(tasks.ring_and_wait, bell.bell, gate.gate, n) for n in range(10)]
    bell.hear()
    ex.shutdown(wait=False)
    assert not any(f.done() for f in futures)
    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        ex.submit(pow, 2, 2)
    gate.open()
    assert settled(futures) == list(range(10))


@processes
def test_workers_end_after_a_shutdown_without_waiting(make: Make) -> None:
    ex = make(2)
    pid = ex.submit(tasks.pid).result(LIMIT_S)
    ex.shutdown(wait=False)
    assert wait_for_end(pid)


@processes
def test_shutdown_waits_after_one_that_did_not(make: Make, bell: BellKeeper, gate: GateKeeper) -> None:
    ex = make(1)
    future = ex.submit(tasks.ring_and_wait, bell.bell, gate.gate, 5)
    bell.hear()
    ex.shutdown(wait=False)
    gate.open()
    assert future.result(LIMIT_S) == 5
    ex.shutdown(wait=True)


@processes
@pytest.mark.parametrize("waits", [True, False])
def test_cancel_futures_cancels_what_has_not_started(
    make: Make, bell: BellKeeper, gate: GateKeeper, waits: bool
) -> None:
    ex = make(1)
    futures = [ex.submit(tasks.ring_and_wait, bell.bell, gate.gate, n) for n in range(20)]
    bell.hear()
    closer = threading.Thread(target=ex.shutdown, kwargs={"wait": waits, "cancel_futures": True})
    closer.start()
    with pytest.raises(CancelledError):
        futures[-1].result(LIMIT_S)
    assert not futures[0].done()
    gate.open()
    closer.join(LIMIT_S)
    assert not closer.is_alive()
    outcomes = settled(futures)
    assert outcomes[0] == 0
    assert outcomes.count("cancelled") >= 15
    assert 1 + len(bell.hear_all()) == 20 - outcomes.count("cancelled")


@workers
def test_wait_sees_what_shutdown_cancelled(make: Make, bell: BellKeeper, gate: GateKeeper) -> None:
    """In the stdlib such futures stay unannounced, and `wait` waits for them for ever."""
    ex = make(1)
    futures = [ex.submit(tasks.ring_and_wait, bell.bell, gate.gate, n) for n in range(20)]
    bell.hear()
    gate.open()
    ex.shutdown(wait=True, cancel_futures=True)
    assert not wait(futures, timeout=LIMIT_S).not_done


@every_start
@processes
def test_a_collected_executor_lets_its_work_end(make: Make, bell: BellKeeper, gate: GateKeeper) -> None:
    ex = make(2)
    pid = ex.submit(tasks.pid).result(LIMIT_S)
    futures = [ex.submit(tasks.ring_and_wait, bell.bell, gate.gate, n) for n in range(10)]
    bell.hear()
    gone = weakref.ref(ex)
    del ex
    gc.collect()
    assert gone() is None
    gate.open()
    assert settled(futures) == list(range(10))
    assert wait_for_end(pid)


@processes
def test_an_idle_collected_executor_ends_its_workers(make: Make) -> None:
    ex = make(2)
    pid = ex.submit(tasks.pid).result(LIMIT_S)
    del ex
    gc.collect()
    assert wait_for_end(pid)


@processes
def test_an_executor_in_a_cycle_is_collected(make: Make) -> None:
    ex: Any = make(2)
    pid = ex.submit(tasks.pid).result(LIMIT_S)
    holder: dict[str, object] = {"executor": ex}
    holder["self"] = holder
    del ex, holder
    gc.collect()
    assert wait_for_end(pid)


@processes
def test_a_future_outlives_its_executor(make: Make) -> None:
    assert make(2).submit(pow, 2, 5).result(LIMIT_S) == 32


@processes
def test_shutdown_from_another_thread_while_results_are_awaited(
    make: Make, bell: BellKeeper, gate: GateKeeper
) -> None:
    ex = make(2)
    future = ex.submit(tasks.ring_and_wait, bell.bell, gate.gate, 5)
    bell.hear()
    closer = threading.Thread(target=ex.shutdown)
    closer.start()
    gate.open()
    assert future.result(LIMIT_S) == 5
    closer.join(LIMIT_S)
    assert not closer.is_alive()


@processes
def test_shutdown_from_a_callback(make: Make) -> None:
    ex = make(2)
    returned = threading.Event()

    def close(_future: Future[Any]) -> None:
        ex.shutdown(wait=False)
        returned.set()

    ex.submit(pow, 2, 2).add_done_callback(close)
    assert returned.wait(LIMIT_S)
    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        ex.submit(pow, 2, 2)


@pytest.mark.parametrize("method", ["terminate_workers", "kill_workers"])
class TestForcedEnd:
    """terminate_workers and kill_workers, with the names and the outcomes of 3.14."""

    @pytest.fixture(autouse=True)
    def present(self, kind: Kind, method: str) -> None:
        from concurrent.futures import ProcessPoolExecutor

        if kind.is_control and not hasattr(ProcessPoolExecutor, method):
            pytest.skip(f"the stdlib has {method} from 3.14 on")

    @processes
    def test_stops_running_and_pending_tasks(
        self, make: Make, bell: BellKeeper, gate: GateKeeper, method: str
    ) -> None:
        ex = make(2)
        futures = [ex.submit(tasks.ring_and_wait, bell.bell, gate.gate, n) for n in range(20)]
        pids = [int(bell.hear()), int(bell.hear())]
        getattr(ex, method)()
        assert all(wait_for_end(pid) for pid in pids)
        outcomes = settled(futures)
        assert all(o == "cancelled" or isinstance(o, BrokenProcessPool) for o in outcomes)
        assert [o for o in outcomes if isinstance(o, BrokenProcessPool)]
        assert bell.hear_all() == []

    @processes
    def test_no_submit_afterwards(self, make: Make, method: str) -> None:
        ex = make(2)
        ex.submit(pow, 2, 2).result(LIMIT_S)
        getattr(ex, method)()
        with pytest.raises(RuntimeError):
            ex.submit(pow, 2, 2)

    @processes
    def test_keeps_results_that_are_there(self, make: Make, method: str) -> None:
        ex = make(2)
        future = ex.submit(pow, 2, 5)
        future.result(LIMIT_S)
        getattr(ex, method)()
        assert future.result(0) == 32

    @processes
    def test_of_an_unused_or_closed_executor(self, make: Make, method: str) -> None:
        unused, closed = make(2), make(2)
        closed.shutdown()
        getattr(unused, method)()
        getattr(closed, method)()
        with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
            unused.submit(pow, 2, 2)


@workers
def test_kill_workers_ends_a_worker_that_ignores_sigterm(
    make: Make, bell: BellKeeper, gate: GateKeeper
) -> None:
    ex: Any = make(1)
    future = ex.submit(_ignore_sigterm, bell.bell, gate.gate)
    pid = int(bell.hear())
    ex.kill_workers()
    assert wait_for_end(pid)
    assert isinstance(future.exception(LIMIT_S), BrokenProcessPool)


def _ignore_sigterm(bell: Any, gate: Any) -> None:
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    bell.ring(os.getpid())
    gate.wait()


@processes
def test_executors_one_after_another_leave_nothing(make: Make) -> None:
    open_files = len(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    for n in range(5):
        with make(1) as ex:
            assert ex.submit(abs, -n).result(LIMIT_S) == n
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) <= open_files + 2


def test_an_executor_is_its_own_context_even_when_closed_inside(make: Make) -> None:
    with make(2) as ex:
        future = ex.submit(pow, 2, 2)
        ex.shutdown()
    assert future.result(0) == 4
    assert isinstance(ex, Executor)
