"""The joblib backend, with the real joblib and scikit-learn."""

from __future__ import annotations

import functools
import gc
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import TimeoutError as JoblibTimeout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

joblib = pytest.importorskip("joblib", minversion="1.5")

from joblib import Parallel, delayed, parallel_config  # noqa: E402

import repartir  # noqa: E402
import repartir.integrations.joblib as backend  # noqa: E402
from repartir import Executor, SerialExecutor, WorkerDied  # noqa: E402
from tests.helpers import module_main  # noqa: E402

LIMIT_S = 20.0


@pytest.fixture
def ex() -> Iterator[Executor]:
    with Executor(2, "fork") as executor:
        yield executor


@pytest.fixture
def shared() -> Iterator[None]:
    yield
    backend.shutdown()


def await_true(what: Callable[[], bool]) -> None:
    until = time.monotonic() + LIMIT_S
    while not what():
        assert time.monotonic() < until, what
        time.sleep(0.002)


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def mark(folder: Path, name: str) -> None:
    (folder / name).touch()


def mark_and_wait(folder: Path, index: int) -> None:
    """Leaves a mark when it begins, and none at its end, which is far away."""
    mark(folder, f"began-{index}")
    time.sleep(60)
    mark(folder, f"ended-{index}")


def fail_when_told(folder: Path) -> None:
    mark(folder, "failing")
    await_true((folder / "go").exists)
    raise KeyError("mine")


def fail_when_another_began(folder: Path) -> None:
    await_true(lambda: any(folder.glob("began-*")))
    raise KeyError("mine")


def fail_once(path: Path) -> None:
    if not path.exists():
        path.touch()
        raise KeyError(path)


def most_at_once(folder: Path) -> int:
    """How many of these run at a time, as this one sees it."""
    own = folder / f"at-{time.monotonic_ns()}-{os.getpid()}"
    own.touch()
    seen = 0
    for _ in range(10):
        time.sleep(0.002)
        seen = max(seen, len(list(folder.glob("at-*"))))
    own.unlink()
    return seen


