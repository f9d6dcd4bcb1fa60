"""What `monte_carlo` returns and refuses, drawn in this process; `tests/conformance/test_seeded.py` has workers."""

from __future__ import annotations

import functools
import logging
import math
import pickle
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import repartir
from repartir import Estimate, Interrupted, SerialExecutor

PINNED_HITS = 2544
REPR = "<Estimate 0.4979 ± 0.0029: 10,000 samples>"

monte_carlo = functools.partial(repartir.monte_carlo, executor=SerialExecutor())


def uniform(rng: Any, n: int) -> Any:
    return rng.random(n)


def vector(rng: Any, n: int) -> Any:
    z = rng.standard_normal((n, 3))
    z[:, 2] += z[:, 1]
    return z


def basket(rng: Any, n: int) -> Any:
    spot = 100 * np.exp(0.2 * rng.standard_normal(n) - 0.02)
    return {"call": np.maximum(spot - 100, 0), "spot": spot}


def some_nan(rng: Any, n: int) -> Any:
    x = rng.random(n)
    return np.where(x < 0.1, math.nan, x)


def all_samples(fn: Any, samples: int, seed: int = 7) -> Any:
    """What the batches draw, in one piece."""
    parts, batch = [], 0
    while samples > 0:
        n = min(2 ** (batch // 64), samples)
        parts.append(fn(repartir.rng(seed, 0x6D63, batch), n))
        samples -= n
        batch += 1
    return np.concatenate(parts)


@pytest.fixture(scope="module")
def scipy() -> Any:
    """Loaded in no test's own time."""
    return pytest.importorskip("scipy.stats")


class TestResults:
    def test_of_numbers(self) -> None:
        values = all_samples(uniform, 1001)
        est = monte_carlo(uniform, 1001, seed=7)
        assert (est.samples, est.seed, est.converged, est.confidence, est.nan_omitted) == (
            1001,
            7,
            True,
            0.95,
            0,
        )
        assert isinstance(est.mean, float)
        assert est.mean == pytest.approx(values.mean(), rel=1e-14)
        assert est.var == pytest.approx(values.var(ddof=1), rel=1e-13)
        assert est.stderr == pytest.approx(math.sqrt(est.var / 1001))
        assert est.ci[0] == pytest.approx(est.mean - 1.962339 * est.stderr)
        assert est.ci[1] - est.mean == pytest.approx(est.mean - est.ci[0])
        assert est.cov is est.quantiles is est.histogram is est.variance_reduction is None

    def test_of_hits_bits_that_never_change(self) -> None:
        est = monte_carlo(lambda rng, n: rng.random(n) < 0.25, 10_000, seed=7)
        assert est.mean == PINNED_HITS / 10_000

    def test_of_vectors(self) -> None:
        values = all_samples(vector, 500)
        est = monte_carlo(vector, 500, seed=7)
        np.testing.assert_allclose(est.mean, values.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(est.cov, np.cov(values.T), rtol=1e-12)
        np.testing.assert_allclose(est.var, np.diag(est.cov), rtol=1e-12)
        assert est.ci[0].shape == est.stderr.shape == (3,)

    def test_of_arrays(self) -> None:
        est = monte_carlo(lambda rng, n: rng.random((n, 2, 3)), 100, seed=7)
        assert est.mean.shape == est.var.shape == est.ci[1].shape == (2, 3)
        assert est.cov is None

    def test_of_dicts_by_key_before_or_after(self) -> None:
        est = monte_carlo(basket, 1000, seed=7)
        assert est.keys() == ("call", "spot")
        assert dict(est) == {key: est[key] for key in est}
        assert est.mean["call"] == est["call"].mean == pytest.approx(8, abs=2)
        assert est.ci["spot"] == est["spot"].ci
        assert est.cov is None
        with pytest.raises(KeyError):
            est["put"]
        with pytest.raises(TypeError, match="no dict"):
            monte_carlo(uniform, 10, seed=7)["call"]

    def test_of_integers_and_lists(self) -> None:
        assert monte_carlo(lambda rng, n: [2] * n, 10, seed=7).mean == 2.0
        assert monte_carlo(lambda rng, n: rng.integers(5, size=n, dtype=np.uint8), 10, seed=7).var > 0

    def test_of_one_sample_there_is_no_error(self) -> None:
        est = monte_carlo(uniform, 1, seed=7)
        assert math.isnan(est.stderr)
        assert math.isnan(est.ci[0])

    def test_batches_as_large_as_asked_for(self) -> None:
        sizes: list[int] = []

        def noting(rng: Any, n: int) -> Any:
            sizes.append(n)
            return rng.random(n)

        monte_carlo(noting, 250, seed=7, batch=100)
        assert sizes == [100, 100, 50]

    def test_equal_means_equal_to_the_last_bit(self) -> None:
        one = monte_carlo(basket, 100, seed=7, quantiles=[0.5], histogram=(3, (0, 200)))
        assert one == monte_carlo(basket, 100, seed=7, quantiles=[0.5], histogram=(3, (0, 200)))
        assert one == pickle.loads(pickle.dumps(one))
        assert one != monte_carlo(basket, 100, seed=8, quantiles=[0.5], histogram=(3, (0, 200)))
        assert monte_carlo(vector, 50, seed=7) == monte_carlo(vector, 50, seed=7)
        given = np.random.SeedSequence(7)
        assert monte_carlo(uniform, 50, seed=given) == monte_carlo(
            uniform, 50, seed=np.random.SeedSequence(7)
        )
        assert monte_carlo(uniform, 50, seed=7) != 1

    def test_a_drawn_seed_is_kept(self) -> None:
        est = monte_carlo(uniform, 50)
        assert est == monte_carlo(uniform, 50, seed=est.seed)
        assert est != monte_carlo(uniform, 50)

    def test_a_repr_that_tells_the_estimate(self) -> None:
        assert repr(monte_carlo(uniform, 10_000, seed=7)) == REPR
        assert repr(monte_carlo(basket, 100, seed=7)).startswith("<Estimate call: ")
        assert "array(3,) ± at most 0." in repr(monte_carlo(vector, 100, seed=7))

    def test_task_rng_is_the_batch_s(self) -> None:
        monte_carlo(lambda rng, n: [float(repartir.task_rng() is rng)] * n, 10, seed=7)
        est = monte_carlo(lambda rng, n: [float(repartir.task_rng() is rng)] * n, 10, seed=7)
        assert est.mean == 1.0

    def test_any_executor_will_do(self) -> None:
        with ThreadPoolExecutor(2) as threads:
            assert repartir.monte_carlo(uniform, 999, seed=7, executor=threads) == monte_carlo(
                uniform, 999, seed=7
            )


class TestMarginals:
    def test_quantiles(self) -> None:
        values = np.sort(all_samples(uniform, 1000))
        est = monte_carlo(uniform, 1000, seed=7, quantiles=[0.05, 0.5])
        assert est.quantiles[0.5] == pytest.approx(values[499], rel=1.001e-3)
        assert est.quantiles[0.05] == pytest.approx(values[49], rel=1.001e-3)
        assert monte_carlo(vector, 10, seed=7, quantiles=[0.5]).quantiles[0.5].shape == (3,)

    def test_a_histogram_is_numpys(self) -> None:
        values = all_samples(uniform, 1000)
        est = monte_carlo(uniform, 1000, seed=7, histogram=(5, (0.1, 0.9)))
        counts, edges = est.histogram
        expected, expected_edges = np.histogram(values, 5, (0.1, 0.9))
        assert list(counts) == list(expected)
        assert list(edges) == list(expected_edges)
        assert est.outside == ((values < 0.1).sum(), (values > 0.9).sum())


class TestStopping:
    @pytest.mark.parametrize("options", [{"tol": 0.01}, {"rtol": 0.02}, {"tol": 0.02, "rtol": 0.02}])
    def test_at_the_tolerance(self, options: dict[str, float]) -> None:
        est = monte_carlo(uniform, seed=7, **options)
        half = (est.ci[1] - est.ci[0]) / 2
        assert est.converged
        assert est.samples >= 1000
        assert half <= 0.01
        assert est == monte_carlo(uniform, est.samples, seed=7)

    def test_what_draws_beyond_it_is_not_waited_for(self) -> None:
        def draw(rng: Any, n: int) -> Any:
            if rng.bit_generator.seed_seq.spawn_key[-1] > 0:
                signal.pause()
            return rng.random(n)

        assert repartir.monte_carlo(draw, tol=0.05, batch=4000, seed=7).samples == 4000

    def test_fewer_samples_than_min_samples_may_converge(self) -> None:
        found = monte_carlo(uniform, 100, tol=0.5, seed=7)
        assert (found.samples, found.converged) == (100, True)
        assert not monte_carlo(uniform, 100, tol=1e-6, seed=7).converged

    @pytest.mark.parametrize(
        ("result", "told"), [(None, "None"), (0.5, "one float")], ids=["no return", "a number"]
    )
    def test_what_is_not_n_samples_is_told(self, result: Any, told: str) -> None:
        with pytest.raises(
            ValueError, match=rf"got shape \(\), .* n = 1 \(it returned {told}\): return n samples, as rng"
        ):
            monte_carlo(lambda rng, n: result, 100, seed=7)

    def test_not_before_min_samples(self) -> None:
        assert 1000 <= monte_carlo(uniform, tol=1.0, seed=7).samples <= 1700
        assert monte_carlo(uniform, tol=1.0, seed=7, min_samples=10).samples < 20

    def test_samples_is_a_cap(self) -> None:
        est = monte_carlo(uniform, 2000, tol=1e-9, seed=7)
        assert (est.samples, est.converged) == (2000, False)

    def test_the_cap_may_meet_it(self) -> None:
        needed = monte_carlo(uniform, tol=0.01, seed=7).samples
        assert monte_carlo(uniform, needed, tol=0.01, seed=7).converged

    def test_all_components_must_meet_it(self) -> None:
        def two(rng: Any, n: int) -> Any:
            return {"narrow": 1e-9 * rng.random(n), "wide": rng.random((n, 2))}

        est = monte_carlo(two, tol=0.01, seed=7)
        assert max(est["wide"].stderr) <= 0.01 / 1.96

    def test_a_rare_event_never_stops_while_nothing_was_hit(self) -> None:
        def rare(rng: Any, n: int) -> Any:
            return rng.random(n) < 1e-5

        est = monte_carlo(rare, 20_000, tol=1e-3, seed=7)
        assert (est.mean, est.stderr, est.samples, est.converged) == (0.0, 0.0, 20_000, False)

    def test_a_constant_component_never_stops(self) -> None:
        est = monte_carlo(lambda rng, n: np.stack([np.ones(n), rng.random(n)], 1), 5000, tol=1.0, seed=7)
        assert not est.converged

    def test_a_constant_without_a_cap_is_logged(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("repartir.montecarlo._STILL_EQUAL", 2000)
        drawn = 0

        def constant(rng: Any, n: int) -> Any:
            nonlocal drawn
            drawn += n
            if drawn > 10_000:
                raise KeyboardInterrupt
            return np.ones(n)

        with caplog.at_level(logging.WARNING), pytest.raises(Interrupted) as caught:
            monte_carlo(constant, tol=0.1, seed=7)
        (record,) = caplog.records
        assert "samples= is a cap" in record.message
        assert caught.value.partial.mean == 1.0
        assert not caught.value.partial.converged


class TestControl:
    def test_the_regression_takes_the_variance(self) -> None:
        plain = monte_carlo(basket, 4000, seed=7)
        est = monte_carlo(basket, 4000, seed=7, control={"spot": 100.0})
        assert est.keys() == ("call",)
        assert est["call"].variance_reduction > 3
        assert est["call"].stderr < plain["call"].stderr / 1.7
        assert est["call"].mean == pytest.approx(7.965567, abs=4 * est["call"].stderr)

    def test_it_is_the_regression_s(self) -> None:
        values = all_samples(lambda rng, n: np.stack(list(basket(rng, n).values()), 1), 500)
        call, spot = values.T
        slope, at = np.polyfit(spot - 100, call, 1)
        est = monte_carlo(basket, 500, seed=7, control={"spot": 100.0})["call"]
        left = call - at - slope * (spot - 100)
        assert est.mean == pytest.approx(at, rel=1e-9)
        assert est.var == pytest.approx((left**2).sum() / 498, rel=1e-9)

    def test_controls_of_other_units_count_as_much(self) -> None:
        def of(unit: float) -> Any:
            def draw(rng: Any, n: int) -> Any:
                x, y = rng.standard_normal((2, n))
                return {"sum": np.exp(x + y), "x": x, "y": y * unit, "none": np.zeros(n)}

            return monte_carlo(draw, 500, seed=7, control={"x": 0.0, "y": 0.0, "none": 0.0})["sum"]

        assert of(1e-12).mean == pytest.approx(of(1.0).mean, rel=1e-12)
        assert of(1e12).stderr == pytest.approx(of(1.0).stderr, rel=1e-12)

    def test_controls_that_say_the_same_count_once(self) -> None:
        def doubled(rng: Any, n: int) -> Any:
            found = basket(rng, n)
            return {**found, "again": 2 * found["spot"]}

        est = monte_carlo(doubled, 500, seed=7, control={"spot": 100.0, "again": 200.0})
        assert est["call"].mean == pytest.approx(
            monte_carlo(basket, 500, seed=7, control={"spot": 100.0})["call"].mean, rel=1e-6
        )

    @pytest.mark.parametrize(
        ("fn", "control", "message"),
        [
            (basket, {"forward": 1.0}, "'forward'"),
            (uniform, {"spot": 1.0}, "dict"),
            (basket, {"spot": 1.0, "call": 1.0}, "nothing is left"),
            (lambda rng, n: {"spot": rng.random(n), "all": rng.random((n, 2))}, {"spot": 1.0}, r"\(n, 2\)"),
        ],
    )
    def test_other_results_are_refused(self, fn: Any, control: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            monte_carlo(fn, 100, seed=7, control=control)


class TestPoints:
    def test_antithetic_pairs(self) -> None:
        def f(u: Any) -> Any:
            return np.exp(u.sum(axis=1))

        est = monte_carlo(f, 10_000, points="antithetic", dim=2, seed=7)
        plain = monte_carlo(lambda rng, n: f(rng.random((n, 2))), 10_000, seed=7)
        assert est.samples == 10_000
        assert est.mean == pytest.approx((math.e - 1) ** 2, abs=4 * est.stderr)
        assert est.stderr < plain.stderr / 2

    def test_sobol(self, scipy: Any) -> None:
        est = monte_carlo(lambda u: np.exp(u.sum(axis=1)), 2**14, points="sobol", dim=2, seed=7)
        assert est.samples == 2**14
        assert est.mean == pytest.approx((math.e - 1) ** 2, abs=4 * est.stderr)
        assert est.stderr < 1e-4
        assert est.ci[1] - est.mean == pytest.approx(2.13145 * est.stderr, rel=1e-5)

    def test_sobol_until_a_tolerance(self, scipy: Any) -> None:
        est = monte_carlo(lambda u: u[:, 0] ** 2, tol=1e-4, points="sobol", dim=1, seed=7)
        assert est.converged
        assert est.samples in [2**k for k in range(10, 20)]
        assert est == monte_carlo(lambda u: u[:, 0] ** 2, est.samples, points="sobol", dim=1, seed=7)

    def test_sobol_without_scipy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "scipy.stats", None)
        with pytest.raises(ImportError, match="pip install scipy"):
            monte_carlo(lambda u: u[:, 0], 1024, points="sobol", dim=1)


class TestNaN:
    def test_raise_names_the_batch(self) -> None:
        with pytest.raises(ValueError, match=r"NaN for \d+ of \d+ samples") as caught:
            monte_carlo(some_nan, 1000, seed=7)
        (note,) = caught.value.__notes__
        call = note.partition(": ")[2].removesuffix(" draws it again")
        assert np.isnan(eval(call, {"fn": some_nan, "repartir": repartir})).any()

    def test_omit_counts(self) -> None:
        values = all_samples(some_nan, 1000)
        est = monte_carlo(some_nan, 1000, seed=7, nan_policy="omit")
        assert est.nan_omitted == np.isnan(values).sum() > 50
        assert est.samples + est.nan_omitted == 1000
        assert est.mean == pytest.approx(np.nanmean(values))

    def test_omit_drops_whole_samples_and_pairs(self) -> None:
        def two(rng: Any, n: int) -> Any:
            return {"a": some_nan(rng, n), "b": rng.random(n)}

        est = monte_carlo(two, 1000, seed=7, nan_policy="omit")
        assert est["a"].samples == est["b"].samples == est.samples < 1000
        est = monte_carlo(
            lambda u: np.where(u[:, 0] < 0.1, math.nan, u[:, 0]),
            1000,
            points="antithetic",
            dim=1,
            seed=7,
            nan_policy="omit",
        )
        assert est.mean == pytest.approx(0.5, abs=1e-12)
        assert est.nan_omitted % 2 == 0

    def test_masked_samples_are_nan(self) -> None:
        def positive(rng: Any, n: int) -> Any:
            return np.ma.masked_less(rng.standard_normal(n), 0)

        est = monte_carlo(positive, 1000, seed=7, nan_policy="omit")
        assert est.samples + est.nan_omitted == 1000
        assert est.mean == pytest.approx(math.sqrt(2 / math.pi), abs=5 * est.stderr)
        with pytest.raises(ValueError, match="returned NaN"):
            monte_carlo(positive, 1000, seed=7)

    def test_propagate(self) -> None:
        assert math.isnan(monte_carlo(some_nan, 1000, seed=7, nan_policy="propagate").mean)

    def test_nothing_but_nan(self) -> None:
        with pytest.raises(ValueError, match="nothing to estimate"):
            monte_carlo(lambda rng, n: np.full(n, math.nan), 10, nan_policy="omit")

    def test_infinite_samples_are_no_nan(self) -> None:
        est = monte_carlo(lambda rng, n: np.where(rng.random(n) < 0.1, math.inf, 1.0), 100, seed=7)
        assert est.mean == math.inf


class TestErrors:
    @pytest.mark.parametrize(
        ("fn", "error", "message"),
        [
            (
                lambda rng, n: rng.random(n).mean(),
                ValueError,
                r"shape \(\), expected \(n,\) or \(n, ...\) with n = 1",
            ),
            (lambda rng, n: rng.random(n + 1), ValueError, r"shape \(2,\), expected .* with n = 1"),
            (lambda rng, n: {"a": rng.random((3, n))}, ValueError, r"shape \(3, 1\) for 'a', expected"),
            (lambda rng, n: rng.random((n, 0)), ValueError, "no components"),
            (lambda rng, n: {}, ValueError, "empty dict"),
            (lambda rng, n: rng.random(n) * 1j, TypeError, "real and imaginary"),
            (lambda rng, n: ["a"] * n, TypeError, "expected real numbers"),
            (lambda rng, n: rng.random(n if n < 2 else (n, 2)), ValueError, r"returned \(n, 2\), in batches"),
            (lambda rng, n: {"a" if n < 2 else "b": rng.random(n)}, ValueError, r"'b': \(n,\)"),
        ],
    )
    def test_of_results(self, fn: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message) as caught:
            monte_carlo(fn, 1000, seed=7)
        assert not caught.value.__notes__ or "draws it again" in caught.value.__notes__[0]

    def test_of_the_function_name_the_batch(self) -> None:
        def fails(rng: Any, n: int) -> Any:
            return rng.random(n) / (0 if n == 4 else 1) if n != 4 else 1 // 0

        with pytest.raises(ZeroDivisionError) as caught:
            monte_carlo(fails, 1000, seed=[7, 8])
        assert caught.value.__notes__ == [
            "batch 128 of monte_carlo: fn(repartir.rng((7, 8), 0x6D63, 128), 4) draws it again"
        ]

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({}, ValueError, "when to stop"),
            ({"samples": 0}, ValueError, "samples must be 1 or more"),
            ({"samples": -5}, ValueError, "samples"),
            ({"samples": 1e6}, TypeError, "write int"),
            ({"samples": True}, TypeError, "samples must be an integer, not True"),
            ({"tol": 0}, ValueError, "tol must be a number greater than 0"),
            ({"tol": math.nan}, ValueError, "tol"),
            ({"rtol": -1}, ValueError, "rtol"),
            ({"rtol": "1%"}, ValueError, "rtol"),
            ({"tol": 1, "min_samples": 0}, ValueError, "min_samples"),
            ({"samples": 10, "confidence": 1.0}, ValueError, "confidence"),
            ({"samples": 10, "confidence": 95}, ValueError, "confidence"),
            ({"samples": 10, "confidence": "95%"}, ValueError, "confidence"),
            ({"samples": 10, "nan_policy": "ignore"}, ValueError, "nan_policy"),
            ({"samples": 10, "batch": 0}, ValueError, "batch"),
            ({"samples": 10, "seed": -1}, ValueError, "negative"),
            ({"samples": 10, "executor": 4}, TypeError, "executor must be"),
            ({"samples": 10, "progress": 1}, TypeError, "progress"),
            ({"samples": 10, "quantiles": 0.5}, TypeError, "quantiles"),
            ({"samples": 10, "quantiles": []}, ValueError, "empty"),
            ({"samples": 10, "quantiles": [50]}, ValueError, "from 0 to 1, not 50"),
            ({"samples": 10, "histogram": 10}, TypeError, "histogram"),
            ({"samples": 10, "histogram": (10, (1, 0))}, ValueError, "lower one first"),
            ({"samples": 10, "histogram": (0, (0, 1))}, ValueError, "bins"),
            ({"samples": 10, "control": {}}, TypeError, "control"),
            ({"samples": 10, "control": {"c": math.nan}}, ValueError, "'c'"),
            ({"samples": 10, "points": "halton", "dim": 1}, ValueError, "points"),
            ({"samples": 10, "points": "sobol"}, ValueError, "dim"),
            ({"samples": 10, "dim": 2}, ValueError, "points and dim"),
            ({"samples": 11, "points": "antithetic", "dim": 2}, ValueError, "even"),
            ({"samples": 10, "batch": 5, "points": "antithetic", "dim": 2}, ValueError, "even"),
            ({"samples": 10, "points": "antithetic", "dim": 0}, ValueError, "dim"),
            ({"samples": 16, "batch": 2, "points": "sobol", "dim": 2}, ValueError, "batch"),
            ({"samples": 1000, "points": "sobol", "dim": 2}, ValueError, "512 or 1024, not 1000"),
            ({"samples": 3, "points": "sobol", "dim": 2}, ValueError, "16 or 32, not 3"),
            ({"samples": 16, "points": "sobol", "dim": 10**5}, ValueError, "dimensions"),
        ],
    )
    def test_of_arguments_come_before_any_work(
        self,
        options: dict[str, Any],
        error: type[Exception],
        message: str,
        request: pytest.FixtureRequest,
    ) -> None:
        if options.get("points") == "sobol":
            request.getfixturevalue("scipy")
        with pytest.raises(error, match=message):
            monte_carlo(lambda *_: pytest.fail("it was called"), **options)

    def test_what_cannot_be_called(self) -> None:
        with pytest.raises(TypeError, match="callable"):
            monte_carlo(3, 10)
        with pytest.raises(TypeError, match=r"cannot be called as fn\(rng, n\): missing"):
            monte_carlo(lambda rng, n, k: pytest.fail("it was called"), 10)
        with pytest.raises(TypeError, match=r"cannot be called as fn\(u\): too many"):
            monte_carlo(lambda: pytest.fail("it was called"), 10, points="antithetic", dim=1)


class TestProgress:
    def test_is_told_samples(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("repartir.progress.REFRESH_S", 0)
        told: list[tuple[int, int | None]] = []
        monte_carlo(uniform, 1000, seed=7, progress=lambda done, total: told.append((done, total)))
        assert told[-1] == (1000, 1000)
        assert told == sorted(told)

    def test_with_a_tolerance_the_total_is_foreseen(self) -> None:
        told: list[tuple[int, int | None]] = []
        est = monte_carlo(uniform, tol=0.004, seed=7, progress=lambda done, total: told.append((done, total)))
        done, total = told[-1]
        assert done == est.samples
        assert total == pytest.approx(done, rel=0.5)

    def test_lines_say_the_estimate(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("repartir.progress._LogLines.interval_s", 0)
        with caplog.at_level(logging.INFO, "repartir"):
            monte_carlo(uniform, 1000, seed=7, progress=True)
        assert any("uniform: " in line and "0." in line and " ± 0.0" in line for line in caplog.messages)


def test_an_interruption_carries_the_estimate_so_far() -> None:
    def stops(rng: Any, n: int) -> Any:
        if n == 4:
            raise KeyboardInterrupt
        return rng.random(n)

    with pytest.raises(KeyboardInterrupt) as caught:
        monte_carlo(stops, 1000, seed=7)
    assert isinstance(caught.value, Interrupted)
    partial = caught.value.partial
    assert isinstance(partial, Estimate)
    assert 1 <= partial.samples <= 192
    assert not partial.converged
    assert partial.mean == monte_carlo(uniform, partial.samples, seed=7).mean
    assert f"{partial.samples} samples" in str(caught.value)


def test_an_interruption_before_there_is_one() -> None:
    def stops(rng: Any, n: int) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="before there was") as caught:
        monte_carlo(stops, 1000, seed=7)
    assert caught.value.partial is None
