"""What a worker does of a `monte_carlo`: it draws consecutive batches and returns what they add up to."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from repartir.ledger import name_of
from repartir.moments import LARGEST_COVARIANCE, Block, moments_of
from repartir.points import Call, Plan
from repartir.portable import add_note
from repartir.sketch import Array, Bins, sketch_of
from repartir.streams import Seed, stream_of_task
from repartir.tally import Node, Tally, Tree, joined


class Layout(NamedTuple):
    """What the function returns beside the number of samples: the shape of a sample for each key, or for None."""

    shapes: tuple[tuple[Any, tuple[int, ...]], ...]

    def blocks(self) -> tuple[Block, ...]:
        """The columns of vectors that are not too long."""
        found, at = [], 0
        for _, shape in self.shapes:
            size = math.prod(shape)
            if len(shape) == 1 and 2 <= size <= LARGEST_COVARIANCE:
                found.append((at, at + size))
            at += size
        return tuple(found)

    def __str__(self) -> str:
        shapes = {key: f"(n{''.join(f', {size}' for size in shape) or ','})" for key, shape in self.shapes}
        return shapes.get(None) or "{" + ", ".join(f"{key!r}: {text}" for key, text in shapes.items()) + "}"


class Drawn(NamedTuple):
    """What consecutive batches came to.  `seconds`: how long they took."""

    nodes: list[Node]
    layout: Layout
    seconds: float


class Draw:
    """Draws batches; it travels to workers as a function does.

    Args:
        fn, plan, seed: what is called, with what, from which stream.
        nan_policy: "raise", "omit" or "propagate".
        with_sketch, bins: what is kept beside the moments.
        controls: the keys whose covariance with all others is kept.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        plan: Plan,
        seed: Seed,
        nan_policy: str,
        *,
        with_sketch: bool,
        bins: Bins | None,
        controls: tuple[Any, ...],
    ) -> None:
        self.fn = fn
        self.plan = plan
        self.seed = seed
        self.nan_policy = nan_policy
        self.with_sketch = with_sketch
        self.bins = bins
        self.controls = controls
        self.__qualname__ = name_of(fn)

    def __call__(self, first: int, end: int, samples: int) -> Drawn:
        """Batches ``first`` to ``end``, with ``samples`` in all."""
        began = time.perf_counter()
        tree, layout, last = Tree(), None, self.plan.start(first) + samples
        nodes = []
        for batch in range(first, end):
            n = min(self.plan.start(batch + 1), last) - self.plan.start(batch)
            try:
                tally, layout = self._batch(batch, n, layout)
            except BaseException as exc:
                add_note(exc, self._where(batch, n))
                raise
            node = Node(0, batch, tally)
            if self.plan.scrambled:
                nodes.append(node)
            else:
                tree.add(node)
        assert layout is not None
        return Drawn(nodes or tree.nodes, layout, time.perf_counter() - began)

    def _where(self, batch: int, n: int) -> str:
        return f"batch {batch} of monte_carlo: {self.plan.replay(self.seed, batch, n)} draws it again"

    def _batch(self, batch: int, n: int, layout: Layout | None) -> tuple[Tally, Layout]:
        total: Tally | None = None
        for call in self.plan.calls(self.seed, batch, n):
            with stream_of_task(call.generator):
                result = self.fn(*call.args)
            columns, found = columns_of(result, call.n)
            if layout is None:
                self._check_controls(found)
            elif found != layout:
                raise ValueError(f"{self.__qualname__} returned {found}, in batches before this one {layout}")
            layout = found
            tally = self._tally(columns, call, layout)
            total = tally if total is None else joined(total, tally)
        assert total is not None
        assert layout is not None
        return total, layout

    def _check_controls(self, layout: Layout) -> None:
        if not self.controls:
            return
        shapes = dict(layout.shapes)
        if any(shapes.get(key) != () for key in self.controls) or any(shapes.values()):
            raise ValueError(
                f"with control={{…}} the function must return a dict of arrays of shape (n,), among them one for each of "
                f"{', '.join(map(repr, self.controls))}; it returned {layout}"
            )
        if len(shapes) == len(self.controls):
            raise ValueError(
                f"all that the function returns is in control: {layout}; nothing is left to estimate"
            )

    def _tally(self, columns: Array, call: Call, layout: Layout) -> Tally:
        totals, omitted = None, 0
        if columns.dtype != np.bool_:
            with np.errstate(invalid="ignore"):
                totals = columns.sum(axis=1)
            if np.isnan(totals).any():
                kept = self._without_nans(columns, call)
                omitted, columns, totals = columns.shape[1] - kept.shape[1], kept, None
        sketches = tuple(map(sketch_of, columns.astype(float))) if self.with_sketch else ()
        counts = (
            None if self.bins is None else np.stack([self.bins.counts(row) for row in columns.astype(float)])
        )
        samples = columns.shape[1]
        if self.plan.pairs:
            half = samples // 2
            columns, totals = (columns[:, :half].astype(float) + columns[:, half:]) / 2, None
        blocks = ((0, len(columns)),) if self.controls else layout.blocks()
        return Tally(samples, omitted, moments_of(columns, blocks, totals), sketches, counts)

    def _without_nans(self, columns: Array, call: Call) -> Array:
        """The samples as the policy wants them; one that is NaN in any column goes, and with it its partner."""
        bad = np.asarray(np.isnan(columns).any(axis=0))
        if self.nan_policy == "propagate" or not bad.any():
            return columns
        if self.nan_policy == "raise":
            raise ValueError(
                f"{self.__qualname__} returned NaN for {np.count_nonzero(bad)} of {call.n} samples, the first is number "
                f"{int(bad.argmax())}; nan_policy='omit' drops and counts them, 'propagate' lets them through"
            )
        if self.plan.pairs:
            half = len(bad) // 2
            bad = np.tile(bad[:half] | bad[half:], 2)
        return np.ascontiguousarray(columns[:, ~bad])


