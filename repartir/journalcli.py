"""`repartir journal list|show|export|merge|vacuum`: what journals hold, without running or unpickling anything of theirs."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

FAILED = 1


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Give the command line `journal` with its commands."""
    about = "what the journals of sweeps hold; export them, join them, make them smaller"
    journal = commands.add_parser("journal", help=about, description=f"See {about}.", allow_abbrev=False)
    kinds = journal.add_subparsers(dest="journal_command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        parser = kinds.add_parser(
            name, help=about, description=f"{about[0].upper()}{about[1:]}.", allow_abbrev=False
        )
        parser.set_defaults(run_journal=run)
        return parser

    listing = add("list", _list, "one line a journal: function, rows, errors, seed, last run")
    listing.add_argument("files", nargs="+", metavar="FILE")
    showing = add("show", _show, "what a journal says of itself, and its last rows")
    showing.add_argument("file", metavar="FILE")
    showing.add_argument("--rows", type=_count, default=10, metavar="N", help="how many rows (default: 10)")
    exporting = add("export", _export, "all rows as CSV, JSON or JSON lines; pickled values as their size")
    exporting.add_argument("file", metavar="FILE")
    exporting.add_argument(
        "--to",
        type=_target,
        metavar="OUT",
        help="a .csv, .json or .jsonl file (default: CSV on standard output)",
    )
    merging = add(
        "merge", _merge, "add the rows of FILEs, of an array job say, to the journal OUT, which may be new"
    )
    merging.add_argument("out", metavar="OUT")
    merging.add_argument("files", nargs="+", metavar="FILE")
    merging.add_argument(
        "--keep",
        choices=("first", "last"),
        help="which of two different results of one row (default: an error)",
    )
    emptying = add(
        "vacuum", _vacuum, "drop rows of earlier functions and seeds, and checkpoints that nobody needs"
    )
    emptying.add_argument("file", metavar="FILE")
    for parser in (listing, showing, merging, emptying):
        parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    exporting.add_argument("--json", action="store_true", help="JSON instead of CSV on standard output")


def run(args: argparse.Namespace) -> int:
    """Run the command; 1 on an error of a journal, which is printed."""
    from repartir.errors import JournalError, JournalMismatch

    command: Callable[[argparse.Namespace], int] = args.run_journal
    try:
        code = command(args)
        sys.stdout.flush()
    except BrokenPipeError:  # a reader such as `head` has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (JournalError, JournalMismatch, OSError) as error:
        return _failed(args.journal_command, str(error))
    return code


def _failed(command: str, message: str) -> int:
    print(f"repartir journal {command}: {message}", file=sys.stderr)
    return FAILED


def _list(args: argparse.Namespace) -> int:
    from repartir import journalfile, journalreport
    from repartir.errors import JournalError

    code, found = 0, []
    for file in args.files:
        try:
            with journalfile.reader(file) as connection:
                found.append({"file": file, **journalreport.summary(connection)})
        except JournalError as error:
            code = _failed("list", f"{file}: {error}")
    if args.json:
        print(json.dumps({"journals": found}))
    else:
        for one in found:
            print(_one_line(one))
    return code


def _one_line(one: dict[str, Any]) -> str:
    last = one["last_run"]
    ending = "" if last is None else f", last run {last['started']} on {last['host']}"
    counts = f"{_counted(one['rows'], 'row')}, {_counted(one['errors'], 'error')}"
    return f"{one['file']}: {one['function']}, {counts}, seed {one['seed']}{ending}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _show(args: argparse.Namespace) -> int:
    from repartir import journalfile, journalreport

    with journalfile.reader(args.file) as connection:
        found = journalreport.summary(connection)
        rows = list(journalreport.rows(connection, args.rows))
    if args.json:
        print(json.dumps({"file": args.file, **found, "last_rows": rows}))
        return 0
    last = found.pop("last_run")
    for name, value in {
        **found,
        **{f"last run, {name}": value for name, value in (last or {}).items()},
    }.items():
        print(f"{name + ':':22} {'-' if value is None else value}")
    for row in rows:
        print(_row_line(row))
    return 0


def _row_line(row: dict[str, Any]) -> str:
    params = ", ".join(f"{name}={_short(value)}" for name, value in row["params"].items())
    outcome = f"failed: {row['error']:.200}" if row["error"] is not None else _short(row["result"], 200)
    return f"{row['finished']}  {params}  #{row['repeat']}  {outcome}  {row['seconds']:.3g} s"


def _short(value: Any, limit: int = 60) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _export(args: argparse.Namespace) -> int:
    from repartir import durable, journalfile, journalreport

    with journalfile.reader(args.file) as connection:
        if args.to is None:
            sys.stdout.writelines(journalreport.lines(connection, "json" if args.json else "csv"))
        else:
            lines = journalreport.lines(connection, _suffix(args.to))
            durable.write(args.to, (line.encode() for line in lines))
    return 0


def _merge(args: argparse.Namespace) -> int:
    from repartir import journalmerge

    found = journalmerge.merge(args.out, args.files, args.keep)
    print(
        json.dumps({"file": args.out, **found})
        if args.json
        else f"{args.out}: {_counted(found['rows'], 'row')}, {_counted(found['errors'], 'error')}; {found['added']} added"
    )
    return 0


def _vacuum(args: argparse.Namespace) -> int:
    from repartir import journalmerge

    found = journalmerge.vacuum(args.file)
    dropped = f"{_counted(found['rows'], 'row')} and {_counted(found['checkpoints'], 'checkpoint')} dropped"
    print(
        json.dumps({"file": args.file, **found})
        if args.json
        else f"{args.file}: {dropped}, {found['bytes_before']} → {found['bytes_after']} bytes"
    )
    return 0


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].removeprefix(".").lower()


def _target(path: str) -> str:
    if _suffix(path) not in ("csv", "json", "jsonl"):
        raise argparse.ArgumentTypeError(f"must end with .csv, .json or .jsonl, not {path!r}")
    return path


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, not {text!r}")
    return int(text)
