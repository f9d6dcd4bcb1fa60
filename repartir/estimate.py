"""What `monte_carlo` returns, and how it is made of what was kept of the samples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from repartir.draws import Layout
from repartir.moments import LARGEST_COVARIANCE, Moments
from repartir.sketch import Array, Bins, Histogram, quantile
from repartir.streams import Seed
from repartir.student import two_sided
from repartir.tally import Tally


@dataclasses.dataclass(frozen=True, slots=True, eq=False, repr=False)
class Estimate:
    """The result of a `monte_carlo`.

    Floats where a sample is a number, arrays of a sample's shape where it is an array.  Where the function returns a dict,
    ``est["call"]`` is the estimate of a key, and ``est.mean["call"]`` the same as ``est["call"].mean``.

    Attributes:
        mean: the estimate.
        stderr: its standard error; NaN with one sample.
        var: variance of a sample (ddof=1).  With control variates what they leave of it, with antithetic points that of the
            means of pairs, with Sobol's that of the means of scramblings: ``stderr`` is the root of it over their number.
        ci: (low, high), the confidence interval of the mean by Student's t.
        samples: how many samples the estimate is made of.
        seed: what it was drawn from; the same seed gives the same bits.
        converged: whether the rule that was asked for ended it: the tolerance is met or, without one, all samples were
            drawn.  False where ``samples`` or Ctrl-C came first.
        confidence: of ``ci``.
        nan_omitted: how many samples were left out, with ``nan_policy="omit"``.
        cov: covariance matrix (ddof=1) of samples that are vectors of 2 to 64 components; else None.
        quantiles: by q, the sample of rank ``floor(q * (n - 1))`` within 0.1 % of its value; None if not asked for.
        histogram: (counts, edges) as of ``numpy.histogram``; None if not asked for.
        outside: how many samples lie (below, above) the histogram.
        variance_reduction: by how much control variates have divided the variance; None without.
    """

    mean: Any
    stderr: Any
    var: Any
    ci: Any
    samples: int
    seed: Seed
    converged: bool
    confidence: float
    nan_omitted: int = 0
    cov: Any = None
    quantiles: Any = None
    histogram: Any = None
    outside: Any = None
    variance_reduction: Any = None
    _parts: Mapping[Any, Estimate] | None = None

    def __getitem__(self, key: Any) -> Estimate:
        """The estimate of a key of the dict that the function returns."""
        if self._parts is None:
            raise TypeError(
                "the function returned no dict, so the estimate has no keys: use est.mean and so on"
            )
        return self._parts[key]

    def keys(self) -> tuple[Any, ...]:
        """The keys of the function's dict that are estimated, () where it returned none."""
        return tuple(self._parts or ())

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys())

    def __eq__(self, other: object) -> bool:
        """Whether all is the same to the last bit."""
        if not isinstance(other, Estimate):
            return NotImplemented
        return all(
            _same(getattr(self, field.name), getattr(other, field.name)) for field in dataclasses.fields(self)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        tail = "" if self.converged else ", not converged"
        return f"<Estimate {self.in_short()}: {self.samples:,} samples{tail}>"

    def in_short(self) -> str:
        """Mean ± standard error in words."""
        if self._parts is None:
            return _shown(self.mean, self.stderr)
        return ", ".join(f"{key}: {part.in_short()}" for key, part in self._parts.items())


def _shown(mean: Any, stderr: Any) -> str:
    if isinstance(mean, float):
        digits = 6
        if 0 < stderr < math.inf and mean:
            digits = min(17, max(2, 2 + math.floor(math.log10(abs(mean))) - math.floor(math.log10(stderr))))
        return f"{mean:.{digits}g} ± {stderr:.2g}"
    return f"array{mean.shape} ± at most {np.max(stderr):.2g}"


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.random.SeedSequence) and isinstance(b, np.random.SeedSequence):
        return bool(a.state == b.state)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b, equal_nan=True)
    return type(a) is type(b) and bool(a == b or (a != a and b != b))


class Asked(NamedTuple):
    """What is wanted of the samples.  `controls`: keys and their known means."""

    seed: Seed
    confidence: float
    quantiles: tuple[float, ...] | None
    bins: Bins | None
    controls: Mapping[Any, float]


class _Spread(NamedTuple):
    """Of the columns: means, variances, standard errors, and how many degrees of freedom these have."""

    mean: Array
    var: Array
    stderr: Array
    freedom: int
    reduction: Array | None = None


def estimate_of(tally: Tally, layout: Layout, asked: Asked, *, converged: bool) -> Estimate:
    """The estimate from one sample or more."""
    with np.errstate(all="ignore"):
        if asked.controls:
            spread = _controlled(tally.moments, layout, asked.controls)
        else:
            spread = _spread(tally.moments)
        half = two_sided(asked.confidence, max(1, spread.freedom)) * spread.stderr
    parts: dict[Any, Estimate] = {}
    at = 0
    for key, shape in layout.shapes:
        end = at + math.prod(shape)
        if key not in asked.controls or key is None:
            parts[key] = _part(tally, spread, half, at, end, shape, asked, converged=converged)
        at = end
    return parts[None] if None in parts else _of_dict(parts, converged=converged)


