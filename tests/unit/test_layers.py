"""Imports point down: a file of the package imports only from files that stand above it in `LAYERS`.

Imports inside functions and under `TYPE_CHECKING` count as well: a cycle that only runs late, or only in a
type checker's head, still makes two files one idea.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.helpers import package_root

PACKAGE = "repartir"

# From the top; within a line, left to right. A folder's own name stands for its `__init__`.
LAYERS = f"""
    errors optional residence
    task
    shm.layout shm.words shm.clib shm.segment shm.lock shm.parking shm.cells shm.deque shm.outbox
    shm.hands shm.parts shm.arena shm.blocks shm.board shm payloads
    classes inherited bindings arrays memmaps shared pickler diagnosis
    codec fingerprint heavy functions
    portable outcome batches pages chunks
    future
    command
    hygiene heap environment cores policy stacks logs children rangeloop worker nursery
    states ledger limits mapjob views pump
    stats
    supervisor attempts recovery members broker
    progress streams
    mapping aio serial nested executor compat
    gpu.shader gpu.device gpu.process gpu.executor gpu
    net.frames net.protocol net.tls net.transport net.agent net.bridge net
    messaging
    pool
    borrowed door
    syntaxtrees functiondigest values readable durable checkpoints
    journalfile committer definitions journal journalreport journalmerge
    params space sweeprow tables plots results rungs rows sweeps
    moments sketch points student tally draws spans estimate montecarlo
    trace metrics top
    integrations.joblib integrations.dask integrations.ray integrations
    {PACKAGE}
    data demo demo.series demo.forecast demo.option demo.study demo.report demo.run
    journalcli cli __main__
""".split()
RANK = {name: rank for rank, name in enumerate(LAYERS)}
UNRULED = {PACKAGE, "cli", "__main__"}
STRANGERS = ({"gpu"}, {"net"})
ONLY_HOME = {
    "wgpu": "gpu.device",
    "joblib": "integrations.joblib",
}  # a foreign library → the one file that imports it


def name_of(path: Path) -> str:
    """`shm/words.py` → `shm.words`, `shm/__init__.py` → `shm`, `__init__.py` → the package's name."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or PACKAGE


def imports(name: str, source: str, modules: Iterable[str]) -> Iterator[tuple[int, str, bool]]:
    """(line, what is imported, whether it is the package's own) for each import at any depth of `source`."""
    folder = [PACKAGE, *name.split(".")]
    is_package = name == PACKAGE or any(other.startswith(name + ".") for other in modules)
    if name == PACKAGE:
        folder = [PACKAGE]
    elif not is_package:
        folder = folder[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, *within(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            target, ours = within(origin)
            for alias in node.names:
                submodule = alias.name if target == PACKAGE else f"{target}.{alias.name}"
                yield node.lineno, submodule if ours and submodule in modules else target, ours


def within(dotted: str) -> tuple[str, bool]:
    if dotted == PACKAGE:
        return PACKAGE, True
    if dotted.startswith(PACKAGE + "."):
        return dotted.removeprefix(PACKAGE + "."), True
    return dotted, False


def top(name: str) -> str:
    return name.partition(".")[0]


def violations(tree: Mapping[str, str]) -> list[str]:
    """One line for each rule broken by `tree`, a map of module names to sources."""
    found = []
    modules = set(tree)
    for name in sorted(modules - RANK.keys()):
        found.append(
            f"{name} is in no layer: add it to LAYERS in {Path(__file__).name} and to docs/design.md"
        )
    for name, source in tree.items():
        for line, target, ours in imports(name, source, modules):
            where = f"{name}:{line} imports {target}"
            if not ours:
                home = ONLY_HOME.get(top(target), name)
                if home != name:
                    found.append(f"{where}, which only {home} may")
            elif target not in modules:
                found.append(f"{where}, which does not exist")
            elif any({top(name)} | {top(target)} == a | b for a in STRANGERS for b in STRANGERS if a != b):
                found.append(f"{where}: these two never meet")
            elif name not in UNRULED and name in RANK and RANK.get(target, -1) >= RANK[name]:
                found.append(f"{where}, which does not stand above it in LAYERS")
    return found


def package() -> dict[str, str]:
    root = package_root() / PACKAGE
    return {name_of(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*.py"))}


def test_the_package_keeps_its_layers() -> None:
    tree = package()
    assert {"errors", "shm.words"} <= tree.keys()
    assert violations(tree) == []


def test_a_worker_imports_nothing_of_the_client() -> None:
    """What `worker` needs, with all that this needs in turn, is on its own line or above."""
    tree = package()
    todo, needed = ["worker"], set()
    while todo:
        name = todo.pop()
        if name in tree and name not in needed:
            needed.add(name)
            todo += [target for _, target, ours in imports(name, tree[name], tree) if ours]
    assert needed - set(LAYERS[: RANK["worker"] + 1]) == set()


GOOD = {
    PACKAGE: "from repartir.executor import Executor\nfrom .errors import A",
    "errors": "import os",
    "shm": "",
    "shm.words": "from repartir.errors import A",
    "shm.lock": "from repartir.shm import words\nfrom .words import Words\nfrom ..errors import A",
    "executor": "import repartir.shm.lock",
    "gpu": "",
    "gpu.device": "import wgpu.utils",
    "gpu.process": "from repartir.executor import Executor",
    "net": "",
    "net.tls": "import ssl",
    "demo": "",
    "demo.run": "from repartir import Executor",
    "cli": "def main():\n    from repartir.demo.run import run",
}


def test_imports_that_point_down_are_fine() -> None:
    assert violations(GOOD) == []


@pytest.mark.parametrize(
    ("name", "source", "complaint"),
    [
        ("errors", "import repartir.executor", "errors:1 imports executor, which does not stand above"),
        ("errors", "from . import executor", "errors:1 imports executor, which does not stand above"),
        ("errors", "from repartir import Executor", "errors:1 imports repartir, which does not stand above"),
        ("errors", "def f():\n    import repartir.executor", "errors:2 imports executor"),
        (
            "errors",
            "if TYPE_CHECKING:\n    from repartir.executor import Executor",
            "errors:2 imports executor",
        ),
        ("shm.words", "from .lock import Lock", "shm.words:1 imports shm.lock, which does not stand above"),
        ("shm.words", "from . import lock", "shm.words:1 imports shm.lock, which does not stand above"),
        ("shm.words", "from .. import executor", "shm.words:1 imports executor, which does not stand above"),
        ("shm.lock", "from repartir.shm import Lock", "shm.lock:1 imports shm, which does not stand above"),
        (
            "gpu.process",
            "from repartir.net import tls",
            "gpu.process:1 imports net.tls: these two never meet",
        ),
        ("net.tls", "from ..gpu import device", "net.tls:1 imports gpu.device: these two never meet"),
        ("gpu.process", "import wgpu", "gpu.process:1 imports wgpu, which only gpu.device may"),
        ("errors", "import repartir.gone", "errors:1 imports gone, which does not exist"),
        ("novelty", "", "novelty is in no layer: add it to LAYERS in test_layers.py"),
    ],
)
def test_a_seeded_violation_is_found(name: str, source: str, complaint: str) -> None:
    (line,) = violations({**GOOD, name: source})
    assert line.startswith(complaint)
