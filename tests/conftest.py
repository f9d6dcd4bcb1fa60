from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Generator, Iterator

import hypothesis
import pytest

from tests import guard

hypothesis.settings.register_profile("fast", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=2_000)
hypothesis.settings.load_profile("fast")

_FAILED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    guard.install()
    # Else the jemalloc in pyarrow starts a thread for each core at some later moment, in whatever test that is.
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts its background jobs so; the scripts that tests send Ctrl-C to would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # A folder of this run's own for temporary files, so that no other program's are taken for a leak.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    folder = tempfile.TemporaryDirectory(prefix="tests-")
    config.add_cleanup(folder.cleanup)
    os.environ["TMPDIR"] = tempfile.tempdir = folder.name


def pytest_collection_finish() -> None:
    """Thousands of collected tests are no garbage: to look at them each time that a test collects its own takes longer
    than most tests."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves anything behind (see tests/guard.py).

    A test that failed is not asked: its traceback keeps alive what it made. Its processes are ended anyway.
    An executor that outlives a test must come from a fixture of wider scope that also warms it up.
    """
    before = guard.snapshot()
    yield
    if request.node.stash.get(_FAILED, False):
        guard.kill_new_processes(before)
        return
    if left := guard.settle(before, guard.SETTLE_S):
        guard.kill_new_processes(before)
        pytest.fail("left behind by this test:\n  " + "\n  ".join(left), pytrace=False)
