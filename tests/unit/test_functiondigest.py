"""Which changes of a program a digest tells, and which it does not. Programs are texts, as a notebook's cells are."""

from __future__ import annotations

import functools
import itertools
import linecache
import os
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repartir.functiondigest import FunctionDescription, describe_function
from tests.helpers import package_root

PROGRAM = """
import functools
import math

N = 1000
SIZES = (1, 2.5, "x")
TABLE = {"a": 1}

def helper(x, scale=2):
    return x * scale + N

def other(x):
    return x

def traced(fn):
    @functools.wraps(fn)
    def wrapper(*args):
        return fn(*args)
    return wrapper

class Base:
    def start(self):
        return 1

class Model(Base):
    rate = 0.1

    def run(self, x):
        return helper(x) + self.start() + len(SIZES) + len(TABLE)

def f(x, *, k=3):
    total = Model().run(x)
    return total + math.sqrt(k)
"""
_numbers = itertools.count()


class Notebook:
    """Runs cells in one namespace, each with its source in linecache, as IPython does."""

    def __init__(self, name: str) -> None:
        self.module = types.ModuleType(name)
        sys.modules[name] = self.module

    def cell(self, source: str) -> dict[str, Any]:
        source = textwrap.dedent(source)
        filename = f"<cell {next(_numbers)}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        exec(compile(source, filename, "exec", dont_inherit=True), vars(self.module))
        return vars(self.module)


@pytest.fixture
def notebook() -> Iterator[Callable[[], Notebook]]:
    cached = set(linecache.cache)
    yield lambda: Notebook("notebook_of_a_test")
    sys.modules.pop("notebook_of_a_test", None)
    for name in set(linecache.cache) - cached:
        del linecache.cache[name]


@pytest.fixture
def describe(notebook: Callable[[], Notebook]) -> Callable[..., FunctionDescription]:
    """The description of `name` after the cells have run in a fresh namespace."""

    def describe(*cells: str, name: str = "f") -> FunctionDescription:
        book = notebook()
        for cell in cells:
            book.cell(cell)
        return describe_function(eval(name, vars(book.module)))

    return describe


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return x * scale", "# more\n    return (x  *  scale)"),
        ("    total =", '    "What it does."\n\n    total ='),
        ("    rate = 0.1", '    """A model."""\n\n    rate = 1e-1'),
        ("def other(x):\n    return x", "def other(x):\n    return 2 * x"),
        ("def other(x):\n    return x", ""),
        ('{"a": 1}', "dict(a=1)"),
        ("N = 1000", "UNUSED = 5\nN = 1_000"),
    ],
    ids=["comment and layout", "docstring", "class docstring", "other", "no other", "a dict", "spelling"],
)
def test_what_makes_no_difference(describe: Callable[..., FunctionDescription], old: str, new: str) -> None:
    assert old in PROGRAM
    assert describe(PROGRAM.replace(old, new)).digest == describe(PROGRAM).digest


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("return x * scale", "return x + scale", "helper"),
        ("scale=2", "scale=3", "helper"),
        ("k=3", "k=4", "f"),
        ("N = 1000", "N = 1001", "N ="),
        ("2.5", "2.25", "SIZES ="),
        ('{"a": 1}', '{"a": 2}', "TABLE ="),
        ("rate = 0.1", "rate = 0.2", "Model"),
        ("return 1\n", "return 2\n", "Base"),
        ("def f(", "@traced\ndef f(", "f"),
        ("def f(", "@functools.cache\ndef f(", "f"),
        ("len(SIZES)", "len(SIZES[1:])", "Model"),
    ],
)
def test_what_makes_a_difference(
    describe: Callable[..., FunctionDescription], old: str, new: str, part: str
) -> None:
    assert old in PROGRAM
    before, after = describe(PROGRAM), describe(PROGRAM.replace(old, new))
    assert before.digest != after.digest
    assert before.parts[part] != after.parts[part]


def test_the_parts_are_source_that_people_can_read(describe: Callable[..., FunctionDescription]) -> None:
    found = describe(PROGRAM)
    assert found.name == "f"
    assert found.parts["helper"] == "def helper(x, scale=2):\n    return x * scale + N"
    assert found.parts["N ="] == "N = 1000"
    assert sorted(found.parts) == ["Base", "Model", "N =", "SIZES =", "TABLE =", "f", "helper"]


def test_the_order_of_definitions_and_cells_makes_no_difference(
    describe: Callable[..., FunctionDescription],
) -> None:
    constant, helper, fn = "N = 2", "def helper(x): return x + N", "def f(x): return helper(x)"
    digests = {describe(*cells).digest for cells in itertools.permutations([constant, helper, fn])}
    digests |= {describe("\n".join(cells)).digest for cells in itertools.permutations([constant, helper, fn])}
    assert len(digests) == 1