class TestCalls:
    def test_results_come_in_order_from_the_workers_of_the_executor(self, ex: Executor) -> None:
        with parallel_config("repartir", executor=ex):
            assert Parallel()(delayed(pow)(n, 2) for n in range(500)) == [n * n for n in range(500)]
            pids = set(Parallel()(delayed(pid_after)(0.01) for _ in range(8)))
        assert pids <= {int(ex._broker.board.words[row.pid]) for row in ex._broker.board.rows}

    def test_the_executor_may_be_named_at_the_call(self, ex: Executor) -> None:
        assert Parallel(backend="repartir", executor=ex)(delayed(abs)(-n) for n in range(3)) == [0, 1, 2]
        assert ex._broker.pump.answered > 0

    def test_a_backend_may_be_an_object(self, ex: Executor) -> None:
        own = backend.RepartirBackend(executor=ex)
        assert Parallel(2, backend=own)(delayed(abs)(-n) for n in range(3)) == [0, 1, 2]
        with parallel_config(own):
            assert Parallel(2)(delayed(abs)(-n) for n in range(3)) == [0, 1, 2]

    @pytest.mark.parametrize("method", ["spawn", "forkserver"])
    def test_workers_from_a_fresh_interpreter(self, method: str) -> None:
        with Executor(2, method) as ex, parallel_config("repartir", executor=ex):
            assert Parallel()(delayed(pow)(n, 2) for n in range(20)) == [n * n for n in range(20)]

    def test_an_executor_with_options_is_one(self, ex: Executor) -> None:
        with (
            parallel_config("repartir", executor=ex.options(timeout=0.1)),
            pytest.raises(repartir.TaskTimeout),
        ):
            Parallel()(delayed(time.sleep)(60) for _ in range(2))

    def test_its_options_hold_for_batches(self, ex: Executor, tmp_path: Path) -> None:
        with parallel_config("repartir", executor=ex.options(retries=1)):
            calls = [delayed(fail_once)(tmp_path / str(n)) for n in range(4)]
            assert Parallel(batch_size=1)(calls) == [None] * 4

    def test_a_serial_executor_runs_in_place(self) -> None:
        with parallel_config("repartir", executor=SerialExecutor()):
            assert set(Parallel()(delayed(os.getpid)() for _ in range(3))) == {os.getpid()}

    @pytest.mark.parametrize("batch_size", [1, 7, "auto"])
    @pytest.mark.parametrize("pre_dispatch", ["2*n_jobs", 1, "all"])
    def test_batches_of_any_size(self, ex: Executor, batch_size: int | str, pre_dispatch: int | str) -> None:
        with parallel_config("repartir", executor=ex):
            parallel = Parallel(batch_size=batch_size, pre_dispatch=pre_dispatch)
            assert parallel(delayed(abs)(n) for n in range(100)) == list(range(100))

    def test_no_more_is_taken_than_pre_dispatch_says(self, ex: Executor, tmp_path: Path) -> None:
        taken = []

        def source() -> Iterator[Any]:
            for n in range(50):
                taken.append(n)
                yield delayed(mark_and_wait)(tmp_path, n)

        with parallel_config("repartir", executor=ex):
            results = Parallel(return_as="generator", pre_dispatch=3, batch_size=1)(source())
            await_true(lambda: len(list(tmp_path.glob("began-*"))) == 2)
            with warnings.catch_warnings(action="ignore"):
                results.close()
        assert taken == [0, 1, 2]

    def test_a_parallel_is_used_again(self, ex: Executor) -> None:
        with parallel_config("repartir", executor=ex), Parallel() as parallel:
            for _ in range(3):
                assert parallel(delayed(abs)(n) for n in range(9)) == list(range(9))
        parallel = Parallel(2, backend="repartir", executor=ex)
        for _ in range(3):
            assert parallel(delayed(abs)(n) for n in range(9)) == list(range(9))

    def test_large_arrays_arrive_and_may_be_written_to(self, ex: Executor) -> None:
        def doubled(array: Any) -> Any:
            array *= 2
            return array

        arrays = [np.full(100_000, n, float) for n in range(4)]
        with parallel_config("repartir", executor=ex, max_nbytes=1000):
            results = Parallel()(delayed(doubled)(array) for array in arrays)
        assert [float(array[0]) for array in results] == [0, 2, 4, 6]
        assert [float(array[0]) for array in arrays] == [0, 1, 2, 3]

    def test_threads_are_joblib_s_where_memory_must_be_shared(self, ex: Executor) -> None:
        with parallel_config("repartir", executor=ex, n_jobs=2):
            assert set(Parallel(require="sharedmem")(delayed(os.getpid)() for _ in range(4))) == {os.getpid()}


class TestJobs:
    @pytest.mark.parametrize(
        ("n_jobs", "expected"), [(1, 1), (2, 2), (3, 3), (9, 3), (-1, 3), (-2, 2), (-9, 1), (None, 3)]
    )
    def test_n_jobs_counts_from_the_workers(self, n_jobs: int | None, expected: int) -> None:
        with Executor(3, "fork") as ex, parallel_config("repartir", executor=ex):
            assert joblib.effective_n_jobs(n_jobs) == expected

    @pytest.mark.parametrize(("n_jobs", "expected"), [(1, 1), (9, 9), (-1, 4), (-2, 3), (-9, 1), (None, 4)])
    def test_without_an_executor_it_counts_from_the_cores(
        self, n_jobs: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REPARTIR_MAX_WORKERS", "4")
        with parallel_config("repartir"):
            assert joblib.effective_n_jobs(n_jobs) == expected

    def test_no_jobs_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="n_jobs == 0 in Parallel has no meaning"):
            Parallel(0, backend="repartir")(delayed(abs)(n) for n in range(3))

    @pytest.mark.parametrize("batch_size", [1, "auto"])
    def test_fewer_jobs_than_workers(self, tmp_path: Path, batch_size: int | str) -> None:
        with Executor(4, "fork") as ex, parallel_config("repartir", executor=ex, n_jobs=2):
            seen = Parallel(pre_dispatch="all", batch_size=batch_size)(
                delayed(most_at_once)(tmp_path) for _ in range(16)
            )
        assert max(seen) == 2

    def test_of_a_call_with_fewer_jobs_nothing_waiting_runs_after_an_error(self, tmp_path: Path) -> None:
        with Executor(3, "fork") as ex, parallel_config("repartir", executor=ex, n_jobs=2):
            calls = [delayed(fail_when_another_began)(tmp_path)]
            calls += [delayed(mark_and_wait)(tmp_path, n) for n in range(9)]
            with pytest.raises(KeyError, match="mine"):
                Parallel(pre_dispatch="all", batch_size=1)(calls)
        assert len(list(tmp_path.iterdir())) == 1


