"""The examples find what is known, in their quick form and as scientists run them: in a fresh interpreter."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers import module_main

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NUMBER = r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)"
MOST_LINES = 60
MOST_BYTES = 60_000
needs_scipy = pytest.mark.skipif(find_spec("scipy") is None, reason="not installed")
needs_sklearn = pytest.mark.skipif(find_spec("sklearn") is None, reason="not installed")


@pytest.fixture(autouse=True)
def as_users_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two workers, and not measured."""
    for name in [name for name in os.environ if name.startswith("COVERAGE")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("REPARTIR_MAX_WORKERS", "2")
    monkeypatch.setenv("MPLCONFIGDIR", os.environ["TMPDIR"])


def printed(folder: Path, name: str, *args: str) -> str:
    result = module_main(folder, (ROOT / f"examples/{name}.py").read_text(), "--quick", *args)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def found(text: str, words: str) -> tuple[float, ...]:
    """The numbers that stand at the # in these words of the text."""
    match = re.search(re.escape(words).replace(r"\#", NUMBER), text)
    assert match is not None, text
    return tuple(map(float, match.groups()))


@needs_scipy
def test_option_pricing(tmp_path: Path) -> None:
    text = printed(tmp_path, "option_pricing")
    (exact,) = found(text, "Black and Scholes: #")
    assert exact == 10.4506
    errors = {}
    for method in ("plain", "antithetic", "control variate", "Sobol"):
        european, error, asian, errors[method] = found(text, f"{method}: European # ± #, Asian # ± #")
        assert abs(european - exact) < 4 * error
        assert abs(asian - 6.156) < 4 * errors[method]
    assert errors["control variate"] < errors["plain"] / 20
    assert errors["antithetic"] < errors["plain"] / 2**0.5 * 1.1
    assert errors["Sobol"] < errors["plain"] / 20


@needs_scipy
def test_ising(tmp_path: Path) -> None:
    text = printed(tmp_path, "ising")
    critical, exact = found(text, "critical temperature: #, Onsager's #")
    assert exact == 2.269
    assert abs(critical - exact) < 0.06
    magnetisation, exact = found(text, "magnetisation at T = 2: #, Onsager's #")
    assert exact == 0.9113
    assert abs(magnetisation - exact) < 0.01


def test_bootstrap_sunspots(tmp_path: Path) -> None:
    period, low, high = found(
        printed(tmp_path, "bootstrap_sunspots"), "period: # years, 95 % of the histories from # to #"
    )
    assert 10.4 < low < period < high < 11.3
    assert low < 11 < high


@needs_sklearn
def test_digits_search(tmp_path: Path) -> None:
    text = printed(tmp_path, "digits_search")
    assert found(text, "# of # rows") == (39, 39)
    assert found(text, "#% of 297 images")[0] >= 97


@pytest.mark.slow
@needs_sklearn
def test_digits_search_goes_on_with_its_journal(tmp_path: Path) -> None:
    first, again = (printed(tmp_path, "digits_search").splitlines() for _ in range(2))
    assert again[0].startswith("0 of 39 rows computed")
    assert again[1] == first[1]


def test_epidemic(tmp_path: Path) -> None:
    text = printed(tmp_path, "epidemic")
    for number, known in ((2, 0.7968), (3, 0.9405)):
        words = f"R0 = {number}, nobody vaccinated: # ± # infected, the formula says #"
        share, error, formula = found(text, words)
        assert formula == known
        assert abs(share - formula) < 4 * error < 0.02


@pytest.mark.slow
@pytest.mark.skipif(find_spec("matplotlib") is None, reason="not installed")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_draws(tmp_path: Path, example: Path) -> None:
    printed(tmp_path, example.stem, "--out", "picture.svg")
    assert (tmp_path / "picture.svg").read_text().rstrip().endswith("</svg>")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_short_and_documented(example: Path) -> None:
    source = example.read_text()
    assert len(source.splitlines()) <= MOST_LINES
    assert "__main__" not in source
    page = (ROOT / "docs/examples/index.md").read_text()
    assert f"({example.stem}.svg)" in page
    assert (ROOT / f"docs/examples/{example.stem}.svg").stat().st_size < MOST_BYTES


def test_each_example_has_a_test() -> None:
    assert {f"test_{path.stem}" for path in EXAMPLES} <= globals().keys()
