"""concurrent.futures.wait, as_completed and asyncio over futures of every kind, mixed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    Executor,
    ThreadPoolExecutor,
    as_completed,
    wait,
)

import pytest

from . import tasks
from .conftest import Shared, close
from .kinds import CONTROL, processes
from .sync import LIMIT_S, BellKeeper, GateKeeper


@pytest.fixture(scope="module")
def stdlib(shared: Shared) -> Iterator[Executor]:
    """A ProcessPoolExecutor whose futures are mixed with those of the shared executor."""
    executor = CONTROL.make(1)
    executor.submit(pow, 2, 2).result(LIMIT_S)
    yield executor
    close(executor)


@pytest.fixture(scope="module")
def thread_pool(shared: Shared) -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as executor:
        executor.submit(pow, 2, 2).result(LIMIT_S)
        yield executor


class TestWait:
    def test_all_completed(self, ex: Executor, stdlib: Executor, thread_pool: Executor) -> None:
        futures = [one.submit(pow, n, 2) for one in (ex, stdlib, thread_pool) for n in range(5)]
        done, not_done = wait(futures, timeout=LIMIT_S, return_when=ALL_COMPLETED)
        assert (done, not_done) == (set(futures), set())

    def test_all_completed_includes_failures(self, ex: Executor, stdlib: Executor) -> None:
        futures = [one.submit(tasks.fail_on, 1, n) for one in (ex, stdlib) for n in range(3)]
        done, not_done = wait(futures, timeout=LIMIT_S)
        assert (len(done), not_done) == (6, set())

    @processes
    def test_first_completed(
        self, ex: Executor, stdlib: Executor, thread_pool: Executor, gate: GateKeeper
    ) -> None:
        held = [one.submit(tasks.wait_for, gate.gate) for one in (stdlib, thread_pool, ex)]
        quick = ex.submit(pow, 2, 5)
        done, not_done = wait([*held, quick], timeout=LIMIT_S, return_when=FIRST_COMPLETED)
        assert (done, not_done) == ({quick}, set(held))
        gate.open()
        assert not wait(held, timeout=LIMIT_S).not_done

    @processes
    def test_first_exception(self, ex: Executor, stdlib: Executor, gate: GateKeeper) -> None:
        held = [one.submit(tasks.wait_for, gate.gate) for one in (ex, stdlib)]
        quick = ex.submit(pow, 2, 5)
        quick.result(LIMIT_S)
        failing = ex.submit(tasks.fail, "first")
        done, not_done = wait([*held, quick, failing], timeout=LIMIT_S, return_when=FIRST_EXCEPTION)
        assert (done, not_done) == ({quick, failing}, set(held))
        gate.open()
        assert not wait(held, timeout=LIMIT_S).not_done

    def test_first_exception_without_any_waits_for_all(self, ex: Executor, stdlib: Executor) -> None:
        futures = [one.submit(pow, n, 2) for one in (ex, stdlib) for n in range(5)]
        done, not_done = wait(futures, timeout=LIMIT_S, return_when=FIRST_EXCEPTION)
        assert (done, not_done) == (set(futures), set())

    @processes
    def test_time_out(self, ex: Executor, stdlib: Executor, gate: GateKeeper) -> None:
        held = {one.submit(tasks.wait_for, gate.gate) for one in (ex, stdlib)}
        quick = ex.submit(pow, 2, 5)
        quick.result(LIMIT_S)
        done, not_done = wait([*held, quick], timeout=0.1)
        assert (done, not_done) == ({quick}, held)
        gate.open()
        assert not wait(held, timeout=LIMIT_S).not_done

    @processes
    def test_a_cancelled_future_is_done(self, ex: Executor, gate: GateKeeper) -> None:
        futures = [ex.submit(tasks.wait_for, gate.gate) for _ in range(10)]
        assert futures[-1].cancel()
        gate.open()
        assert not wait(futures, timeout=LIMIT_S).not_done

    def test_duplicates_and_finished_ones(self, ex: Executor) -> None:
        future = ex.submit(pow, 2, 5)
        future.result(LIMIT_S)
        assert wait([future, future], timeout=0) == ({future}, set())

    @processes
    def test_from_many_threads_on_one_future(self, ex: Executor, gate: GateKeeper) -> None:
        future = ex.submit(tasks.wait_for, gate.gate, 5)
        seen: list[bool] = []
        threads = [
            threading.Thread(target=lambda: seen.append(not wait([future], timeout=LIMIT_S).not_done))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        gate.open()
        for thread in threads:
            thread.join(2 * LIMIT_S)
        assert seen == [True] * 4

    def test_many(self, ex: Executor) -> None:
        futures = [ex.submit(pow, n, 2) for n in range(1000)]
        assert not wait(futures, timeout=LIMIT_S).not_done


class TestAsCompleted:
    def test_gives_each_once(self, ex: Executor, stdlib: Executor, thread_pool: Executor) -> None:
        futures = [one.submit(pow, n, 2) for one in (ex, stdlib, thread_pool) for n in range(20)]
        given = list(as_completed([*futures, *futures], timeout=LIMIT_S))
        assert len(given) == 60
        assert set(given) == set(futures)

    @processes
    def test_in_the_order_of_completion(self, ex: Executor, stdlib: Executor, gate: GateKeeper) -> None:
        held = stdlib.submit(tasks.wait_for, gate.gate)
        quick = ex.submit(pow, 2, 5)
        completed = as_completed([held, quick], timeout=LIMIT_S)
        assert next(completed) is quick
        gate.open()
        assert next(completed) is held

    @processes
    def test_ours_may_be_the_later_one(self, ex: Executor, stdlib: Executor, gate: GateKeeper) -> None:
        held = ex.submit(tasks.wait_for, gate.gate)
        quick = stdlib.submit(pow, 2, 5)
        completed = as_completed([held, quick], timeout=LIMIT_S)
        assert next(completed) is quick
        gate.open()
        assert next(completed) is held

    @processes
    def test_time_out(self, ex: Executor, gate: GateKeeper) -> None:
        held, quick = ex.submit(tasks.wait_for, gate.gate), ex.submit(pow, 2, 5)
        quick.result(LIMIT_S)
        completed = as_completed([held, quick], timeout=0.1)
        assert next(completed) is quick
        with pytest.raises(TimeoutError):
            next(completed)
        gate.open()

    @processes
    def test_includes_cancelled_and_failed(self, ex: Executor, gate: GateKeeper) -> None:
        failing = ex.submit(tasks.fail, "counted")
        held = [ex.submit(tasks.wait_for, gate.gate) for _ in range(10)]
        assert held[-1].cancel()
        gate.open()
        assert set(as_completed([failing, *held], timeout=LIMIT_S)) == {failing, *held}

    def test_submitting_inside_the_loop(self, ex: Executor) -> None:
        """The pattern of optimisers: each completed trial starts the next."""
        pending = {ex.submit(pow, n, 2) for n in range(4)}
        results = []
        while pending:
            future = next(as_completed(pending, timeout=LIMIT_S))
            pending.remove(future)
            results.append(future.result(0))
            if len(results) <= 40:
                pending.add(ex.submit(pow, len(results), 2))
        assert len(results) == 44


class TestAsyncio:
    def test_wrap_future(self, ex: Executor) -> None:
        async def main() -> int:
            return await asyncio.wait_for(asyncio.wrap_future(ex.submit(pow, 2, 5)), LIMIT_S)

        assert asyncio.run(main()) == 32

    def test_wrap_future_with_an_exception(self, ex: Executor) -> None:
        async def main() -> None:
            await asyncio.wait_for(asyncio.wrap_future(ex.submit(tasks.fail, "awaited")), LIMIT_S)

        with pytest.raises(ValueError, match="awaited"):
            asyncio.run(main())

    def test_run_in_executor(self, ex: Executor) -> None:
        async def main() -> list[int]:
            loop = asyncio.get_running_loop()
            calls = [loop.run_in_executor(ex, pow, n, 2) for n in range(50)]
            return await asyncio.wait_for(asyncio.gather(*calls), LIMIT_S)

        assert asyncio.run(main()) == [n * n for n in range(50)]

    @processes
    def test_the_loop_runs_on_while_tasks_run(self, ex: Executor, bell: BellKeeper, gate: GateKeeper) -> None:
        async def main() -> int:
            loop = asyncio.get_running_loop()
            call = loop.run_in_executor(ex, tasks.ring_and_wait, bell.bell, gate.gate, 5)
            await loop.run_in_executor(None, bell.hear)
            assert not call.done()
            gate.open()
            return int(await asyncio.wait_for(call, LIMIT_S))

        assert asyncio.run(main()) == 5

    @processes
    def test_cancelling_the_wrapper_cancels_a_waiting_task(
        self, ex: Executor, bell: BellKeeper, gate: GateKeeper
    ) -> None:
        async def main() -> None:
            held = [ex.submit(tasks.wait_for, gate.gate) for _ in range(10)]
            future = ex.submit(tasks.ring, bell.bell, "ran")
            wrapper = asyncio.wrap_future(future)
            wrapper.cancel()
            with pytest.raises(asyncio.CancelledError):
                await wrapper
            await asyncio.sleep(0)  # one turn of the loop, in which it tells the future
            assert future.cancelled()
            gate.open()
            await asyncio.wait_for(asyncio.gather(*map(asyncio.wrap_future, held)), LIMIT_S)

        asyncio.run(main())
        ex.submit(pow, 2, 2).result(LIMIT_S)
        assert bell.hear_all() == []

    @processes
    def test_wait_for_ends_the_waiting(self, ex: Executor, gate: GateKeeper) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(loop.run_in_executor(ex, tasks.wait_for, gate.gate), 0.1)

        asyncio.run(main())
        gate.open()
        assert ex.submit(pow, 2, 5).result(LIMIT_S) == 32