class TestGenerators:
    def test_in_order(self, ex: Executor) -> None:
        with parallel_config("repartir", executor=ex):
            results = Parallel(return_as="generator")(delayed(abs)(n) for n in range(100))
            assert next(results) == 0
            assert list(results) == list(range(1, 100))

    def test_as_they_come(self, ex: Executor) -> None:
        with parallel_config("repartir", executor=ex):
            results = Parallel(return_as="generator_unordered", batch_size=1)(
                delayed(time.sleep)(seconds) for seconds in (60, 0)
            )
            assert next(results) is None  # the first one still sleeps
            with warnings.catch_warnings(action="ignore"):
                results.close()

    def test_an_abandoned_one_stops_what_runs(self, ex: Executor, tmp_path: Path) -> None:
        with parallel_config("repartir", executor=ex):
            results = Parallel(return_as="generator", batch_size=1)(
                delayed(mark_and_wait)(tmp_path, n) for n in range(9)
            )
            await_true(lambda: len(list(tmp_path.glob("began-*"))) == 2)
            with pytest.warns(UserWarning, match="have been cancelled"):
                del results
                gc.collect()
            began = time.monotonic()
            assert Parallel()(delayed(abs)(n) for n in range(3)) == [0, 1, 2]
        assert time.monotonic() - began < LIMIT_S
        assert not list(tmp_path.glob("ended-*"))

    def test_several_of_one_configuration_at_a_time(self, ex: Executor) -> None:
        with parallel_config("repartir", executor=ex):
            slow = Parallel(return_as="generator", batch_size=1)(delayed(pid_after)(0.01) for _ in range(30))
            other = Parallel(return_as="generator")(delayed(abs)(n) for n in range(50))
            assert Parallel()(delayed(abs)(n) for n in range(20)) == list(range(20))
            with pytest.raises(ZeroDivisionError):
                Parallel()(delayed(divmod)(1, n) for n in (1, 0))
            assert list(other) == list(range(50))
            assert len(list(slow)) == 30


