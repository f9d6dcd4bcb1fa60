"""`asubmit` and `amap`: results, order, bounds, and what cancelling stops."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

import repartir
from repartir import TaskNotSerializable, WorkerDied

from . import option_tasks, tasks
from . import worker_tasks as own_tasks
from .conftest import Make
from .kinds import ours, workers
from .sync import LIMIT_S, BellKeeper, GateKeeper

pytestmark = pytest.mark.any_start
T = TypeVar("T")


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def limited() -> T:
        async with asyncio.timeout(LIMIT_S):
            return await main()

    return asyncio.run(limited())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def count_up(until: int, pulled: list[int] | None = None) -> AsyncIterator[int]:
    for number in range(until):
        if pulled is not None:
            pulled.append(number)
        yield number
        await asyncio.sleep(0)


async def forever() -> AsyncIterator[int]:
    async for number in count_up(1 << 60):
        yield number


@pytest.fixture
def own(make: Make) -> Any:
    """An executor of this test alone: its workers die."""
    return make(2)


class TestAsubmit:
    @ours
    def test_gives_the_result(self, ex: Any) -> None:
        async def main() -> list[int]:
            return [await ex.asubmit(pow, 2, exp=5), await ex.options(retries=1).asubmit(pow, 3, 2)]

        assert run(main) == [32, 9]

    @ours
    def test_raises_what_the_call_raises(self, ex: Any) -> None:
        async def main() -> None:
            with pytest.raises(ZeroDivisionError):
                await ex.asubmit(divmod, 1, 0)

        run(main)

    @workers
    def test_raises_what_submit_raises(self, make: Make) -> None:
        ex: Any = make(1)

        async def main() -> None:
            with pytest.raises(TaskNotSerializable):
                await ex.asubmit(abs, own_tasks.Unpicklable(1))
            ex.shutdown()
            with pytest.raises(RuntimeError, match="after shutdown"):
                await ex.asubmit(abs, 1)

        run(main)

    @ours
    def test_many_in_a_task_group(self, ex: Any) -> None:
        async def main() -> list[int]:
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(ex.asubmit(pow, n, 2)) for n in range(2000)]
            return [task.result() for task in running]

        assert run(main) == [n * n for n in range(2000)]

    @workers
    def test_the_loop_goes_on(self, ex: Any, gate: GateKeeper, bell: BellKeeper) -> None:
        async def main() -> int:
            task = asyncio.create_task(ex.asubmit(own_tasks.ring_and_wait, bell.bell, gate.gate))
            turns = 0
            while not bell.hear_all():
                turns += 1
                await asyncio.sleep(0.001)
            gate.open()
            return turns if await task else 0

        assert run(main) > 0

    @workers
    def test_an_error_in_a_task_group_stops_the_others(self, own: Any, tmp_path: Path) -> None:
        async def fail_when_begun(path: Path) -> None:
            await until(path.exists)
            raise KeyError("enough")

        async def main() -> None:
            with pytest.raises(ExceptionGroup) as raised:
                async with asyncio.TaskGroup() as group:
                    group.create_task(own.asubmit(option_tasks.ring_and_sleep, tmp_path / "begun"))
                    for _ in range(50):
                        group.create_task(own.asubmit(time.sleep, 30))
                    group.create_task(fail_when_begun(tmp_path / "begun"))
            assert raised.value.subgroup(KeyError)
            assert await own.asubmit(abs, -1) == 1

        run(main)

    @workers
    def test_a_time_out_stops_the_call(self, own: Any, tmp_path: Path) -> None:
        async def main() -> float:
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await own.asubmit(option_tasks.ring_and_sleep, tmp_path / "begun")
            assert os.path.exists(tmp_path / "begun")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(own.asubmit(time.sleep, 60), 0.05)
            await asyncio.gather(*(own.asubmit(abs, -n) for n in range(10)))
            return time.monotonic() - began

        assert run(main) < 10

    @workers
    def test_one_that_waits_is_taken_back(self, own: Any, gate: GateKeeper, tmp_path: Path) -> None:
        async def main() -> None:
            busy = [asyncio.create_task(own.asubmit(tasks.wait_for, gate.gate)) for _ in range(2)]
            waiting = asyncio.create_task(own.asubmit(option_tasks.count, tmp_path / "calls"))
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            gate.open()
            await asyncio.gather(*busy)

        run(main)
        own.shutdown()
        assert not (tmp_path / "calls").exists()

    @workers
    def test_a_thousand_are_cancelled_at_once(self, own: Any) -> None:
        async def main() -> None:
            running = [asyncio.create_task(own.asubmit(time.sleep, 60)) for _ in range(1000)]
            await asyncio.sleep(0.05)
            for task in running:
                task.cancel()
            done = await asyncio.gather(*running, return_exceptions=True)
            assert all(isinstance(each, asyncio.CancelledError) for each in done)
            assert await own.asubmit(abs, -1) == 1

        run(main)
        assert own.stats().queued == 0

    @workers
    def test_a_death_is_told(self, own: Any) -> None:
        async def main() -> None:
            with pytest.raises(WorkerDied):
                await own.asubmit(os._exit, 3)

        run(main)

    @workers
    def test_two_loops_in_two_threads(self, ex: Any) -> None:
        results: list[list[int]] = []

        async def main() -> list[int]:
            done: list[int] = await asyncio.gather(*(ex.asubmit(pow, n, 2) for n in range(300)))
            return done + [value async for value in ex.amap(abs, range(300))]

        threads = [threading.Thread(target=lambda: results.append(run(main))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        assert results == [[n * n for n in range(300)] + list(range(300))] * 2


class TestAmap:
    @ours
    @pytest.mark.parametrize(
        "options", [{}, {"buffersize": 3}, {"chunksize": 7}, {"buffersize": 2, "chunksize": 5}], ids=str
    )
    @pytest.mark.parametrize("source", [range, count_up], ids=["iterable", "async"])
    def test_gives_results_in_order(self, ex: Any, options: dict[str, int], source: Any) -> None:
        async def main() -> list[list[int]]:
            return [
                [value async for value in ex.amap(abs, source(100), **options)],
                [value async for value in ex.amap(pow, source(50), [2] * 40, **options)],
                [value async for value in ex.amap(pow, [3] * 20, source(10), **options)],
                [value async for value in ex.amap(abs, source(0), **options)],
            ]

        assert run(main) == [
            list(range(100)),
            [n**2 for n in range(40)],
            [3**n for n in range(10)],
            [],
        ]

    @workers
    def test_items_that_share_an_object_do_not(self, ex: Any) -> None:
        async def main() -> set[int]:
            return {value async for value in ex.amap(tasks.grown, [[0]] * 100)}

        assert run(main) == {2}

    @workers
    @pytest.mark.parametrize("source", [range, count_up], ids=["iterable", "async"])
    def test_with_options_each_item_is_a_task(self, ex: Any, source: Any) -> None:
        again = ex.options(retries=1)

        async def main() -> list[int]:
            with pytest.raises(ValueError, match="chunksize must be None"):
                again.amap(abs, [1], chunksize=2)
            values = [value async for value in again.amap(abs, source(20))]
            return values + [value async for value in again.amap(pow, source(5), source(5))]

        assert run(main) == list(range(20)) + [n**n for n in range(5)]

    @ours
    @pytest.mark.parametrize("options", [{}, {"buffersize": 2}], ids=str)
    def test_an_error_comes_after_the_results_before_it(self, ex: Any, options: dict[str, int]) -> None:
        async def main() -> list[int]:
            seen: list[int] = []
            with pytest.raises(ValueError, match="no 5"):
                async for value in ex.amap(tasks_fail_at_five, range(10), **options):
                    seen.append(value)
            return seen

        assert run(main) == [0, 1, 2, 3, 4]

    @ours
    def test_an_infinite_iterable(self, ex: Any) -> None:
        async def main() -> list[int]:
            seen: list[int] = []
            async with contextlib.aclosing(ex.amap(abs, forever())) as values:
                async for value in values:
                    seen.append(value)
                    if value == 100:
                        break
            return seen

        assert run(main) == list(range(101))

    @workers
    def test_so_much_is_taken_ahead(self, ex: Any, gate: GateKeeper) -> None:
        async def main() -> list[int]:
            pulled: list[int] = []
            values = ex.amap(own_tasks.pid_and, count_up(100, pulled), buffersize=5)
            counts = []
            await anext(values)
            for _ in range(3):
                await until(lambda: len(pulled) >= 5 + len(counts))
                await asyncio.sleep(0.02)
                counts.append(len(pulled))
                await anext(values)
            await values.aclose()
            return counts

        assert all(count <= 6 + nth for nth, count in enumerate(run(main)))

    @workers
    def test_an_iterable_is_pulled_so_far_too(self, ex: Any) -> None:
        pulled: list[int] = []

        def numbers() -> Iterator[int]:
            for number in range(1 << 60):
                pulled.append(number)
                yield number

        async def main() -> list[int]:
            seen = []
            async with contextlib.aclosing(ex.amap(abs, numbers(), buffersize=3)) as values:
                async for value in values:
                    seen.append(value)
                    assert len(pulled) <= 4 + len(seen)
                    if value == 10:
                        break
            return seen

        assert run(main) == list(range(11))

    @workers
    def test_a_result_does_not_wait_for_the_next_item(self, ex: Any) -> None:
        async def main() -> list[int]:
            go_on = asyncio.Event()

            async def slow() -> AsyncIterator[int]:
                yield -1
                await go_on.wait()
                yield -2

            seen = []
            async for value in ex.amap(abs, slow()):
                seen.append(value)
                go_on.set()
            return seen

        assert run(main) == [1, 2]

    @ours
    def test_an_error_of_the_iterable_comes_after_what_it_gave(self, ex: Any) -> None:
        async def broken() -> AsyncIterator[int]:
            yield 1
            yield 2
            raise OSError("no more")

        async def main() -> list[int]:
            seen: list[int] = []
            with pytest.raises(OSError, match="no more"):
                async for value in ex.amap(abs, broken()):
                    seen.append(value)
            return seen

        assert run(main) == [1, 2]

    @workers
    @pytest.mark.parametrize("source", [range, count_up], ids=["iterable", "async"])
    def test_leaving_the_loop_cancels_what_waits_and_not_what_runs(
        self, own: Any, source: Any, tmp_path: Path
    ) -> None:
        async def main() -> list[int]:
            pids = own.run_on_all(os.getpid)
            async with contextlib.aclosing(
                own.amap(note_and_sleep, [str(tmp_path)] * 40, source(40), chunksize=1)
            ) as values:
                async for _ in values:
                    break
            await until(lambda: own.stats().running == own.stats().queued == 0)
            assert own.run_on_all(os.getpid) == pids
            return [int(path.name) for path in tmp_path.iterdir()]

        assert len(run(main)) < 20

    @workers
    @pytest.mark.parametrize("source", [range, count_up], ids=["iterable", "async"])
    def test_cancelling_stops_what_runs_too(self, own: Any, source: Any) -> None:
        async def main() -> float:
            began = time.monotonic()
            pids = set(own.run_on_all(os.getpid))

            async def take_all() -> None:
                async for _ in own.amap(sleep_a_minute, source(10), chunksize=1):
                    pass

            task = asyncio.create_task(take_all())
            await until(lambda: own.stats().running == 2)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not pids & set(own.run_on_all(os.getpid))
            return time.monotonic() - began

        assert run(main) < 10

    @workers
    def test_the_source_has_ended_when_the_generator_has(self, own: Any) -> None:
        ended = []

        async def source() -> AsyncIterator[int]:
            try:
                yield -1
                await asyncio.sleep(60)
            finally:
                ended.append(True)

        async def main() -> None:
            async with contextlib.aclosing(own.amap(abs, source())) as values:
                assert await anext(values) == 1
                await asyncio.sleep(0.01)
            assert ended

        run(main)

    @workers
    def test_shutdown_ends_it(self, own: Any) -> None:
        async def main() -> None:
            values = own.amap(time.sleep, [0.2] * 10, chunksize=1)
            await anext(values)
            await asyncio.to_thread(own.shutdown, cancel_futures=True)
            with pytest.raises(asyncio.CancelledError):
                async for _ in values:
                    pass
            with pytest.raises(RuntimeError, match="after shutdown"):
                own.amap(abs, [1])

        run(main)

    @ours
    def test_bad_arguments(self, ex: Any) -> None:
        for bad in ({"chunksize": 0}, {"buffersize": 0}):
            with pytest.raises(ValueError, match=next(iter(bad))):
                ex.amap(abs, [1], **bad)
        with pytest.raises(TypeError):
            ex.amap(abs, 5)
        with pytest.raises(TypeError):
            ex.amap(abs, [1], buffersize="many")

    @workers
    def test_a_function_that_cannot_travel(self, ex: Any) -> None:
        with pytest.raises(TaskNotSerializable):
            ex.amap(own_tasks.Unpicklable(1).__init__, [1])

    def test_the_serial_executor_gives_others_their_turn(self) -> None:
        async def main() -> int:
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            task = asyncio.create_task(count())
            with repartir.SerialExecutor() as ex:
                async for _ in ex.amap(abs, range(50)):
                    pass
            task.cancel()
            return turns

        assert run(main) > 10


def tasks_fail_at_five(number: int) -> int:
    if number == 5:
        raise ValueError("no 5")
    return number


def note_and_sleep(folder: str, number: int) -> int:
    Path(folder, str(number)).touch()
    time.sleep(0.05)
    return number


def sleep_a_minute(_: int) -> None:
    time.sleep(60)
