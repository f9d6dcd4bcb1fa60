"""The command line: what it prints, its exit codes, and what it does not import."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

from repartir import cli
from repartir.environment import default_workers


def repartir(*args: str) -> subprocess.CompletedProcess[str]:
    """`python -m repartir args…` in an interpreter of its own."""
    command = [sys.executable, "-m", "repartir", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ([], "COMMAND"),
        (["no-such-command"], "invalid choice"),
        (["demo", "--no-such-option"], "--no-such-option"),
        (["demo", "--workers", "0"], "at least 1"),
        (["demo", "--workers", "two"], "whole number"),
        (["demo", "--seed", "-1"], "negative"),
        (["demo", "--qui"], "--qui"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_why(
    args: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(args)
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert complaint in err


def test_help_names_the_commands_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert "demo" in out
    assert "bench" in out


def test_the_version_is_printed_without_loading_numpy() -> None:
    code = (
        "import sys; from repartir.__main__ import main\n"
        "try: main(['--version'])\n"
        "except SystemExit as left: assert not left.code\n"
        "assert 'numpy' not in sys.modules and 'rich' not in sys.modules"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("repartir ")


def test_python_m_repartir_returns_the_exit_code() -> None:
    assert repartir("--version").returncode == 0
    assert repartir("demo", "--workers", "0").returncode == 2


def stand_in(monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    """Replace the demo by `run`."""
    module = types.ModuleType("repartir.demo.run")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "repartir.demo.run", module)


@pytest.mark.parametrize("code", [0, 1])
def test_demo_passes_its_options_on_and_returns_the_code(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    seen: list[dict[str, object]] = []

    def run(**options: object) -> int:
        seen.append(options)
        return code

    stand_in(monkeypatch, run)
    assert cli.main(["demo", "--quick", "--workers", "3", "--seed", "5", "--json"]) == code
    assert cli.main(["demo"]) == code
    assert seen == [
        {"quick": True, "workers": 3, "seed": 5, "as_json": True},
        {"quick": False, "workers": default_workers(), "seed": 7, "as_json": False},
    ]


def test_ctrl_c_exits_with_130_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(**_: object) -> int:
        raise KeyboardInterrupt

    stand_in(monkeypatch, run)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "repartir: interrupted\n"


def test_an_error_of_ours_is_one_line_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from repartir.errors import SharedMemoryFull

    def run(**_: object) -> int:
        raise SharedMemoryFull("no room left: do this")

    stand_in(monkeypatch, run)
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err == "repartir demo: SharedMemoryFull: no room left: do this\n"


def test_bench_without_the_repository_says_so_and_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.bench([], root=tmp_path) == 2
    assert "not of the installed package" in capsys.readouterr().err


def test_bench_hands_its_arguments_to_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(cli.__file__).parent.parent
    if not (root / "bench" / "run.py").is_file():
        pytest.skip("runs from an installed package")
    seen: list[list[str]] = []
    module = types.ModuleType("bench.run")
    module.main = lambda argv: seen.append(argv) or 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bench", types.ModuleType("bench"))
    monkeypatch.setitem(sys.modules, "bench.run", module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert cli.main(["bench", "throughput", "--json", "--help"]) == 1
    assert seen == [["throughput", "--json", "--help"]]
