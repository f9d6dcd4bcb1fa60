"""Random streams that depend on a seed and a key alone: not on workers, stealing, retries, chunks, order or host.

The keys, which are a promise (`rng` replays each of them):

    item i of `map_seeded`          (i,)
    batch i of `monte_carlo`        (MONTE_CARLO, i)
    row of a `sweep`                (SWEEP, four words of BLAKE2s-128 of its parameters, repeat)

A word of a key has 32 bits, so that no two keys of one seed mean the same stream: ``SeedSequence`` runs larger numbers
into the words beside them.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, SupportsIndex

import numpy as np

MONTE_CARLO = 0x6D63
SWEEP = 0x7377
KEY_WORD_LIMIT = 1 << 32

Seed = int | tuple[int, ...] | np.random.SeedSequence
"""What every stream of a call is made from; settled, so never None."""
Seedlike = SupportsIndex | Sequence[SupportsIndex] | np.random.SeedSequence | None
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
    words = tuple(operator.index(word) for word in key)
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


def replay(seed: Seed, *key: int) -> str:
    """The call that makes this stream again, as text."""
    if isinstance(seed, np.random.SeedSequence):
        size = (
            f", pool_size={seed.pool_size}" if seed.pool_size != np.random.SeedSequence(0).pool_size else ""
        )
        given = f"numpy.random.SeedSequence({seed.entropy}, spawn_key={seed.spawn_key}{size})"
    else:
        given = repr(seed)
    words = [hex(word) if len(key) > 1 and not nth else str(word) for nth, word in enumerate(key)]
    return f"repartir.rng({', '.join([given, *words])})"


def takes_rng(fn: Callable[..., Any]) -> bool:
    """Whether a function has a parameter called ``rng`` that can be given by name."""
    try:
        parameter = inspect.signature(fn).parameters.get("rng")
    except (TypeError, ValueError):  # written in C
        return False
    return parameter is not None and parameter.kind in (
        parameter.POSITIONAL_OR_KEYWORD,
        parameter.KEYWORD_ONLY,
    )


def _nonnegative(number: Any) -> int:
    if isinstance(number, bool | np.bool_):
        raise TypeError
    value = operator.index(number)
    if value < 0:
        raise ValueError(f"a seed must not be negative: {value}")
    return value


_running: ContextVar[np.random.Generator | None] = ContextVar("stream", default=None)


@contextmanager
def stream_of_task(generator: np.random.Generator) -> Iterator[None]:
    """While the task of this stream runs, `task_rng` returns it."""
    token = _running.set(generator)
    try:
        yield
    finally:
        _running.reset(token)


def task_rng() -> np.random.Generator:
    """The stream of the running task: of a batch of `monte_carlo`, a row of a `sweep`, an item of `map_seeded`.

    The same generator each time in one task, where the next call goes on.  For functions deep below the one that was
    given.  Elsewhere: ``RuntimeError``.
    """
    generator = _running.get()
    if generator is None:
        raise RuntimeError(
            "task_rng() works in the tasks of monte_carlo(), sweep() and Executor.map_seeded() only, which have a stream of "
            "their own. Elsewhere make one: repartir.rng(seed, number)"
        )
    return generator
