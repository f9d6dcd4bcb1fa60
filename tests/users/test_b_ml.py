"""What an ML engineer does in a notebook, from beginning to end, in a fresh interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import module_main

SCRIPT = Path(__file__).with_name("b_ml.py")


@pytest.mark.slow
def test_all_cells_run(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    pytest.importorskip("sklearn")
    result = module_main(tmp_path, SCRIPT.read_text(), timeout=100)
    assert (result.returncode, result.stdout) == (0, "all cells ran\n"), result.stderr
    warned = [line for line in result.stderr.splitlines() if "forkserver" not in line]
    assert warned == []
