"""What a journal holds, for people and other programs.  Reads only, also while a run writes, and never unpickles."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Any

from repartir import definitions
from repartir.errors import JournalError
from repartir.readable import readable

_COLUMNS = ("repeat", "error", "seconds", "worker", "attempts")
_KNOWN = ("repeat", "error", "traceback", "seconds", "worker", "attempts")
_SELECT = f"SELECT params, result, finished, id, {', '.join(_KNOWN)} FROM rows WHERE lineage = ?"
_RUN = ("started", "ended", "host", "user", "pid", "command", "repartir", "python", "numpy")


def summary(connection: sqlite3.Connection) -> dict[str, Any]:
    """What `repartir journal list` tells of a journal.  `JournalError` for one that no run has used."""
    found = definitions.current(connection)
    if found is None:
        raise JournalError("the journal has had no run yet")
    _, lineage, definition = found
    count = "SELECT count(*) FROM rows WHERE lineage = ? AND error IS "
    return {
        "function": definition.description.name,
        "digest": definition.description.digest,
        "version": definition.version,
        "seed": json.loads(definitions.seed_text(definition.seed)),
        "rows": connection.execute(f"{count} NULL", (lineage,)).fetchone()[0],
        "errors": connection.execute(f"{count} NOT NULL", (lineage,)).fetchone()[0],
        "history": connection.execute("SELECT count(*) FROM rows WHERE lineage != ?", (lineage,)).fetchone()[
            0
        ],
        "runs": connection.execute("SELECT count(*) FROM runs").fetchone()[0],
        "last_run": _last_run(connection),
    }


def _last_run(connection: sqlite3.Connection) -> dict[str, Any] | None:
    row = connection.execute(f"SELECT {', '.join(_RUN)} FROM runs ORDER BY started DESC LIMIT 1").fetchone()
    return (
        None
        if row is None
        else {**dict(zip(_RUN, row, strict=True)), "started": when(row[0]), "ended": when(row[1])}
    )


def when(seconds: float | None) -> str | None:
    """A moment in local time, as ISO 8601 writes it."""
    return None if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))


def rows(connection: sqlite3.Connection, last: int | None = None) -> Iterator[dict[str, Any]]:
    """The rows of the current function and seed as JSON has them, oldest first; of the ``last`` ones only."""
    found = definitions.current(connection)
    if found is None:
        return
    query, arguments = f"{_SELECT} ORDER BY finished, id", [found[1]]
    if last is not None:
        query = f"SELECT * FROM ({_SELECT} ORDER BY finished DESC, id DESC LIMIT ?) ORDER BY finished, id"
        arguments.append(last)
    for params, result, finished, _, *known in connection.execute(query, arguments):
        yield {
            "params": readable(params),
            "result": None if result is None else readable(result),
            **dict(zip(_KNOWN, known, strict=True)),
            "finished": when(finished),
        }


def lines(connection: sqlite3.Connection, form: str) -> Iterator[str]:
    """All rows as the lines of a file: "csv", "json" (one list) or "jsonl" (an object a line)."""
    return _FORMS[form](connection)


def _csv(connection: sqlite3.Connection) -> Iterator[str]:
    """Parameters, then the parts of the result, then what is known of the row; what is no number or text is JSON."""
    params: dict[str, None] = {}
    results: dict[str, None] = {}
    for row in rows(connection):
        params |= dict.fromkeys(row["params"])
        if row["error"] is None:
            results |= dict.fromkeys(_parts(row["result"]))
    taken = {*params, *_COLUMNS}
    titles = {name: f"result.{name}" if name in taken else name for name in results}
    yield _line([*params, "repeat", *titles.values(), *_COLUMNS[1:]])
    for row in rows(connection):
        parts = _parts(row["result"]) if row["error"] is None else {}
        cells = [row["params"].get(name) for name in params]
        cells += [row["repeat"], *(parts.get(name) for name in titles), *(row[name] for name in _COLUMNS[1:])]
        yield _line(cells)


def _parts(result: Any) -> dict[str, Any]:
    return result if isinstance(result, dict) and result else {"result": result}


def _line(cells: list[Any]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow(
        [json.dumps(cell) if isinstance(cell, bool | list | dict) else cell for cell in cells]
    )
    return file.getvalue()


def _json(connection: sqlite3.Connection) -> Iterator[str]:
    comma = "[\n"
    for row in rows(connection):
        yield f"{comma}{json.dumps(row)}"
        comma = ",\n"
    yield "[]\n" if comma == "[\n" else "\n]\n"


def _jsonl(connection: sqlite3.Connection) -> Iterator[str]:
    return (f"{json.dumps(row)}\n" for row in rows(connection))


_FORMS: dict[str, Callable[[sqlite3.Connection], Iterator[str]]] = {
    "csv": _csv,
    "json": _json,
    "jsonl": _jsonl,
}