def test_a_cell_that_runs_again_counts_as_it_is_now(describe: Callable[..., FunctionDescription]) -> None:
    cells = "def helper(x): return x", "def f(x): return helper(x)", "def helper(x): return -x"
    assert describe(*cells).digest == describe(cells[2], cells[1]).digest != describe(*cells[:2]).digest


@pytest.mark.parametrize(
    ("one", "another"),
    [
        ("f = lambda x: x + 1", "f = lambda x: x + 2"),
        ("g, f = lambda x: x + 1, lambda x: x + 1", "g, f = lambda x: x + 1, lambda x: x + 2"),
        (
            "def make(k):\n    return lambda x: x * k\nf = make(2)",
            "def make(k):\n    return lambda x: x * k\nf = make(3)",
        ),
        (
            "from functools import partial\ndef g(x, k): return x\nf = partial(g, k=1)",
            "from functools import partial\ndef g(x, k): return x\nf = partial(g, k=2)",
        ),
        (
            "import numpy as np\nfrom functools import partial\ndef g(a, x): return x\nf = partial(g, np.zeros(3))",
            "import numpy as np\nfrom functools import partial\ndef g(a, x): return x\nf = partial(g, np.ones(3))",
        ),
        (
            "class C:\n    def __init__(self, k): self.k = k\n    def __call__(self, x): return x\nf = C(1)",
            "class C:\n    def __init__(self, k): self.k = k\n    def __call__(self, x): return x\nf = C(2)",
        ),
        (
            "class C:\n    def __call__(self, x): return x\nf = C()",
            "class C:\n    def __call__(self, x): return -x\nf = C()",
        ),
        (
            "class C:\n    def __init__(self, k): self.k = k\n    def run(self, x): return x\nf = C(1).run",
            "class C:\n    def __init__(self, k): self.k = k\n    def run(self, x): return x\nf = C(2).run",
        ),
        (
            "import numpy as np\ndef g(x): return x\nvec = np.vectorize(g)\ndef f(x): return vec(x)",
            "import numpy as np\ndef g(x): return -x\nvec = np.vectorize(g)\ndef f(x): return vec(x)",
        ),
        (
            "import functools\n@functools.lru_cache\ndef g(x): return x\ndef f(x): return g(x)",
            "import functools\n@functools.lru_cache\ndef g(x): return -x\ndef f(x): return g(x)",
        ),
        (
            "def g(x): return x\nTABLE = {'g': g}\ndef f(x): return TABLE['g'](x)",
            "def g(x): return -x\nTABLE = {'g': g}\ndef f(x): return TABLE['g'](x)",
        ),
        (
            "class M:\n    def go(self): return 1\nMODEL = M()\ndef f(x): return MODEL.go()",
            "class M:\n    def go(self): return 2\nMODEL = M()\ndef f(x): return MODEL.go()",
        ),
        (
            "import dataclasses\n@dataclasses.dataclass\nclass P:\n    a: int = 1\n    def m(self): 1\ndef f(x): return P()",
            "import dataclasses\n@dataclasses.dataclass\nclass P:\n    a: int = 2\n    def m(self): 1\ndef f(x): return P()",
        ),
        (
            "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass P: a: int\nSET = P(1)\ndef f(x): return SET",
            "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass P: a: int\nSET = P(2)\ndef f(x): return SET",
        ),
        (
            "import collections\nP = collections.namedtuple('P', 'a')\nSET = P(1)\ndef f(x): return SET.a",
            "import collections\nP = collections.namedtuple('P', 'a')\nSET = P(2)\ndef f(x): return SET.a",
        ),
        (
            "import enum\nclass E(enum.Enum):\n    A = 1\nMODE = E.A\ndef f(x): return MODE",
            "import enum\nclass E(enum.Enum):\n    A = 2\nMODE = E.A\ndef f(x): return MODE",
        ),
        (
            "import enum\nclass E(enum.Enum):\n    A = 1\n    B = 2\nMODE = E.A\ndef f(x): return MODE",
            "import enum\nclass E(enum.Enum):\n    A = 1\n    B = 2\nMODE = E.B\ndef f(x): return MODE",
        ),
        (
            "import numpy as np\nN = np.float32(1)\ndef f(x): return N",
            "import numpy as np\nN = np.float64(1)\ndef f(x): return N",
        ),
        (
            "import numpy as np\nN = np.longdouble('0.1')\ndef f(x): return N",
            "import numpy as np\nN = np.longdouble('0.2')\ndef f(x): return N",
        ),
        ("def f(x): return [y for y in x if y]", "def f(x): return [y for y in x if not y]"),
        (
            "def f(x):\n    def g(): return 1\n    return g()",
            "def f(x):\n    def g(): return 2\n    return g()",
        ),
        ("N = 3\ndef f(x, n=N): return n", "N = 4\ndef f(x, n=N): return n"),
        ("async def f(x): return 1", "async def f(x): return 2"),
        (
            "def g(x): return x\ndef f(x): return (lambda: g(x))()",
            "def g(x): return -x\ndef f(x): return (lambda: g(x))()",
        ),
    ],
)
def test_what_a_callable_is_made_of_counts(
    describe: Callable[..., FunctionDescription], one: str, another: str
) -> None:
    first, again, other = describe(one), describe(f"\n\n{one}  # again"), describe(another)
    assert first.digest == again.digest
    assert first.digest != other.digest
    assert first.parts != other.parts


