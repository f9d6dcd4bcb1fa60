"""A nursery forked while other threads hold locks, import, log, run a loop, or an OpenMP team exists.

Each disturbance is made to hold exactly when the executor is made, by events; nothing is left to chance.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from . import tasks
from .conftest import Make
from .kinds import FORK, Kind, only_fork, workers
from .scripts import run_script
from .sync import LIMIT_S

SLOW_MODULE = """
import sys
early = 1
hook = getattr(sys, "_conformance_hook", None)
if hook is not None:
    hook()
late = 2
"""


@contextmanager
def during(body: Callable[[Callable[[], None]], None]) -> Iterator[None]:
    """Run body(pause) in a thread; the block runs while the thread stands in `pause`."""
    inside, leave = threading.Event(), threading.Event()

    def pause() -> None:
        inside.set()
        leave.wait(2 * LIMIT_S)

    thread = threading.Thread(target=body, args=(pause,))
    thread.start()
    try:
        assert inside.wait(LIMIT_S)
        yield
    finally:
        leave.set()
        thread.join(LIMIT_S)
    assert not thread.is_alive()


def _import_late(name: str, folder: str) -> tuple[int, int]:
    if hasattr(sys, "_conformance_hook"):
        del sys._conformance_hook
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = importlib.import_module(name)
    return module.early, module.late


def _draw_all() -> int:
    draws = (random.random(), np.random.random(), np.random.default_rng().random())
    return sum(0 <= value < 1 for value in draws)


def _log(name: str) -> bool:
    logger = logging.getLogger(name)
    logger.warning("from a task")
    for handler in logger.handlers:
        handler.acquire()
        handler.release()
    return True


def _run_loop() -> int:
    async def main() -> int:
        await asyncio.sleep(0)
        return 5

    return asyncio.run(main())


@only_fork
def test_while_a_thread_imports_a_module(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The half-imported module and its lock are not the workers' business: a task imports it whole."""
    name = "conformance_slow_module"
    (tmp_path / f"{name}.py").write_text(SLOW_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))

    def body(pause: Callable[[], None]) -> None:
        monkeypatch.setattr(sys, "_conformance_hook", pause, raising=False)
        importlib.import_module(name)

    with during(body):
        ex = make(1)
        assert ex.submit(_import_late, name, str(tmp_path)).result(LIMIT_S) == (1, 2)
    assert sys.modules.pop(name).late == 2


@only_fork
def test_while_a_thread_holds_the_lock_of_numpys_generator(make: Make) -> None:
    """Reseeding in the child would wait for that lock for ever; so generators are replaced."""

    def body(pause: Callable[[], None]) -> None:
        with np.random.mtrand._rand._bit_generator.lock:
            pause()

    with during(body):
        assert make(1).submit(_draw_all).result(LIMIT_S) == 3


@only_fork
def test_while_threads_draw_without_pause(make: Make) -> None:
    stop = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            random.random()
            np.random.random(100)

    threads = [threading.Thread(target=draw) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            with make(1) as ex:
                assert ex.submit(_draw_all).result(LIMIT_S) == 3
    finally:
        stop.set()
        for thread in threads:
            thread.join(LIMIT_S)


@only_fork
def test_while_a_thread_holds_a_logging_handler(make: Make) -> None:
    logger = logging.getLogger("conformance.held")
    handler = logging.StreamHandler()
    handler.setLevel(logging.CRITICAL)
    logger.addHandler(handler)
    logger.propagate = False

    def body(pause: Callable[[], None]) -> None:
        handler.acquire()
        try:
            pause()
        finally:
            handler.release()

    try:
        with during(body):
            assert make(1).submit(_log, logger.name).result(LIMIT_S)
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


@only_fork
def test_while_threads_log_without_pause(make: Make) -> None:
    logger = logging.getLogger("conformance.busy")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    stop = threading.Event()

    def log() -> None:
        while not stop.is_set():
            logger.warning("busy")

    threads = [threading.Thread(target=log) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            with make(1) as ex:
                assert ex.submit(_log, logger.name).result(LIMIT_S)
    finally:
        stop.set()
        for thread in threads:
            thread.join(LIMIT_S)


@workers
def test_inside_a_running_loop(make: Make) -> None:
    """The executor is made in a coroutine; its tasks run loops of their own."""

    async def main() -> list[int]:
        ex = make(2)
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(ex, _run_loop) for _ in range(4)]
        results = await asyncio.wait_for(asyncio.gather(*calls), LIMIT_S)
        await loop.run_in_executor(None, ex.shutdown)
        return results

    assert asyncio.run(main()) == [5] * 4


@only_fork
def test_while_a_thread_runs_a_loop(make: Make) -> None:
    async def hold(pause: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(None, pause)

    with during(lambda pause: asyncio.run(hold(pause))):
        assert make(1).submit(_run_loop).result(LIMIT_S) == 5


@only_fork
def test_while_an_executor_works_and_another_waits(make: Make) -> None:
    """The broker threads of earlier executors are threads like others."""
    busy = make(1)
    for n in range(5):
        futures = [busy.submit(pow, k, 2) for k in range(200)]
        assert make(1).submit(pow, n, 2).result(LIMIT_S) == n * n
        assert [f.result(LIMIT_S) for f in futures] == [k * k for k in range(200)]


@only_fork
def test_a_task_is_told_from_its_forker(make: Make) -> None:
    """A plain value set in the client before the fork is seen, one set after it is not."""
    tasks.initialised.append("before")
    try:
        ex = make(1)
        ex.submit(pow, 2, 2).result(LIMIT_S)
        tasks.initialised.append("after")
        assert ex.submit(tasks.get_initialised).result(LIMIT_S) == ["before"]
    finally:
        tasks.initialised.clear()


FIT_TWICE = """
import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from repartir import Executor

def fit(seed):
    rng = np.random.default_rng(7)
    x = rng.random((400, 4))
    y = x[:, 0] > x[:, 1]
    return float(HistGradientBoostingClassifier(max_iter=3, random_state=seed).fit(x, y).score(x, y))

here = fit(1)
with Executor(1) as ex:
    print(here, ex.submit(fit, 1).result(40) == here)
"""


@pytest.mark.slow
@pytest.mark.kinds(FORK)
def test_an_openmp_team_in_the_client(kind: Kind, tmp_path: Path) -> None:
    """A fit with libgomp in the client, then one in a worker: in a plain forked child the second hangs."""
    pytest.importorskip("sklearn")
    ended = run_script(tmp_path, kind, FIT_TWICE, timeout_s=60, env={"OMP_NUM_THREADS": "2"})
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout.split()[0]) > 0.5
    assert ended.stdout.split()[1] == "True"
