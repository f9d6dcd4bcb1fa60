"""``monte_carlo``: means of random samples with their errors, drawn by workers, the same bits whoever draws."""

from __future__ import annotations

import concurrent.futures
import logging
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from repartir import worker
from repartir.borrowed import check_executor, executor_for
from repartir.door import check_call, positive
from repartir.draws import Draw, Drawn, Layout
from repartir.errors import Interrupted
from repartir.estimate import Asked, Estimate, estimate_of, excess_of
from repartir.ledger import name_of
from repartir.points import SCRAMBLINGS, Antithetic, Plan, Sobol, Streams, batches_of, check_sobol
from repartir.progress import Reporter, Told, reporter
from repartir.sketch import Bins
from repartir.spans import Span, Spans
from repartir.streams import Seedlike, settled
from repartir.tally import Scramblings, Tree

NAN_POLICIES = ("raise", "omit", "propagate")
POINTS = (None, "antithetic", "sobol")
_STILL_EQUAL = 10_000_000
"""After so many samples that are all the same a run that only a tolerance would end is logged."""
_log = logging.getLogger("repartir")


def monte_carlo(
    fn: Callable[..., Any],
    samples: int | None = None,
    *,
    tol: float | None = None,
    rtol: float | None = None,
    min_samples: int = 1_000,
    seed: Seedlike = None,
    executor: concurrent.futures.Executor | None = None,
    batch: int | None = None,
    confidence: float = 0.95,
    nan_policy: str = "raise",
    progress: bool | Told = False,
    quantiles: Iterable[float] | None = None,
    histogram: tuple[int, tuple[float, float]] | None = None,
    control: Mapping[Any, float] | None = None,
    points: str | None = None,
    dim: int | None = None,
) -> Estimate:
    """Estimate the mean of what ``fn`` samples, with its error.

    ``fn(rng, n)`` returns ``n`` independent samples along the first axis, drawn from the numpy generator ``rng``: an array
    of shape (n,) or (n, …), or a dict of such arrays.  Further arguments go in by a closure or ``functools.partial``.  The
    samples stay in the workers; only what they add up to travels.

    The result depends on the arguments alone, to the last bit on the same numpy and kind of CPU: not on the executor, its
    workers, their speed, retries.  Batch i has ``min(2**(i // 64), 65536)`` samples (or ``batch``) from the stream
    ``repartir.rng(seed, 0x6D63, i)``; errors name the call that draws their batch again.

    Args:
        samples: how many to draw; with ``tol`` or ``rtol`` how many at most.
        tol: draw until the half-width of the confidence interval is at most that, of every component.
        rtol: the same, relative to the absolute mean.  With both, both must hold.  Looks happen after fixed batches, each
            time after half as many samples again; samples that are all equal never end a run, so without ``samples`` such a
            run goes on until Ctrl-C.
        min_samples: the least number of samples that a tolerance may end with, unless ``samples`` is less.
        seed: an int, ints or a numpy ``SeedSequence``; None: one is drawn, which ``est.seed`` keeps.
        executor: where to draw: any ``concurrent.futures.Executor``.  None: the current one in a task, elsewhere one that is
            made for the call.
        batch: samples a batch, for functions that want more or fewer at a time.
        confidence: of the interval, between 0 and 1.
        nan_policy: "raise": NaN is an error.  "omit": samples with NaN in some component are dropped and counted.
            "propagate": the estimate is NaN.  What is masked counts as NaN.
        progress: True shows samples, estimate, error, rate and time left; a callable is told (samples done, total).  With a
            tolerance the total is the number that it will probably take.
        quantiles: from 0 to 1; told within 0.1 % of their values, see `sketch.py`.
        histogram: (bins, (low, high)): counts as those of ``numpy.histogram``.
        control: known means of some keys of the dict that ``fn`` returns: these are control variates for the other keys.
            All samples are numbers then.
        points: "antithetic" or "sobol": ``fn(u)`` is called with points u of shape (n, dim) in the open unit cube: pairs of
            u and 1 - u, the error from the means of pairs, or 16 scramblings of Sobol's points, the error from their means.
        dim: the dimensions of the points.

    Returns an `Estimate`.  Raises ``ValueError`` and ``TypeError`` for bad arguments before any work, what ``fn`` raises,
    and `Interrupted`, a ``KeyboardInterrupt`` whose ``partial`` is the estimate so far (None before there is one).
    """
    stop = _stop(samples, tol, rtol, min_samples)
    plan = _plan(points, dim, batch, stop.samples)
    if nan_policy not in NAN_POLICIES:
        raise ValueError(f"nan_policy must be 'raise', 'omit' or 'propagate', not {nan_policy!r}")
    if not (_is_number(confidence) and 0 < confidence < 1):
        raise ValueError(f"confidence must be between 0 and 1, not {confidence!r}")
    if not callable(fn):
        raise TypeError(f"fn must be callable, not {type(fn).__name__}")
    if points is None:
        check_call(fn, "as fn(rng, n)", None, 1)
    else:
        check_call(fn, "as fn(u)", None)
    check_executor(executor)
    asked = Asked(
        settled(seed), float(confidence), _quantiles(quantiles), _bins(histogram), _controls(control)
    )
    draw = Draw(
        fn,
        plan,
        asked.seed,
        nan_policy,
        with_sketch=asked.quantiles is not None,
        bins=asked.bins,
        controls=tuple(asked.controls),
    )
    shown = reporter(progress, name_of(fn), stop.samples)
    with executor_for(executor, idempotent=True) as ex:
        is_own = executor is None and worker.current() is None
        return _Run(draw, plan, stop, asked, shown).on(ex, is_own=is_own)


