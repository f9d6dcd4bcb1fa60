"""Futures: cancel, running, callbacks, time-outs."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import CancelledError, Executor, Future
from typing import Any

import pytest

from . import tasks
from .conftest import Make
from .kinds import ours, processes, workers
from .sync import LIMIT_S, BellKeeper, GateKeeper


def test_done_after_the_result(ex: Executor) -> None:
    future = ex.submit(pow, 2, 5)
    assert future.result(LIMIT_S) == 32
    assert (future.done(), future.running(), future.cancelled()) == (True, False, False)


def test_result_can_be_asked_again(ex: Executor) -> None:
    future = ex.submit(tasks.echo, [1, 2])
    assert future.result(LIMIT_S) is future.result(0)


def test_exception_is_none_for_a_value(ex: Executor) -> None:
    assert ex.submit(pow, 2, 5).exception(LIMIT_S) is None


def test_exception_gives_what_result_raises(ex: Executor) -> None:
    future = ex.submit(tasks.fail, "twice")
    error = future.exception(LIMIT_S)
    with pytest.raises(ValueError, match="twice") as caught:
        future.result(0)
    assert caught.value is error


@processes
def test_running_while_it_runs(ex: Executor, bell: BellKeeper, gate: GateKeeper) -> None:
    future = ex.submit(tasks.ring_and_wait, bell.bell, gate.gate)
    bell.hear()
    assert future.running()
    assert not future.done()
    gate.open()
    future.result(LIMIT_S)
    assert not future.running()


@processes
def test_a_running_task_cannot_be_cancelled(ex: Executor, bell: BellKeeper, gate: GateKeeper) -> None:
    future = ex.submit(tasks.ring_and_wait, bell.bell, gate.gate, 5)
    bell.hear()
    assert future.cancel() is False
    assert not future.cancelled()
    gate.open()
    assert future.result(LIMIT_S) == 5


def test_a_finished_task_cannot_be_cancelled(ex: Executor) -> None:
    future = ex.submit(pow, 2, 5)
    future.result(LIMIT_S)
    assert future.cancel() is False
    assert future.result(0) == 32


@processes
def test_a_cancelled_task_never_runs(ex: Executor, bell: BellKeeper, gate: GateKeeper) -> None:
    held = [ex.submit(tasks.wait_for, gate.gate) for _ in range(2)]
    waiting = [ex.submit(tasks.ring, bell.bell, n) for n in range(10)]
    last = waiting[-1]
    assert last.cancel() is True
    assert last.cancel() is True
    assert (last.cancelled(), last.done(), last.running()) == (True, True, False)
    with pytest.raises(CancelledError):
        last.result(0)
    with pytest.raises(CancelledError):
        last.exception(0)
    gate.open()
    for future in held + waiting[:-1]:
        future.result(LIMIT_S)
    ex.submit(pow, 2, 2).result(LIMIT_S)
    assert sorted(bell.hear_all()) == [str(n) for n in range(9)]


@processes
def test_cancelling_everything_that_waits(make: Make, bell: BellKeeper, gate: GateKeeper) -> None:
    ex = make(1)
    futures = [ex.submit(tasks.ring_and_wait, bell.bell, gate.gate, n) for n in range(200)]
    bell.hear()
    cancelled = [future.cancel() for future in futures]
    gate.open()
    assert cancelled.count(True) >= 190
    ran = [f.result(LIMIT_S) for f in futures if not f.cancelled()]
    assert ran == list(range(cancelled.count(False)))
    assert ex.submit(pow, 2, 5).result(LIMIT_S) == 32
    ex.shutdown()


@workers
def test_only_the_running_task_resists_cancelling(make: Make, bell: BellKeeper, gate: GateKeeper) -> None:
    """The stdlib also keeps those that it prefetched; here all that have not started can be cancelled."""
    ex = make(1)
    futures = [ex.submit(tasks.ring_and_wait, bell.bell, gate.gate, n) for n in range(20)]
    bell.hear()
    assert [future.cancel() for future in futures] == [False] + [True] * 19
    gate.open()
    assert futures[0].result(LIMIT_S) == 0
    ex.shutdown()
    assert bell.hear_all() == []


@processes
@pytest.mark.parametrize("wait_s", [0.1, 0, -1])
def test_result_and_exception_with_a_timeout(ex: Executor, gate: GateKeeper, wait_s: float) -> None:
    future = ex.submit(tasks.wait_for, gate.gate, 5)
    with pytest.raises(TimeoutError):
        future.result(timeout=wait_s)
    with pytest.raises(TimeoutError):
        future.exception(wait_s)
    assert not future.done()
    gate.open()
    assert future.result(LIMIT_S) == 5


class TestCallbacks:
    def test_gets_the_future_itself(self, ex: Executor) -> None:
        called: list[Future[Any]] = []
        rung = threading.Event()
        future = ex.submit(pow, 2, 5)
        future.add_done_callback(called.append)
        future.add_done_callback(lambda _: rung.set())
        assert rung.wait(LIMIT_S)
        assert called == [future]

    @processes
    def test_are_called_in_the_order_of_addition(self, ex: Executor, gate: GateKeeper) -> None:
        order: list[int] = []
        rung = threading.Event()
        future = ex.submit(tasks.wait_for, gate.gate)
        for n in range(20):
            future.add_done_callback(lambda _, n=n: order.append(n))  # type: ignore[misc]
        future.add_done_callback(lambda _: rung.set())
        gate.open()
        assert rung.wait(LIMIT_S)
        assert order == list(range(20))

    def test_added_late_is_called_at_once_in_this_thread(self, ex: Executor) -> None:
        future = ex.submit(pow, 2, 5)
        future.result(LIMIT_S)
        threads: list[threading.Thread] = []
        future.add_done_callback(lambda _: threads.append(threading.current_thread()))
        assert threads == [threading.current_thread()]

    def test_is_called_for_an_exception(self, ex: Executor) -> None:
        seen: list[BaseException | None] = []
        rung = threading.Event()
        future = ex.submit(tasks.fail, "for the callback")
        future.add_done_callback(lambda f: seen.append(f.exception(0)))
        future.add_done_callback(lambda _: rung.set())
        assert rung.wait(LIMIT_S)
        assert isinstance(seen[0], ValueError)

    @processes
    def test_is_called_at_a_cancel(self, ex: Executor, gate: GateKeeper) -> None:
        held = [ex.submit(tasks.wait_for, gate.gate) for _ in range(10)]
        seen: list[bool] = []
        held[-1].add_done_callback(lambda f: seen.append(f.cancelled()))
        assert held[-1].cancel()
        assert seen == [True]
        gate.open()
        for future in held[:-1]:
            future.result(LIMIT_S)
        assert seen == [True]

    @processes
    def test_an_exception_in_one_is_logged_and_stops_nothing(
        self, ex: Executor, gate: GateKeeper, caplog: pytest.LogCaptureFixture
    ) -> None:
        rung = threading.Event()
        future = ex.submit(tasks.wait_for, gate.gate, 5)
        future.add_done_callback(lambda _: tasks.fail("in the callback"))
        future.add_done_callback(lambda _: rung.set())
        with caplog.at_level(logging.ERROR, "concurrent.futures"):
            gate.open()
            assert rung.wait(LIMIT_S)
        assert future.result(LIMIT_S) == 5
        records = [r for r in caplog.records if r.name == "concurrent.futures"]
        assert [r.exc_info is not None and str(r.exc_info[1]) for r in records] == ["in the callback"]
        assert ex.submit(pow, 2, 5).result(LIMIT_S) == 32

    @processes
    def test_no_lock_is_held_during_one(self, ex: Executor, gate: GateKeeper) -> None:
        """The callback looks at its future, adds a callback and submits; so does another thread meanwhile."""
        seen: dict[str, object] = {}
        rung = threading.Event()
        future = ex.submit(tasks.wait_for, gate.gate, 5)

        def look() -> None:
            seen["other thread"] = (future.done(), future.cancel(), future.result(LIMIT_S))
            seen["submitted by other thread"] = ex.submit(pow, 2, 2)

        def callback(_future: Future[Any]) -> None:
            seen["result"] = future.result(0)
            future.add_done_callback(lambda _: seen.__setitem__("nested", True))
            seen["submitted"] = ex.submit(pow, 2, 5)
            other = threading.Thread(target=look)
            other.start()
            other.join(LIMIT_S)
            seen["other ended"] = not other.is_alive()
            rung.set()

        future.add_done_callback(callback)
        gate.open()
        assert rung.wait(2 * LIMIT_S)
        submitted, by_other = seen.pop("submitted"), seen.pop("submitted by other thread")
        assert seen == {"result": 5, "nested": True, "other thread": (True, False, 5), "other ended": True}
        assert isinstance(submitted, Future)
        assert isinstance(by_other, Future)
        assert (submitted.result(LIMIT_S), by_other.result(LIMIT_S)) == (32, 4)

    @workers
    def test_a_callback_that_waits_stops_no_results(self, ex: Executor, gate: GateKeeper) -> None:
        """User code runs in the broker thread only, so waiters must get their results without that thread."""
        inside, leave = threading.Event(), threading.Event()
        future = ex.submit(tasks.wait_for, gate.gate, 5)
        future.add_done_callback(lambda _: inside.set())
        future.add_done_callback(lambda _: leave.wait(LIMIT_S))
        gate.open()
        assert inside.wait(LIMIT_S)
        try:
            assert [ex.submit(pow, n, 2).result(5) for n in range(10)] == [n * n for n in range(10)]
        finally:
            leave.set()

    @workers
    def test_never_runs_in_the_thread_that_waits_for_a_result(self, ex: Executor, gate: GateKeeper) -> None:
        threads: list[threading.Thread] = []
        rung = threading.Event()
        future = ex.submit(tasks.wait_for, gate.gate, 5)
        future.add_done_callback(lambda _: threads.append(threading.current_thread()))
        future.add_done_callback(lambda _: rung.set())
        gate.open()
        assert future.result(LIMIT_S) == 5
        assert rung.wait(LIMIT_S)
        assert threading.current_thread() not in threads


@ours
def test_a_future_is_freed_with_its_last_reference(ex: Executor) -> None:
    import gc
    import weakref

    future = ex.submit(tasks.echo, [1])
    future.result(LIMIT_S)
    ex.submit(pow, 2, 2).result(LIMIT_S)
    gone = weakref.ref(future)
    del future
    gc.collect()
    assert gone() is None
