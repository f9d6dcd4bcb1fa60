"""Shared arrays and objects in tasks: nothing is copied, nothing is written that may not be, memory goes back."""

from __future__ import annotations

import functools
import gc
import os
import threading
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import repartir
from repartir import shared
from repartir.errors import TaskNotSerializable, WorkerDied
from repartir.shared import SharedArray
from tests.helpers import module_main
from tests.shared import Forked, fill_shared_memory, until

from . import shared_tasks as tasks
from .conftest import Make
from .kinds import FORK, SPAWN, Kind, every_start, only_fork, workers
from .sync import LIMIT_S, BellKeeper, GateKeeper

MIB = 1 << 20

pytestmark = [workers, pytest.mark.any_start]


def run(ex: Any, fn: Callable[..., Any], *args: Any) -> Any:
    return ex.submit(fn, *args).result(LIMIT_S)


File = tuple[int, int]
"""A file system and the number of a file in it."""


def file_of(array: Any) -> File:
    """The file in which an array or object lies."""
    memory = array._lifetime.memory if isinstance(array, SharedArray) else array._memory
    found = os.fstat(memory.segment.fd)
    return found.st_dev, found.st_ino


def holders(*files: File) -> list[File]:
    """Those of the files that this process or a descendant of it has mapped or open: their memory is in use."""
    me = psutil.Process()
    held = set()
    for process in [me, *me.children(recursive=True)]:
        try:
            for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
                device, number = line.split()[3:5]
                major, minor = (int(part, 16) for part in device.split(":"))
                held.add((os.makedev(major, minor), int(number)))
            for entry in os.scandir(f"/proc/{process.pid}/fd"):
                found = os.stat(entry.path)
                held.add((found.st_dev, found.st_ino))
        except OSError:
            continue  # it has ended, or has just closed a descriptor
    return [file for file in files if file in held]


def closure_over(array: Any) -> Callable[[], float]:
    return lambda: float(array.sum())


def global_over(array: Any) -> Callable[[], float]:
    """A function that refers to itself, too: its globals and it are garbage that only the collector finds."""
    namespace: dict[str, Any] = {"TABLE": array, "__name__": "__main__"}
    exec("def total(depth=1): return total(0) if depth else float(TABLE.sum())", namespace)
    total: Callable[[], float] = namespace["total"]
    return total


# ---- nothing is copied


def test_an_array_and_its_views_are_read_where_they_lie(ex: Any) -> None:
    array = ex.share(np.arange(MIB))
    assert type(array) is SharedArray
    run(ex, tasks.look, array)
    held = ex.stats().arena_bytes
    plain = np.asarray(array)
    for given in (array, array[1:], array[::-3], array.reshape(1024, 1024).T, plain[5:], plain[::2]):
        assert run(ex, tasks.look, given) == ("SharedArray", False, float(given.sum()))
    assert ex.stats().arena_bytes == held
    assert ex.stats().shared_bytes >= array.nbytes


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a,
        lambda a: a[2:5],
        lambda a: a[::-2],
        lambda a: a.reshape(2, 5).T,
        lambda a: np.asarray(a)[3:],
        lambda a: np.asarray(a)[::-1],
        lambda a: a.reshape(2, 5)[:, 1:3],
        lambda a: a.view("i4"),
    ],
)
def test_what_a_task_writes_into_a_view_of_a_writable_array_is_seen(
    ex: Any, view: Callable[[Any], Any]
) -> None:
    array, expected = shared.zeros(10, int, writable=True), np.zeros(10, int)
    run(ex, tasks.write_all, [view(array)])
    tasks.write_all(view(expected))
    assert array.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "nest",
    [
        lambda a: [a],
        lambda a: ({"a": [a]},),
        lambda a: tasks.Job("x", a),
        lambda a: {"jobs": [tasks.Job("x", (a,))]},
    ],
)
def test_it_is_the_same_array_in_any_nest(ex: Any, nest: Callable[[Any], Any]) -> None:
    array = shared.zeros(MIB, writable=True)
    before = ex.stats().arena_bytes
    run(ex, tasks.write_all, nest(array[:5]))
    assert array[:6].tolist() == [1, 1, 1, 1, 1, 0]
    assert ex.stats().arena_bytes - before < MIB


def test_one_array_given_twice_is_one_array(ex: Any) -> None:
    array = shared.zeros(10)
    assert run(ex, lambda a, b: a is b, array, array)


