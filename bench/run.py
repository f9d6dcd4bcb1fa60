"""All benchmarks, or the named ones, each in an interpreter of its own; the goals once more at the end."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from .common import add_common_options, client_process
from .report import Report, from_json, machine, machine_line, print_goals, print_report, to_json, wide_console

NAMES = (
    "throughput",
    "latency",
    "map_noops",
    "maps",
    "numpy_tasks",
    "efficiency",
    "nested",
    "priorities",
    "main_functions",
    "main_global",
    "startup",
    "idle",
    "memory",
    "threads",
    "pending",
    "array_round_trip",
    "array_argument",
    "array_shared",
    "array_stream",
    "array_steady",
    "array_threshold",
    "joblib_backend",
    "sweeps",
    "monte_carlo",
    "faults",
    "reliability",
)
LIMIT_S = 240.0


class BenchmarkError(RuntimeError):
    """A benchmark ended with an error or did not end in time; the message says which and how."""


def run_one(name: str, arguments: Sequence[str]) -> Report:
    """One benchmark in a fresh interpreter; BenchmarkError when it gave no report."""
    with client_process(name, "--json", *arguments) as process:
        try:
            output, errors = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"{name}: no end within {LIMIT_S:.0f} s") from None
    if process.returncode != 0:
        raise BenchmarkError(f"{name}: exit code {process.returncode}\n{errors.strip()[-2000:]}")
    plain: dict[str, Any] = json.loads(output)
    return from_json(plain["reports"][0])


def main(argv: list[str] | None = None) -> int:
    """`repartir bench`: 0 if all ran (and with `--check` met their goals), 1 otherwise, 2 on wrong usage."""
    parser = argparse.ArgumentParser(prog="repartir bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"which to run, of: {', '.join(NAMES)} (default: all)"
    )
    add_common_options(parser)
    options = parser.parse_args(argv)
    if unknown := sorted(set(options.names) - set(NAMES)):
        parser.error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(NAMES)}")
    arguments = ["--workers", str(options.workers), *(["--quick"] if options.quick else [])]
    console = wide_console(stderr=options.json)
    console.print(machine_line(), highlight=False)
    reports, failures = [], []
    for name in options.names or NAMES:
        try:
            report = run_one(name, arguments)
        except BenchmarkError as failure:
            failures.append(str(failure))
            console.print(f"[red]failed[/] {failure}", highlight=False)
            continue
        reports.append(report)
        print_report(report, console)
    console.rule(f"goals ({sum(report.seconds for report in reports):.0f} s in all)")
    print_goals(reports, console)
    if options.json:
        print(json.dumps({"machine": machine(), "reports": [to_json(report) for report in reports]}))
    missed = options.check and not all(report.all_met for report in reports)
    return 1 if failures or missed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