def _spread(moments: Moments) -> _Spread:
    n = moments.n
    var = (
        np.atleast_1d(moments.m2) / (n - 1)
        if n > 1
        else np.full(np.shape(np.atleast_1d(moments.m2)), math.nan)
    )
    mean = np.atleast_1d(moments.mean) + np.atleast_1d(moments.low)
    mean = np.where(
        np.isnan(mean), np.atleast_1d(moments.mean), mean
    )  # infinite: there is nothing that was lost
    return _Spread(mean, var, np.sqrt(var / max(n, 1)), n - 1)


def _controlled(moments: Moments, layout: Layout, controls: Mapping[Any, float]) -> _Spread:
    """Means moved along the regression on the control variates to where these have their known means.

    The coefficients come from the same samples, which biases the estimate by O(1/n), far below its error.  The standard
    error is that of a regression's prediction, which counts the coefficients as estimated.
    """
    plain, n, k = _spread(moments), moments.n, len(layout.shapes)
    keys = [key for key, _ in layout.shapes]
    of = [keys.index(key) for key in controls]
    freedom = n - 1 - len(of)
    if freedom < 1:
        unknown = np.full(k, math.nan)
        return _Spread(unknown, unknown, unknown, 1, unknown)
    sums = moments.products[0].sums
    off = plain.mean[of] - np.array(list(controls.values()))
    scale = np.sqrt(np.diag(sums)[of])  # pinv drops what is small beside the largest: all are made alike
    scale = np.outer(scale, scale)
    scale[scale == 0] = 1.0  # a control that is constant
    inner = np.linalg.pinv(sums[np.ix_(of, of)] / scale, hermitian=True) / scale
    slopes = inner @ sums[of]
    left = np.maximum(plain.var * (n - 1) - np.einsum("ck,ck->k", slopes, sums[of]), 0.0)
    var = left / freedom
    return _Spread(
        plain.mean - off @ slopes, var, np.sqrt(var * (1 / n + off @ inner @ off)), freedom, plain.var / var
    )


def _part(
    tally: Tally,
    spread: _Spread,
    half: Array,
    at: int,
    end: int,
    shape: tuple[int, ...],
    asked: Asked,
    *,
    converged: bool,
) -> Estimate:
    def shaped(values: Array) -> Any:
        return values[at:end].reshape(shape) if shape else float(values[at])

    sketches = tally.sketches[at:end]
    histogram = outside = None
    if asked.bins is not None and tally.counts is not None:
        counts = tally.counts[at:end].reshape((*shape, -1))
        histogram = Histogram(counts[..., :-2], asked.bins.edges())
        outside = (counts[..., -2], counts[..., -1]) if shape else (int(counts[-2]), int(counts[-1]))
    return Estimate(
        mean=shaped(spread.mean),
        stderr=shaped(spread.stderr),
        var=shaped(spread.var),
        ci=(shaped(spread.mean - half), shaped(spread.mean + half)),
        samples=tally.samples,
        seed=asked.seed,
        converged=converged,
        confidence=asked.confidence,
        nan_omitted=tally.omitted,
        cov=_covariance(tally.moments, at, shape),
        quantiles=None
        if asked.quantiles is None
        else {q: _shaped([quantile(each, q) for each in sketches], shape) for q in asked.quantiles},
        histogram=histogram,
        outside=outside,
        variance_reduction=None if spread.reduction is None else shaped(spread.reduction),
    )


def _shaped(values: list[float], shape: tuple[int, ...]) -> Any:
    """A float, or an array of this shape."""
    return np.array(values).reshape(shape) if shape else values[0]


def _covariance(moments: Moments, at: int, shape: tuple[int, ...]) -> Array | None:
    if len(shape) != 1 or not 2 <= shape[0] <= LARGEST_COVARIANCE:
        return None
    sums = next(each.sums for each in moments.products if each.first == at)
    return sums / (moments.n - 1) if moments.n > 1 else np.full(sums.shape, math.nan)


def _of_dict(parts: Mapping[Any, Estimate], *, converged: bool) -> Estimate:
    """One estimate whose fields are dicts."""

    def each(name: str) -> dict[Any, Any] | None:
        values = {key: getattr(part, name) for key, part in parts.items()}
        return None if all(value is None for value in values.values()) else values

    some = next(iter(parts.values()))
    return Estimate(
        mean=each("mean"),
        stderr=each("stderr"),
        var=each("var"),
        ci=each("ci"),
        samples=some.samples,
        seed=some.seed,
        converged=converged,
        confidence=some.confidence,
        nan_omitted=some.nan_omitted,
        cov=each("cov"),
        quantiles=each("quantiles"),
        histogram=each("histogram"),
        outside=each("outside"),
        variance_reduction=each("variance_reduction"),
        _parts=parts,
    )


def excess_of(estimate: Estimate, tol: float | None, rtol: float | None) -> float:
    """How many times as wide as the tolerances allow the widest interval is; infinite where a component has no spread."""
    if estimate.keys():
        return max(excess_of(estimate[key], tol, rtol) for key in estimate.keys())
    if not np.all(np.asarray(estimate.var) > 0):
        return math.inf
    low, high = estimate.ci
    half, excess = np.asarray((high - low) / 2), 0.0
    with np.errstate(divide="ignore"):
        if tol is not None:
            excess = float(np.max(half / tol))
        if rtol is not None:
            excess = max(excess, float(np.max(half / (rtol * np.abs(estimate.mean)))))
    return excess if excess == excess else math.inf
