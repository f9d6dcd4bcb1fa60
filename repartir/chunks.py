"""Chunks: items of a map that travel as one task, in a pool's maps, in those of tasks and in asyncio's.

`executor.Executor.map` cuts none, see `mapping`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from repartir import outcome
from repartir.pages import are_plain
from repartir.portable import without_outermost_frame

Chunk = tuple[Any, ...]

_LARGEST_SHARE = 16
_GUIDED_SHARE = 4


def guided_sizes(items: int, workers: int) -> Iterator[int]:
    """Chunk sizes for ``items``: a share of what is left, so they shrink and all workers end at about one time."""
    largest = max(1, items // (_LARGEST_SHARE * workers))
    while items > 0:
        size = min(largest, max(1, items // (_GUIDED_SHARE * workers)))
        yield size
        items -= size


def chunk_sizes(items: object, chunksize: int | None, workers: int) -> Iterable[int]:
    """The sizes of the chunks in which items travel: ``chunksize``, or where that is None what suits their number.

    Those that could share an object, and those whose number is not known, then go one by one: see `mapping.Feed`.
    """
    if chunksize is None and isinstance(items, list) and are_plain(items, star=False):
        return guided_sizes(len(items), workers)
    return itertools.repeat(chunksize or 1)


def cut(items: Iterable[Any], sizes: Iterable[int]) -> Iterator[Chunk]:
    """``items`` cut into tuples of these sizes."""
    source = iter(items)
    for size in sizes:
        chunk = tuple(itertools.islice(source, size))
        if not chunk:
            return
        yield chunk


class Stopped:
    """A chunk of a map that an item's exception ended: the values before it, and the encoded error."""

    def __init__(self, values: list[Any], error: bytes) -> None:
        self.values = values
        self.error = error

    def exception(self) -> BaseException:
        """The item's exception, with its remote traceback."""
        result = outcome.decode_outcome(self.error)
        assert isinstance(result, outcome.Error)
        return result.exception


def call_many(fn: Callable[..., Any], calls: tuple[tuple[Any, ...], ...]) -> list[Any] | Stopped:
    """One chunk of a map over several iterables."""
    values: list[Any] = []
    try:
        for args in calls:
            values.append(fn(*args))
    except BaseException as exc:  # noqa: BLE001 - the map raises it after the values before it
        return _stopped(values, exc)
    return values


def call_each(fn: Callable[..., Any], items: tuple[Any, ...]) -> list[Any] | Stopped:
    """One chunk of a map over one iterable."""
    values: list[Any] = []
    try:
        for item in items:
            values.append(fn(item))
    except BaseException as exc:  # noqa: BLE001 - the map raises it after the values before it
        return _stopped(values, exc)
    return values


def _stopped(values: list[Any], exc: BaseException) -> Stopped:
    without_outermost_frame(exc)
    body = outcome.encode_outcome(outcome.caught(exc))
    assert isinstance(body, bytes)
    return Stopped(values, body)
