"""Functions that tests of streams and of monte_carlo submit."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np

import repartir
from repartir import current_executor, task_rng

from .option_tasks import count


def draw(item: int, rng: np.random.Generator) -> tuple[int, int, bool]:
    return item, int(rng.integers(2**62)), task_rng() is rng


def draw_deep(item: int) -> tuple[int, int, bool]:
    """What `draw` does, for a function that does not name the generator."""
    return item, int(task_rng().integers(2**62)), task_rng() is task_rng()


def draw_or_die(path: Path, times: int, item: int, rng: np.random.Generator) -> tuple[int, int, bool]:
    """Draws, and the first times dies or raises then."""
    drawn = draw(item, rng)
    if item % 3 == 1 and (calls := count(path)) <= times:
        if calls % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError(item)
    return drawn


def fails_at(item: int, at: int = 3) -> int:
    if item == at:
        raise ValueError(f"item {item}")
    return item


def has_no_stream(_: object = None) -> bool:
    try:
        task_rng()
    except RuntimeError:
        return True
    return False


def waits_for_plain_ones(item: int, rng: np.random.Generator) -> list[bool]:
    """Whether children have no stream while this task has one, those with a stream of their own apart."""
    executor = current_executor()
    futures = [executor.submit(has_no_stream) for _ in range(4)]
    found = [future.result() for future in futures]
    found += executor.map(has_no_stream, range(4))
    found += executor.map(has_no_stream, [np.ones(1 << 14)] * 2)
    seeded = list(executor.map_seeded(draw, range(3), seed=item))
    found.append(seeded == list(repartir.SerialExecutor().map_seeded(draw, range(3), seed=item)))
    found.append(task_rng() is rng)
    return found


def plain_that_waits_for_seeded(_: int) -> list[bool]:
    executor = current_executor()
    found = [flag for *_, flag in executor.map_seeded(draw_deep, range(3), seed=1)]
    return [*found, has_no_stream()]


def normals(rng: np.random.Generator, n: int) -> Any:
    return 1e6 + rng.standard_normal(n)


def mixture(rng: np.random.Generator, n: int) -> dict[str, Any]:
    z = rng.standard_normal((n, 3))
    return {"sum": np.exp(z).sum(axis=1), "each": z, "hit": z[:, 0] > 1}


def normals_or_die(path: Path, times: int, rng: np.random.Generator, n: int) -> Any:
    if n == 4 and (calls := count(path)) <= times:
        if calls % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError(calls)
    return normals(rng, n)


class UnluckyError(Exception):
    """Can be referred to weakly."""


def unlucky(rng: np.random.Generator, n: int) -> Any:
    raise UnluckyError


def estimate_inside(samples: int) -> Any:
    return repartir.monte_carlo(normals, samples, seed=7)


def ring_and_draw(bell: Any, gate: Any, rng: np.random.Generator, n: int) -> Any:
    """From the second size of batches on, tell and wait."""
    if n == 2:
        bell.ring()
        gate.wait()
    return normals(rng, n)
