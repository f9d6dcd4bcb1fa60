"""What is each worker's own: its state, calls in every worker, tasks that wish for one."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repartir
from repartir import WorkerDied

from . import worker_tasks as tasks
from .conftest import Make
from .kinds import Kind, every_start, ours, workers
from .scripts import run_script
from .sync import LIMIT_S, BellKeeper, GateKeeper

pytestmark = pytest.mark.any_start
CORES = len(os.sched_getaffinity(0))


@pytest.fixture
def own(make: Make) -> Any:
    """An executor of this test alone: its workers die."""
    return make(2)


class TestState:
    @every_start
    @workers
    def test_is_what_the_initializer_returned_in_this_worker(self, make: Make) -> None:
        ex: Any = make(2, initializer=tasks.make_state, initargs=(5,))
        seen = [ex.submit(tasks.count_state).result(LIMIT_S) for _ in range(10)]
        assert all(pid == made_in for pid, made_in, _ in seen)
        for worker in {pid for pid, _, _ in seen}:
            calls = [nth for pid, _, nth in seen if pid == worker]
            assert calls == list(range(1, len(calls) + 1))
        assert list(ex.map(tasks.number_of_state, range(5))) == [5] * 5

    @workers
    def test_of_a_successor_is_its_own(self, make: Make) -> None:
        ex: Any = make(1, initializer=tasks.make_state, initargs=(5,), max_tasks_per_child=2)
        seen = [ex.submit(tasks.count_state).result(LIMIT_S) for _ in range(4)]
        assert [calls for _, _, calls in seen] == [1, 2, 1, 2]

    @workers
    def test_is_none_without_an_initializer_or_a_value_of_it(self, make: Make) -> None:
        assert make(1).submit(tasks.is_none).result(LIMIT_S)
        assert make(1, initializer=tasks.make_nothing).submit(tasks.is_none).result(LIMIT_S)

    @workers
    def test_nested_calls_see_it(self, make: Make) -> None:
        ex = make(1, initializer=tasks.make_state, initargs=(5,))
        assert ex.submit(tasks.state_of_nested).result(LIMIT_S) == (5, 5)
        assert ex.submit(tasks.state_of_serial_inside).result(LIMIT_S) == (99, 5)

    def test_of_the_serial_executor(self) -> None:
        with repartir.SerialExecutor(initializer=tasks.make_state, initargs=(7,)) as ex:
            assert ex.submit(tasks.number_of_state).result() == 7
            assert list(ex.map(tasks.number_of_state, range(2))) == [7, 7]
            assert ex.options(retries=1).submit(tasks.number_of_state).result() == 7
            with repartir.SerialExecutor() as inner:
                assert inner.submit(tasks.is_none).result()
            outside = ex.submit(tasks.number_of_state)
        assert outside.result() == 7

    def test_outside_a_task_it_says_what_to_do(self) -> None:
        with pytest.raises(RuntimeError, match="Call it in a function that is submitted"):
            repartir.worker_state()
        with repartir.SerialExecutor() as ex:
            ex.submit(tasks.is_none).result()
            with pytest.raises(RuntimeError, match="works in tasks only"):
                repartir.worker_state()

    @workers
    def test_of_an_executor_that_a_serial_task_makes(self, kind: Kind) -> None:
        """Its workers inherit that the serial one ran."""

        def inside() -> int:
            with kind.make(1, initializer=tasks.make_state, initargs=(2,)) as inner:
                return inner.submit(tasks.number_of_state).result(LIMIT_S)

        with repartir.SerialExecutor(initializer=tasks.make_state, initargs=(1,)) as ex:
            assert ex.submit(inside).result() == 2

    @every_start
    @workers
    def test_of_a_class_of_the_main_module(self, kind: Kind, tmp_path: Path) -> None:
        source = """
            import repartir

            class Model:
                def __init__(self, factor):
                    self.factor = factor

            def predict(x):
                return repartir.worker_state().factor * x

            if __name__ == "__main__":
                with make(2, initializer=Model, initargs=(3,)) as ex:
                    print(list(ex.map(predict, range(4))))
        """
        ended = run_script(tmp_path, kind, source)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.lines == ["[0, 3, 6, 9]"]


class TestRunOnAll:
    @every_start
    @workers
    def test_calls_once_in_every_worker(self, make: Make) -> None:
        ex: Any = make(4)
        pids = [pid for pid, _ in ex.run_on_all(tasks.pid_and, "x")]
        assert len(set(pids)) == 4
        assert [pid for pid, _ in ex.run_on_all(tasks.pid_and, value=5)] == pids
        assert [value for _, value in ex.run_on_all(tasks.pid_and, value=[6])] == [[6]] * 4
        assert ex.run_on_all(lambda: 7) == [7] * 4

    @ours
    def test_keeps_order_with_other_tasks(self, ex: Any) -> None:
        count = 1 if isinstance(ex, repartir.SerialExecutor) else 2
        for _ in range(50):
            futures = [ex.submit(pow, n, 2) for n in range(20)]
            assert ex.run_on_all(abs, -3) == [3] * count
            assert [future.result(LIMIT_S) for future in futures] == [n * n for n in range(20)]

    @workers
    def test_wakes_those_that_sleep(self, ex: Any) -> None:
        for pause in (0.001, 0.01, 0.1):
            time.sleep(pause)
            began = time.monotonic()
            assert len({pid for pid, _ in ex.run_on_all(tasks.pid_and, 0)}) == 2
            assert time.monotonic() - began < 5

    @workers
    def test_reaches_a_busy_worker_after_its_task_before_others(
        self, own: Any, bell: BellKeeper, gate: GateKeeper
    ) -> None:
        """A long queue waits already, and one worker is busy."""
        busy = own.submit(tasks.ring_and_wait, bell.bell, gate.gate)
        pid = int(bell.hear())
        queue = [own.submit(tasks.pid_after, 0.01) for _ in range(2000)]
        threading.Timer(0.3, gate.open).start()
        pids = [pid for pid, _ in own.run_on_all(tasks.pid_and, 0)]
        assert pid in pids
        assert len(set(pids)) == 2
        assert busy.done()
        assert not queue[-1].done()
        for future in queue:
            future.cancel()

    @workers
    def test_large_arguments_are_each_workers_own(self, ex: Any) -> None:
        array = np.zeros(100_000)
        answers = ex.run_on_all(tasks.pid_and_total, array)
        assert [total for _, total in answers] == [1.0, 1.0]
        assert array[0] == 0

    @ours
    def test_an_error_of_a_call_is_raised(self, ex: Any) -> None:
        with pytest.raises(ZeroDivisionError) as raised:
            ex.run_on_all(divmod, 1, 0)
        assert raised.value.__notes__[-1] == "in worker 0"
        assert ex.run_on_all(abs, -1)[0] == 1

    @workers
    def test_the_others_have_called_when_one_fails(self, own: Any, tmp_path: Path) -> None:
        there = tmp_path / "there"
        there.touch()
        with pytest.raises(ValueError, match="it was there"):
            own.run_on_all(tasks.fail_if_there, there)
        assert len(set(own.run_on_all(os.getpid))) == 2

    @workers
    def test_the_death_of_a_worker_in_it_is_told(self, own: Any, tmp_path: Path) -> None:
        there = tmp_path / "there"
        there.touch()
        with pytest.raises(WorkerDied, match="SIGKILL") as raised:
            own.run_on_all(tasks.die_if_there, there)
        assert raised.value.__notes__[-1].startswith("in worker ")
        assert raised.value.signal == signal.SIGKILL
        assert len(set(own.run_on_all(tasks.die_if_there, there))) == 2

    @workers
    def test_a_successor_calls_it_when_its_worker_died_before(
        self, own: Any, bell: BellKeeper, gate: GateKeeper
    ) -> None:
        """The call waits in the mailbox of a worker that dies in its task."""
        dying = own.submit(tasks.ring_wait_and_die, bell.bell, gate.gate)
        pid = int(bell.hear())
        threading.Timer(0.2, gate.open).start()
        pids = own.run_on_all(os.getpid)
        assert isinstance(dying.exception(LIMIT_S), WorkerDied)
        assert len(set(pids)) == 2
        assert pid not in pids

    @workers
    def test_comes_between_the_items_of_a_map(self, ex: Any) -> None:
        results = ex.map(time.sleep, [0.01] * 1000)
        next(results)
        began = time.monotonic()
        assert len(set(ex.run_on_all(os.getpid))) == 2
        assert time.monotonic() - began < 3
        assert next(results) is None
        results.close()

    @workers
    def test_retries_stay_with_their_worker(self, own: Any, tmp_path: Path) -> None:
        there = tmp_path / "there"
        there.touch()
        again = own.options(retries=1, backoff=0.01)
        assert again.run_on_all(tasks.fail_if_there, there) == own.run_on_all(os.getpid)
        there.touch()
        assert len(set(again.run_on_all(tasks.die_if_there, there))) == 2

    @workers
    def test_with_workers_that_retire(self, make: Make) -> None:
        ex: Any = make(2, max_tasks_per_child=1)
        seen = [pid for _ in range(4) for pid in ex.run_on_all(os.getpid)]
        assert len(set(seen)) == 8

    @workers
    def test_a_time_out_counts_for_each_call(self, own: Any) -> None:
        began = time.monotonic()
        with pytest.raises(repartir.TaskTimeout):
            own.options(timeout=0.2).run_on_all(time.sleep, 60)
        assert time.monotonic() - began < 10
        assert own.run_on_all(abs, 1) == [1, 1]

    @workers
    def test_from_many_threads_at_once(self, ex: Any) -> None:
        results: list[list[int]] = []
        threads = [
            threading.Thread(target=lambda: results.append(ex.run_on_all(os.getpid))) for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        assert len(results) == 20
        assert len({tuple(pids) for pids in results}) == 1

    @workers
    def test_more_than_a_mailbox_holds_is_refused(self, own: Any, bell: BellKeeper, gate: GateKeeper) -> None:
        futures = [own.submit(tasks.ring_and_wait, bell.bell, gate.gate) for _ in range(2)]
        bell.hear(), bell.hear()
        errors: list[RuntimeError] = []
        done: list[list[int]] = []

        def call() -> None:
            try:
                done.append(own.run_on_all(os.getpid))
            except RuntimeError as error:
                errors.append(error)

        threads = [threading.Thread(target=call) for _ in range(35)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + LIMIT_S
        while len(errors) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        gate.open()
        for thread in threads:
            thread.join(LIMIT_S)
        assert len(done) == 32
        assert "32 tasks for worker 0 alone wait already" in str(errors[0])
        assert [future.exception(LIMIT_S) for future in futures] == [None, None]

    @workers
    def test_ctrl_c_ends_the_calls(self, own: Any, bell: BellKeeper) -> None:
        def interrupt() -> None:
            bell.hear(), bell.hear()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            own.run_on_all(tasks.ring_and_sleep, bell.bell)
        thread.join()
        assert len(set(own.run_on_all(os.getpid))) == 2
        assert time.monotonic() - began < 10

    @workers
    def test_what_cannot_travel_is_told_at_once(self, ex: Any) -> None:
        with pytest.raises(repartir.TaskNotSerializable, match="argument 0"):
            ex.run_on_all(abs, tasks.Unpicklable(1))
        with pytest.raises(repartir.TaskNotSerializable, match="result"):
            ex.run_on_all(tasks.Unpicklable, 1)

    @workers
    def test_after_shutdown_and_in_a_callback(self, make: Make) -> None:
        ex: Any = make(1)
        told: list[BaseException] = []

        def call(_: object) -> None:
            try:
                ex.run_on_all(os.getpid)
            except RuntimeError as error:
                told.append(error)

        future = ex.submit(time.sleep, 0.1)
        future.add_done_callback(call)
        ex.shutdown()
        assert "callback" in str(told[0])
        with pytest.raises(RuntimeError, match="after shutdown"):
            ex.run_on_all(os.getpid)

    @workers
    def test_shutdown_waits_for_the_calls(self, make: Make) -> None:
        ex: Any = make(2)
        results: list[list[int]] = []
        thread = threading.Thread(target=lambda: results.append(ex.run_on_all(tasks.pid_after, 0.3)))
        thread.start()
        time.sleep(0.1)
        ex.shutdown()
        thread.join(LIMIT_S)
        assert len(set(results[0])) == 2


class TestAffinity:
    @workers
    def test_workers_that_have_enough_to_do_run_their_own(
        self, own: Any, bell: BellKeeper, gate: GateKeeper
    ) -> None:
        pids = own.run_on_all(os.getpid)
        for _ in range(2):
            own.submit(tasks.ring_and_wait, bell.bell, gate.gate)
            bell.hear()
        wishes = [0, 0, 1, 1, 1, 0] * 10
        futures = [own.options(worker=row).submit(tasks.pid_after, 0.005) for row in wishes]
        gate.open()
        ran = [pids.index(future.result(LIMIT_S)) for future in futures]
        assert sum(row == wish for row, wish in zip(ran, wishes, strict=True)) > 45

    @workers
    def test_it_is_a_wish(self, own: Any, bell: BellKeeper, gate: GateKeeper) -> None:
        """The worker is busy: the other one steals."""
        pids = own.run_on_all(os.getpid)
        busy = own.submit(tasks.ring_and_wait, bell.bell, gate.gate)
        row = pids.index(int(bell.hear()))
        assert own.options(worker=row).submit(os.getpid).result(LIMIT_S) == pids[1 - row]
        gate.open()
        assert busy.result(LIMIT_S) == pids[row]

    @workers
    def test_more_than_a_lane_holds(self, ex: Any) -> None:
        there = ex.options(worker=1)
        futures = [there.submit(pow, n, 2) for n in range(3000)]
        assert [future.result(LIMIT_S) for future in futures] == [n * n for n in range(3000)]

    @workers
    def test_between_plain_tasks(self, ex: Any) -> None:
        where = [ex, ex.options(worker=0), ex.options(worker=1, retries=1)]
        futures = [where[n % 3].submit(pow, n, 2) for n in range(3000)]
        assert [future.result(LIMIT_S) for future in futures] == [n * n for n in range(3000)]
        assert list(ex.options(worker=1).map(abs, range(100))) == list(range(100))

    @ours
    def test_bad_numbers(self, ex: Any) -> None:
        with pytest.raises(ValueError, match="worker must be at least 0, not -1"):
            ex.options(worker=-1)
        with pytest.raises(TypeError, match="worker must be an integer, not str"):
            ex.options(worker="1")
        with pytest.raises(TypeError, match="worker"):
            ex.options(worker=True)

    @workers
    def test_a_number_that_no_worker_has(self, ex: Any) -> None:
        with pytest.raises(ValueError, match="worker must be from 0 to 1, not 2"):
            ex.options(worker=2)
        assert ex.options(worker=1).options(worker=None).submit(abs, -1).result(LIMIT_S) == 1

    @workers
    def test_pinned_workers_take_turns_on_the_cores(self, make: Make) -> None:
        ex: Any = make(CORES + 1, pin=True)
        affinities = ex.run_on_all(os.sched_getaffinity, 0)
        assert [len(one) for one in affinities] == [1] * (CORES + 1)
        assert set.union(*affinities) == os.sched_getaffinity(0)
        assert affinities[0] == affinities[CORES]