def test_a_class_without_methods_is_found_in_its_cell(describe: Callable[..., FunctionDescription]) -> None:
    cells = "import dataclasses", "@dataclasses.dataclass\nclass P:\n    a: int", "def f(x): return P(1)"
    found = describe(*cells)
    assert found.parts["P"] == "@dataclasses.dataclass\nclass P:\n    a: int"
    assert describe(cells[0], f"{cells[1]}\n    b: int = 0", cells[2]).digest != found.digest


GLOBALS = """
import argparse, collections, dataclasses, datetime, decimal, enum, pathlib, re, types
import numpy as np

class Color(enum.Enum):
    RED = 1
    BLUE = 2

@dataclasses.dataclass
class Config:
    lr: float
    layers: list

Point = collections.namedtuple("Point", "x y")

class Model:
    def __init__(self, n):
        self.n = n

class Other:
    pass

@dataclasses.dataclass(frozen=True)
class Settings:
    model: Model

{line}

def f(x):
    return x, DATA
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[1, 2]", "[1, 3]"),
        ("[1, 2]", "(1, 2)"),
        ("[1, [2, {'a': 3}]]", "[1, [2, {'a': 4}]]"),
        ("{'alpha': 1.0}", "{'alpha': 9.0}"),
        ("{1, 2}", "{1, 3}"),
        ("argparse.Namespace(n=1)", "argparse.Namespace(n=5)"),
        ("types.SimpleNamespace(n=[1])", "types.SimpleNamespace(n=[2])"),
        ("Config(0.1, [1])", "Config(0.1, [2])"),
        ("[Config(0.1, [1])]", "[Config(0.2, [1])]"),
        ("Point(1, [2])", "Point(1, [3])"),
        ("np.arange(3)", "np.arange(3) + 1"),
        ("{'w': np.arange(3)}", "{'w': np.arange(3.0)}"),
        ("pathlib.Path('a')", "pathlib.Path('b')"),
        ("datetime.date(2026, 1, 1)", "datetime.date(2026, 1, 2)"),
        ("decimal.Decimal('0.1')", "decimal.Decimal('0.2')"),
        ("re.compile('a')", "re.compile('b')"),
        ("[Color.RED]", "[Color.BLUE]"),
        ("{'act': np.sin}", "{'act': np.cos}"),
        ("[Model(1)]", "[Other()]"),
        ("Settings(Model(1))", "Settings(Model(2))"),
        ("Point(Model(1), 0)", "Point(Model(2), 0)"),
        ("list(range(200_000))", "list(range(1, 200_001))"),
    ],
)
def test_data_among_the_globals_counts(
    describe: Callable[..., FunctionDescription], before: str, after: str
) -> None:
    found = [describe(GLOBALS.replace("{line}", f"DATA = {data}")) for data in (before, before, after)]
    assert found[0].digest == found[1].digest != found[2].digest
    assert "DATA =" in found[0].parts


@pytest.mark.parametrize(
    "same",
    [
        ("Model(1)", "Model(2)"),
        ("[Model(1)]", "[Model(2)]"),
        ("{'a': 1, 'b': 2}", "{'b': 2, 'a': 1}"),
        ("{'b', 'a', 'c'}", "{'c', 'b', 'a'}"),
        ("np.random.default_rng()", "np.random.default_rng()"),
        ("[open('/dev/null')]", "[open('/dev/null')]"),
    ],
)
def test_objects_that_programs_change_do_not(
    describe: Callable[..., FunctionDescription], same: tuple[str, str]
) -> None:
    one, other = (describe(GLOBALS.replace("{line}", f"DATA = {data}")) for data in same)
    assert one.digest == other.digest


def test_data_that_contain_themselves_end(describe: Callable[..., FunctionDescription]) -> None:
    assert describe(GLOBALS.replace("{line}", "DATA = [1]; DATA.append(DATA)")).digest


def test_a_mapped_array_counts_by_its_file(
    describe: Callable[..., FunctionDescription], tmp_path: Path
) -> None:
    def of(value: int) -> str:
        np.full(4, value).tofile(tmp_path / "data")
        return describe(
            GLOBALS.replace("{line}", f"DATA = np.memmap({str(tmp_path / 'data')!r}, int)")
        ).digest

    assert of(1) == of(2)


def test_functions_that_name_each_other_end(describe: Callable[..., FunctionDescription]) -> None:
    found = describe("def g(x): return f(x)\ndef f(x): return g(x)")
    assert sorted(found.parts) == ["f", "g"]


def test_however_long_the_way_is_all_is_read(describe: Callable[..., FunctionDescription]) -> None:
    chain = [f"def f{number}(x): return f{number + 1}(x)" for number in range(300)]
    found = [
        describe(*chain, last, name="f0") for last in ("def f300(x): return x", "def f300(x): return -x")
    ]
    assert len(found[0].parts) == 301
    assert found[0].digest != found[1].digest


def test_a_class_of_a_class_of_the_file_is_read(describe: Callable[..., FunctionDescription]) -> None:
    program = "class Meta(type):\n    a = 1\nclass C(metaclass=Meta):\n    b = 1\ndef f(x): return C"
    digests = {
        describe(program.replace(old, new)).digest
        for old, new in (("", ""), ("a = 1", "a = 2"), ("b = 1", "b = 2"))
    }
    assert len(digests) == 3


def test_an_object_that_contains_itself_ends(describe: Callable[..., FunctionDescription]) -> None:
    describe("class C:\n    def __init__(self): self.me = self\n    def __call__(self, x): return x\nf = C()")


def test_other_files_count_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    digests = []
    for body in ("return x", "return -x"):
        (tmp_path / "digest_library.py").write_text(f"def helper(x): {body}\n")
        (tmp_path / "digest_user.py").write_text(
            "from digest_library import helper\ndef f(x): return helper(x)\n"
        )
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        for name in ("digest_library", "digest_user"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        linecache.clearcache()
        digests.append(describe_function(__import__("digest_user").f).digest)
    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", ["f", "C().run", "g"])
def test_a_file_that_changed_since_it_was_loaded_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It would be taken for what made the results, which the next program then runs."""
    path = tmp_path / "digest_edited.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    program = "def f(x):\n    return x\nclass C:\n    def run(self): return 1\ng = lambda x: x\n"
    path.write_text(program)
    sys.modules.pop("digest_edited", None)
    module = __import__("digest_edited")
    before = describe_function(eval(name, vars(module)))
    path.write_text(
        program.replace("return x", "return -x").replace("return 1", "return 2").replace("x: x", "x: -x")
    )
    edited = describe_function(eval(name, vars(module)))
    assert edited.digest != before.digest
    assert "no source" in "".join(edited.parts.values())


