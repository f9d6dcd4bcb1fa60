"""Parameter sweeps: one function at many points of a space, with a random stream of its own for each row."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from repartir.borrowed import check_executor, executor_for, numbered
from repartir.checkpoints import temporary_folder
from repartir.door import OnChange, check_call, check_on_change, positive
from repartir.errors import Interrupted, TaskNotSerializable
from repartir.ledger import name_of
from repartir.portable import set_attribute, strip_tracebacks
from repartir.progress import Reporter, reporter
from repartir.progress import Told as ProgressTold
from repartir.results import SweepResult
from repartir.rows import Item, RowCall, Told
from repartir.rungs import Halving
from repartir.space import Space, as_points, in_words, key_of
from repartir.streams import Seed, Seedlike, settled, takes_rng
from repartir.sweeprow import SweepRow

if TYPE_CHECKING:
    from repartir.journal import Journal

ON_ERROR = ("raise", "keep", "skip")

Points = Sequence[dict[str, Any]]


def sweep(
    fn: Callable[..., Any],
    space: Space | Iterable[Mapping[str, Any]],
    *,
    repeats: int = 1,
    seed: Seedlike = None,
    executor: concurrent.futures.Executor | None = None,
    journal: str | os.PathLike[str] | None = None,
    version: str | None = None,
    on_change: OnChange = "raise",
    on_error: str = "raise",
    on_row: Callable[[SweepRow], object] | None = None,
    progress: bool | ProgressTold = False,
    rungs: Halving | None = None,
) -> SweepResult:
    """Call ``fn(**params)`` at each point of ``space``, ``repeats`` times, on the workers of an executor.

    A function that has a parameter ``rng``, which the space does not name, gets a ``numpy.random.Generator`` there: the
    stream of the row, made from the seed, the parameters and the number of the repeat, so that the same row has the same
    bits in any other space, order, worker, attempt and run.  Functions below it find it by `task_rng`.

    Args:
        fn: what is called.  What it returns is a row's result: best a number, or a dict of numbers and arrays.
        space: a `grid`, `zipped`, `sampled` or `latin_hypercube`, joined by ``*`` and ``+``; or an iterable of dicts.
        repeats: calls a point.
        seed: of all streams and all points that are drawn: an int, ints, a ``SeedSequence``; None: drawn and kept in the
            result.
        executor: an `Executor`, what its `options` returned (with a time-out or retries for each row), a
            `SerialExecutor`, or any other of ``concurrent.futures``.  None: in a task the one that runs it, else one that is
            made for the call.
        journal: a file in which rows are kept as they finish.  Rows that it has are not run again, but those that failed;
            and ``seed=None`` means its seed.
        version: takes the place of what the journal compares of ``fn`` (its source, that of what it names, its data): equal
            versions match.
        on_change: what to do where the journal's rows are of another function, version or seed: "raise" `JournalMismatch`,
            with the difference; "rerun" all rows; or "reuse" those that it has.
        on_error: what becomes of a row that fails: "raise" stops the sweep and raises the error, with the finished rows in
            its attribute ``partial``; "keep" keeps it, with its error; "skip" leaves it out.
        on_row: is told each row as it finishes, in this thread; none of those that the journal had.
        progress: True shows how far it has come, in a terminal or a notebook, elsewhere in a line at most every 30 s; a
            callable is told (done, total).
        rungs: what `halving` returned: all points with little of something, the best of them with more.

    Raises ``ValueError`` and ``TypeError`` before any call for a space that is empty, has a point twice or does not go with
    ``fn``; `JournalError` for a journal that cannot be written, `Interrupted` after Ctrl-C, which stops the calls: these and
    all other errors that come after the first call have the finished rows in their attribute ``partial``.
    """
    _check(fn, repeats, on_error, on_row, rungs)
    check_on_change(on_change)
    check_executor(executor)
    for name, is_given in (("version", version is not None), ("on_change", on_change != "raise")):
        if journal is None and is_given:
            raise ValueError(f"{name}= tells what a journal's results count for: it goes with journal=")
    settled_seed = settled(seed)
    points, keys = _points(fn, space, settled_seed, rungs)
    shown = reporter(progress, f"sweep of {name_of(fn)}", repeats * _count(rungs, len(points)))
    with contextlib.ExitStack() as opening:
        known = None
        if journal is None:
            folder = opening.enter_context(temporary_folder())
        else:
            from repartir.journal import Journal  # as much again as all that a sweep without one loads

            given = None if seed is None else settled_seed
            known = opening.enter_context(
                Journal.open(journal, fn, seed=given, version=version, on_change=on_change)
            )
            if seed is None and isinstance(space, Space):
                points, keys = _points(fn, space, known.seed, rungs)
            settled_seed, folder = known.seed, known.checkpoints
        call = RowCall(fn, settled_seed, folder, takes_rng=takes_rng(fn))
        run = _Run(call, repeats, on_error, on_row, shown, known, None if rungs is None else rungs.name)
        opened = opening.pop_all()
    try:
        with opened, shown, executor_for(executor) as ex:  # the journal may fail when it is closed, too
            _climb(run, ex, points, keys, rungs)
    except KeyboardInterrupt:
        partial = run.result()
        raise Interrupted(
            f"interrupted after {len(partial)} of {partial.total} rows, which are in the attribute partial",
            partial=partial,
        ) from None
    except BaseException as exc:
        set_attribute(exc, "partial", run.result())
        raise
    return run.result()


def _points(
    fn: Callable[..., Any],
    space: Space | Iterable[Mapping[str, Any]],
    seed: Seed,
    rungs: Halving | None,
) -> tuple[Points, list[bytes]]:
    """The points, without what a rung sets, and their keys with what the first rung sets; checked."""
    points = as_points(space, seed)
    if rungs is not None:
        rungs.check(points)
    return points, _checked_keys(fn, points if rungs is None else [rungs.at(point, 0) for point in points])


def _count(rungs: Halving | None, points: int) -> int:
    return points if rungs is None else sum(rungs.counts(points))


def _climb(
    run: _Run, executor: concurrent.futures.Executor, points: Points, keys: list[bytes], rungs: Halving | None
) -> None:
    if rungs is None:
        run.rows_of(executor, points, keys)
        return
    for nth in range(len(rungs.resources)):
        placed = [rungs.at(point, nth) for point in points]
        rows = run.rows_of(executor, placed, keys if nth == 0 else list(map(key_of, placed)))
        points = rungs.survivors(points, rows, nth)


class _Run:
    """The rows of one sweep, as they finish."""

    def __init__(
        self,
        call: RowCall,
        repeats: int,
        on_error: str,
        on_row: Callable[[SweepRow], object] | None,
        shown: Reporter,
        journal: Journal | None,
        resource: str | None,
    ) -> None:
        self._call = call
        self._repeats = repeats
        self._on_error = on_error
        self._on_row = on_row
        self._shown = shown
        self._journal = journal
        self._resource = resource
        self._known = {} if journal is None else journal.finished()
        self._rows: dict[int, SweepRow] = {}
        self._begun = 0
        """So many rows have been given to the executor; they are numbered in the order of the space."""

    def rows_of(
        self, executor: concurrent.futures.Executor, points: Points, keys: list[bytes]
    ) -> list[list[SweepRow]]:
        """Run all repeats of these points; the rows of each.  Raises the error of a row if that is to stop the sweep."""
        items = [
            Item(point, key, repeat)
            for point, key in zip(points, keys, strict=True)
            for repeat in range(self._repeats)
        ]
        base, self._begun = self._begun, self._begun + len(items)
        missing = []
        for number, item in enumerate(items):
            if (stored := self._known.get((item.key, item.repeat))) is None:
                missing.append(number)
            else:
                told = Told(stored.seconds, stored.worker, stored.attempts)
                self._rows[base + number] = self._call.row(item, (stored.result, told))
        self._shown.step(len(items) - len(missing))
        outcome = None
        outcomes = numbered(executor, self._call, [items[at] for at in missing])
        try:
            for nth, outcome in outcomes:
                item = items[missing[nth]]
                self._finish(base + missing[nth], item, self._call.row(item, outcome))
        finally:
            del outcome  # an error, perhaps, whose traceback leads here
            outcomes.close()
        return [self._of_point(first) for first in range(base, self._begun, self._repeats)]

    def _of_point(self, first: int) -> list[SweepRow]:
        """The rows of all repeats of a point; none where one was left out."""
        rows = [self._rows[at] for at in range(first, first + self._repeats) if at in self._rows]
        return rows if len(rows) == self._repeats else []

    def result(self) -> SweepResult:
        """What has finished so far."""
        rows = [self._rows[number] for number in sorted(self._rows)]
        return SweepResult(rows, self._call.seed, total=self._shown.total or 0, resource=self._resource)

    def _finish(self, number: int, item: Item, row: SweepRow) -> None:
        if row.error is None:
            self._rows[number] = row  # before the journal, which may have no room
        if self._journal is not None:
            row = self._recorded(self._journal, item, row)
        if row.error is not None:
            self._rows.pop(number, None)
            if self._on_error == "raise":
                try:
                    raise row.error
                finally:
                    del row  # the traceback leads here
            if self._on_error == "keep":
                self._rows[number] = row
        if self._on_row is not None:
            self._on_row(row)
        self._shown.step()

    def _recorded(self, journal: Journal, item: Item, row: SweepRow) -> SweepRow:
        """The row, in the journal; one whose result nothing can store is a failed one."""
        try:
            _record(journal, item, row)
        except (TaskNotSerializable, ValueError) as exc:
            if row.error is not None:
                raise
            row = self._call.row(item, exc)
            strip_tracebacks(exc)
            _record(journal, item, row)
        return row


def _record(journal: Journal, item: Item, row: SweepRow) -> None:
    journal.record(
        item.key,
        item.repeat,
        row.params,
        result=row.result,
        error=row.error,
        traceback=row.traceback,
        seconds=row.seconds,
        worker=row.worker,
        attempts=row.attempts,
    )


def _check(fn: Any, repeats: Any, on_error: str, on_row: Any, rungs: Any) -> None:
    if not callable(fn):
        raise TypeError(f"sweep() needs a function to call, not {type(fn).__name__}")
    positive("repeats", repeats)
    if on_error not in ON_ERROR:
        raise ValueError(f'on_error must be "raise", "keep" or "skip", not {on_error!r}')
    if on_row is not None and not callable(on_row):
        raise TypeError(f"on_row must be a callable that takes a row, not {type(on_row).__name__}")
    if rungs is not None and not isinstance(rungs, Halving):
        raise TypeError(f"rungs must be what halving() returned, not {type(rungs).__name__}")


def _checked_keys(fn: Callable[..., Any], points: Points) -> list[bytes]:
    """The keys of points.  Raises where two points are the same, or one does not go with the function."""
    seen: dict[bytes, int] = {}
    shapes = set()
    for index, point in enumerate(points):
        first = seen.setdefault(key_of(point), index)
        if first != index:
            raise ValueError(
                f"points {first} and {index} of the space are the same: {in_words(point)} (1, 1.0 and True are equal, "
                "too). For several calls at one point there is repeats="
            )
        shapes.add(tuple(point))
    for names in shapes:
        given = dict.fromkeys(names)
        if takes_rng(fn):
            given.setdefault("rng")
        check_call(fn, f"with the names of the space, {', '.join(names)}", **given)
    return list(seen)
