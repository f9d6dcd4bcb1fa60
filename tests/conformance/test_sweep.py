"""Sweeps: rows, streams, errors, interruptions, the same on every executor."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repartir
from repartir import Interrupted, TaskTimeout, WorkerDied, grid, halving, sampled, sweep, zipped
from repartir.params import key_words, params_key
from repartir.streams import SWEEP

from . import sweep_tasks as tasks
from .conftest import Make
from .kinds import only_fork, ours, workers
from .sync import LIMIT_S, GateKeeper, wait_until_asleep

pytestmark = pytest.mark.any_start

SPACE = grid(lr=[0.01, 0.1, 1.0], depth=[1, 2])


class Opaque:
    def __init__(self, value: int) -> None:
        self.value = value


def results(found: repartir.SweepResult) -> list[Any]:
    return [row.result for row in found]


def await_file(path: Path) -> None:
    until = time.monotonic() + LIMIT_S
    while not path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.002)


@pytest.fixture
def own(make: Make) -> Any:
    """An executor of this test alone: its workers die."""
    return make(2)


@ours
class TestRows:
    def test_in_the_order_of_the_space_with_the_repeats_together(self, ex: Any) -> None:
        found = sweep(tasks.loss, SPACE, repeats=3, seed=7, executor=ex)
        assert [(row.params, row.repeat) for row in found] == [
            ({"lr": lr, "depth": depth}, repeat)
            for lr in (0.01, 0.1, 1.0)
            for depth in (1, 2)
            for repeat in range(3)
        ]
        assert all(row.error is None and row.traceback is None and row.attempts == 1 for row in found)
        assert all(0 < row.seconds < LIMIT_S for row in found)
        assert repr(found) == "<SweepResult of 18 rows>"

    def test_a_row_has_the_stream_of_its_parameters(self, ex: Any) -> None:
        found = sweep(tasks.loss, SPACE, repeats=2, seed=7, executor=ex)
        for row in found:
            stream = repartir.rng(7, SWEEP, *key_words(params_key(row.params)), row.repeat)
            assert row.result["noise"] == stream.random()
        assert len({row.result["noise"] for row in found}) == len(found)

    def test_other_points_beside_it_change_no_row(self, ex: Any) -> None:
        before = sweep(tasks.loss, SPACE, seed=7, executor=ex)
        wider = sweep(tasks.loss, grid(depth=[2, 3, 1], lr=[1, 0.003, 0.01, 0.1]), seed=7, executor=ex)
        found = {params_key(row.params): row.result for row in wider}
        assert all(found[params_key(row.params)] == row.result for row in before)

    def test_task_rng_is_the_stream_too(self, ex: Any) -> None:
        found = sweep(tasks.below, grid(lr=[1, 2]), seed=3, executor=ex)
        assert results(found) == [
            repartir.rng(3, SWEEP, *key_words(params_key({"lr": lr})), 0).random() for lr in (1, 2)
        ]

    def test_a_space_that_names_rng_gives_it(self, ex: Any) -> None:
        assert results(sweep(tasks.own_rng, grid(rng=[5, 6]), executor=ex)) == [5, 6]

    def test_the_seed_is_drawn_and_kept(self, ex: Any) -> None:
        first = sweep(tasks.loss, SPACE, executor=ex)
        again = sweep(tasks.loss, SPACE, seed=first.seed, executor=ex)
        assert results(first) == results(again) != results(sweep(tasks.loss, SPACE, executor=ex))

    def test_points_that_are_drawn_depend_on_the_seed(self, ex: Any) -> None:
        space = sampled(20, x=lambda rng: rng.random())
        first, again = (sweep(tasks.identity, space, seed=7, executor=ex) for _ in range(2))
        assert results(first) == results(again)
        assert results(first) != results(sweep(tasks.identity, space, seed=8, executor=ex))

    def test_all_kinds_of_values(self, ex: Any) -> None:
        values = [[64, 64], (64, 64), {"a": 1}, None, np.arange(3), Path("x"), float, 1.5]
        found = sweep(tasks.identity, grid(x=values), executor=ex)
        for value, row in zip(values, found, strict=True):
            assert type(row.result) is type(value)
            assert np.array_equal(row.result, value) if isinstance(value, np.ndarray) else row.result == value

    def test_labels_are_in_rows_and_values_go_to_the_function(self, ex: Any) -> None:
        found = sweep(lambda model: model.value, grid(model={"a": Opaque(1), "b": Opaque(2)}), executor=ex)
        assert [(row.params, row.result) for row in found] == [({"model": "a"}, 1), ({"model": "b"}, 2)]

    def test_an_iterable_of_dicts(self, ex: Any) -> None:
        assert results(sweep(tasks.identity, ({"x": n} for n in range(5)), executor=ex)) == list(range(5))

    def test_on_row_and_progress_are_told_each_row(self, ex: Any) -> None:
        rows: list[repartir.SweepRow] = []
        told: list[tuple[int, int | None]] = []
        found = sweep(
            tasks.identity,
            grid(x=range(50)),
            executor=ex,
            on_row=rows.append,
            progress=lambda done, total: told.append((done, total)),
        )
        assert sorted(row.params["x"] for row in rows) == list(range(50))
        assert {id(row) for row in rows} == {id(row) for row in found}
        assert told[-1] == (50, 50)

    def test_what_a_row_does_to_its_values_shows_in_no_other(self, ex: Any) -> None:
        layers, start = [1], np.zeros(2)
        space = grid(layers=[layers], start=[start], model={"a": tasks.Model()}, x=range(40))
        found = sweep(tasks.changes_all, space, repeats=2, executor=ex)
        assert {row.result for row in found} == {(2, 1.0, 1)}
        assert all(row.params["layers"] == [1] for row in found)
        assert layers == [1]
        assert not start.any()

    def test_a_value_that_nobody_can_copy_is_shared_in_place(self, kind: Any) -> None:
        with repartir.SerialExecutor() as serial:
            found = sweep(tasks.identity, grid(x={"lock": (lock := threading.Lock())}), executor=serial)
        assert found[0].result is lock

    def test_arrays_as_results(self, ex: Any) -> None:
        found = sweep(lambda n: np.full(n, n), grid(n=[3, 100_000]), executor=ex)
        assert [row.result.sum() for row in found] == [9, 10**10]


@ours
class TestErrors:
    def test_raise_stops_and_has_what_finished(self, own: Any) -> None:
        with pytest.raises(ZeroDivisionError) as caught:
            sweep(tasks.inverse, grid(x=[1, 2, 0, 4]), executor=own)
        partial = caught.value.partial  # type: ignore[attr-defined]
        assert {row.params["x"]: row.result for row in partial}.items() <= {1: 1, 2: 0.5, 4: 0.25}.items()
        assert partial.total == 4

    def test_the_error_names_the_row_and_its_stream(self, own: Any) -> None:
        with pytest.raises(ZeroDivisionError) as caught:
            sweep(tasks.inverse, grid(x=[0]), seed=7, executor=own)
        (note,) = caught.value.__notes__
        assert note.startswith("in the row x=0, repeat 0; its stream: repartir.rng(7, 0x7377, ")
        stream = eval(note.partition("its stream: ")[2])
        assert stream.random() == repartir.rng(7, SWEEP, *key_words(params_key({"x": 0})), 0).random()

    def test_an_error_keeps_nothing_of_the_sweep_alive(self, own: Any) -> None:
        def on_row(row: repartir.SweepRow) -> None: ...

        alive = weakref.ref(on_row)
        gc.disable()
        try:
            with contextlib.suppress(ZeroDivisionError):
                sweep(tasks.inverse, grid(x=[0]), executor=own, on_row=on_row)
            del on_row
            assert alive() is None
        finally:
            gc.enable()

    def test_keep(self, ex: Any) -> None:
        found = sweep(tasks.inverse, grid(x=[1, 0, 4]), executor=ex, on_error="keep")
        assert results(found) == [1, None, 0.25]
        (failed,) = found.errors
        assert type(failed.error) is ZeroDivisionError
        assert "tasks.py" in str(failed.traceback)
        assert "return 1 / x" in str(failed.traceback)
        assert failed.params == {"x": 0}
        assert repr(found) == "<SweepResult of 3 rows, 1 with errors>"

    def test_skip(self, ex: Any) -> None:
        rows: list[repartir.SweepRow] = []
        found = sweep(tasks.inverse, grid(x=[1, 0, 4]), executor=ex, on_error="skip", on_row=rows.append)
        assert results(found) == [1, 0.25]
        assert len(rows) == 3

    def test_an_error_of_on_row_ends_the_sweep(self, own: Any) -> None:
        def refuse(row: repartir.SweepRow) -> None:
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            sweep(tasks.identity, grid(x=range(1000)), executor=own, on_row=refuse)
        assert results(sweep(tasks.identity, grid(x=[1]), executor=own)) == [1]

    def test_retries(self, ex: Any, tmp_path: Path) -> None:
        again = ex.options(retries=2, backoff=0.001)
        space = grid(x=[1, 2], folder=[tmp_path])
        assert [row.attempts for row in sweep(tasks.fails_twice, space, executor=again)] == [3, 3]
        failing = ex.options(retries=1, backoff=0.001)
        (row,) = sweep(
            tasks.fails_twice, grid(x=[3], folder=[tmp_path]), executor=failing, on_error="keep"
        ).errors
        assert (row.attempts, type(row.error)) == (2, ValueError)


@workers
def test_rows_do_not_wait_for_a_long_one_behind_them(make: Make, gate: GateKeeper) -> None:
    heard = []

    def count(row: repartir.SweepRow) -> None:
        heard.append(row)
        if len(heard) == 30:
            gate.open()

    space = [{"x": x, "at": 30, "gate": gate.gate} for x in range(40)]
    executor: Any = make(1)
    assert results(sweep(tasks.waits_at, space, executor=executor, on_row=count)) == list(range(40))


@workers
class TestDeaths:
    def test_a_death_costs_its_row(self, own: Any) -> None:
        found = sweep(tasks.exits_at, grid(x=range(40), at=[17]), executor=own, on_error="keep")
        assert [row.params["x"] for row in found.errors] == [17]
        error = found.errors[0].error
        assert isinstance(error, WorkerDied)
        assert error.exit_code == 3
        assert [row.result for row in found if row.error is None] == [x for x in range(40) if x != 17]

    def test_a_time_out_costs_its_row(self, own: Any, tmp_path: Path) -> None:
        limited = own.options(timeout=0.3)
        space = grid(x=range(6), at=[2], folder=[tmp_path])
        found = sweep(tasks.sleeps_at, space, executor=limited, on_error="keep")
        (failed,) = found.errors
        assert type(failed.error) is TaskTimeout
        assert failed.params["x"] == 2
        assert 0.3 <= failed.seconds < LIMIT_S
        assert (failed.worker, failed.attempts) == (None, 1)

    def test_a_row_that_is_run_again_has_the_same_bits(self, own: Any, tmp_path: Path) -> None:
        again = own.options(retries=1, backoff=0.001)
        space = grid(x=range(4), folder=[tmp_path])
        with_death = sweep(tasks.dies_once, space, seed=5, executor=again)
        assert [row.attempts for row in with_death] == [1, 2, 1, 1]
        without = sweep(tasks.dies_once, space, seed=5, executor=repartir.SerialExecutor())
        assert results(with_death) == results(without)

    def test_the_error_that_stops_it_stops_what_runs(self, own: Any, tmp_path: Path) -> None:
        def fail(x: int, folder: Path) -> int:
            if x == 0:
                await_file(folder / "began-1")
                raise KeyError("mine")
            return tasks.sleeps_at(x, 1, folder)

        with pytest.raises(KeyError, match="mine"):
            sweep(fail, grid(x=[0, 1], folder=[tmp_path]), executor=own)
        assert own.submit(len, "ab").result(LIMIT_S) == 2
        assert not (tmp_path / "ended-1").exists()


@only_fork
class TestInterrupted:
    def test_ctrl_c_stops_the_rows_and_has_what_finished(self, own: Any, tmp_path: Path) -> None:
        def interrupt() -> None:
            await_file(tmp_path / "began-2")
            wait_until_asleep(threading.main_thread())
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        with pytest.raises(Interrupted) as caught:
            thread.start()
            sweep(tasks.sleeps_at, zipped(x=[0, 1, 2], at=[2] * 3, folder=[tmp_path] * 3), executor=own)
        thread.join()
        assert isinstance(caught.value, KeyboardInterrupt)
        assert {row.params["x"] for row in caught.value.partial} <= {0, 1}
        assert caught.value.partial.total == 3
        assert str(caught.value).startswith("interrupted after ")
        assert caught.value.__suppress_context__
        assert own.submit(len, "ab").result(LIMIT_S) == 2
        assert not (tmp_path / "ended-2").exists()

    def test_ctrl_c_in_on_row(self, own: Any) -> None:
        def interrupt(row: repartir.SweepRow) -> None:
            raise KeyboardInterrupt

        with pytest.raises(Interrupted) as caught:
            sweep(tasks.identity, grid(x=range(100)), executor=own, on_row=interrupt)
        assert len(caught.value.partial) == 1


class TestExecutors:
    @only_fork
    def test_none_makes_one_for_the_call(self, kind: Any) -> None:
        found = sweep(tasks.who, grid(x=range(8)))
        assert os.getpid() not in results(found)

    @workers
    def test_none_in_a_task_is_the_one_that_runs_it(self, ex: Any) -> None:
        assert ex.submit(tasks.nested, 5).result(LIMIT_S) == [0, 1, 2, 3, 4]
        found = sweep(tasks.nested, grid(n=[3, 4]), executor=ex)
        assert results(found) == [[0, 1, 2], [0, 1, 2, 3]]

    @ours
    def test_the_worker_is_told(self, kind: Any, ex: Any) -> None:
        found = sweep(tasks.identity, grid(x=range(8)), executor=ex)
        expected = {None} if kind.is_serial else {0, 1}
        assert {row.worker for row in found} <= expected

    @only_fork
    def test_another_librarys_executor(self, kind: Any) -> None:
        with ThreadPoolExecutor(2) as threads:
            found = sweep(tasks.loss, SPACE, seed=1, executor=threads)
            kept = sweep(tasks.inverse, grid(x=[1, 0]), executor=threads, on_error="keep")
        assert results(found) == results(sweep(tasks.loss, SPACE, seed=1, executor=repartir.SerialExecutor()))
        assert [type(row.error) for row in kept] == [type(None), ZeroDivisionError]

    @only_fork
    @pytest.mark.parametrize("executor", [3, "fork", object()])
    def test_what_is_none_is_refused(self, kind: Any, executor: Any) -> None:
        with pytest.raises(TypeError, match=r"executor must be a repartir\.Executor"):
            sweep(tasks.identity, grid(x=[1]), executor=executor)


@ours
class TestHalving:
    def test_the_best_go_on(self, ex: Any) -> None:
        rungs = halving("epochs", [1, 3, 9])
        space = grid(lr=[0.1 * n for n in range(9)])
        found = sweep(tasks.trained, space, executor=ex, rungs=rungs)
        assert [row.params["epochs"] for row in found] == [1] * 9 + [3] * 3 + [9]
        assert found.total == 13
        assert found.best().params == {"lr": pytest.approx(0.3), "epochs": 9}
        assert [row.params["lr"] for row in found[9:12]] == pytest.approx([0.2, 0.3, 0.4])

    def test_the_best_is_one_that_went_on_to_the_end(self, ex: Any) -> None:
        def lucky(epochs: int, x: int) -> float:
            return -10 if (epochs, x) == (1, 0) else 1 / epochs

        found = sweep(lucky, grid(x=range(4)), executor=ex, rungs=halving("epochs", [1, 2, 4]))
        assert found[0].result == -10
        assert found.best().params == {"x": 0, "epochs": 4}
        assert found.best().mean == 0.25

    def test_points_that_failed_do_not(self, ex: Any) -> None:
        rungs = halving("epochs", [1, 2], metric="score", mode="max")

        def score(epochs: int, x: int) -> dict[str, float]:
            if x == 3:
                raise ValueError(x)
            return {"score": x if x != 2 else float("nan")}

        found = sweep(score, grid(x=range(4)), executor=ex, rungs=rungs, on_error="keep")
        assert [row.params["x"] for row in found if row.params["epochs"] == 2] == [0, 1]

    def test_a_point_of_which_a_repeat_was_left_out_does_not(self, ex: Any) -> None:
        rungs, space = halving("epochs", [1, 2], metric="at"), grid(x=range(4))
        found = sweep(
            tasks.fails_by_chance, space, repeats=4, seed=5, executor=ex, rungs=rungs, on_error="skip"
        )
        first = [row.params["x"] for row in found if row.params["epochs"] == 1]
        whole = [x for x in range(4) if first.count(x) == 4]
        assert len(first) > 4 * len(whole) > 0
        assert {row.params["x"] for row in found if row.params["epochs"] == 2} <= set(whole)

    def test_a_metric_that_no_result_has_is_told(self, own: Any) -> None:
        rungs = halving("epochs", [1, 3], metric="los")
        with pytest.raises(ValueError, match=r"choose who goes on: .* 'los': results have loss") as caught:
            sweep(lambda epochs, x: {"loss": x}, grid(x=range(3)), executor=own, rungs=rungs)
        assert len(caught.value.partial) == 3  # type: ignore[attr-defined]


@only_fork
class TestAtTheDoor:
    @pytest.fixture(autouse=True)
    def never_called(self, kind: Any) -> None:
        """These need no executor, and make none: the error comes first."""

    @pytest.mark.parametrize(
        ("options", "error", "told"),
        [
            ({"repeats": 0}, ValueError, "repeats must be 1 or more, not 0"),
            ({"repeats": -1}, ValueError, "repeats must be 1 or more"),
            ({"repeats": 1.5}, TypeError, "repeats must be an integer"),
            ({"repeats": True}, TypeError, "repeats must be an integer, not True"),
            ({"on_change": "ask"}, ValueError, 'on_change must be "raise", "rerun" or "reuse"'),
            ({"on_error": "ignore"}, ValueError, 'on_error must be "raise", "keep" or "skip"'),
            ({"on_row": 3}, TypeError, "on_row must be a callable"),
            ({"seed": -1}, ValueError, "seed must not be negative"),
            ({"seed": "x"}, TypeError, "seed must be"),
            ({"progress": 3}, TypeError, "progress must be"),
            ({"rungs": [1, 2]}, TypeError, r"rungs must be what halving\(\) returned"),
            ({"rungs": halving("x", [1, 2])}, ValueError, r"halving\(\) sets x"),
        ],
    )
    def test_options(self, options: dict[str, Any], error: type[Exception], told: str) -> None:
        with pytest.raises(error, match=told):
            sweep(tasks.identity, grid(x=[1]), **options)

    def test_a_function_that_is_none(self) -> None:
        with pytest.raises(TypeError, match="sweep\\(\\) needs a function to call, not int"):
            sweep(3, grid(x=[1]))  # type: ignore[arg-type]

    def test_a_space_that_does_not_go_with_the_function(self) -> None:
        with pytest.raises(TypeError, match=r"loss.* cannot be called .* lr, deep: .*'depth'"):
            sweep(tasks.loss, grid(lr=[1], deep=[2]))
        with pytest.raises(TypeError, match="'depth'"):
            sweep(tasks.loss, grid(lr=[1], depth=[2]) + grid(lr=[1]))

    def test_a_function_that_only_begins_its_work(self) -> None:
        async def wait(x: int) -> int:
            return x

        def count(x: int) -> Any:
            yield x

        for fn in (wait, count):
            with pytest.raises(TypeError, match="is a coroutine or a generator"):
                sweep(fn, grid(x=[1]))

    def test_a_point_twice(self) -> None:
        with pytest.raises(ValueError, match=r"points 1 and 2 of the space are the same: x=1\.0"):
            sweep(tasks.identity, grid(x=[3, 1, 1.0]))

    def test_an_empty_space(self) -> None:
        with pytest.raises(ValueError, match="the space is empty"):
            sweep(tasks.identity, [])

    def test_a_value_without_a_key(self) -> None:
        with pytest.raises(TypeError, match=r"parameter x=.*give each a label"):
            sweep(tasks.identity, grid(x=[object()]))

    @pytest.mark.parametrize("resources", [[], [3, 1], [0, 1], [1, 1], [-1, 2]])
    def test_rungs_that_do_not_grow(self, resources: list[int]) -> None:
        with pytest.raises(ValueError, match="positive resources that grow"):
            halving("epochs", resources)

    def test_halving_by_something_else(self) -> None:
        with pytest.raises(ValueError, match='mode must be "min" or "max"'):
            halving("epochs", [1, 2], mode="best")
        with pytest.raises(TypeError, match="the name of a parameter"):
            halving(3, [1, 2])  # type: ignore[arg-type]
