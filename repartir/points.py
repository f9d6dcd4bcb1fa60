"""What `monte_carlo` calls a function with: which samples each batch has, fixed by its index, and where they come from.

A *plan* says for each batch how many samples it has and before it, and makes the calls that draw them.  Nothing that is
measured has a part in it.  Batches are small at first, so that slow functions run in parallel from the start and quick
looks are cheap, and grow to 65,536 samples, where what a batch costs by itself is little.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from repartir.streams import MONTE_CARLO, Seed, replay, rng

SCRAMBLINGS = 16
"""So many independent scramblings of Sobol's points make an error estimate."""
_LARGEST = 1 << 16
_BATCHES_A_SIZE = 64
_SOBOL_FIRST = 64
_SOBOL_BITS = 30

Array = npt.NDArray[Any]


class Call(NamedTuple):
    """One call of the function: for ``n`` samples, with the generator that `task_rng` returns in it."""

    args: tuple[Any, ...]
    generator: np.random.Generator
    n: int


class Plan(Protocol):
    """Which samples batch i has."""

    pairs: bool
    """Whether the second half of a batch's samples are the partners of the first."""
    scrambled: bool
    """Whether batches are parts of ``SCRAMBLINGS`` estimates, in turn, rather than of one."""

    def start(self, batch: int) -> int:
        """How many samples the batches before it have."""

    def looks(self) -> Iterator[int]:
        """After how many batches the tolerance is looked at, without end: when there are half as many samples more."""

    def calls(self, seed: Seed, batch: int, n: int) -> Iterator[Call]:
        """What draws the first ``n`` samples of the batch."""

    def replay(self, seed: Seed, batch: int, n: int) -> str:
        """How users draw them again."""


def batches_of(plan: Plan, samples: int) -> int:
    """How many batches have so many samples; the last may be cut."""
    high = 1
    while plan.start(high) < samples:
        high *= 2
    low = 0
    while low < high:
        middle = (low + high) // 2
        if plan.start(middle) < samples:
            low = middle + 1
        else:
            high = middle
    return low


class Streams:
    """``fn(rng, n)``: batch i has ``min(2**(i // 64), 65536)`` samples, or ``size``."""

    pairs = False
    scrambled = False

    def __init__(self, size: int | None, doublings: int = 16) -> None:
        self._size = size
        self._doublings = doublings

    def start(self, batch: int) -> int:
        if self._size is not None:
            return self._size * batch
        doublings, rest = divmod(batch, _BATCHES_A_SIZE)
        if doublings > self._doublings:
            doublings, rest = self._doublings, batch - self._doublings * _BATCHES_A_SIZE
        return _BATCHES_A_SIZE * ((1 << doublings) - 1) + (rest << doublings)

    def looks(self) -> Iterator[int]:
        batch = 1
        while True:
            yield batch
            batch = batches_of(self, math.ceil(1.5 * self.start(batch)))

    def calls(self, seed: Seed, batch: int, n: int) -> Iterator[Call]:
        generator = rng(seed, MONTE_CARLO, batch)
        yield Call((generator, n), generator, n)

    def replay(self, seed: Seed, batch: int, n: int) -> str:
        return f"fn({replay(seed, MONTE_CARLO, batch)}, {n})"


class Antithetic(Streams):
    """``fn(u)``: batch i has ``min(2**(i // 64), 32768)`` pairs u and 1 - u, or ``size`` samples."""

    pairs = True

    def __init__(self, size: int | None, dim: int) -> None:
        super().__init__(None if size is None else size // 2, doublings=15)
        self._dim = dim

    def start(self, batch: int) -> int:
        return 2 * super().start(batch)

    def calls(self, seed: Seed, batch: int, n: int) -> Iterator[Call]:
        generator = rng(seed, MONTE_CARLO, batch)
        yield Call((antithetic(generator, n, self._dim),), generator, n)

    def replay(self, seed: Seed, batch: int, n: int) -> str:
        return f"fn(repartir.points.antithetic({replay(seed, MONTE_CARLO, batch)}, {n}, {self._dim}))"


class Sobol:
    """``fn(u)``: ``SCRAMBLINGS`` sequences, of which 64 points each come first and then as many again as there are.

    Batches 0 to 15 are the first points of each scrambling, 16 to 31 the next, and so on.  With ``points`` a scrambling in
    all, fewer than 64, the first points are all.
    """

    pairs = False
    scrambled = True

    def __init__(self, dim: int, points: int | None) -> None:
        self._dim = dim
        self._first = _SOBOL_FIRST if points is None else min(points, _SOBOL_FIRST)

    def start(self, batch: int) -> int:
        stage, scrambling = divmod(batch, SCRAMBLINGS)
        begin, end = self._range(stage)
        return SCRAMBLINGS * begin + scrambling * (end - begin)

    def looks(self) -> Iterator[int]:
        return itertools.count(SCRAMBLINGS, SCRAMBLINGS)

    def calls(self, seed: Seed, batch: int, n: int) -> Iterator[Call]:
        stage, scrambling = divmod(batch, SCRAMBLINGS)
        begin, _ = self._range(stage)
        generator = rng(seed, MONTE_CARLO, scrambling)
        sequence = _sequence(generator, self._dim, begin)
        for at in range(0, n, _LARGEST):
            size = min(_LARGEST, n - at)
            yield Call((_open(sequence.random(size)),), generator, size)

    def replay(self, seed: Seed, batch: int, n: int) -> str:
        stage, scrambling = divmod(batch, SCRAMBLINGS)
        begin, _ = self._range(stage)
        return f"fn(repartir.points.sobol({replay(seed, MONTE_CARLO, scrambling)}, {n}, {self._dim}, begin={begin}))"

    def _range(self, stage: int) -> tuple[int, int]:
        """The first and the end of a stage's points in their scrambling."""
        return (self._first << stage - 1 if stage else 0), self._first << stage


def antithetic(generator: np.random.Generator, n: int, dim: int) -> Array:
    """``n / 2`` random points in the open unit cube and then their partners, ``1 - u``, exactly: (n, dim)."""
    u = (generator.integers(1 << 52, size=(n // 2, dim)) + 0.5) * 2.0**-52
    return np.concatenate((u, 1.0 - u))


def sobol(generator: np.random.Generator, n: int, dim: int, begin: int = 0) -> Array:
    """Points ``begin`` to ``begin + n`` of Sobol's sequence, scrambled by the generator, in the open unit cube: (n, dim)."""
    return _open(_sequence(generator, dim, begin).random(n))


def _sequence(generator: np.random.Generator, dim: int, begin: int) -> Any:
    from scipy.stats import qmc

    name = "rng" if "rng" in inspect.signature(qmc.Sobol).parameters else "seed"
    sequence = qmc.Sobol(dim, scramble=True, bits=_SOBOL_BITS, **{name: generator})
    return sequence.fast_forward(begin) if begin else sequence


def _open(points: Array) -> Array:
    """Each point is moved to the middle of its cell, off 0."""
    return points + 2.0 ** -(_SOBOL_BITS + 1)


def check_sobol(dim: int) -> None:
    """Raise ``ImportError`` where Sobol's points cannot be had, ``ValueError`` for more dimensions than they have."""
    try:
        from scipy.stats import qmc
    except ImportError:
        raise ImportError(
            "points='sobol' takes scipy, which is not installed: pip install scipy, or use points='antithetic'"
        ) from None
    if dim > qmc.Sobol.MAXDIM:
        raise ValueError(f"Sobol's points have at most {qmc.Sobol.MAXDIM} dimensions, not {dim}")
