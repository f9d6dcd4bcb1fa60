"""An executor in a notebook: a real kernel runs the cells, and this process interrupts it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

from tests.helpers import package_root  # noqa: E402

pytestmark = pytest.mark.slow

LIMIT_S = 30


class Notebook:
    """Runs one cell after another in a kernel of its own."""

    def __init__(self, folder: Path) -> None:
        self._notebook = nbformat.v4.new_notebook()
        self._client = nbclient.NotebookClient(
            self._notebook, timeout=LIMIT_S, resources={"metadata": {"path": str(folder)}}
        )
        self._loop = asyncio.new_event_loop()
        self._kernel = self._client.async_setup_kernel()
        self._wait_for(self._kernel.__aenter__())

    def _wait_for(self, awaitable: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(awaitable, LIMIT_S))

    def run(self, source: str) -> str:
        """What the cell prints; CellExecutionError if it raises."""
        cell = nbformat.v4.new_code_cell(source)
        self._notebook.cells.append(cell)
        self._wait_for(self._client.async_execute_cell(cell, len(self._notebook.cells) - 1))
        return "".join(output.get("text", "") for output in cell.outputs)

    def interrupt(self) -> None:
        asyncio.run(self._client.km.interrupt_kernel())

    def close(self) -> None:
        self._wait_for(self._kernel.__aexit__(None, None, None))
        self._loop.close()


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    monkeypatch.setenv("PYTHONPATH", str(package_root()))
    made = Notebook(tmp_path)
    try:
        made.run("import os, time, repartir; from pathlib import Path; ex = repartir.Executor(2)")
        yield made
    finally:
        made.close()


def test_the_newest_definition_runs(notebook: Notebook) -> None:
    notebook.run("def helper(): return 'old'\ndef task(n): return helper(), n")
    assert notebook.run("print(list(ex.map(task, range(2))))") == "[('old', 0), ('old', 1)]\n"
    notebook.run("def helper(): return 'new'")
    assert notebook.run("print(list(ex.map(task, range(2))))") == "[('new', 0), ('new', 1)]\n"
    notebook.run("def task(n): return 'newest', n")
    assert notebook.run("print(list(ex.map(task, range(2))))") == "[('newest', 0), ('newest', 1)]\n"
    assert notebook.run("print(ex.submit(task, 7).result())") == "('newest', 7)\n"


def test_instances_come_back_as_the_notebook_s_class(notebook: Notebook) -> None:
    define = """
import dataclasses, enum
@dataclasses.dataclass
class Point:
    x: int
    def name(self): return "{0}"
class Colour(enum.Enum):
    RED = 1
class Lost(Exception):
    age = "{0}"
def lose(): raise Lost(3)
"""
    look = """
points = list(ex.map(Point, range(3)))
print([type(point) is Point for point in points], points[2], points[0].name())
print(ex.submit(lambda point: (point, point.name()), Point(4)).result())
print(ex.submit(lambda: Colour.RED).result() is Colour.RED)
try: ex.submit(lose).result()
except Lost as lost: print(lost.age, lost.args)
"""
    for age in ("old", "new"):
        notebook.run(define.format(age))
        assert notebook.run(look) == (
            f"[True, True, True] Point(x=2) {age}\n(Point(x=4), '{age}')\nTrue\n{age} (3,)\n"
        )


def test_what_was_submitted_before_keeps_its_definition(notebook: Notebook) -> None:
    notebook.run("""
def task(gate):
    while not Path(gate).exists(): time.sleep(0.01)
    return "old"
futures = [ex.submit(task, "gate") for _ in range(6)]
""")
    notebook.run("def task(gate): return 'new'")
    notebook.run("Path('gate').touch()")
    assert notebook.run("print({future.result() for future in futures})") == "{'old'}\n"
    assert notebook.run("print(ex.submit(task, 'gate').result())") == "new\n"


def test_a_closure_that_names_the_executor(notebook: Notebook) -> None:
    """`ex` means `current_executor()` in a task."""
    notebook.run("def nested(n): return sum(ex.map(abs, range(n)))")
    assert notebook.run("print(list(ex.map(nested, range(5))))") == "[0, 0, 1, 3, 6]\n"
    assert notebook.run("print(ex.submit(lambda: ex.submit(pow, 2, 5).result()).result())") == "32\n"


def test_an_interrupted_cell(notebook: Notebook, tmp_path: Path) -> None:
    notebook.run("""
def task(n):
    Path(f"began-{n}").touch()
    time.sleep(2)
    Path(f"ended-{n}").touch()
""")

    def interrupt() -> None:
        until = time.monotonic() + LIMIT_S
        while len(list(tmp_path.glob("began-*"))) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        notebook.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="KeyboardInterrupt"):
        notebook.run("list(ex.map(task, range(20)))")
    thread.join()
    assert notebook.run(
        "print(list(ex.map(abs, range(5))), ex.submit(os.getpid).result() != os.getpid())"
    ) == ("[0, 1, 2, 3, 4] True\n")
    assert notebook.run("time.sleep(2.1); print(ex.stats().running, ex.stats().queued)") == "0 0\n"
    assert len(list(tmp_path.glob("began-*"))) == 2
    assert list(tmp_path.glob("ended-*")) == []


def test_an_executor_that_is_made_again_ends_the_old_one(notebook: Notebook) -> None:
    count = """
import psutil
until = time.monotonic() + 10
children = lambda: len(psutil.Process().children(recursive=True))
while children() > 3 and time.monotonic() < until: time.sleep(0.02)
print(children())
"""
    assert notebook.run(count) == "3\n"  # two workers and who forks them
    notebook.run("ex = repartir.Executor(2)\nex.submit(abs, 1).result()")
    assert notebook.run(count) == "3\n"


def test_progress_is_one_line_of_the_output(notebook: Notebook) -> None:
    notebook.run("""
from repartir.progress import reporter
with reporter(True, "fit", 5) as made:
    for _ in range(5):
        time.sleep(0.06)
        made.step()
""")
    (output,) = notebook._notebook.cells[-1].outputs
    assert output.data["text/plain"].startswith("fit: 5 of 5 (100 %)")