def test_closures_partials_and_globals_refer_to_it(ex: Any) -> None:
    array = shared.zeros(MIB, writable=True)

    def add_in_closure(index: int) -> None:
        array[index] += 1

    namespace: dict[str, Any] = {"TABLE": array, "__name__": "__main__"}
    exec("def add_in_global(index): TABLE[index] += 1", namespace)
    in_global: types.FunctionType = namespace["add_in_global"]
    for fn in (add_in_closure, in_global, functools.partial(tasks.poke, array, value=1)):
        run(ex, fn, 3) if not isinstance(fn, functools.partial) else run(ex, fn, 4)
    assert array[:6].tolist() == [0, 0, 0, 2, 1, 0]
    assert list(ex.map(add_in_closure, range(6))) == [None] * 6
    assert array[:6].tolist() == [1, 1, 1, 3, 2, 1]


def test_map_takes_shared_items(ex: Any) -> None:
    array = ex.share(np.arange(100.0).reshape(10, 10))
    assert list(ex.map(np.sum, array)) == [float(row.sum()) for row in array]
    assert next(iter(ex.map(tasks.look, array, chunksize=3))) == ("SharedArray", False, 45.0)


# ---- what a task may do


def test_a_task_cannot_write_nor_make_it_writable(ex: Any) -> None:
    for given in (ex.share(np.ones(10)), ex.share(np.ones(MIB)), np.asarray(ex.share(np.ones(10)))[1:]):
        assert "written" not in run(ex, tasks.try_to_write, given)
        assert (given == 1).all()


def test_tasks_see_each_other_s_writes(ex: Any) -> None:
    array = shared.zeros(1000, writable=True)
    run(ex, tasks.poke, array, slice(10), 7)
    assert run(ex, tasks.look, array) == ("SharedArray", True, 70.0)
    array[:] = 1
    assert run(ex, tasks.look, array) == ("SharedArray", True, 1000.0)
    array.flags.writeable = False
    assert run(ex, tasks.look, array)[1] is False


def test_the_client_s_writes_are_seen(ex: Any) -> None:
    array = shared.zeros(1000)
    run(ex, tasks.look, array)
    array += 2
    assert run(ex, tasks.look, array)[2] == 2000


def test_what_a_task_computes_is_plain(ex: Any) -> None:
    assert set(run(ex, tasks.compute, ex.share(np.arange(10.0)))) == {"ndarray"}


@pytest.mark.parametrize("size", [10, MIB])
def test_results_are_private_copies(ex: Any, size: int) -> None:
    array = shared.zeros(size, writable=True)
    for parts in (run(ex, tasks.give_back, array), *run(ex, tasks.give_back_parts, array).values()):
        result = parts[0] if isinstance(parts, list) else parts
        assert type(result) is np.ndarray
        assert result.flags.writeable
        result[:] = 1
    assert not array.any()


def test_an_exception_holds_a_copy(ex: Any) -> None:
    with pytest.raises(ValueError) as caught:
        run(ex, tasks.raise_with, shared.full(MIB, 3))
    assert type(caught.value.args[0]) is np.ndarray
    assert caught.value.args[0].tolist() == [3, 3, 3]


@every_start
def test_arrays_made_before_and_after_the_executor(make: Make) -> None:
    before = shared.full(MIB, 2)
    with make(1) as one, make(1) as other:
        after = shared.full(MIB, 3)
        for ex in (one, other):
            assert run(ex, tasks.look, before) == ("SharedArray", False, 2.0 * MIB)
            assert run(ex, tasks.look, after) == ("SharedArray", False, 3.0 * MIB)
            assert "written" not in run(ex, tasks.try_to_write, before)
    assert before.sum() == 2 * MIB, "it outlives executors"
    with make(1) as third:
        assert run(third, tasks.look, after)[2] == 3 * MIB


@only_fork
def test_an_array_that_workers_inherit_is_as_read_only(make: Make) -> None:
    array = shared.zeros(10)
    tasks.kept.append(array)
    try:
        with make(1, initializer=tasks.keep, initargs=(array,)) as ex:
            with pytest.raises(ValueError, match="read-only"):
                run(ex, tasks.poke, array, 0, 1)
            with pytest.raises(ValueError, match="read-only"):
                run(ex, lambda: tasks.kept[0].fill(1))
            assert run(ex, tasks.sum_of_kept) == 0
            array[0] = 5
            assert run(ex, tasks.sum_of_kept) == 5
    finally:
        tasks.kept.clear()


