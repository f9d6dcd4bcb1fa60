"""What a benchmark found: rows, goals with verdicts, and the two ways to print them (table and JSON)."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .stats import Spread

MET, MISSED, NOT_MEASURED = "met", "missed", "not measured"


@dataclass(frozen=True, slots=True)
class Row:
    """One measured quantity of one contender; `ratio` is ours over this one's, paired."""

    case: str
    contender: str
    value: Spread | None
    unit: str
    ratio: Spread | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound that the median of `measured` must keep; None when there was nothing to measure."""

    text: str
    measured: Spread | None
    bound: float
    at_least: bool

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return NOT_MEASURED
        median = self.measured.median
        return MET if (median >= self.bound if self.at_least else median <= self.bound) else MISSED


@dataclass(frozen=True, slots=True)
class Report:
    """One figure: its rows, its goals, and how long measuring it took."""

    name: str
    title: str
    rows: Sequence[Row]
    goals: Sequence[Goal]
    seconds: float = 0.0

    @property
    def all_met(self) -> bool:
        return all(goal.verdict == MET for goal in self.goals)


def machine() -> dict[str, str]:
    """CPU model, cores this process may use, Python and kernel."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [
        line.partition(":")[2].strip()
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else [])
        if line.startswith("model name")
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": str(cores),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "kernel": f"{platform.system()} {platform.release()}",
    }


def machine_line() -> str:
    """`machine()` on one line."""
    found = machine()
    return f"{found['cpu']}, {found['cores']} cores, {found['python']}, {found['kernel']}"


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain JSON values, verdicts included."""
    plain = asdict(report)
    for goal, source in zip(plain["goals"], report.goals, strict=True):
        goal["verdict"] = source.verdict
    return plain


def from_json(plain: Mapping[str, Any]) -> Report:
    """The inverse of `to_json`; KeyError or TypeError on anything else."""
    rows = [
        Row(**{**row, "value": _spread(row["value"]), "ratio": _spread(row["ratio"])})
        for row in plain["rows"]
    ]
    goals = [
        Goal(goal["text"], _spread(goal["measured"]), goal["bound"], goal["at_least"])
        for goal in plain["goals"]
    ]
    return Report(plain["name"], plain["title"], rows, goals, plain["seconds"])


def _spread(plain: Mapping[str, float] | None) -> Spread | None:
    return None if plain is None else Spread(**plain)


def number(value: float) -> str:
    """Three significant digits below a thousand, whole numbers with thin groups above."""
    return f"{value:,.0f}".replace(",", " ") if abs(value) >= 1000 else f"{value:.3g}"


def wide_console(stderr: bool = False) -> Console:
    """A console on which the tables fit; what is not a terminal is taken to be 140 columns wide."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=140)


def print_report(report: Report, console: Console) -> None:
    """The rows as a table, then one line for each goal."""
    table = Table(title=f"{report.name}: {report.title}", title_justify="left")
    table.add_column("case")
    table.add_column("executor")
    for heading in ("median", "min", "max"):
        table.add_column(heading, justify="right")
    table.add_column("unit")
    table.add_column("repartir ÷ it", justify="right", no_wrap=True)
    table.add_column("note")
    previous = None
    for row in report.rows:
        figures = ("–", "–", "–")
        if row.value is not None:
            figures = (number(row.value.median), number(row.value.low), number(row.value.high))
        ratio = "" if row.ratio is None else _with_range(row.ratio)
        table.add_row(
            "" if row.case == previous else row.case, row.contender, *figures, row.unit, ratio, row.note
        )
        previous = row.case
    console.print(table)
    print_goals([report], console)


def print_goals(reports: Sequence[Report], console: Console) -> None:
    """One line a goal: verdict, what was asked, what was measured."""
    colours = {MET: "green", MISSED: "red", NOT_MEASURED: "yellow"}
    for report in reports:
        for goal in report.goals:
            sign = "≥" if goal.at_least else "≤"
            found = "nothing" if goal.measured is None else _with_range(goal.measured)
            console.print(
                f"[{colours[goal.verdict]}]{goal.verdict:>12}[/] {report.name}: {goal.text} "
                f"{sign} {number(goal.bound)}; measured {found}",
                highlight=False,
                soft_wrap=True,
            )


def _with_range(value: Spread) -> str:
    if value.low == value.high:
        return number(value.median)
    return f"{number(value.median)} ({number(value.low)}–{number(value.high)})"