class TestFailures:
    def test_an_exception_stops_what_runs(self, ex: Executor, tmp_path: Path) -> None:
        def calls() -> Iterator[Any]:
            yield delayed(fail_when_told)(tmp_path)
            yield delayed(mark_and_wait)(tmp_path, 0)
            await_true(lambda: {"failing", "began-0"} <= {path.name for path in tmp_path.iterdir()})
            for n in range(1, 20):
                yield delayed(mark_and_wait)(tmp_path, n)

        def tell() -> None:
            await_true(lambda: ex.stats().queued == 2)
            mark(tmp_path, "go")

        thread = threading.Thread(target=tell)
        with parallel_config("repartir", executor=ex):
            thread.start()
            with pytest.raises(KeyError, match="mine"):
                Parallel(batch_size=1)(calls())
            thread.join()
            assert len(Parallel()(delayed(abs)(n) for n in range(9))) == 9
        assert not list(tmp_path.glob("ended-*"))

    def test_it_says_where_it_was_raised(self, ex: Executor) -> None:
        with parallel_config("repartir", executor=ex), pytest.raises(KeyError) as caught:
            Parallel()(delayed({}.__getitem__)("lost") for _ in range(2))
        assert "joblib" in str(caught.value.__cause__)

    def test_a_death_is_reported_and_the_executor_goes_on(self, ex: Executor) -> None:
        with parallel_config("repartir", executor=ex):
            with pytest.raises(WorkerDied) as caught:
                Parallel(batch_size=1)(delayed(os._exit)(3) for _ in range(1))
            assert caught.value.exit_code == 3
            assert len(Parallel()(delayed(abs)(n) for n in range(9))) == 9

    def test_a_death_does_not_concern_another_call(self, ex: Executor) -> None:
        with parallel_config("repartir", executor=ex):
            other = Parallel(return_as="generator", batch_size=1)(
                delayed(pid_after)(0.005) for _ in range(40)
            )
            with pytest.raises(WorkerDied):
                Parallel(batch_size=1)(delayed(os._exit)(3) for _ in range(1))
            assert len(list(other)) == 40

    def test_a_timeout_stops_what_runs(self, ex: Executor, tmp_path: Path) -> None:
        with parallel_config("repartir", executor=ex):
            with pytest.raises((JoblibTimeout, TimeoutError)):
                Parallel(timeout=0.1)(delayed(mark_and_wait)(tmp_path, n) for n in range(4))
            assert Parallel(timeout=LIMIT_S)(delayed(abs)(n) for n in range(3)) == [0, 1, 2]
        assert not list(tmp_path.glob("ended-*"))

    def test_ctrl_c_stops_what_runs(self, ex: Executor, tmp_path: Path) -> None:
        def interrupt() -> None:
            await_true(lambda: len(list(tmp_path.glob("began-*"))) == 2)
            signal.raise_signal(signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        with parallel_config("repartir", executor=ex):
            with pytest.raises(KeyboardInterrupt):
                thread.start()
                Parallel()(delayed(mark_and_wait)(tmp_path, n) for n in range(9))
            thread.join()
            assert len(Parallel()(delayed(abs)(n) for n in range(9))) == 9
        assert len(list(tmp_path.glob("began-*"))) == 2

    def test_what_cannot_be_pickled_is_named(self, ex: Executor) -> None:
        with (
            parallel_config("repartir", executor=ex),
            pytest.raises(repartir.TaskNotSerializable, match="lock"),
        ):
            Parallel()(delayed(id)(threading.Lock()) for _ in range(3))

    def test_an_iterable_that_raises(self, ex: Executor) -> None:
        def source() -> Iterator[Any]:
            for n in range(40):
                yield delayed(abs)(n)
            raise KeyError("source")

        with parallel_config("repartir", executor=ex), pytest.raises(KeyError, match="source"):
            Parallel()(source())

    @pytest.mark.parametrize("wait", [True, False])
    def test_an_executor_that_is_shut_down_does_not_leave_it_waiting(self, ex: Executor, wait: bool) -> None:
        with parallel_config("repartir", executor=ex):
            results = Parallel(return_as="generator", batch_size=1)(
                delayed(pid_after)(0.005) for _ in range(60)
            )
            ex.shutdown(wait)
            with pytest.raises(RuntimeError, match="after shutdown"):
                list(results)
            with pytest.raises(RuntimeError, match="after shutdown"):
                Parallel()(delayed(abs)(n) for n in range(3))

    @pytest.mark.parametrize("executor", [3, "repartir", threading.Lock()])
    def test_what_is_no_executor_is_refused(self, executor: object) -> None:
        with pytest.raises(TypeError, match=r"^executor must be a repartir\.Executor, not "):
            parallel_config("repartir", executor=executor)

    def test_unknown_settings_are_refused(self, ex: Executor) -> None:
        with pytest.raises(TypeError, match="workers"):
            parallel_config("repartir", workers=3)
        with pytest.raises(TypeError, match=r"takes executor=, not idle_worker_timeout="):
            Parallel(2, backend="repartir", executor=ex, idle_worker_timeout=3)(delayed(abs)(1) for _ in "ab")


def nested(levels: int, backend_name: str | None) -> int:
    if not levels:
        return 1
    with warnings.catch_warnings(action="ignore"):  # loky says that it cannot
        parallel = Parallel(n_jobs=2, **({"backend": backend_name} if backend_name else {}))
        return sum(parallel(delayed(nested)(levels - 1, backend_name) for _ in range(3)))


class TestNested:
    @pytest.mark.parametrize("name", [None, "repartir", "threading", "loky", "multiprocessing"])
    def test_parallel_in_parallel(self, ex: Executor, name: str | None) -> None:
        with parallel_config("repartir", executor=ex):
            assert Parallel(timeout=LIMIT_S)(delayed(nested)(2, name) for _ in range(4)) == [9] * 4

    def test_settings_of_loky_change_nothing(self, ex: Executor) -> None:
        def inner(n: int) -> list[int]:
            with parallel_config("loky", inner_max_num_threads=1, n_jobs=2):
                result: list[int] = Parallel(max_nbytes=None)(delayed(abs)(i) for i in range(n))
                return result

        with parallel_config("repartir", executor=ex):
            assert Parallel(timeout=LIMIT_S)(delayed(inner)(n) for n in range(3)) == [[], [0], [0, 1]]

    def test_with_an_executor_that_means_the_current_one(self, ex: Executor) -> None:
        def inner(n: int) -> list[int]:
            with parallel_config("repartir", executor=ex):
                result: list[int] = Parallel()(delayed(abs)(i) for i in range(n))
                return result

        assert list(ex.map(inner, range(3), timeout=LIMIT_S)) == [[], [0], [0, 1]]

    def test_in_a_task_without_an_executor(self, ex: Executor) -> None:
        inner = functools.partial(nested, 2, "repartir")
        assert ex.submit(inner).result(LIMIT_S) == 9


@pytest.mark.usefixtures("shared")
class TestShared:
    """Without an executor one per process is made, and used again."""

    def test_it_is_used_again(self) -> None:
        pids = [set(Parallel(2, backend="repartir")(delayed(pid_after)(0.02) for _ in "abcd")) for _ in "ab"]
        assert pids[0] == pids[1]
        assert len(pids[0]) == 2

    def test_fewer_jobs_use_it_and_more_replace_it(self) -> None:
        def executor_of(n_jobs: int) -> Executor | None:
            Parallel(n_jobs, backend="repartir")(delayed(abs)(n) for n in range(4))
            return backend._shared._executor

        three = executor_of(3)
        assert three is not None
        assert executor_of(2) is three
        assert executor_of(4) is not three

    def test_threads_share_it(self) -> None:
        results: dict[int, list[int]] = {}

        def use(number: int) -> None:
            for _ in range(5):
                calls = (delayed(abs)(n * number) for n in range(30))
                results[number] = Parallel(2, backend="repartir", batch_size=4)(calls)

        threads = [threading.Thread(target=use, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        assert results == {number: [n * number for n in range(30)] for number in range(4)}

    def test_who_uses_the_smaller_one_keeps_it(self) -> None:
        with parallel_config("repartir"):
            slow = Parallel(2, return_as="generator", batch_size=1)(
                delayed(pid_after)(0.005) for _ in range(40)
            )
            assert Parallel(3)(delayed(abs)(n) for n in range(9)) == list(range(9))
            assert len(set(slow)) == 2

    def test_a_broken_one_is_replaced(self) -> None:
        Parallel(2, backend="repartir")(delayed(abs)(n) for n in range(4))
        first = backend._shared._executor
        assert first is not None
        first.kill_workers()
        assert Parallel(2, backend="repartir")(delayed(abs)(n) for n in range(4)) == [0, 1, 2, 3]

    def test_a_forked_child_makes_its_own(self) -> None:
        Parallel(2, backend="repartir")(delayed(abs)(n) for n in range(4))
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if Parallel(2, backend="repartir")(delayed(abs)(n) for n in range(4)) == [0, 1, 2, 3]:
                    code = 0
                backend.shutdown()
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0

    def test_shutdown_ends_it_and_the_next_call_makes_another(self) -> None:
        Parallel(2, backend="repartir")(delayed(abs)(n) for n in range(4))
        backend.shutdown()
        backend.shutdown()
        assert Parallel(2, backend="repartir")(delayed(abs)(n) for n in range(4)) == [0, 1, 2, 3]

    def test_libraries_have_a_share_of_the_cores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("repartir.executor.usable_cores", lambda: 6)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        calls = [delayed(os.getenv)("OMP_NUM_THREADS")] * 2
        assert Parallel(2, backend="repartir")(calls) == ["3", "3"]
        with parallel_config("repartir", n_jobs=2, inner_max_num_threads=5):
            assert Parallel()(calls) == ["5", "5"]

    def test_an_executor_s_own_threads_are_not_ours_to_set(self) -> None:
        with (
            Executor(2, "fork") as ex,
            pytest.raises(AssertionError, match="does not accept setting the inner_max_num_threads"),
        ):
            parallel_config("repartir", executor=ex, inner_max_num_threads=1)

    def test_it_ends_with_the_interpreter(self, tmp_path: Path) -> None:
        result = module_main(
            tmp_path,
            """
            import repartir.integrations.joblib
            from joblib import Parallel, delayed
            print(Parallel(2, backend="repartir")(delayed(lambda n: n * 2)(n) for n in range(3)))
            """,
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, "[0, 2, 4]\n", "")


class TestScikitLearn:
    """The same figures as without it."""

    @pytest.fixture(scope="class")
    @staticmethod
    def digits() -> tuple[Any, Any]:
        X, y = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)  # noqa: N806
        return X[:400], y[:400]

    def test_a_grid_search(self, ex: Executor, digits: tuple[Any, Any]) -> None:
        from sklearn.model_selection import GridSearchCV
        from sklearn.svm import SVC

        grid = {"C": [0.1, 1, 10], "gamma": [0.001, 0.01]}
        serial = GridSearchCV(SVC(), grid, cv=3).fit(*digits)
        with parallel_config("repartir", executor=ex):
            ours = GridSearchCV(SVC(), grid, cv=3, n_jobs=2).fit(*digits)
        assert ours.best_params_ == serial.best_params_
        for name in ("mean_test_score", "std_test_score", "rank_test_score"):
            assert ours.cv_results_[name].tolist() == serial.cv_results_[name].tolist()

    def test_a_cross_validation(self, ex: Executor, digits: tuple[Any, Any]) -> None:
        from sklearn.linear_model import RidgeClassifier
        from sklearn.model_selection import cross_val_score

        serial = cross_val_score(RidgeClassifier(), *digits, cv=5)
        with parallel_config("repartir", executor=ex):
            ours = cross_val_score(RidgeClassifier(), *digits, cv=5, n_jobs=2)
        assert ours.tolist() == serial.tolist()

    def test_a_forest(self, ex: Executor, digits: tuple[Any, Any]) -> None:
        from sklearn.ensemble import RandomForestClassifier

        serial = RandomForestClassifier(20, random_state=7).fit(*digits)
        with parallel_config("repartir", executor=ex):
            ours = RandomForestClassifier(20, random_state=7, n_jobs=2).fit(*digits)
            assert (ours.predict_proba(digits[0]) == serial.predict_proba(digits[0])).all()
        assert (ours.feature_importances_ == serial.feature_importances_).all()

    def test_a_grid_search_over_forests(self, ex: Executor, digits: tuple[Any, Any]) -> None:
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.model_selection import GridSearchCV

        forest, grid = RandomForestClassifier(8, random_state=7, n_jobs=2), {"max_depth": [2, 4]}
        serial = GridSearchCV(forest, grid, cv=3).fit(*digits)
        with parallel_config("repartir", executor=ex):
            ours = GridSearchCV(forest, grid, cv=3, n_jobs=2).fit(*digits)
        assert ours.cv_results_["mean_test_score"].tolist() == serial.cv_results_["mean_test_score"].tolist()
