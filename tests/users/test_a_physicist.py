"""What a physicist does in two scripts that were written for other pools, in a fresh interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import module_main

SCRIPT = Path(__file__).with_name("a_physicist.py")


@pytest.mark.slow
def test_all_of_it_runs(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    result = module_main(tmp_path, SCRIPT.read_text(), timeout=100)
    assert (result.returncode, result.stdout, result.stderr) == (0, "all of it ran\n", "")
