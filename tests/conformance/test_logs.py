"""What workers log and warn of arrives in the client's logging and warnings, in order, under the worker's name."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repartir import WorkerDied

from . import option_tasks as tasks
from .conftest import Make
from .kinds import Kind, workers
from .scripts import run_script
from .sync import LIMIT_S

pytestmark = pytest.mark.any_start


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    """Of this test: workers take over those that there are when their executor is made."""
    logger, before = logging.getLogger("task"), logging.root.level
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(logging.NOTSET)
    logging.root.setLevel(before)


@pytest.fixture
def own(make: Make) -> Any:
    return make(2)


def of_workers(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if (record.processName or "").startswith("worker-")]


@workers
def test_a_record_arrives_as_it_was(own: Any, caplog: pytest.LogCaptureFixture) -> None:
    own.submit(tasks.log, "task", logging.INFO, "hello").result(LIMIT_S)
    own.shutdown()
    (record,) = of_workers(caplog)
    assert record.getMessage() == "hello!"
    assert (record.name, record.levelno, record.funcName) == ("task", logging.INFO, "log")
    assert record.processName in ("worker-0", "worker-1")
    assert record.process not in (None, 0)
    assert record.filename == "option_tasks.py"
    assert (record.number, record.more) == (5, "<unpicklable>")  # type: ignore[attr-defined]


@workers
def test_in_order(own: Any, caplog: pytest.LogCaptureFixture) -> None:
    messages = [str(n) for n in range(500)]
    futures = [own.submit(tasks.log, "task", logging.WARNING, *messages) for _ in range(4)]
    assert [future.result(LIMIT_S) for future in futures] == [500] * 4
    own.shutdown()
    for name in ("worker-0", "worker-1"):
        seen = [record.getMessage() for record in caplog.records if record.processName == name]
        assert seen == [f"{message}!" for message in messages] * (len(seen) // 500)
    assert len(of_workers(caplog)) == 2000


@workers
def test_from_threads_of_a_task(own: Any, caplog: pytest.LogCaptureFixture) -> None:
    own.submit(tasks.log_from_threads, 4, 100).result(LIMIT_S)
    own.shutdown()
    seen = [tuple(map(int, record.getMessage().split())) for record in of_workers(caplog)]
    assert sorted(seen) == [(nth, number) for nth in range(4) for number in range(100)]
    for nth in range(4):
        assert [number for which, number in seen if which == nth] == list(range(100))


@workers
def test_levels_are_the_clients(own: Any, caplog: pytest.LogCaptureFixture) -> None:
    own.submit(tasks.log, "task", logging.DEBUG, "too much").result(LIMIT_S)
    own.submit(tasks.log, "task", logging.INFO, "just right").result(LIMIT_S)
    own.shutdown()
    assert [record.getMessage() for record in of_workers(caplog)] == ["just right!"]


@workers
def test_an_exception_comes_as_its_text(own: Any, caplog: pytest.LogCaptureFixture) -> None:
    own.submit(tasks.log_exception).result(LIMIT_S)
    own.shutdown()
    (record,) = of_workers(caplog)
    assert record.exc_info is None
    assert "ValueError: inside" in str(record.exc_text)


@workers
def test_what_was_logged_before_a_death_arrives(own: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(own.submit(tasks.log_and_die).exception(LIMIT_S), WorkerDied)
    own.submit(tasks.log, "task", logging.INFO, "from the next").result(LIMIT_S)
    own.shutdown()
    assert [record.getMessage() for record in of_workers(caplog)] == ["last words", "from the next!"]


@workers
def test_a_message_that_is_too_long_is_cut(own: Any, caplog: pytest.LogCaptureFixture) -> None:
    own.submit(tasks.log, "task", logging.INFO, "x" * 1_000_000).result(LIMIT_S)
    own.shutdown()
    (record,) = of_workers(caplog)
    assert record.getMessage().startswith("xxx")
    assert "too long" in record.getMessage()


@workers
@pytest.mark.parametrize("texts", [1, 1000])
def test_what_goes_with_a_message_is_left_out_where_it_is_too_much(
    own: Any, caplog: pytest.LogCaptureFixture, texts: int
) -> None:
    own.submit(tasks.log_with_much_beside_it, texts).result(LIMIT_S)
    own.shutdown()
    (record,) = of_workers(caplog)
    assert record.getMessage() == "short"
    assert record.funcName == "log_with_much_beside_it"
    assert hasattr(record, "more0") == (texts == 1)


@workers
def test_an_initializer_logs_too(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    executor = make(2, initializer=tasks.log, initargs=("task", logging.INFO, "begin"))
    executor.submit(pow, 2, 3).result(LIMIT_S)
    executor.shutdown()
    assert [record.getMessage() for record in of_workers(caplog)] == ["begin!"] * 2


@workers
def test_a_handler_that_an_initializer_adds_stays(make: Make, tmp_path: Path) -> None:
    executor = make(1, initializer=tasks.add_handler, initargs=(tmp_path / "log",))
    executor.submit(tasks.log, "task", logging.INFO, "both").result(LIMIT_S)
    executor.shutdown()
    assert (tmp_path / "log").read_text() == "both!\n"


@workers
def test_a_handler_that_raises_ends_nothing(own: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class Bad(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("bad handler")

    handler = Bad()
    logging.getLogger("task").addHandler(handler)
    try:
        own.submit(tasks.log, "task", logging.INFO, "hello").result(LIMIT_S)
        assert own.submit(pow, 2, 3).result(LIMIT_S) == 8
        own.shutdown()
    finally:
        logging.getLogger("task").removeHandler(handler)
    assert "bad handler" in capsys.readouterr().err


@workers
def test_warnings(own: Any) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        own.submit(tasks.warn, "careful").result(LIMIT_S)
        own.shutdown()
    assert [(str(each.message), each.category) for each in seen] == [("careful", tasks.CustomWarning)]


@workers
def test_off(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    executor = make(1, forward_logs=False)
    executor.submit(tasks.log, "task", logging.WARNING, "to nobody").result(LIMIT_S)
    executor.shutdown()
    assert of_workers(caplog) == []


@workers
def test_printed_once(kind: Kind, tmp_path: Path) -> None:
    """Not by the handlers that a worker inherits as well."""
    source = """
    import logging, sys
    from tests.conformance import option_tasks
    if __name__ == "__main__":
        logging.basicConfig(stream=sys.stdout, format="%(processName)s %(message)s")
        quiet = logging.getLogger("quiet")
        quiet.propagate = False
        quiet.addHandler(logging.StreamHandler(sys.stdout))
        with make(1) as ex:
            ex.submit(option_tasks.log, "task", logging.WARNING, "hello").result(15)
            ex.submit(option_tasks.log, "quiet", logging.WARNING, "quiet").result(15)
    """
    ended = run_script(tmp_path, kind, source)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert sorted(ended.lines) == ["quiet!", "worker-0 hello!"]
