"""The frame of every benchmark script: options, rounds over the contenders, output, fresh processes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from .contenders import CONTENDERS, OURS, STDLIB, Contender
from .report import Report, Row, machine, machine_line, print_report, to_json, wide_console
from .stats import Series, Spread, alternate, pair_ratios, spread

PACKAGE = __package__ or "bench"
ROOT = Path(__file__).resolve().parents[len(PACKAGE.split("."))]


@dataclass(frozen=True, slots=True)
class Settings:
    """How much to measure: quick or not, on how many workers."""

    quick: bool = False
    workers: int = 2

    def pick(self, full: int, quick: int) -> int:
        """`quick` in a quick run, `full` otherwise."""
        return quick if self.quick else full


def run_script(
    name: str,
    measure: Callable[[Settings], Report],
    argv: Sequence[str] | None = None,
    description: str | None = None,
) -> int:
    """Run one benchmark as a command; 1 if `--check` was given and a goal was not met, else 0."""
    parser = argparse.ArgumentParser(prog=f"python -m {PACKAGE}.{name}", description=description)
    add_common_options(parser)
    options = parser.parse_args(argv)
    began = time.perf_counter()
    report = measure(Settings(options.quick, options.workers))
    report = dataclasses.replace(report, seconds=time.perf_counter() - began)
    if options.json:
        print(json.dumps({"machine": machine(), "reports": [to_json(report)]}))
    else:
        console = wide_console()
        console.print(machine_line(), highlight=False)
        print_report(report, console)
    return 1 if options.check and not report.all_met else 0


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """The options that all scripts and the runner share."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--quick", action="store_true", help="fewer and smaller rounds: a look, not a figure to quote"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 if a goal is missed")
    parser.add_argument("--workers", type=int, default=2, help="workers of every pool (default: 2)")


def measure_all(
    measure: Callable[[Contender], float],
    rounds: int,
    peer_rounds: int,
    without: Sequence[str] = (),
    yardsticks: Mapping[str, Callable[[], float]] | None = None,
    contenders: Mapping[str, Contender] | None = None,
) -> dict[str, Series]:
    """Alternate over the installed contenders: ours and the stdlib for `rounds`, others for `peer_rounds`.

    `yardsticks` are measures without a pool that take part in every round.  `contenders`: None means `CONTENDERS`.
    """
    candidates = CONTENDERS if contenders is None else contenders
    chosen = [c for c in candidates.values() if c.installed and c.name not in without]
    extra = yardsticks or {}
    all_rounds = {c.name: rounds if c.name in (OURS, STDLIB) else peer_rounds for c in chosen}
    return alternate(
        {**{c.name: partial(measure, c) for c in chosen}, **extra},
        {**all_rounds, **dict.fromkeys(extra, rounds)},
    )


def rows_of(
    case: str,
    series: Mapping[str, Series],
    unit: str,
    skipped: Mapping[str, str] | None = None,
    paired: bool = True,
    contenders: Mapping[str, Contender] | None = None,
) -> list[Row]:
    """A row for every contender: its spread and, if `paired`, ours over it; or why there is no figure."""
    ours = series[OURS].values if OURS in series else []
    rows = []
    for name in CONTENDERS if contenders is None else contenders:
        own = series.get(name)
        if own is None:
            rows.append(Row(case, name, None, unit, note=(skipped or {}).get(name, "not installed")))
            continue
        value = spread(own.values) if own.values else None
        ratio = None if name == OURS or not paired else ratio_to(ours, own.values)
        rows.append(Row(case, name, value, unit, ratio, own.failure or ""))
    return rows


def ratio_to(ours: Sequence[float], theirs: Sequence[float]) -> Spread | None:
    """The spread of ours over theirs in pairs; None without a pair."""
    ratios = pair_ratios(ours, theirs)
    return spread(ratios) if ratios else None


def against_stdlib(series: Mapping[str, Series]) -> Spread | None:
    """Ours over the stdlib's, in pairs; None if one of them has no figure."""
    if OURS not in series or STDLIB not in series:
        return None
    return ratio_to(series[OURS].values, series[STDLIB].values)


def spread_of(series: Mapping[str, Series], name: str) -> Spread | None:
    """The spread of one contender's values; None if it has none."""
    own = series.get(name)
    return spread(own.values) if own is not None and own.values else None


def in_forks(work: Callable[[int], object], times: int, processes: int) -> float:
    """Wall seconds of `work(times // processes)` in each of so many bare forks: what the cores can give to anybody."""
    began = time.perf_counter()
    children = []
    for _ in range(processes):
        child = os.fork()
        if child == 0:
            try:
                work(times // processes)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return time.perf_counter() - began


def _child_command(script: str, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return (
        [sys.executable, "-m", f"{PACKAGE}.{script}", *arguments],
        {**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


def run_fresh(script: str, *arguments: str, timeout_s: float) -> dict[str, Any]:
    """Run a script of this package in a fresh interpreter; the JSON object it printed.

    RuntimeError with the end of its stderr if it failed; subprocess.TimeoutExpired after `timeout_s`.
    """
    with client_process(script, *arguments) as client:
        output, errors = client.communicate(timeout=timeout_s)
        if client.returncode != 0:
            raise RuntimeError(f"{script} {' '.join(arguments)} failed: {errors.strip()[-400:]}")
    result: dict[str, Any] = json.loads(output)
    return result


@contextmanager
def client_process(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A script of this package in a fresh interpreter with piped stdio; nothing of it is left afterwards."""
    command, environment = _child_command(script, arguments)
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as client:
        try:
            yield client
        finally:
            kill_remains(client.pid)


def kill_remains(leader: int) -> None:
    """SIGKILL what is left of the session that `leader` led, and of those that its descendants lead."""
    try:
        family = {leader, *(child.pid for child in psutil.Process(leader).children(recursive=True))}
    except psutil.NoSuchProcess:
        family = {leader}
    for process in psutil.process_iter():
        try:
            if process.pid in family or os.getsid(process.pid) in family:
                os.kill(process.pid, signal.SIGKILL)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
