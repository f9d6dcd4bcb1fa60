"""What `import repartir` and the executor's import cost, and what they must not load."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import module_main, package_root

HEAVY = ("_hashlib", "asyncio", "cryptography", "pathlib", "psutil", "rich", "ssl", "threadpoolctl", "wgpu")
ROUNDS = 10
LIMIT_S = 0.060


def import_seconds(statement: str) -> float:
    """CPU time of the statement in a fresh interpreter, compiled files at hand, not measured for coverage.

    Without threads of numpy's BLAS: they spin while the import goes on, and count as long as that takes.
    """
    unmeasured = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("COVERAGE") and name != "PYTHONDONTWRITEBYTECODE"
    }
    script = f"import time; start = time.process_time(); {statement}; print(time.process_time() - start)"
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**unmeasured, "PYTHONPATH": str(package_root()), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return float(result.stdout)


def test_import_costs_at_most_60_ms_over_numpy() -> None:
    assert_import_adds("import repartir", lambda numpy_s: LIMIT_S)


def test_the_executor_costs_less_than_numpy() -> None:
    """In terms of numpy's import, since what machines share makes both slower."""
    assert_import_adds("from repartir import Executor, SerialExecutor", lambda numpy_s: 0.75 * numpy_s)


def assert_import_adds(statement: str, limit_s: Callable[[float], float]) -> None:
    """The least of several runs: what shares the core adds to CPU time, and never takes from it."""
    import_seconds(f"import numpy; {statement}")  # writes the .pyc files
    with_ours, alone = [], []
    for _ in range(ROUNDS):
        with_ours.append(import_seconds(f"import numpy; {statement}"))
        alone.append(import_seconds("import numpy"))
        if len(alone) > 1 and min(with_ours) - min(alone) <= limit_s(min(alone)):
            return
    pytest.fail(f"{min(with_ours) - min(alone):.3f} s: {with_ours}, {alone}")


def test_import_loads_nothing_heavy(tmp_path: Path) -> None:
    result = module_main(
        tmp_path,
        """
        import sys
        before = set(sys.modules)  # a measurement of coverage loads some of them
        import repartir
        from repartir import *
        print(*sorted(set(sys.argv[1:]) & (sys.modules.keys() - before)))
        """,
        *HEAVY,
    )
    assert (result.returncode, result.stdout) == (0, "\n"), result.stderr or result.stdout


def test_a_sweep_without_a_journal_loads_none(tmp_path: Path) -> None:
    result = module_main(
        tmp_path,
        """
        import sys
        before = set(sys.modules)
        import repartir
        found = repartir.sweep(lambda x: x, [{"x": 1}], executor=repartir.SerialExecutor(), on_error="keep")
        assert len(found) == 1
        print(*sorted({"psutil", "repartir.journal", "sqlite3"} & (sys.modules.keys() - before)))
        """,
    )
    assert (result.returncode, result.stdout) == (0, "\n"), result.stderr or result.stdout


def test_import_starts_nothing(tmp_path: Path) -> None:
    result = module_main(
        tmp_path,
        """
        import os, signal, threading
        fds = lambda: sorted(os.listdir("/proc/self/fd"), key=int)
        handlers = lambda: [signal.getsignal(number) for number in signal.valid_signals()]
        import numpy
        before = fds(), handlers(), threading.active_count()
        import repartir
        assert (fds(), handlers(), threading.active_count()) == before
        assert open(f"/proc/self/task/{os.getpid()}/children").read() == ""
        print("quiet")
        """,
    )
    assert result.stdout == "quiet\n", result.stderr