@every_start
def test_an_initializer_gets_it_for_all_tasks(make: Make) -> None:
    array = shared.full(MIB, 2)
    file = file_of(array)
    with make(1, initializer=tasks.keep, initargs=(array,)) as ex:
        assert run(ex, tasks.sum_of_kept) == 2 * MIB
        array[0] = 3
        assert run(ex, tasks.sum_of_kept) == 2 * MIB + 1
        assert "written" not in run(ex, tasks.try_to_write_kept)
        array.free()
        del array
        assert run(ex, tasks.sum_of_kept) == 2 * MIB + 1
    del ex  # which has the arguments of its initializer
    gc.collect()
    assert not holders(file)


@only_fork
def test_what_workers_inherit_goes_back_when_they_have_ended(make: Make) -> None:
    array = shared.zeros(MIB)
    file = file_of(array)
    with make(1) as ex:
        run(ex, tasks.look, array)
        array.free()
        del array
    assert not holders(file)


@pytest.mark.parametrize("kind_of", ["frame", "sparse", "masked", "matrix"])
def test_what_is_built_on_a_shared_array_copies_none_of_it(ex: Any, kind_of: str) -> None:
    array = shared.zeros((1000, 100), writable=True)
    if kind_of == "frame":
        given: Any = pytest.importorskip("pandas").DataFrame(array, copy=False)
    elif kind_of == "sparse":
        sparse = pytest.importorskip("scipy.sparse")
        given = sparse.dia_array((array, np.arange(1000)), shape=(100, 100))
    else:
        given = np.ma.masked_array(array, False) if kind_of == "masked" else array.view(np.matrix)
        array += 1
        assert run(ex, np.sum, given) == 100_000
    held = ex.stats().arena_bytes
    assert run(ex, tasks.type_name, given) == type(given).__name__
    assert ex.stats().arena_bytes - held < MIB // 4


# ---- the end


@pytest.mark.parametrize("size", [100, MIB])
def test_use_after_free_names_the_argument(ex: Any, size: int) -> None:
    array = ex.share(np.zeros(size))
    part = array[1:]
    array.free()
    for given in (array, [part]):
        future = ex.submit(tasks.look, given)
        with pytest.raises(ValueError, match=r"argument 0 .*was freed; use it inside its `with`"):
            future.result(LIMIT_S)
        assert isinstance(future.exception(), TaskNotSerializable)
    with pytest.raises(ValueError, match="was freed"):
        list(ex.map(tasks.look, [part]))
    with pytest.raises(ValueError, match=r"the function .*was freed"):
        run(ex, lambda: part.sum())
    assert run(ex, len, "usable") == 6


def test_tasks_submitted_before_free_still_have_it(
    ex: Any, new_gate: Callable[[], GateKeeper], bell: BellKeeper
) -> None:
    gate = new_gate()
    with shared.full(MIB, 1) as array:
        futures = [ex.submit(tasks.sum_when_open, gate.gate, bell.bell, array) for _ in range(2)]
        futures += [
            ex.submit(closure_over(array)),
            ex.submit(tasks.sum_when_open, gate.gate, bell.bell, array[:10]),
        ]
        bell.hear(), bell.hear()
    del array
    gc.collect()
    gate.open()
    assert [future.result(LIMIT_S) for future in futures] == [MIB, MIB, MIB, 10]


def test_a_map_that_is_under_way_still_has_it(ex: Any) -> None:
    with shared.full(MIB, 1) as array:
        results = ex.map(lambda n: float(array[n]), range(20), buffersize=2, chunksize=1)
        assert next(results) == 1
    assert list(results) == [1] * 19


def test_a_task_may_keep_it_longer_than_the_client(ex: Any, make: Make) -> None:
    with make(1) as one:
        with shared.full(MIB, 1) as array:
            run(one, tasks.keep, array)
        del array
        run(one, len, "x")
        assert run(one, tasks.sum_of_kept) == MIB
        run(one, tasks.forget)


@pytest.mark.parametrize("way", ["argument", "closure", "global", "object"])
@pytest.mark.parametrize("end", ["free", "garbage"])
def test_sleeping_workers_let_go_of_what_was_freed(make: Make, way: str, end: str) -> None:
    with make(2) as ex:
        array: Any = ex.share([np.ones(MIB)]) if way == "object" else shared.full(MIB, 1.0)  # type: ignore[attr-defined]
        file = file_of(array)
        if way == "argument":
            futures = [ex.submit(np.sum, array[n:]) for n in range(8)]
        elif way == "object":
            futures = [ex.submit(tasks.sum_of_first, array) for _ in range(8)]
        else:
            fn = closure_over(array) if way == "closure" else global_over(array)
            futures = [ex.submit(fn) for n in range(8)]
            del fn
        assert {int(future.result(LIMIT_S)) for future in futures} <= {MIB - n for n in range(8)}
        assert holders(file)
        del futures
        if end == "free":
            array.free()
        del array
        gc.collect()
        until(lambda: not holders(file))


