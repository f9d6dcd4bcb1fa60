"""Fixtures of the conformance suite: kinds, executors that are always closed, gates, bells, a time limit."""

from __future__ import annotations

import gc
import itertools
import signal
import tempfile
import weakref
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, wait
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import pytest

from . import tasks
from .kinds import ALL, SLOW_TO_START, SPAWN, Kind
from .sync import LIMIT_S, BellKeeper, GateKeeper

Make = Callable[..., Executor]

TEST_LIMIT_S = 40.0
CLOSE_LIMIT_S = 15.0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kinds(*kinds): the executor kinds that a conformance test runs for")
    config.addinivalue_line("markers", "every_start: runs for every start method in the fast suite too")
    config.addinivalue_line("markers", "any_start: what it tests does not depend on the start method")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("kinds")
        own_executors = "ex" not in metafunc.fixturenames
        every_start = metafunc.definition.get_closest_marker("every_start") is not None
        slow = SLOW_TO_START if own_executors and not every_start else ()
        if slow and metafunc.definition.get_closest_marker("any_start") is not None:
            slow = (*slow, SPAWN)
        parameters = [
            pytest.param(kind, id=kind.name, marks=[pytest.mark.slow] if kind in slow else [])
            for kind in (mark.args if mark else ALL)
        ]
        metafunc.parametrize("kind", parameters, indirect=True, scope="module")


@contextmanager
def limit(seconds: float, what: str) -> Iterator[None]:
    """Raise in the main thread when the block takes longer than `seconds`."""

    def too_late(_signum: int, _frame: FrameType | None) -> None:
        pytest.fail(f"{what} took longer than {seconds} s")

    previous = signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with limit(TEST_LIMIT_S, item.name):
        yield


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


def close(executor: Executor) -> None:
    with limit(CLOSE_LIMIT_S, f"shutdown of {executor!r}"):
        executor.shutdown(wait=True, cancel_futures=True)


@pytest.fixture
def make(kind: Kind) -> Iterator[Make]:
    """A factory of executors of this kind; those that the test leaves open are shut down after it."""
    made: list[weakref.ref[Executor]] = []

    def factory(max_workers: int | None = 2, **options: Any) -> Executor:
        executor = kind.make(max_workers, **options)
        made.append(weakref.ref(executor))
        return executor

    yield factory
    for reference in made:
        executor = reference()
        if executor is not None:
            close(executor)
            del executor
    gc.collect()


class Shared:
    """An executor for the tests of a module; after a failed test, which may have broken it, a new one."""

    current: ClassVar[Shared | None] = None

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self.suspect = False
        self.executor = self._warm()

    def _warm(self) -> Executor:
        """One whose workers have all begun a task, so that none of them appears in the middle of a test."""
        executor = self._kind.make(2)
        if self._kind.is_serial:
            return executor
        with tempfile.TemporaryDirectory() as folder:
            bell, gate = BellKeeper(Path(folder, "bell")), GateKeeper(Path(folder, "gate"))
            futures = [executor.submit(tasks.ring_and_wait, bell.bell, gate.gate) for _ in range(2)]
            bell.hear(), bell.hear()
            gate.open()
            wait(futures, timeout=LIMIT_S)
            bell.close()
            gate.close()
        return executor

    def renew(self) -> None:
        self.suspect = False
        close(self.executor)
        self.executor = self._warm()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and Shared.current is not None and "ex" in getattr(item, "fixturenames", ()):
        Shared.current.suspect = True
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if Shared.current is not None and Shared.current.suspect:
        Shared.current.renew()


@pytest.fixture(scope="module")
def shared(kind: Kind) -> Iterator[Shared]:
    Shared.current = Shared(kind)
    yield Shared.current
    executor, Shared.current = Shared.current.executor, None
    close(executor)


@pytest.fixture
def ex(shared: Shared) -> Executor:
    """An executor with two workers, warm, shared by the tests of a module that leave it usable."""
    return shared.executor


@pytest.fixture
def new_gate(make: Make, tmp_path: Path) -> Iterator[Callable[[], GateKeeper]]:
    """A factory of gates. It asks for `make` so that gates, and so their waiters, end before executors do."""
    keepers: list[GateKeeper] = []
    numbers = itertools.count()

    def factory() -> GateKeeper:
        keepers.append(GateKeeper(tmp_path / f"gate-{next(numbers)}"))
        return keepers[-1]

    yield factory
    for keeper in keepers:
        keeper.close()


@pytest.fixture
def gate(new_gate: Callable[[], GateKeeper]) -> GateKeeper:
    return new_gate()


@pytest.fixture
def bell(make: Make, tmp_path: Path) -> Iterator[BellKeeper]:
    keeper = BellKeeper(tmp_path / "bell")
    yield keeper
    keeper.close()
