"""The command line: `repartir demo`, `repartir bench`, `repartir journal`.

Exit codes: 0 all went well, 1 it ran and failed, 2 it was called wrongly or cannot run here, 130 interrupted
by Ctrl-C. Each command imports what it needs only when it runs.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from repartir import journalcli

FAILED, USAGE, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` defaults to the process's arguments.

    Usage errors, `--help` and `--version` leave by SystemExit, as argparse does.
    """
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command != "bench":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if args.command == "bench":
            return bench(rest)
        if args.command == "journal":
            return journalcli.run(args)
        return demo(args)
    except KeyboardInterrupt:
        print("repartir: interrupted", file=sys.stderr)
        return INTERRUPTED


def make_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="repartir",
        description="A drop-in concurrent.futures executor with work stealing.",
        epilog="exit codes: 0 done, 1 failed, 2 wrong usage or cannot run here, 130 interrupted",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    about = "a forecasting sweep on real data and a Monte Carlo, serially and on the pool"
    demo_parser = commands.add_parser("demo", help=about, description=f"Run {about}.", allow_abbrev=False)
    demo_parser.add_argument(
        "--quick", action="store_true", help="a smaller grid and fewer paths: some seconds"
    )
    demo_parser.add_argument(
        "--workers", type=_positive, metavar="N", help="processes (default: the usable cores)"
    )
    demo_parser.add_argument(
        "--seed", type=_seed, default=7, metavar="N", help="of every random stream (default: 7)"
    )
    demo_parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")

    commands.add_parser(
        "bench",
        help="the benchmarks of the source repository; all its arguments go to bench/run.py",
        add_help=False,
        allow_abbrev=False,
    )
    journalcli.add_commands(commands)
    return parser


def demo(args: argparse.Namespace) -> int:
    """`repartir demo`: 1 if the numbers of both ways differ, or on an error of Repartir's own."""
    from repartir.demo.run import run
    from repartir.environment import default_workers
    from repartir.errors import RepartirError
    from repartir.shm.layout import MAX_ROWS

    try:
        workers = args.workers or default_workers()
    except ValueError as error:  # an environment variable
        print(f"repartir demo: {error}", file=sys.stderr)
        return USAGE
    if workers > MAX_ROWS:
        print(f"repartir demo: at most {MAX_ROWS} workers, not {workers}", file=sys.stderr)
        return USAGE
    try:
        return run(quick=args.quick, workers=workers, seed=args.seed, as_json=args.json)
    except RepartirError as error:
        print(f"repartir demo: {type(error).__name__}: {error}", file=sys.stderr)
        return FAILED


def bench(argv: list[str], root: Path = Path(__file__).parent.parent) -> int:
    """`repartir bench`: hand over to `main` of bench/run.py in `root`, the checkout with this package."""
    if not ((root / "pyproject.toml").is_file() and (root / "bench" / "run.py").is_file()):
        print(
            f"repartir bench: no bench/run.py in {root}. The benchmarks are part of the source repository,"
            " not of the installed package: clone it, then `pip install -e '.[bench]'` and `repartir bench`"
            " there.",
            file=sys.stderr,
        )
        return USAGE
    sys.path.insert(0, str(root))
    code = importlib.import_module("bench.run").main(argv)
    return int(code)


class _Version(argparse.Action):
    """Looks the version up only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        try:
            found = version("repartir")
        except PackageNotFoundError:
            found = "unknown (not installed)"
        print(f"repartir {found}")
        parser.exit()


def _positive(text: str) -> int:
    number = _whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None


def _seed(text: str) -> int:
    number = _whole(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, not {number}")
    return number