def columns_of(result: Any, n: int) -> tuple[Array, Layout]:
    """What the function has returned for ``n`` samples as floats or booleans of shape (k, n), a column after the other.

    Raises ``ValueError`` for another number of samples, ``TypeError`` for what are no real numbers.
    """
    parts = result if isinstance(result, Mapping) else {None: result}
    if not parts:
        raise ValueError("got an empty dict: the function must return samples, an array or a dict of arrays")
    arrays = {key: _samples(key, value, n) for key, value in parts.items()}
    layout = Layout(tuple((key, array.shape[1:]) for key, array in arrays.items()))
    rows = [array.reshape(n, -1).T for array in arrays.values()]
    if len(rows) == 1 and len(rows[0]) == 1:
        return np.ascontiguousarray(rows[0]), layout
    if any(row.dtype != np.bool_ for row in rows):
        rows = [row.astype(float, copy=False) for row in rows]
    return np.ascontiguousarray(np.concatenate(rows)), layout


def _samples(key: Any, value: Any, n: int) -> Array:
    if np.ma.is_masked(value):
        value = value.astype(float).filled(math.nan)
    array = np.asarray(value)
    where = "" if key is None else f" for {key!r}"
    if array.ndim == 0 or len(array) != n:
        one = (
            ""
            if array.ndim
            else f" (it returned {'None' if value is None else f'one {type(value).__name__}'})"
        )
        raise ValueError(
            f"got shape {array.shape}{where}, expected (n,) or (n, ...) with n = {n}{one}: return n samples, as "
            "rng.random(n) does, or a dict of such arrays"
        )
    if 0 in array.shape:
        raise ValueError(f"got shape {array.shape}{where}: a sample has no components")
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"got {array.dtype} samples{where}, expected real numbers"
            + (": return a dict of their real and imaginary parts" if array.dtype.kind == "c" else "")
        )
    return array if array.dtype == np.bool_ else array.astype(float, copy=False)
