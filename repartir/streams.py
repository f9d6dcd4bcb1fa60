"""Random streams that depend on a seed and a key alone: not on workers, stealing, retries, chunks, order or host.

The keys, which are a promise (`rng` replays each of them):

    item i of `map_seeded`          (i,)
    batch i of `monte_carlo`        (MONTE_CARLO, i)
    row of a `sweep`                (SWEEP, four words of BLAKE2s-128 of its parameters, repeat)

A word of a key has 32 bits, so that no two keys of one seed mean the same stream: ``SeedSequence`` runs larger numbers
into the words beside them.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, SupportsIndex, TypeAlias

import numpy as np

from repartir import worker
from repartir.ledger import name_of
from repartir.portable import add_note

MONTE_CARLO = 0x6D63
SWEEP = 0x7377
KEY_WORD_LIMIT = 1 << 32

# In quotes, for numpy loads its random numbers when they are first named.
Seed: TypeAlias = "int | tuple[int, ...] | np.random.SeedSequence"
"""What every stream of a call is made from; settled, so never None."""
Seedlike: TypeAlias = "SupportsIndex | Sequence[SupportsIndex] | np.random.SeedSequence | None"
"""What users may give for it."""


def rng(seed: Seedlike, *key: int) -> np.random.Generator:
    """The stream of ``key`` under ``seed``: ``Generator(PCG64DXSM(SeedSequence(seed, spawn_key=key)))``.

    The same bits wherever it is made.  Errors and reports of `monte_carlo`, `sweep` and `map_seeded` name the call of this
    function that replays a batch, a row, an item.

    Args:
        seed: an int, ints, a ``SeedSequence`` (its own key stands before ``key``; it is not advanced), or None: other bits
            each time.
        key: numbers from 0 to 2**32 - 1.

    Raises ``TypeError`` and ``ValueError`` for anything else.
    """
    try:
        words = tuple(operator.index(word) for word in key)
    except TypeError:
        raise TypeError(f"the words of a key must be integers, not {key!r:.80}") from None
    for word in words:
        if not 0 <= word < KEY_WORD_LIMIT:
            raise ValueError(f"the words of a key must be from 0 to 2**32 - 1, not {word}")
    settled_seed = settled(seed)
    if isinstance(settled_seed, np.random.SeedSequence):
        given = settled_seed
        sequence = np.random.SeedSequence(
            given.entropy, spawn_key=(*given.spawn_key, *words), pool_size=given.pool_size
        )
    else:
        sequence = np.random.SeedSequence(settled_seed, spawn_key=words)
    return np.random.Generator(np.random.PCG64DXSM(sequence))


def settled(seed: Seedlike) -> Seed:
    """``seed`` checked and in its plain form; one that is drawn where it is None."""
    if seed is None:
        drawn = np.random.SeedSequence().entropy
        assert isinstance(drawn, int)
        return drawn
    if isinstance(seed, np.random.SeedSequence):
        return seed
    try:
        if isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str | bytes):
            words: Seed = tuple(_nonnegative(word) for word in seed)
            if not words:
                raise ValueError("seed must not be an empty sequence")
            return words
        return _nonnegative(seed)
    except TypeError:
        raise TypeError(
            f"seed must be an int, ints, a numpy SeedSequence or None, not {type(seed).__name__}"
        ) from None


def _nonnegative(number: Any) -> int:
    if isinstance(number, bool | np.bool_):
        raise TypeError
    value = operator.index(number)
    if value < 0:
        raise ValueError(f"a seed must not be negative: {value}")
    return value


def replay(seed: Seed, *key: int) -> str:
    """The call of `rng` that makes this stream again, as users type it."""
    given: object = seed
    if isinstance(seed, np.random.SeedSequence):
        parts = [f"{seed.entropy!r}"]
        if seed.spawn_key:
            parts.append(f"spawn_key={tuple(map(int, seed.spawn_key))}")
        if seed.pool_size != np.random.SeedSequence(0).pool_size:
            parts.append(f"pool_size={seed.pool_size}")
        given = f"numpy.random.SeedSequence({', '.join(parts)})"
    words = [str(word) for word in key]
    if len(key) > 1 and key[0] in (MONTE_CARLO, SWEEP):
        words[0] = f"0x{key[0]:04X}"
    return f"repartir.rng({', '.join([str(given), *words])})"


class Place(NamedTuple):
    """A task on a stack: its process's member and how many tasks wait for it below."""

    member: worker.Worker | None
    depth: int


def place_of_task() -> Place:
    """Where the running task is: another one than that of a task on top of which it runs, and that waits for it."""
    member = worker.current()
    return Place(member, 0 if member is None else member.nest.depth())


class _Bound(NamedTuple):
    generator: np.random.Generator
    place: Place


_running: ContextVar[_Bound | None] = ContextVar("stream", default=None)


@contextmanager
def stream_of_task(generator: np.random.Generator) -> Iterator[None]:
    """While the task of this stream runs, `task_rng` returns it; not in tasks that run on top of it while it waits."""
    token = _running.set(_Bound(generator, place_of_task()))
    try:
        yield
    finally:
        _running.reset(token)


@contextmanager
def no_stream() -> Iterator[None]:
    """For a task that runs in place, perhaps called by one that has a stream."""
    token = _running.set(None)
    try:
        yield
    finally:
        _running.reset(token)


def in_stream() -> bool:
    """Whether some task on this thread's stack has a stream."""
    return _running.get() is not None


def task_rng() -> np.random.Generator:
    """The stream of the running task: of a batch of `monte_carlo`, a row of a `sweep`, an item of `map_seeded`.

    The same generator each time in one task, where the next call goes on.  For functions deep below the one that was
    given.  Elsewhere, also in a plain task that such a task has submitted: ``RuntimeError``.
    """
    bound = _running.get()
    if bound is None or bound.place != place_of_task():
        raise RuntimeError(
            "task_rng() works in the tasks of monte_carlo(), sweep() and Executor.map_seeded() only, which have a stream of "
            "their own. Elsewhere make one: repartir.rng(seed, number)"
        )
    return bound.generator


def takes_rng(fn: Callable[..., Any]) -> bool:
    """Whether ``fn`` names a parameter ``rng`` that may be given by keyword and that no ``partial`` has given already."""
    inner: Any = fn
    while isinstance(inner, functools.partial):
        if "rng" in inner.keywords:
            return False
        inner = inner.func
    try:
        parameter = inspect.signature(fn).parameters.get("rng")
    except (TypeError, ValueError):  # a builtin that tells none
        return False
    return parameter is not None and parameter.kind in (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )


class Seeded:
    """Calls ``fn`` for an item and its number, with the item's own stream."""

    def __init__(self, fn: Callable[..., Any], seed: Seedlike) -> None:
        """Raises what `rng` does for a bad seed, and ``TypeError`` for a function whose first parameter is ``rng``."""
        self.fn = fn
        self.seed = settled(seed)
        self.takes_rng = takes_rng(fn)
        self.__qualname__ = name_of(fn)
        if self.takes_rng:
            try:
                inspect.signature(fn).bind(None, rng=None)
            except TypeError as exc:
                raise TypeError(
                    f"{self.__qualname__} is called as fn(item, rng=generator), which it cannot be: {exc}"
                ) from None

    def __call__(self, number: int, item: Any) -> Any:
        generator = rng(self.seed, number)
        try:
            with stream_of_task(generator):
                return self.fn(item, rng=generator) if self.takes_rng else self.fn(item)
        except BaseException as exc:
            add_note(exc, f"item {number}: its random stream is {replay(self.seed, number)}")
            raise
