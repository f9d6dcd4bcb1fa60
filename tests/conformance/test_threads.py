"""Submits and waits from several threads, from other threads than the main one, and many executors."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from . import tasks
from .conftest import Make
from .kinds import Kind, every_start, processes, workers
from .scripts import run_script
from .sync import LIMIT_S, BellKeeper, GateKeeper


def in_threads(count: int, function: Callable[[int], Any]) -> list[Any]:
    """Run function(0 … count-1) in threads that start together; return their results, or raise an error."""
    together = threading.Barrier(count)

    def body(n: int) -> Any:
        together.wait(LIMIT_S)
        return function(n)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(body, range(count), timeout=2 * LIMIT_S))


@every_start
def test_first_submit_from_several_threads_at_once(make: Make) -> None:
    with make(2) as ex:
        assert in_threads(8, lambda n: ex.submit(pow, n, 2).result(LIMIT_S)) == [n * n for n in range(8)]


def test_executor_made_used_and_closed_in_a_thread(make: Make) -> None:
    def life(n: int) -> int:
        with make(1) as ex:
            return int(ex.submit(pow, n, 2).result(LIMIT_S))

    assert in_threads(1, life) == [0]


@processes
def test_an_executor_outlives_the_thread_that_made_it(make: Make) -> None:
    """PDEATHSIG fires when the forking thread ends: workers must not depend on it for the client's life."""
    made: list[Executor] = []

    def first_life(_: int) -> None:
        made.append(make(2))
        made[0].submit(pow, 2, 2).result(LIMIT_S)

    in_threads(1, first_life)
    assert [made[0].submit(pow, n, 2).result(LIMIT_S) for n in range(20)] == [n * n for n in range(20)]
    made.pop().shutdown()


@processes
def test_several_executors_made_at_once(make: Make) -> None:
    def life(n: int) -> list[int]:
        with make(1) as ex:
            return list(ex.map(pow, range(20), itertools.repeat(n)))

    assert in_threads(4, life) == [[k**n for k in range(20)] for n in range(4)]


@workers
def test_an_executor_made_in_a_pools_thread_ends_in_silence(kind: Kind, tmp_path: Path) -> None:
    source = """
from concurrent.futures import ThreadPoolExecutor
def life(n):
    with make(1) as ex:
        return ex.submit(pow, n, 2).result(15)
def threads(n):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(pow, n, 3).result(15)
with ThreadPoolExecutor(3) as pool:
    print(*pool.map(life, range(3)))
    with pool.submit(make, 1).result(15) as ex:
        print(ex.submit(threads, 2).result(15))
"""
    ended = run_script(tmp_path, kind, source)
    assert (ended.returncode, ended.lines, ended.stderr) == (0, ["0 1 4", "8"], "")


def test_submits_from_eight_threads(ex: Executor) -> None:
    def submit(n: int) -> list[Future[int]]:
        return [ex.submit(pow, 100 * n + k, 2) for k in range(100)]

    futures = [future for some in in_threads(8, submit) for future in some]
    assert [f.result(LIMIT_S) for f in futures] == [n * n for n in range(800)]


def test_results_awaited_in_eight_threads(ex: Executor) -> None:
    futures = [ex.submit(pow, n, 2) for n in range(400)]
    sums = in_threads(8, lambda n: sum(f.result(LIMIT_S) for f in futures[n::8]))
    assert sums == [sum(k * k for k in range(n, 400, 8)) for n in range(8)]


@processes
def test_eight_threads_wait_for_one_result(ex: Executor, gate: GateKeeper) -> None:
    future = ex.submit(tasks.wait_for, gate.gate, 5)

    def take(n: int) -> int:
        if n == 0:
            gate.open()
        return int(future.result(LIMIT_S))

    assert in_threads(8, take) == [5] * 8


@processes
def test_a_waiter_whose_task_ends_first_leaves_the_others_served(
    ex: Executor, new_gate: Callable[[], GateKeeper], bell: BellKeeper
) -> None:
    """Whoever collects answers for all hands that on when its own has come; else the other waits for ever."""
    first, second = new_gate(), new_gate()
    quick = ex.submit(tasks.ring_and_wait, bell.bell, first.gate, "quick")
    slow = ex.submit(tasks.ring_and_wait, bell.bell, second.gate, "slow")
    bell.hear(), bell.hear()

    def take(n: int) -> str:
        if n == 2:
            first.open()
            assert quick.result(LIMIT_S) == "quick"
            second.open()
            return "opened"
        return str((quick, slow)[n].result(LIMIT_S))

    assert in_threads(3, take) == ["quick", "slow", "opened"]


def test_maps_in_four_threads(ex: Executor) -> None:
    results = in_threads(4, lambda n: list(ex.map(pow, range(200), itertools.repeat(n))))
    assert results == [[k**n for k in range(200)] for n in range(4)]


@processes
def test_submits_race_with_shutdown(make: Make) -> None:
    """Each submit is either refused with the stdlib's RuntimeError or has a result; none is lost."""
    ex = make(2)
    ex.submit(pow, 2, 2).result(LIMIT_S)
    refusals: list[str] = []

    def work(n: int) -> list[Future[int]]:
        if n == 0:
            ex.shutdown(wait=True)
            return []
        accepted = []
        for k in range(200):
            try:
                accepted.append(ex.submit(pow, k, 2))
            except RuntimeError as error:
                refusals.append(str(error))
                break
        return accepted

    for accepted in in_threads(4, work):
        assert not wait(accepted, timeout=LIMIT_S).not_done
        assert [f.result(0) for f in accepted] == [k * k for k in range(len(accepted))]
    assert set(refusals) <= {"cannot schedule new futures after shutdown"}


def test_many_executors_side_by_side(make: Make) -> None:
    executors = [make(1) for _ in range(6)]
    futures = [[ex.submit(pow, n, k) for n in range(20)] for k, ex in enumerate(executors)]
    for k, some in enumerate(futures):
        assert [f.result(LIMIT_S) for f in some] == [n**k for n in range(20)]


@processes
def test_an_executor_made_by_an_import(kind: Kind, tmp_path: Path) -> None:
    """A module of the user's makes and uses its executor while it is imported, here by `__main__`."""
    (tmp_path / "users_module.py").write_text(
        kind.script_preamble + "from tests.conformance import tasks\n"
        "ex = make(2)\nfirst = ex.submit(pow, 2, 5).result(15)\n"
    )
    ended = run_script(
        tmp_path,
        kind,
        """
        import users_module
        print(users_module.first, users_module.ex.submit(pow, 2, 6).result(15))
        """,
    )
    assert (ended.returncode, ended.lines, ended.stderr) == (0, ["32 64"], "")