@only_fork
def test_so_does_one_that_was_about_to_sleep(
    make: Make, bell: BellKeeper, gate: GateKeeper, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    with make(1, initializer=tasks.stop_before_announcing, initargs=(bell.bell, gate.gate, mark)) as made:
        ex: Any = made
        array = shared.full(MIB, 1.0)
        file = file_of(array)
        until(lambda: ex._broker.board.parking.is_idle(0))
        mark.touch()
        run(ex, np.sum, array)
        bell.hear()
        array.free()
        del array
        until(lambda: not ex._broker._shared_freed)  # all sleepers were woken: this one does not sleep yet
        gate.open()
        until(lambda: not holders(file))


def test_memory_stays_flat_though_workers_never_sleep(make: Make) -> None:
    with make(1) as ex:
        pending, files = [], []
        for _ in range(30):
            with shared.full(MIB, 1, "u1") as array:
                files.append(file_of(array))
                pending.append(ex.submit(np.sum, array))
            if len(pending) > 3:
                assert pending.pop(0).result(LIMIT_S) == MIB
        assert len(holders(*files)) <= 8
        for future in pending:
            future.result(LIMIT_S)


@every_start
def test_a_worker_s_death_costs_its_task_and_no_array(make: Make) -> None:
    array = shared.full(MIB, 1, writable=True)
    with make(1) as ex:
        run(ex, tasks.poke, array, 0, 5)
        with pytest.raises(WorkerDied):
            run(ex, tasks.die, array)
        assert run(ex, tasks.look, array) == ("SharedArray", True, MIB + 4.0)


def test_it_is_valid_after_shutdown_and_freed_after_it(make: Make) -> None:
    ex: Any = make(1)
    array = ex.share(np.ones(MIB))
    memory = weakref.ref(array._lifetime.memory)
    run(ex, tasks.look, array)
    ex.shutdown()
    array += 1
    assert array.sum() == 2 * MIB
    array.free()
    assert memory() is None


def test_many_small_arrays_and_hundreds_of_large_ones(make: Make) -> None:
    with make(1) as ex:
        before = run(ex, tasks.descriptors)
        small = [shared.full(10, n) for n in range(5_000)]
        assert run(ex, tasks.first_elements, small) == list(range(5_000))
        assert run(ex, tasks.descriptors) - before < 20
        large = [shared.full(MIB, n, "u1") for n in range(200)]
        assert run(ex, tasks.first_elements, large) == list(range(200))
        del small, large
        gc.collect()
        until(lambda: run(ex, tasks.descriptors) == before)


def test_a_worker_with_too_few_descriptors_says_so(make: Make) -> None:
    with make(1) as ex:
        run(ex, tasks.look, shared.zeros(10))
        run(ex, tasks.open_no_more_descriptors)
        with pytest.raises(OSError, match=r"Too many open files.*ulimit -n"):
            run(ex, tasks.look, shared.zeros(MIB))


def test_a_full_shared_memory_puts_arrays_into_a_file(
    ex: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fill_shared_memory(monkeypatch, tmp_path)
    array = shared.full(MIB, 3, writable=True)
    run(ex, tasks.poke, array, 0, 4)
    assert run(ex, tasks.look, array) == ("SharedArray", True, 3.0 * MIB + 1)


@pytest.mark.kinds(FORK, SPAWN)
def test_a_forked_child_may_use_it_with_an_executor_of_its_own(kind: Kind, ex: Any) -> None:
    array = shared.full(MIB, 3, writable=True)
    frozen = shared.full(MIB, 3)

    def child() -> None:
        with kind.make(1) as own:
            assert run(own, tasks.look, array) == ("SharedArray", True, 3.0 * MIB)
            run(own, tasks.poke, array, 0, 4)
            assert "written" not in run(own, tasks.try_to_write, frozen)

    Forked(child).join(LIMIT_S)
    assert array[0] == 4
    assert run(ex, tasks.look, array)[2] == 3.0 * MIB + 1


def test_threads_that_share_and_free_at_once(ex: Any) -> None:
    raised: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for n in range(start, start + 30):
                with shared.full(100 + n, n) as array:
                    future = ex.submit(np.sum, array)
                assert future.result(LIMIT_S) == n * (100 + n)
        except BaseException as exc:  # noqa: BLE001
            raised.append(exc)

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == []


# ---- in a task


def test_a_task_may_share(ex: Any) -> None:
    result = run(ex, tasks.make_and_return)
    assert type(result) is np.ndarray
    assert result.sum() == 3000
    assert run(ex, tasks.share_in_place) == ("SharedObject", 1000.0)


def test_a_task_may_pass_it_on(ex: Any) -> None:
    assert run(ex, tasks.in_an_executor_of_its_own, shared.full(MIB, 2)) == ("SharedArray", False, 2.0 * MIB)


# ---- objects


def test_an_object_is_unpickled_once_a_worker(make: Make) -> None:
    with make(1) as ex:
        with ex.share(tasks.Counted({"a": np.arange(MIB)})) as handle:  # type: ignore[attr-defined]
            seen = {run(ex, tasks.describe, handle) for _ in range(5)}
            assert len(seen) == 1, "one object of one process"
            assert next(iter(seen))[2:] == ("Counted", 1)
            assert run(ex, lambda given: given["in"][0].value["a"].flags.writeable, {"in": [handle]}) is False
            assert run(ex, lambda: int(handle.value["a"].sum())) == MIB * (MIB - 1) // 2  # type: ignore[attr-defined]
        future = ex.submit(tasks.describe, handle)
        with pytest.raises(ValueError, match=r"argument 0 .*Counted was freed"):
            future.result(LIMIT_S)


def test_an_object_comes_back_as_a_copy(ex: Any) -> None:
    value = {"a": [1, 2]}
    handle = ex.share(value)
    result = run(ex, tasks.give_back, handle)
    assert result == value
    assert result is not value


def test_an_object_holds_shared_arrays_by_reference(ex: Any) -> None:
    array = shared.zeros(MIB, writable=True)
    handle = ex.share({"table": array})
    assert handle._size < 1000
    run(ex, tasks.write_all, handle)
    assert array[0] == 1


def test_what_cannot_be_pickled_is_refused_at_once(ex: Any) -> None:
    with pytest.raises(TaskNotSerializable, match="the object to share"):
        ex.share({"lock": threading.Lock()})


def test_sharing_again_gives_back_what_is_shared(ex: Any) -> None:
    array, handle = ex.share(np.ones(3)), ex.share([1])
    assert ex.share(array) is array
    assert ex.share(handle) is handle


def test_a_memmap_is_copied_into_memory(ex: Any, tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "numbers", "f8", "w+", shape=(1000,))
    mapped[:] = 2
    array = ex.share(mapped)
    assert run(ex, tasks.look, array) == ("SharedArray", False, 2000.0)


@pytest.mark.parametrize("start", [FORK, SPAWN], ids=str)
@only_fork
def test_classes_and_functions_of_the_main_module(tmp_path: Path, kind: Kind, start: Kind) -> None:
    result = module_main(
        tmp_path,
        f"""
        import numpy as np, warnings
        from dataclasses import dataclass
        from repartir import Executor, shared
        warnings.simplefilter("error")

        @dataclass
        class Model:
            weights: object
            def total(self): return float(self.weights.sum() + TABLE.sum())

        def scale(x): return x * FACTOR + TABLE[0]
        FACTOR = 3
        TABLE = shared.full(1 << 20, 1.0)
        model = Model(shared.full(1 << 20, 2.0))

        with Executor(1, {start.name!r}) as ex:
            assert ex.submit(model.total).result() == 3 << 20
            handle = ex.share(Model(np.ones(10)))
            assert ex.submit(lambda m: type(m) is Model and m.total(), handle).result() == (1 << 20) + 10
            shared_fn = ex.share(scale)
            assert ex.submit(lambda f: f(2), shared_fn).result() == 7
            assert ex.submit(scale, 2).result() == 7
            before = ex.stats().arena_bytes
            for n in range(50):
                assert ex.submit(scale, n).result() == 3 * n + 1
            assert ex.stats().arena_bytes == before
            future = ex.submit(model.total)
            TABLE.free()
            assert future.result() == 3 << 20
            assert isinstance(ex.submit(scale, 1).exception(), ValueError)
            TABLE = shared.full(10, 5.0)
            assert ex.submit(scale, 1).result() == 8
        """,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_the_serial_executor_gives_tasks_the_object() -> None:
    ex = repartir.SerialExecutor()
    value = {"a": 1}
    handle = ex.share(value)
    assert ex.submit(tasks.give_back, handle).result() is value
    assert list(ex.map(tasks.give_back, [handle])) == [value]
    assert ex.submit(tasks.look, ex.share(np.ones(3))).result()[2] == 3
    handle.free()
    with pytest.raises(ValueError, match="was freed"):
        ex.submit(tasks.give_back, handle).result()