def test_a_function_without_source_is_known_by_its_bytecode() -> None:
    digests = []
    for text in ("lambda x: x + 1", "lambda x: x + 1", "lambda x: x + 2"):
        found = describe_function(eval(text))
        assert "no source: bytecode" in found.parts["<lambda>"]
        digests.append(found.digest)
    assert digests[0] == digests[1] != digests[2]


def test_what_is_written_in_c_is_known_by_name_and_version() -> None:
    assert describe_function(len).parts == {
        "the function": f"the function: builtins.len (Python 3.{sys.version_info[1]})"
    }
    assert np.__version__ in describe_function(np.sin).parts["the function"]
    assert describe_function(len).digest != describe_function(abs).digest
    partials = [functools.partial(pow, 2), functools.partial(pow, 2), functools.partial(pow, 3)]
    digests = [describe_function(fn).digest for fn in partials]
    assert digests[0] == digests[1] != digests[2]


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="must be callable, not int"):
        describe_function(3)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_digest_is_the_same_in_every_process(tmp_path: Path) -> None:
    """As a script, as a module, with another hash seed: and what it is, so that no version of Python changes it."""
    (tmp_path / "digest_script.py").write_text(
        PROGRAM + "\nif __name__ == '__main__':\n    from repartir.functiondigest import describe_function\n"
        "    print(describe_function(f).digest)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{package_root()}:{tmp_path}", "PYTHONHASHSEED": "5"}
    commands = (
        ["digest_script.py"],
        [
            "-c",
            "import digest_script as s; from repartir.functiondigest import *; print(describe_function(s.f).digest)",
        ],
    )
    digests = {
        subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            cwd=tmp_path,
        ).stdout
        for command in commands
    }
    assert digests == {"e6c509dc94af29c6d7bc74525d131c25\n"}
