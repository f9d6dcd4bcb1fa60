"""asyncio: a task's result awaited, and ``amap``.  Loaded when one of the two is first used.

``amap`` reads from a queue of futures, oldest first.  Iterables fill it where they are asked, an asynchronous one from a
task of its own: so a result is given as soon as it is there, however long the next item takes to come.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from repartir import chunks
from repartir.chunks import Chunk, Stopped
from repartir.future import Future

T = TypeVar("T")

AnyIterable = Iterable[Any] | AsyncIterable[Any]


AHEAD_A_WORKER = 4
"""So many chunks a worker are taken from an asynchronous iterable before their results are given out."""


async def result_of(future: Future[T]) -> T:
    """The future's result.  Cancelled, it stops the task, also while a worker runs it."""
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        future.cancel(running=True)
        raise


async def zipped(iterables: Iterable[AnyIterable]) -> AsyncGenerator[tuple[Any, ...], None]:
    """Tuples of one item of each, as ``zip`` makes them, until one of them ends."""
    sources = [aiter(each) if isinstance(each, AsyncIterable) else _awaitable(each) for each in iterables]
    while True:
        items = []
        for source in sources:
            try:
                items.append(await anext(source))
            except StopAsyncIteration:
                return
        yield tuple(items)


async def _awaitable(values: Iterable[T]) -> AsyncGenerator[T, None]:
    for value in values:
        yield value


async def in_chunks(items: AsyncIterable[Any], size: int) -> AsyncGenerator[Chunk, None]:
    """``items`` in tuples of this size; the last may be shorter."""
    chunk = []
    async for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield tuple(chunk)
            chunk = []
    if chunk:
        yield tuple(chunk)


async def each(call: Callable[[Any], T], items: AsyncIterable[Any]) -> AsyncGenerator[T, None]:
    """What ``call`` makes of each item as it comes."""
    async for item in items:
        yield call(item)


async def given(values: Iterable[T]) -> AsyncGenerator[T, None]:
    """The values; others have their turn after each."""
    for value in values:
        yield value
        await asyncio.sleep(0)


class Ahead(Protocol):
    """Futures of what was submitted and not given out yet, oldest first."""

    async def first(self) -> Future[Any] | None:
        """The oldest, which stays; None when there are no more."""

    def drop_first(self) -> None:
        """It is done: make room for another."""

    async def end(self, *, running: bool) -> None:
        """Submit no more; cancel what is there, with ``running`` also what runs."""


class AheadOfIterable:
    """``pending``, and another chunk for each that is done."""

    def __init__(
        self,
        pending: Iterable[Future[Any]],
        source: Iterator[Chunk],
        submit: Callable[[Chunk], Future[Any]],
    ) -> None:
        self._pending = collections.deque(pending)
        self._source = source
        self._submit = submit

    async def first(self) -> Future[Any] | None:
        return self._pending[0] if self._pending else None

    def drop_first(self) -> None:
        self._pending.popleft()
        for chunk in itertools.islice(self._source, 1):
            self._pending.append(self._submit(chunk))

    async def end(self, *, running: bool) -> None:
        for future in self._pending:
            future.cancel(running=running)


class AheadOfAsyncIterable:
    """Chunks that come asynchronously, at most ``most`` of them submitted and not given out."""

    def __init__(
        self, source: AsyncIterator[Chunk], submit: Callable[[Chunk], Future[Any]], most: int
    ) -> None:
        self._source = source
        self._submit = submit
        self._room = asyncio.Semaphore(most)
        self._pending: collections.deque[Future[Any]] = collections.deque()
        self._news = asyncio.Event()
        self._feeder: asyncio.Task[None] | None = None

    async def first(self) -> Future[Any] | None:
        if self._feeder is None:
            self._feeder = asyncio.create_task(self._feed())
            self._feeder.add_done_callback(lambda _: self._news.set())
        while not self._pending:
            if self._feeder.done():
                self._feeder.result()
                return None
            self._news.clear()
            await self._news.wait()
        return self._pending[0]

    def drop_first(self) -> None:
        self._pending.popleft()
        self._room.release()

    async def end(self, *, running: bool) -> None:
        for future in self._pending:
            future.cancel(running=running)
        if self._feeder is not None:
            self._feeder.cancel()
            await asyncio.wait([self._feeder])
            if not self._feeder.cancelled():
                self._feeder.exception()  # its error comes too late for anybody, and asyncio need not log it

    async def _feed(self) -> None:
        await self._room.acquire()
        async for chunk in self._source:
            self._pending.append(self._submit(chunk))
            self._news.set()
            await self._room.acquire()


@dataclass(frozen=True, slots=True)
class Plan:
    """How the items of a map become tasks: ``submit`` takes a chunk, or ``one_by_one`` the arguments of one call."""

    submit: Callable[[Chunk], Future[Any]]
    workers: int
    chunksize: int | None
    buffersize: int | None
    one_by_one: bool

    def ahead(self, iterables: tuple[AnyIterable, ...]) -> Ahead:
        """Takes the items of iterables, unless there is a ``buffersize`` or one of them is asynchronous."""
        as_they_are = len(iterables) == 1 and not self.one_by_one
        if any(isinstance(each, AsyncIterable) for each in iterables):
            coming: Any = iterables[0] if as_they_are else zipped(iterables)
            if not self.one_by_one:
                coming = in_chunks(coming, self.chunksize or 1)
            return AheadOfAsyncIterable(coming, self.submit, self.buffersize or AHEAD_A_WORKER * self.workers)
        items: Any = iterables[0] if as_they_are else zip(*iterables, strict=False)
        if self.buffersize is None:
            items = list(items)
        source = (
            iter(items)
            if self.one_by_one
            else chunks.cut(items, chunks.chunk_sizes(items, self.chunksize, self.workers))
        )
        return AheadOfIterable(
            map(self.submit, itertools.islice(source, self.buffersize)), source, self.submit
        )


async def results(ahead: Ahead, *, one_by_one: bool = False) -> AsyncGenerator[Any, None]:
    """Yield the items of each future's list in order, or, ``one_by_one``, what each future holds.

    The first exception, or the end of this generator, cancels what is pending; its cancellation also stops what runs.
    """
    cancelled = False
    try:
        while (future := await ahead.first()) is not None:
            values = await asyncio.wrap_future(future)
            del future
            if one_by_one:
                values = [values]
            error = None
            if isinstance(values, Stopped):
                error, values = values.exception(), values.values
            else:
                ahead.drop_first()
            values.reverse()
            while values:
                yield values.pop()
            if error is not None:
                try:
                    raise error
                finally:
                    error = None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        cancelled = task is not None and task.cancelling() > 0  # else a future was, by a shutdown for one
        raise
    finally:
        await ahead.end(running=cancelled)