class _Stop(NamedTuple):
    """When to stop; `samples` or one of the tolerances is there."""

    samples: int | None
    tol: float | None
    rtol: float | None
    min_samples: int

    @property
    def has_tolerance(self) -> bool:
        return self.tol is not None or self.rtol is not None


class _Run:
    """One call, while it goes on."""

    def __init__(self, draw: Draw, plan: Plan, stop: _Stop, asked: Asked, shown: Reporter) -> None:
        self._draw = draw
        self._plan = plan
        self._stop = stop
        self._asked = asked
        self._shown = shown
        self._joins: Tree | Scramblings = Scramblings() if plan.scrambled else Tree()
        self._layout: Layout | None = None
        self._has_warned = False
        shown.note = self._note

    def on(self, executor: concurrent.futures.Executor, *, is_own: bool) -> Estimate:
        """The estimate; whatever ends it, nothing of it is left waiting in the executor.

        ``is_own``: nobody else uses its workers, so those that still draw are stopped, where others are let to finish.
        """
        plan, stop = self._plan, self._stop
        end = None if stop.samples is None else batches_of(plan, stop.samples)
        cuts = plan.looks() if stop.has_tolerance else None
        spans = Spans(executor, self._draw, plan, end, stop.samples, cuts)
        was_interrupted = False
        try:
            with self._shown:
                return self._drawn(spans)
        except KeyboardInterrupt as exc:
            if exc is spans.raised:
                raise
            was_interrupted = True
            raise self._interrupted() from None
        finally:
            spans.close(running=was_interrupted or is_own)

    def _drawn(self, spans: Spans) -> Estimate:
        looks, look = self._plan.looks(), 0
        while (taken := spans.take()) is not None:
            self._take(*taken)
            end = taken[0].end
            while look < end:
                look = next(looks)
            if self._stop.has_tolerance and look == end and (met := self._look()) is not None:
                return met
        met = self._look() if self._stop.has_tolerance else None
        estimate = met or self._estimate(converged=not self._stop.has_tolerance)
        if estimate is None:
            raise ValueError(
                f"all samples of {self._draw.__qualname__} are NaN: there is nothing to estimate"
            )
        return estimate

    def _take(self, span: Span, drawn: Drawn) -> None:
        if self._layout is None:
            self._layout = drawn.layout
        elif self._layout != drawn.layout:
            raise ValueError(
                f"{self._draw.__qualname__} returned {drawn.layout} from batch {span.first} on, before that {self._layout}"
            )
        for node in drawn.nodes:
            self._joins.add(node)
        self._shown.step(span.samples)

    def _look(self) -> Estimate | None:
        """The estimate, if it is as good as was asked for."""
        stop, estimate = self._stop, self._estimate(converged=True)
        if estimate is None or estimate.samples < stop.min_samples:
            return None
        excess = excess_of(estimate, stop.tol, stop.rtol)
        if excess <= 1:
            return estimate
        if math.isfinite(excess):
            needed = math.ceil(self._shown.done * excess**2)
            self._shown.total = needed if stop.samples is None else min(needed, stop.samples)
        elif stop.samples is None and estimate.samples >= _STILL_EQUAL and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "monte_carlo(%s): after %d samples the tolerance cannot be judged, since the variance of some result is 0 "
                "or not a number. It goes on until that changes: Ctrl-C ends it, samples= is a cap",
                self._draw.__qualname__,
                estimate.samples,
            )
        return None

    def _estimate(self, *, converged: bool) -> Estimate | None:
        total = self._joins.total()
        if total is None or self._layout is None or not total.moments.n:
            return None
        return estimate_of(total, self._layout, self._asked, converged=converged)

    def _interrupted(self) -> Interrupted:
        partial = self._estimate(converged=False)
        so_far = "before there was an estimate" if partial is None else f"at {partial!r}: see .partial"
        return Interrupted(
            f"monte_carlo({self._draw.__qualname__}) was interrupted {so_far}", partial=partial
        )

    def _note(self) -> str:
        estimate = self._estimate(converged=True)
        return "" if estimate is None else estimate.in_short()


