"""Reporters: whom they tell, how often, and what they leave behind. The clock and the terminal are the test's."""

from __future__ import annotations

import gc
import io
import logging
import re
import sys
import time
import timeit
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from repartir import Executor
from repartir.progress import LOG_S, REFRESH_S, Reporter, line, reporter
from tests.helpers import module_main

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        """Without control sequences."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.getvalue())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


def test_false_tells_nobody(terminal: Terminal, caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    caplog.set_level(logging.INFO)
    with reporter(False, "fit", 3, clock=clock, stream=terminal) as made:
        clock.now += 100
        made.step()
        made.step(2)
    assert made.done == 3
    assert (terminal.getvalue(), caplog.records) == ("", [])


@pytest.mark.parametrize("progress", ["yes", 1, None, [print]])
def test_anything_else_is_refused(progress: Any) -> None:
    message = r"progress must be True, False or a callable that takes \(done, total\), not "
    with pytest.raises(TypeError, match=message + type(progress).__name__):
        reporter(progress, "fit")


class TestCallable:
    def test_it_is_told_ten_times_a_second_and_at_the_end(self, clock: Clock) -> None:
        told: list[tuple[int, int | None]] = []
        with reporter(lambda *args: told.append(args), "fit", 1000, clock=clock) as made:
            for _ in range(1000):
                clock.now += 0.001
                made.step()
        assert 9 <= len(told) <= 11
        assert told[-1] == (1000, 1000)
        assert [done for done, _ in told] == sorted({done for done, _ in told})

    def test_nothing_is_told_twice(self, clock: Clock) -> None:
        told: list[int] = []
        with reporter(lambda done, _: told.append(done), "fit", 1, clock=clock) as made:
            clock.now += REFRESH_S
            made.step()
        made.close()
        assert told == [1]

    def test_of_no_items_the_end_is_told(self, clock: Clock) -> None:
        told: list[tuple[int, int | None]] = []
        with reporter(lambda *args: told.append(args), "fit", 0, clock=clock):
            pass
        assert told == [(0, 0)]

    def test_a_total_may_be_unknown_and_become_known(self, clock: Clock) -> None:
        told: list[tuple[int, int | None]] = []
        with reporter(lambda *args: told.append(args), "fit", clock=clock) as made:
            clock.now += REFRESH_S
            made.step(5)
            made.total = 7
            made.step(2)
        assert told == [(5, None), (7, 7)]

    def test_the_end_is_told_after_an_exception(self, clock: Clock) -> None:
        told: list[int] = []
        made = reporter(lambda done, _: told.append(done), "fit", 9, clock=clock)
        with pytest.raises(KeyError), made:
            made.step()
            raise KeyError
        assert told == [1]

    def test_one_that_raises_is_not_asked_again(self, clock: Clock) -> None:
        told: list[int] = []

        def refuse(done: int, _total: int | None) -> None:
            told.append(done)
            raise KeyError(done)

        with pytest.raises(KeyError), reporter(refuse, "fit", clock=clock) as made:
            clock.now += REFRESH_S
            made.step()
        assert told == [1]

    def test_a_step_after_the_end_is_told_nobody(self, clock: Clock) -> None:
        told: list[int] = []
        made = reporter(lambda done, _: told.append(done), "fit", clock=clock)
        made.close()
        clock.now += 100
        made.step()
        assert told == [0]


class TestTerminal:
    def make(self, terminal: Terminal, clock: Clock, total: int | None = 10) -> Reporter:
        return reporter(True, "fit [x]", total, clock=clock, stream=terminal)

    def test_it_shows_how_far_it_is(self, terminal: Terminal, clock: Clock) -> None:
        with self.make(terminal, clock) as made:
            clock.now += REFRESH_S
            made.step(3)
            assert "fit [x]" in terminal.text
            assert "3/10" in terminal.text
            made.step(7)
        assert "10/10" in terminal.text

    def test_without_a_total(self, terminal: Terminal, clock: Clock) -> None:
        with self.make(terminal, clock, None) as made:
            clock.now += REFRESH_S
            made.step(3)
        assert "3/?" in terminal.text

    @pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, GeneratorExit])
    def test_it_leaves_it_clean(self, terminal: Terminal, clock: Clock, error: type[BaseException]) -> None:
        streams = sys.stdout, sys.stderr
        with pytest.raises(error), self.make(terminal, clock) as made:
            clock.now += REFRESH_S
            made.step(3)
            assert HIDE_CURSOR in terminal.getvalue()
            raise error
        assert terminal.getvalue().rindex(SHOW_CURSOR) > terminal.getvalue().rindex(HIDE_CURSOR)
        assert terminal.text.endswith("\n")
        assert (sys.stdout, sys.stderr) == streams

    def test_an_abandoned_one_leaves_it_clean(self, terminal: Terminal, clock: Clock) -> None:
        made = self.make(terminal, clock)
        clock.now += REFRESH_S
        made.step(3)
        streams = sys.stdout, sys.stderr
        del made
        gc.collect()
        assert terminal.getvalue().rindex(SHOW_CURSOR) > terminal.getvalue().rindex(HIDE_CURSOR)
        assert (
            sys.stdout,
            sys.stderr,
        ) != streams  # they were rich's, which shows what is printed above the bar

    def test_it_draws_seldom(self, terminal: Terminal, clock: Clock) -> None:
        with self.make(terminal, clock, 100_000) as made:
            for _ in range(100_000):
                clock.now += 1e-5
                made.step()
        assert terminal.text.count("fit [x]") <= 15

    def test_nothing_is_loaded_for_work_that_is_over_at_once(self, tmp_path: Path) -> None:
        result = module_main(
            tmp_path,
            """
            import sys
            sys.stderr.isatty = lambda: True
            from repartir.progress import reporter
            made = reporter(True, "fit", 3)
            made.step()
            print("rich" in sys.modules)
            """,
        )
        assert result.stdout == "False\n", result.stderr


class TestLog:
    @pytest.fixture
    def made(self, clock: Clock, caplog: pytest.LogCaptureFixture) -> Reporter:
        caplog.set_level(logging.INFO, "repartir")
        return reporter(True, "fit", 120, clock=clock, stream=io.StringIO())

    def test_a_line_at_most_every_30_seconds(
        self, made: Reporter, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        with made:
            for _ in range(100):
                clock.now += 1
                made.step()
        texts = [record.getMessage() for record in caplog.records]
        assert texts == [
            "fit: 30 of 120 (25 %), 1/s, 1:30 left",
            "fit: 60 of 120 (50 %), 1/s, 1:00 left",
            "fit: 90 of 120 (75 %), 1/s, 0:30 left",
        ]
        assert {(record.name, record.levelname) for record in caplog.records} == {("repartir", "INFO")}

    def test_what_is_over_soon_is_not_worth_one(
        self, made: Reporter, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        with made:
            clock.now += LOG_S - 1
            made.step(120)
        assert caplog.records == []

    def test_on_stderr_where_nobody_wants_the_log(
        self, clock: Clock, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
    ) -> None:
        caplog.set_level(logging.WARNING, "repartir")
        with reporter(True, "fit", 120, clock=clock) as made:
            clock.now += LOG_S
            made.step(30)
        assert caplog.records == []
        assert capsys.readouterr().err == "fit: 30 of 120 (25 %), 1/s, 1:30 left\n"

    def test_without_a_stream(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", None)
        with reporter(True, "fit", clock=clock) as made:
            made.step()

    def test_a_task_does_not_draw_in_the_terminal(self) -> None:
        with Executor(1, "fork") as ex:
            assert ex.submit(draws_nothing).result(20) == ""


def draws_nothing() -> str:
    terminal, clock = Terminal(), Clock()
    with reporter(True, "fit", 3, clock=clock, stream=terminal) as made:
        clock.now += 1
        made.step()
    return terminal.getvalue()


def test_a_notebook_s_line_is_written_over(
    terminal: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[tuple[str, str, bool]] = []

    def publish(data: dict[str, str], *, transient: dict[str, str], update: bool) -> None:
        published.append((data["text/plain"], transient["display_id"], update))

    shell = SimpleNamespace(kernel=object(), display_pub=SimpleNamespace(publish=publish))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    with reporter(True, "fit", 4, clock=clock, stream=terminal) as made:
        clock.now += 2
        made.step()
        clock.now += 2
        made.step(3)
    texts, names, updates = zip(*published, strict=True)
    assert texts == ("fit: 1 of 4 (25 %), 0.5/s, 0:06 left", "fit: 4 of 4 (100 %), 1/s, 0:04")
    assert len(set(names)) == 1
    assert updates == (False, True)
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(
    ("done", "total", "elapsed_s", "expected"),
    [
        (0, 10, 5.0, "fit: 0 of 10 (0 %)"),
        (3, 10, 0.0, "fit: 3 of 10 (30 %)"),
        (0, 0, 1.0, "fit: 0 of 0"),
        (7, None, 2.0, "fit: 7, 3.5/s, 0:02"),
        (10, 36_000, 1.0, "fit: 10 of 36000 (0 %), 10/s, 59:59 left"),
        (1, 10_001, 1.0, "fit: 1 of 10001 (0 %), 1/s, 2:46:40 left"),
        (123_456, None, 10.0, "fit: 123456, 12346/s, 0:10"),
        (12, 10, 4.0, "fit: 12 of 10 (120 %), 3/s, 0:04"),
    ],
)
def test_in_words(done: int, total: int | None, elapsed_s: float, expected: str) -> None:
    assert line("fit", done, total, elapsed_s) == expected


def test_a_note_ends_the_line() -> None:
    assert line("fit", 3, 10, 0.0, "0.5 ± 0.1") == "fit: 3 of 10 (30 %), 0.5 ± 0.1"


def test_a_note_is_asked_for_when_something_is_shown(terminal: Terminal, clock: Clock) -> None:
    asked: list[int] = []

    def note() -> str:
        asked.append(made.done)
        return f"mean {made.done}"

    with reporter(True, "fit", 30, clock=clock, stream=terminal) as made:
        made.note = note
        made.step(10)
        assert asked == []
        clock.now += REFRESH_S
        made.step(10)
        assert asked == [20]
    assert "mean 20" in terminal.text


def test_a_step_costs_little() -> None:
    """The least of several runs, in CPU time; the clock is the real one."""
    if sys.gettrace() is not None:
        pytest.skip("measured for coverage, every line costs more")
    made = reporter(lambda done, total: None, "fit", 10**9)
    steps = 20_000
    runs = timeit.repeat(made.step, number=steps, repeat=20, timer=time.process_time)
    assert min(runs) / steps <= 0.2e-6
