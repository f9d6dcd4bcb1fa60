"""``map``: how items are posted, and how their outcomes come back."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

from repartir import pages
from repartir.batches import Failed, Mixed
from repartir.codec import Encoded, InheritedArrays, encode_call
from repartir.errors import SharedMemoryFull, TaskNotSerializable
from repartir.functions import FunctionRef
from repartir.future import Driver, Future
from repartir.mapjob import Folded, MapJob, count_of
from repartir.policy import Policy
from repartir.portable import add_note
from repartir.progress import Reporter
from repartir.pump import Pump
from repartir.shm.board import BoardClosed
from repartir.shm.layout import FOLD, STAR, WHOLE

T = TypeVar("T")

RANGES_A_WORKER = 8
"""A map is posted in at least so many ranges a worker, one behind the other: results come about in the order of items."""
_LARGEST_BLOCK = 1 << 20
"""Bytes of items in one block, about."""
_NEVER = 1 << 62
"""No array is so large that it goes beside the pickle."""


def check_arguments(chunksize: int | None, buffersize: int | None) -> None:
    """Raise the standard library's exceptions for bad numbers."""
    if chunksize is not None and chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    if buffersize is not None and not hasattr(buffersize, "__index__"):
        raise TypeError("buffersize must be an integer or None")
    if buffersize is not None and buffersize < 1:
        raise ValueError("buffersize must be None or > 0")


def check_reduce(
    reduce: object, chunksize: int | None, buffersize: int | None, *, return_exceptions: bool
) -> None:
    """Raise ``ValueError`` for what makes no sense beside ``reduce``."""
    if reduce is not None and (buffersize is not None or chunksize is not None or return_exceptions):
        raise ValueError("reduce does not go with chunksize, buffersize and return_exceptions")


def fold(operator: Callable[[Any, Any], Any], values: Iterable[Any]) -> Any:
    """As ``functools.reduce``; ``TypeError`` without values."""
    source = iter(values)
    for first in source:
        return functools.reduce(operator, source, first)
    raise TypeError("map(reduce=...) of no items: there is nothing to fold")


def failed(error: BaseException) -> Iterator[NoReturn]:
    """An iterator that raises ``error``."""
    raise error
    yield


def deadline(timeout: float | None) -> float | None:
    """When ``timeout`` seconds from now will have passed, on the monotonic clock."""
    return None if timeout is None else timeout + time.monotonic()


class Engine(NamedTuple):
    """What a feed needs of an executor."""

    pump: Pump
    driver: Driver
    inherited: InheritedArrays | None
    threshold: int
    workers: int
    refuse: Callable[[], None]
    """Raises the error of an executor that has ended."""


