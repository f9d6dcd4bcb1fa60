"""The Python examples of the README and the tutorial run as they stand."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from repartir import states
from tests.helpers import module_main

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "docs/tutorial.md",
    "docs/howto/arrays.md",
    "docs/howto/dask.md",
    "docs/howto/from-joblib.md",
    "docs/howto/from-multiprocessing-pool.md",
    "docs/howto/from-process-pool-executor.md",
    "docs/howto/journal.md",
    "docs/howto/maps.md",
    "docs/howto/monte-carlo.md",
    "docs/howto/nested.md",
    "docs/howto/notebooks.md",
    "docs/howto/priorities.md",
    "docs/howto/sweeps.md",
)
NEEDS = {"docs/howto/dask.md": "dask", "docs/howto/from-joblib.md": "sklearn"}
EXAMPLES = [
    pytest.param(
        block.group(1),
        id=f"{page}:{text[: block.start()].count(chr(10)) + 1}",
        marks=[pytest.mark.skipif(find_spec(NEEDS.get(page, "os")) is None, reason="not installed")],
    )
    for page in PAGES
    for text in [(ROOT / page).read_text()]
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
]


def test_each_page_has_examples() -> None:
    assert {str(example.id).split(":")[0] for example in EXAMPLES} == set(PAGES)


@pytest.mark.parametrize("source", EXAMPLES)
def test_an_example_runs(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("COVERAGE")]:
        monkeypatch.delenv(name)  # it would be run as readers run it: measured, os._exit is no builtin
    result = module_main(tmp_path, source)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_diagram_in_the_design_is_the_tables() -> None:
    text = (ROOT / "docs/design.md").read_text()
    assert f"```mermaid\n{states.diagram()}\n```" in text


def test_the_design_names_every_file() -> None:
    text = (ROOT / "docs/design.md").read_text()
    modules = {path.relative_to(ROOT / "repartir") for path in (ROOT / "repartir").rglob("*.py")}
    unnamed = [
        str(path)
        for path in sorted(modules)
        if not path.name.startswith("__") and f"{path}`" not in text and f"`{path.parts[0]}/`" not in text
    ]
    assert unnamed == []


@pytest.mark.parametrize("page", [*PAGES, *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))])
def test_a_link_leads_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    assert [link for link in links if "://" not in link and not ((ROOT / page).parent / link).exists()] == []
