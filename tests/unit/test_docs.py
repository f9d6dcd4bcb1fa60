"""The Python examples of the README and the tutorial run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers import module_main

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/tutorial.md")
EXAMPLES = [
    pytest.param(block.group(1), id=f"{page}:{text[: block.start()].count(chr(10)) + 1}")
    for page in PAGES
    for text in [(ROOT / page).read_text()]
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
]


def test_each_page_has_examples() -> None:
    assert {str(example.id).split(":")[0] for example in EXAMPLES} == set(PAGES)


@pytest.mark.parametrize("source", EXAMPLES)
def test_an_example_runs(tmp_path: Path, source: str) -> None:
    result = module_main(tmp_path, source)
    assert (result.returncode, result.stderr) == (0, "")
