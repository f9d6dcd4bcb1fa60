"""The future whose condition is made only when somebody needs one."""

from __future__ import annotations

import concurrent.futures
import copy
import gc
import logging
import pickle
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

import repartir.future
from repartir import Future
from tests.helpers import module_main

LIMIT_S = 15.0


class Broker:
    """A driver that settles when it is waited on, and lets cancel whatever it is told to."""

    def __init__(self, settle: Callable[[Future[Any]], object] | None = None) -> None:
        self.settle = settle
        self.cancellable = True
        self.begun: set[int] = set()
        self.waits: list[float | None] = []

    def wait_for(self, future: Future[Any], timeout: float | None) -> None:
        self.waits.append(timeout)
        if self.settle is not None:
            self.settle(future)

    def take_back(self, future: Future[Any]) -> bool:
        return self.cancellable and future.mark_cancelled()

    def is_running(self, future: Future[Any]) -> bool:
        return future.task_id in self.begun

    def future(self) -> Future[Any]:
        return Future(self, 1)


def settle(future: Future[Any], value: Any = None, error: BaseException | None = None) -> None:
    """What the broker does with an answer."""
    if not future.settle_alone(value, error):
        future.settle_fully(value, error)


def has_condition(future: Future[Any]) -> bool:
    return future._made_condition is not None


class Detour:
    """Stands in for the module's lock: whoever is about to take it first is overtaken by `overtake`, once."""

    def __init__(self, overtake: Callable[[], object]) -> None:
        self._overtake: Callable[[], object] | None = overtake
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        overtake, self._overtake = self._overtake, None
        if overtake is not None:
            thread = threading.Thread(target=overtake)
            thread.start()
            thread.join(LIMIT_S)
            assert not thread.is_alive()
        assert self._lock.acquire(timeout=LIMIT_S)

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class TestLaziness:
    def test_submit_settle_result_makes_no_condition(self) -> None:
        future = Broker().future()
        assert not future.done()
        assert future.settle_alone(5, None)
        assert future.done()
        assert (future.result(), future.result(0), future.exception()) == (5, 5, None)
        assert not has_condition(future)

    def test_a_result_that_drives_makes_none(self) -> None:
        broker = Broker(lambda future: settle(future, 5))
        future = broker.future()
        assert future.result(3.0) == 5
        assert broker.waits == [3.0]
        assert not has_condition(future)

    def test_neither_do_the_questions(self) -> None:
        future = Broker().future()
        assert (future.done(), future.running(), future.cancelled()) == (False, False, False)
        settle(future, error=ValueError())
        assert (future.done(), future.running(), future.cancelled()) == (True, False, False)
        with pytest.raises(ValueError):
            future.result()
        assert not has_condition(future)

    @pytest.mark.parametrize(
        "need",
        [
            lambda future: future.add_done_callback(id),
            lambda future: concurrent.futures.wait([future], timeout=0),
            lambda future: next(concurrent.futures.as_completed([future, _done()])),
            repr,
        ],
        ids=["callback", "wait", "as_completed", "repr"],
    )
    def test_these_need_one(self, need: Callable[[Future[Any]], object]) -> None:
        future = Broker().future()
        need(future)
        assert has_condition(future)
        assert not future.settle_alone(5, None), "then the standard library's path is due"
        assert not future.done()

    def test_it_is_made_once(self) -> None:
        future = Broker().future()
        assert future._condition is future._condition

    def test_memory(self) -> None:
        """What a future costs of which nobody ever needed the condition, beside its result."""
        broker, count = Broker(), 1000
        kept: list[Any] = [None] * count
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for at in range(count):
                kept[at] = Future(broker, 7)
            for future in kept:
                future.settle_alone(None, None)
            taken = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert taken / count < 200

    def test_is_freed_with_its_last_reference(self) -> None:
        for error in (None, ValueError("kept?")):
            future = Broker().future()
            settle(future, error=error)
            assert future.exception() is error
            if error is not None:
                with pytest.raises(ValueError):
                    future.result()
            gone = weakref.ref(future)
            del future
            assert gone() is None


def _done() -> Future[Any]:
    future = Broker().future()
    settle(future)
    return future


