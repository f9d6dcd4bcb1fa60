"""Threads of numerical libraries in workers, and workers that are bound to cores."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from .conftest import Make
from .kinds import Kind, every_start, only_fork, workers
from .scripts import run_script
from .sync import LIMIT_S

CORES = len(os.sched_getaffinity(0))
SHARE = str(max(1, CORES // 2))

SCRIPT = """
import os
IMPORT

def library_threads():
    import numpy, threadpoolctl
    return {found["num_threads"] for found in threadpoolctl.threadpool_info()}

def said():
    return os.environ.get("OMP_NUM_THREADS"), os.environ.get("OPENBLAS_NUM_THREADS")

def multiply():
    import numpy
    a = numpy.ones((300, 300))
    assert (a @ a)[0, 0] == 300
    return len(os.listdir("/proc/self/task"))

if __name__ == "__main__":
    for options in OPTIONS:
        with make(2, **options) as ex:
            print(ex.submit(library_threads).result(20), *ex.submit(said).result(20), ex.submit(multiply).result(20))
    print(*said())
"""


def seen(
    kind: Kind, folder: Path, options: list[dict[str, Any]], loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    source = SCRIPT.replace("OPTIONS", repr(options)).replace("IMPORT", "import numpy" if loaded else "")
    ended = run_script(folder, kind, source)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.lines


@every_start
@workers
@pytest.mark.parametrize("loaded", [True, False], ids=["loaded before", "loaded by a task"])
def test_workers_share_the_cores(
    kind: Kind, tmp_path: Path, loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = seen(kind, tmp_path, [{}], loaded, monkeypatch)
    started = SHARE
    if kind.name == "fork" and loaded and SHARE != "1":
        started = lines[0].split()[
            -1
        ]  # OpenBLAS in a fork starts all threads that it had, and lets those beyond idle
        assert started in (SHARE, str(CORES))
    assert lines == [f"{{{SHARE}}} {SHARE} {SHARE} {started}", "None None"]


@only_fork
def test_none_leaves_libraries_and_environment_alone(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = seen(kind, tmp_path, [{"threads_per_worker": None}], True, monkeypatch)
    assert lines == [f"{{{CORES}}} None None {CORES}", "None None"]


@only_fork
def test_a_number_may_be_more_than_the_share(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many threads as asked for exist, though no more than BLAS finds worth its while work."""
    lines = seen(kind, tmp_path, [{"threads_per_worker": 3}, {"threads_per_worker": 1}], True, monkeypatch)
    assert [line.rpartition(" ")[0] for line in lines] == ["{3} 3 3", "{1} 1 1", "None"]


@only_fork
def test_a_limit_of_the_client_stays(make: Make) -> None:
    import numpy  # noqa: F401 - so that there is a library
    from threadpoolctl import threadpool_info, threadpool_limits

    with threadpool_limits(1):
        found = make(1).submit(threadpool_info).result(LIMIT_S)
    assert {library["num_threads"] for library in found if library["user_api"] == "blas"} == {1}


def limit_in_a_thread() -> list[int]:
    """What the libraries of this process say after a thread of the task has asked for two threads."""
    from threadpoolctl import threadpool_info, threadpool_limits

    limits: list[object] = []
    thread = threading.Thread(target=lambda: limits.append(threadpool_limits(2, "blas")))
    thread.start()
    thread.join()
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@only_fork
def test_a_task_may_change_it_in_any_of_its_threads(make: Make) -> None:
    import numpy  # noqa: F401 - so that there is a library

    assert set(make(1, threads_per_worker=1).submit(limit_in_a_thread).result(LIMIT_S)) == {2}


@only_fork
def test_a_successor_has_the_limit_too(make: Make) -> None:
    ex = make(2, max_tasks_per_child=1)
    values = {ex.submit(os.getenv, "OPENBLAS_NUM_THREADS").result(LIMIT_S) for _ in range(5)}
    assert values == {str(min(int(os.environ.get("OMP_NUM_THREADS", SHARE)), int(SHARE)))}
