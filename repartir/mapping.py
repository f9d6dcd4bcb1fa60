"""``map``: how items are cut into chunks, and how results come back in order."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from repartir.future import Future
from repartir.worker import Stopped

T = TypeVar("T")

_LARGEST_SHARE = 16
_GUIDED_SHARE = 4

Chunk = tuple[Any, ...]


def check_arguments(chunksize: int | None, buffersize: int | None) -> None:
    """Raise the standard library's exceptions for bad numbers."""
    if chunksize is not None and chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    if buffersize is not None and not isinstance(buffersize, int):
        raise TypeError("buffersize must be an integer or None")
    if buffersize is not None and buffersize < 1:
        raise ValueError("buffersize must be None or > 0")


def guided_sizes(items: int, workers: int) -> Iterator[int]:
    """Chunk sizes for ``items``: a share of what is left, so they shrink and all workers end at about one time."""
    largest = max(1, items // (_LARGEST_SHARE * workers))
    while items > 0:
        size = min(largest, max(1, items // (_GUIDED_SHARE * workers)))
        yield size
        items -= size


def chunks(items: Iterable[Any], sizes: Iterable[int]) -> Iterator[Chunk]:
    """``items`` cut into tuples of these sizes."""
    source = iter(items)
    for size in sizes:
        chunk = tuple(itertools.islice(source, size))
        if not chunk:
            return
        yield chunk


def deadline(timeout: float | None) -> float | None:
    """When ``timeout`` seconds from now will have passed, on the monotonic clock."""
    return None if timeout is None else timeout + time.monotonic()


def results(
    pending: deque[Future[Any]],
    more: Callable[[], Future[Any] | None],
    until: float | None,
    *,
    one_by_one: bool = False,
) -> Iterator[Any]:
    """Yield the items of each future's list in order, or, ``one_by_one``, what each future holds.

    ``more`` makes the next future after each is used up.

    The first exception, the time-out or the death of the iterator cancels what is pending; Ctrl-C also stops what runs.
    """
    interrupted = False
    try:
        while pending:
            future = pending[0]
            values = future.result(None if until is None else until - time.monotonic())
            pending.popleft()
            del future
            if one_by_one:
                values = [values]
            error = None
            if isinstance(values, Stopped):
                error, values = values.exception(), values.values
            elif (following := more()) is not None:
                pending.append(following)
            values.reverse()
            while values:
                yield values.pop()
            if error is not None:
                try:
                    raise error
                finally:
                    error = None
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        for future in pending:
            future.cancel(running=interrupted)


def of_all_workers(futures: Sequence[Future[T]]) -> list[T]:
    """What the call in each worker returned, once all have ended; the first error raised, with a note that says where."""
    try:
        errors = [future.exception() for future in futures]
    except BaseException as exc:
        cancel_all(futures, exc)
        raise
    for row, error in enumerate(errors):
        if error is not None:
            error.add_note(f"in worker {row}")
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