class TestSettling:
    @pytest.mark.parametrize("needed", [False, True])
    def test_the_first_outcome_stays(self, needed: bool) -> None:
        """An interrupted round is repeated, and a task may be answered twice."""
        future = Broker().future()
        if needed:
            future._condition  # noqa: B018
        settle(future, 1)
        settle(future, 2)
        settle(future, error=ValueError())
        future.settle_fully(3, None)
        assert future.result() == 1

    @pytest.mark.parametrize("needed", [False, True])
    def test_a_cancelled_one_stays_cancelled(self, needed: bool) -> None:
        future = Broker().future()
        assert future.cancel()
        if needed:
            future._condition  # noqa: B018
        settle(future, 1)
        with pytest.raises(CancelledError):
            future.result()

    def test_an_answer_overtaken_by_the_need_for_a_condition(self, monkeypatch: pytest.MonkeyPatch) -> None:
        future = Broker().future()
        called: list[Any] = []
        need = Detour(lambda: future.add_done_callback(called.append))
        monkeypatch.setattr(repartir.future, "_lock", need)
        assert not future.settle_alone(5, None)
        assert not future.done()
        future.settle_fully(5, None)
        assert called == [future]
        assert future.result() == 5

    def test_the_need_for_a_condition_overtaken_by_an_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        future = Broker().future()
        monkeypatch.setattr(repartir.future, "_lock", Detour(lambda: future.settle_alone(5, None)))
        called: list[Any] = []
        future.add_done_callback(called.append)
        assert called == [future]
        assert concurrent.futures.wait([future], timeout=0).done == {future}

    def test_two_that_need_one_get_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        future = Broker().future()
        got: list[Any] = []
        monkeypatch.setattr(repartir.future, "_lock", Detour(lambda: got.append(future._condition)))
        got.append(future._condition)
        assert got[0] is got[1]
        assert len(got) == 2

    @pytest.mark.parametrize("how", ["wait", "as_completed", "result"])
    def test_waiters_in_another_thread_always_see_it(self, how: str) -> None:
        """At full speed, whoever is first: nobody waits for ever, nobody sees half a state."""
        rounds = 1000
        futures = [Future[int](_Sleeps(), n) for n in range(rounds)]
        start = threading.Barrier(2)

        def settler() -> None:
            start.wait(LIMIT_S)
            for n, future in enumerate(futures):
                settle(future, n)

        thread = threading.Thread(target=settler)
        thread.start()
        start.wait(LIMIT_S)
        if how == "wait":
            for future in futures:
                assert concurrent.futures.wait([future], LIMIT_S).done == {future}
        elif how == "as_completed":
            for future in futures:
                assert list(concurrent.futures.as_completed([future], LIMIT_S)) == [future]
        assert [future.result(LIMIT_S) for future in futures] == list(range(rounds))
        thread.join(LIMIT_S)

    def test_a_finalizer_may_use_futures_while_a_condition_is_made(self, tmp_path: Path) -> None:
        """Garbage is collected at every allocation, and its finalizers cancel, add callbacks and print futures."""
        ended = module_main(tmp_path, _FINALIZERS, timeout=30)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "200 True True\n", "")


class _Sleeps:
    """A driver whose waiters sleep until somebody else settles."""

    def wait_for(self, future: Future[Any], timeout: float | None) -> None:
        future.wait_on_condition(timeout)

    def take_back(self, future: Future[Any]) -> bool:
        raise AssertionError

    def is_running(self, future: Future[Any]) -> bool:
        return False


_FINALIZERS = """
import faulthandler, gc
from repartir import Future
faulthandler.dump_traceback_later(20, exit=True)

def finalize(phase, info):
    # Within any allocation, as finalizers run.
    if phase == "start":
        future = Future()
        future.add_done_callback(called.append)
        repr(future)
        future.cancel()
        finalized.add(future)

called, finalized, total = [], set(), 0
gc.callbacks.append(finalize)
gc.set_threshold(1)
while total < 200:
    Future().add_done_callback(called.append)
    total += 1
gc.disable()
print(total, len(finalized) > 200, len(called) == len(finalized))
"""


class TestLeakedLocks:
    """What an exception of a signal handler leaves when it strikes within the standard library's `wait`."""

    def leak(self, lock: Any) -> None:
        thread = threading.Thread(target=lock.acquire)
        thread.start()
        thread.join(LIMIT_S)

    @pytest.mark.parametrize("end", ["settled", "cancelled"])
    @pytest.mark.parametrize("how", ["ALL_COMPLETED", "FIRST_COMPLETED"])
    def test_of_a_waiters_event_stop_nobody(self, end: str, how: str) -> None:
        future = Broker().future()
        future._condition  # noqa: B018 - the standard library takes it before
        dead, alive = (
            concurrent.futures._base._create_and_install_waiters([future], how)  # type: ignore[attr-defined]
            for _ in range(2)
        )
        self.leak(dead.event._cond)
        if end == "settled":
            future.settle_fully(5, None)
        else:
            assert future.cancel()
        assert alive.event.is_set()
        assert not dead.event.is_set()

    def test_of_the_future_stop_nobody(self) -> None:
        future = Broker().future()
        self.leak(future._condition)
        future.settle_fully(5, None)
        assert future.result() == 5