class Feed:
    """Posts the items of one map for the function ``ref``; ``posted`` counts them.

    ``star``: each item is a tuple of arguments.
    """

    def __init__(
        self,
        engine: Engine,
        job: MapJob,
        fn: Any,
        ref: FunctionRef,
        policy: Policy,
        *,
        star: bool,
        fold: bool = False,
    ) -> None:
        self.posted = 0
        self._engine = engine
        self._job = job
        self._fn = fn
        self._ref = ref
        self._held = ref.hold()
        self._policy = policy
        self._star = star
        self._flags = STAR * star | FOLD * fold | policy.flag
        self._source: Iterator[Any] | None = None
        """Where more items come from; None when there are none."""
        self._chunk = 1
        self._used = 0

    def post(self, items: Sequence[Any]) -> None:
        """All items, for members to share as they like."""
        if self._policy.one_by_one:
            for item in items:
                self._post_one(item)
        else:
            size = max(1, len(items) // (RANGES_A_WORKER * self._engine.workers))
            for first in range(0, len(items), size):
                self._post_range(items[first : first + size], self._flags)

    def post_chunks(self, items: Iterable[Any], size: int, most: int | None) -> None:
        """Chunks of ``size`` items that stay together; ``most`` of them now, and one for each that is used up."""
        self._source, self._chunk = iter(items), size
        for _ in range(most) if most is not None else itertools.count():
            if not self._post_chunk():
                break

    def used(self, count: int) -> None:
        """So many outcomes were taken."""
        self._used += count
        while self._source is not None and self._used >= self._chunk:
            self._used -= self._chunk
            try:
                self._post_chunk()
            except BoardClosed:
                self._engine.refuse()

    def _post_chunk(self) -> bool:
        assert self._source is not None
        chunk = tuple(itertools.islice(self._source, self._chunk))
        if len(chunk) < self._chunk:
            self._source = None
        if len(chunk) > 1 and not self._policy.one_by_one:
            self._post_range(chunk, self._flags | WHOLE)
        else:
            for item in chunk:
                self._post_one(item)
        return self._source is not None

    def _post_one(self, item: Any, encoded: bytes | Encoded | None = None) -> None:
        """An item that is a task of its own."""
        pump, at = self._engine.pump, self.posted
        future: Future[Any] = Future(self._engine.driver, pump.new_task_id())
        try:
            call = encoded or self._encode(tuple(item) if self._star else (item,), self._engine.threshold)
            pump.post(future, self._ref, call, 0, self._fn, self._policy, self._job, at)
        except (TaskNotSerializable, SharedMemoryFull) as exc:
            self._fail(1, exc)
        self.posted = at + 1

    def _post_range(self, items: Sequence[Any], flags: int) -> None:
        """Items in blocks, cut into pages.  Those whose arrays go beside the pickle are tasks of their own.

        What is pickled together and refers to one list has one list where it arrives.  So all items of a page are plain
        values, else one that changes its list would change others', whose number nobody foresees; a chunk that the user
        asked for is pickled as one, as in the standard library.
        """
        in_band = flags & (WHOLE | FOLD)
        threshold = _NEVER if in_band else self._engine.threshold
        block = pages.Pages()
        together = bool(flags & WHOLE) or type(items) is range  # a `range` costs nothing, however long it is
        at, count = 0, len(items) if together else 1
        while at < len(items):
            chunk = items[at : at + count]
            if count > 1 and not together and not pages.are_plain(chunk, star=self._star):
                chunk = chunk[:1]
            try:
                page = self._encode(chunk, threshold)
            except TaskNotSerializable:
                if len(chunk) > 1:
                    count = 1
                    continue
                page = None
            if page is not None and (type(page) is bytes or not page.buffers):  # type: ignore[union-attr]
                count = block.add(len(chunk), page)
                if block.size >= _LARGEST_BLOCK:
                    block = self._post_block(block, flags)
            else:
                block = self._post_block(block, flags)
                for item in chunk:
                    self._post_one(item, page if len(chunk) == 1 and not self._star else None)
                count = 1
            at += len(chunk)
        self._post_block(block, flags)

    def _post_block(self, block: pages.Pages, flags: int) -> pages.Pages:
        """Post what is in it, if there is something; an empty one."""
        if block.count:
            pump, count = self._engine.pump, block.count
            try:
                pump.post_items(
                    self._job, self.posted, count, self._ref, block.parts(), block.keep, flags, self._fn
                )
            except SharedMemoryFull as exc:
                self._fail(count, exc)
            self.posted += count
        return pages.Pages()

    def _encode(self, args: Sequence[Any], threshold: int) -> bytes | Encoded:
        """Items or arguments; ``pages.PagedItems`` and workers find them as the arguments of a call."""
        if type(args) is range:
            return pages.range_page(args)
        return encode_call(tuple(args), {}, self._engine.inherited, threshold)

    def _fail(self, count: int, error: BaseException) -> None:
        with self._engine.pump.mutex:
            self._job.give(self.posted, Failed(error, count))


class _Taking:
    """While results are taken.  At the end, whatever ended it, what is pending is cancelled; Ctrl-C also stops what runs."""

    def __init__(self, job: MapJob, shown: Reporter) -> None:
        self._job = job
        self._shown = shown
        self.raised: list[BaseException] = []
        """An item's own error, which may be a ``KeyboardInterrupt`` that is no Ctrl-C."""

    def __enter__(self) -> list[BaseException]:
        return self.raised

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        interrupted = isinstance(error, KeyboardInterrupt) and not any(error is own for own in self.raised)
        self.raised.clear()
        self._job.cancel(running=interrupted)
        self._shown.close()


def results(
    feed: Feed, job: MapJob, until: float | None, shown: Reporter, *, return_exceptions: bool
) -> Iterator[Any]:
    """Yield what comes back, in the order of items or, in an unordered job, as it comes.

    The first exception, unless it is to be returned, the time-out or the death of the iterator ends it.
    """
    taken = 0
    with _Taking(job, shown) as raised:
        while taken < feed.posted:
            _, outcome = job.take(taken, until)
            count = count_of(outcome)
            taken += count
            feed.used(count)
            shown.step(count)
            if isinstance(outcome, Failed):
                outcome = Mixed(Failed(outcome.error) for _ in range(count))
            if type(outcome) is not list:
                yield from _with_errors(outcome, raised, return_exceptions=return_exceptions)
            elif count > 1:
                yield from outcome
            else:
                yield outcome.pop()  # perhaps a large array, which nothing here keeps


def numbered(feed: Feed, job: MapJob) -> Generator[tuple[int, Any], None, None]:
    """Yield what comes back as it comes: the item's number, and its result or its error.

    However the iterator ends, nothing of the map goes on.
    """
    taken = 0
    try:
        while taken < feed.posted:
            first, outcome = job.take(taken, None)
            taken += count_of(outcome)
            feed.used(count_of(outcome))
            if isinstance(outcome, Failed):
                outcome = Mixed(Failed(outcome.error) for _ in range(outcome.count))
            assert isinstance(outcome, list)
            for number, value in enumerate(outcome, first):
                yield number, value.take() if type(value) is Failed else value
    finally:
        job.cancel(running=taken < feed.posted)


def _with_errors(outcome: Any, raised: list[BaseException], *, return_exceptions: bool) -> Iterator[Any]:
    """Values and errors; what is raised is an item's own, and noted in ``raised``."""
    outcome.reverse()
    while outcome:
        value = outcome.pop()
        if type(value) is Failed:
            failed, value = value, None
            value = failed.take()
            if not return_exceptions:
                raised.append(value)
                value = None
                raise raised[-1]
        yield value
        value = None


def folded(
    job: MapJob, feed: Feed, operator: Callable[[Any, Any], Any], until: float | None, shown: Reporter
) -> Any:
    """All outcomes folded, from the first item to the last.  Raises the first error, and ``TypeError`` without items."""

    def parts(raised: list[BaseException]) -> Iterator[Any]:
        taken = 0
        while taken < feed.posted:
            _, outcome = job.take(taken, until)
            taken += count_of(outcome)
            shown.step(count_of(outcome))
            if isinstance(outcome, Failed):
                raised.append(outcome.take())
                raise raised[-1]
            yield from [outcome.value] if isinstance(outcome, Folded) else outcome

    with _Taking(job, shown) as raised:
        return fold(operator, parts(raised))


def of_all_workers(futures: Sequence[Future[T]]) -> list[T]:
    """What the call in each worker returned, once all have ended; the first error raised, with a note that says where."""
    try:
        errors = [future.exception() for future in futures]
    except BaseException as exc:
        cancel_all(futures, exc)
        raise
    for row, error in enumerate(errors):
        if error is not None:
            add_note(error, f"in worker {row}")
            try:
                raise error
            finally:
                errors.clear()
                del error
    return [future.result() for future in futures]


def cancel_all(futures: Iterable[Future[Any]], reason: BaseException) -> None:
    """Nobody waits for these any more: cancel what has not begun and, after Ctrl-C, stop what runs."""
    for future in futures:
        future.cancel(running=isinstance(reason, KeyboardInterrupt))
