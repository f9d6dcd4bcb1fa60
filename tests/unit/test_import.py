"""What `import repartir` costs and what it must not load."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

from tests.helpers import module_main, package_root

HEAVY = ("asyncio", "cryptography", "rich", "ssl", "wgpu")
PAIRS = 7
LIMIT_S = 0.060


def import_seconds(statement: str) -> float:
    """CPU time of the statement in a fresh interpreter: other programs on the machine do not count."""
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    script = f"import time; start = time.process_time(); {statement}; print(time.process_time() - start)"
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**unmeasured, "PYTHONPATH": str(package_root())},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return float(result.stdout)


def test_import_costs_at_most_60_ms_over_numpy() -> None:
    import_seconds("import numpy, repartir")  # writes the .pyc files
    differences = [
        import_seconds("import numpy, repartir") - import_seconds("import numpy") for _ in range(PAIRS)
    ]
    assert statistics.median(differences) <= LIMIT_S, differences


def test_import_loads_nothing_heavy(tmp_path: Path) -> None:
    result = module_main(
        tmp_path,
        """
        import sys
        import repartir
        print(*sorted(set(sys.argv[1:]) & sys.modules.keys()))
        """,
        *HEAVY,
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