class TestCallbacks:
    @pytest.mark.parametrize("end", ["value", "error", "cancel"])
    def test_are_called_once_in_the_order_of_addition(self, end: str) -> None:
        future = Broker().future()
        called: list[int] = []
        for n in range(5):
            future.add_done_callback(lambda _, n=n: called.append(n))
        if end == "cancel":
            assert future.cancel()
            assert future.cancel()
        else:
            settle(future, error=ValueError() if end == "error" else None)
            settle(future)
        assert called == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
    def test_one_that_raises_is_logged_and_stops_no_other(
        self, caplog: pytest.LogCaptureFixture, error: type[BaseException]
    ) -> None:
        future = Broker().future()
        called: list[Any] = []

        def fails(_: object) -> None:
            raise error

        future.add_done_callback(fails)
        future.add_done_callback(called.append)
        with caplog.at_level(logging.ERROR, logger="concurrent.futures"):
            settle(future, 5)
        assert called == [future]
        assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [error]
        assert "exception calling callback" in caplog.text

    def test_ctrl_c_in_one_that_is_called_by_cancel_is_raised(self) -> None:
        def interrupted(_: object) -> None:
            raise KeyboardInterrupt

        future = Broker().future()
        future.add_done_callback(interrupted)
        with pytest.raises(KeyboardInterrupt):
            future.cancel()

    def test_one_added_to_a_future_that_was_settled_alone_is_called_at_once(self) -> None:
        future = _done()
        called: list[Any] = []
        future.add_done_callback(called.append)
        assert called == [future]

    def test_one_added_by_a_callback_is_called(self) -> None:
        future = Broker().future()
        called: list[Any] = []
        future.add_done_callback(lambda future: future.add_done_callback(called.append))
        settle(future)
        assert called == [future]

    def test_no_lock_is_held_during_one(self) -> None:
        future = Broker().future()
        seen: list[Any] = []

        def ask_from_another_thread(_: Any) -> None:
            thread = threading.Thread(target=lambda: seen.append((future.result(0), repr(Future()))))
            thread.start()
            thread.join(LIMIT_S)

        future.add_done_callback(ask_from_another_thread)
        settle(future, 5)
        assert seen[0][0] == 5


class TestCancel:
    def test_tells_waiters(self) -> None:
        future = Broker().future()
        entered = threading.Event()
        found: list[Any] = []

        def wait() -> None:
            entered.set()
            found.append(concurrent.futures.wait([future], LIMIT_S).done)

        thread = threading.Thread(target=wait)
        thread.start()
        assert entered.wait(LIMIT_S)
        assert future.cancel()
        thread.join(LIMIT_S)
        assert found == [{future}]
        assert future.cancelled()

    def test_is_refused_when_the_broker_cannot_take_the_task_back(self) -> None:
        broker = Broker()
        broker.cancellable = False
        future = broker.future()
        assert not future.cancel()
        settle(future, 5)
        assert not future.cancel()
        assert future.result() == 5

    def test_is_refused_for_a_settled_one(self) -> None:
        assert not _done().cancel()

    def test_ends_a_result_that_drives(self) -> None:
        broker = Broker(lambda future: future.mark_cancelled())
        with pytest.raises(CancelledError):
            broker.future().result()

    def test_of_one_without_a_broker(self) -> None:
        """As the executor makes them for calls that cannot be sent, and as users may make them."""
        future: Future[int] = Future()
        assert future.cancel()
        assert future.cancelled()
        assert not future.set_running_or_notify_cancel()


class TestWithoutABroker:
    def test_set_result(self) -> None:
        future: Future[int] = Future()
        assert future.set_running_or_notify_cancel()
        assert future.running()
        future.set_result(5)
        assert future.result() == 5
        with pytest.raises(concurrent.futures.InvalidStateError):
            future.set_result(6)

    def test_set_exception(self) -> None:
        future: Future[int] = Future()
        error = ValueError("set")
        future.set_exception(error)
        assert future.exception() is error
        with pytest.raises(ValueError, match="set"):
            future.result()

    @pytest.mark.parametrize("ask", ["result", "exception"])
    def test_a_time_out(self, ask: str) -> None:
        with pytest.raises(TimeoutError):
            getattr(Future(), ask)(timeout=0)


def test_a_broker_that_gives_up_is_a_time_out() -> None:
    broker = Broker()
    with pytest.raises(TimeoutError):
        broker.future().result(0.5)
    with pytest.raises(TimeoutError):
        broker.future().exception(0.25)
    assert broker.waits == [0.5, 0.25]


def test_running_asks_the_broker_until_it_is_done() -> None:
    broker = Broker()
    future = broker.future()
    broker.begun.add(future.task_id)
    assert future.running()
    settle(future)
    assert not future.running()


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (lambda future: None, "state=pending>"),
        (lambda future: settle(future, 5), "state=finished returned int>"),
        (lambda future: settle(future, error=KeyError()), "state=finished raised KeyError>"),
        (lambda future: future.cancel(), "state=cancelled>"),
    ],
    ids=["pending", "value", "error", "cancelled"],
)
def test_repr_is_the_standard_librarys(end: Callable[[Future[Any]], object], text: str) -> None:
    future = Broker().future()
    end(future)
    assert repr(future).startswith("<Future at 0x")
    assert repr(future).endswith(text)


@pytest.mark.parametrize(
    "make", [Future, concurrent.futures.Future, _done], ids=["ours", "stdlib", "settled"]
)
@pytest.mark.parametrize("way", [pickle.dumps, copy.deepcopy])
def test_it_cannot_be_pickled(
    make: Callable[[], concurrent.futures.Future[Any]], way: Callable[[Any], object]
) -> None:
    with pytest.raises(TypeError, match="cannot pickle"):
        way(make())


def test_it_is_what_the_standard_library_expects() -> None:
    assert isinstance(Future(), concurrent.futures.Future)