def _stop(samples: int | None, tol: float | None, rtol: float | None, min_samples: int) -> _Stop:
    if samples is None and tol is None and rtol is None:
        raise ValueError(
            "monte_carlo() must know when to stop: give samples, a number of them, or tol or rtol, a half-width of the "
            "confidence interval"
        )
    if samples is not None:
        samples = positive("samples", samples)
    for name, value in (("tol", tol), ("rtol", rtol)):
        if value is not None and not (_is_number(value) and 0 < value < math.inf):
            raise ValueError(f"{name} must be a number greater than 0, not {value!r}")
    least = positive("min_samples", min_samples)
    return _Stop(samples, tol, rtol, least if samples is None else min(least, samples))


def _plan(points: str | None, dim: int | None, batch: int | None, samples: int | None) -> Plan:
    if points not in POINTS:
        raise ValueError(f"points must be None, 'antithetic' or 'sobol', not {points!r}")
    if (points is None) != (dim is None):
        raise ValueError(
            "points and dim go together: dim is how many random numbers from (0, 1) a sample is made of"
        )
    if batch is not None:
        batch = positive("batch", batch)
    if dim is None:
        return Streams(batch)
    dim = positive("dim", dim)
    if points == "antithetic":
        for name, value in (("samples", samples), ("batch", batch)):
            if value is not None and value % 2:
                raise ValueError(f"antithetic points come in pairs: {name} must be even, not {value}")
        return Antithetic(batch, dim)
    if batch is not None:
        raise ValueError("batch does not go with points='sobol', whose batches are parts of its sequences")
    check_sobol(dim)
    if samples is None:
        return Sobol(dim, None)
    each = samples // SCRAMBLINGS
    if samples != each * SCRAMBLINGS or each & (each - 1):
        below = SCRAMBLINGS << max(each.bit_length() - 1, 0)
        raise ValueError(
            f"Sobol's points are balanced in powers of two: samples must be {SCRAMBLINGS} scramblings of so many, such as "
            f"{below} or {2 * below}, not {samples}"
        )
    return Sobol(dim, each)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _quantiles(given: Iterable[float] | None) -> tuple[float, ...] | None:
    if given is None:
        return None
    if not isinstance(given, Iterable):
        raise TypeError(f"quantiles must be some numbers from 0 to 1, such as [0.05, 0.95], not {given!r}")
    found = tuple(given)
    if not found:
        raise ValueError("quantiles must not be empty")
    for q in found:
        if not (_is_number(q) and 0 <= q <= 1):
            raise ValueError(f"quantiles must be from 0 to 1, not {q!r}")
    return tuple(map(float, found))


def _bins(given: tuple[int, tuple[float, float]] | None) -> Bins | None:
    if given is None:
        return None
    try:
        count, (low, high) = given
    except (TypeError, ValueError):
        raise TypeError(f"histogram must be (bins, (low, high)), not {given!r}") from None
    if not (_is_number(low) and _is_number(high) and -math.inf < low < high < math.inf):
        raise ValueError(
            f"the histogram's range must be two numbers, the lower one first, not {(low, high)!r}"
        )
    return Bins(positive("the histogram's bins", count), float(low), float(high))


def _controls(given: Mapping[Any, float] | None) -> Mapping[Any, float]:
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not given:
        raise TypeError(f"control must be a dict of known means, such as {{'spot': 100.0}}, not {given!r}")
    for key, value in given.items():
        if not (_is_number(value) and math.isfinite(value)):
            raise ValueError(f"the known mean of {key!r} must be a number, not {value!r}")
    return {key: float(value) for key, value in given.items()}
