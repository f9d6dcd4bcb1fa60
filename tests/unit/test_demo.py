"""The demo: its data, one candidate of its sweep, one batch of its Monte Carlo, and the comparison."""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import subprocess
import sys
from concurrent.futures import Executor, Future, ProcessPoolExecutor

import numpy as np
import pytest
from rich.console import Console
from threadpoolctl import threadpool_limits

from repartir.demo import forecast, option
from repartir.demo.report import Outcome, Timing, print_tables, to_json
from repartir.demo.series import Series, co2, sunspots
from repartir.demo.study import FULL, QUICK, Grid, Plan, Study, digest, run_calls

TINY = Plan(
    sunspots=Grid(orders=(1, 9), window_years=(100,)),
    co2=Grid(orders=(2,), window_years=(5,)),
    batches=3,
    paths=500,
)


class Here(Executor):
    """Runs each call at its submit."""

    def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]
        future: Future[object] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def series_of(values: np.ndarray) -> Series:
    """Yearly values from the year 0 on; the last half is held out, and its last half tests."""
    n = len(values)
    return Series("made", "", "", np.arange(n, dtype=float), values, 1, None, 1, 5, n // 2, 3 * n // 4)


def test_sunspots_are_the_known_series() -> None:
    series = sunspots()
    assert len(series.values) == 309
    assert (series.times[0], series.times[-1]) == (1700, 2008)
    assert np.isfinite(series.values).all()
    assert series.times[series.values.argmax()] == 1957
    assert series.values.max() == 190.2
    assert series.values.sum() == pytest.approx(15373.4)


def test_co2_is_the_known_series_with_its_gaps() -> None:
    series = co2()
    assert len(series.values) == 2284
    assert np.isnan(series.values).sum() == 59
    assert (series.values[0], series.values[-1]) == (316.1, 371.5)
    assert series.times[0] == pytest.approx(1958 + 87 / 365)
    assert series.times[-1] == pytest.approx(2001 + 362 / 365)
    np.testing.assert_allclose(np.diff(series.times), 7 / 365.25, atol=1e-4)
    assert np.isnan(series.values[series.first_of(1964) : series.first_of(1965)]).sum() == 21


def test_an_autoregression_finds_the_coefficients_of_a_noiseless_recursion() -> None:
    values = np.zeros(60)
    values[:2] = 1, 2
    for t in range(2, 60):
        values[t] = 0.5 + 1.2 * values[t - 1] - 0.6 * values[t - 2]
    series = series_of(values)
    coefficients = forecast.fit(forecast.design(series, 2), values)
    np.testing.assert_allclose(coefficients, [0.5, 1.2, -0.6], rtol=1e-9)
    errors = forecast.rolling_errors(series, 2, 20)
    assert np.isnan(errors[:30]).all()
    np.testing.assert_allclose(errors[30:], 0, atol=1e-9)


def test_the_fit_agrees_with_the_normal_equations() -> None:
    series = sunspots()
    values = series.values
    ours = forecast.fit(forecast.design(series, 2), values)
    x = np.column_stack([np.ones(307), values[1:-1], values[:-2]])
    np.testing.assert_allclose(ours, np.linalg.solve(x.T @ x, x.T @ values[2:]), rtol=1e-9)


def test_the_sunspots_are_those_of_the_literature() -> None:
    """Brockwell and Davis fit 1.318 and -0.634 to 1770-1869 by the Yule-Walker equations."""
    values = sunspots().values[70:170]
    centred = values - values.mean()
    g0, g1, g2 = (centred[lag:] @ centred[: 100 - lag] for lag in range(3))
    np.testing.assert_allclose(np.linalg.solve([[g0, g1], [g1, g0]], [g1, g2]), [1.318, -0.634], atol=2e-3)


def test_a_forecast_does_not_see_what_it_forecasts_or_later() -> None:
    values = np.random.default_rng(1).normal(size=80)
    before = forecast.rolling_errors(series_of(values), 3, 30)
    changed = values.copy()
    changed[60:] += 100
    after = forecast.rolling_errors(series_of(changed), 3, 30)
    np.testing.assert_array_equal(before[:60], after[:60])
    assert after[60] - before[60] == pytest.approx(100)


def test_missing_values_are_neither_fitted_nor_scored() -> None:
    values = np.random.default_rng(2).normal(size=80)
    values[[20, 50]] = np.nan
    series = series_of(values)
    validation, test = forecast.scored_steps(series, 4)
    assert set(range(40, 60)) - set(validation) == {50, 51, 52, 53, 54}
    assert list(test) == list(range(60, 80))
    errors = forecast.rolling_errors(series, 2, 25)
    assert set(np.flatnonzero(np.isnan(errors[40:])) + 40) == {50, 51, 52}


def test_too_few_complete_rows_are_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match="2 complete rows cannot fit 3 coefficients"):
        forecast.fit(np.ones((2, 3)), np.ones(2))


def test_the_bootstrap_draws_whole_blocks() -> None:
    drawn = forecast.block_bootstrap(23, 5, 40, np.random.default_rng(3))
    assert drawn.shape == (40, 23)
    assert drawn.min() >= 0
    assert drawn.max() <= 22
    inside = np.diff(drawn, axis=1)[:, [i for i in range(22) if i % 5 != 4]]
    assert (inside == 1).all()


def test_the_bootstrap_error_of_independent_errors_is_the_textbook_one() -> None:
    """The root mean square of n independent normal errors of size s has the standard error s / sqrt(2 n)."""
    n = 4_000
    values = np.random.default_rng(4).normal(size=n).cumsum()
    series = series_of(values)
    scored = forecast.scored_steps(series, 1)
    errors = forecast.persistence_errors(series)
    found = forecast.score(series, scored, errors, 0, 0, np.random.SeedSequence(5))
    assert found.test_rmse == pytest.approx(1, abs=0.1)
    assert found.test_se == pytest.approx(1 / math.sqrt(2 * n / 4), rel=0.15)
    assert (found.gain, found.gain_se) == (0, 0)


def test_an_autoregression_beats_persistence_on_both_series() -> None:
    for series, order, window in ((sunspots(), 9, 120), (co2(), 8, 15 * 52)):
        scored = forecast.scored_steps(series, order)
        found = forecast.evaluate(series, scored, order, window, np.random.SeedSequence(6))
        assert found.gain > 4 * found.gain_se


@pytest.mark.parametrize("strike", [90.0, 100.0, 115.0])
def test_one_asset_is_priced_as_by_black_and_scholes(strike: float) -> None:
    spot, volatility, rate, years = 100.0, 0.25, 0.03, 0.5
    basket = option.Basket((spot,), (volatility,), 0.0, rate, years, (strike,))
    seeds = np.random.SeedSequence(8).spawn(50)
    d1 = (math.log(spot / strike) + (rate + volatility**2 / 2) * years) / (volatility * math.sqrt(years))
    d2 = d1 - volatility * math.sqrt(years)
    cdf = [0.5 * (1 + math.erf(d / math.sqrt(2))) for d in (d1, d2)]
    exact = spot * cdf[0] - strike * math.exp(-rate * years) * cdf[1]
    assert option.geometric_price(basket, strike) == pytest.approx(exact, rel=1e-12)
    batches = np.stack([option.price_batch(basket, 2_000, seed) for seed in seeds])
    (price,) = option.estimate(basket, batches)
    assert abs(price.plain - exact) < 4 * price.plain_se
    assert price.plain_se < 0.01 * exact * math.sqrt(10)
    assert price.controlled == pytest.approx(exact, rel=1e-9)


def test_the_basket_agrees_with_its_closed_form_and_the_control_variate_helps() -> None:
    seeds = np.random.SeedSequence(9).spawn(40)
    batches = np.stack([option.price_batch(option.FIVE_ASSETS, 2_000, seed) for seed in seeds])
    for price in option.estimate(option.FIVE_ASSETS, batches):
        assert abs(price.geometric - price.geometric_exact) < 4 * price.geometric_se
        assert abs(price.controlled - price.plain) < 4 * price.plain_se
        assert price.controlled_se < price.plain_se / 5
        assert price.plain > price.geometric


def test_every_call_has_a_stream_of_its_own_and_the_seed_decides_all() -> None:
    states, same, other = (
        [tuple(call.args[-1].generate_state(4)) for call in Study(QUICK, seed).calls]  # type: ignore[attr-defined]
        for seed in (7, 7, 8)
    )
    assert len(set(states)) == len(states)
    assert same == states
    assert not set(other) & set(states)


@pytest.mark.parametrize("plan", [QUICK, FULL], ids=["quick", "full"])
def test_every_candidate_has_enough_history_before_the_held_out_years(plan: Plan) -> None:
    for series, grid in ((sunspots(), plan.sunspots), (co2(), plan.co2)):
        candidates = grid.candidates(series.per_year)
        assert candidates
        first = series.first_of(series.validation_from)
        assert all(2 * (order + 1) <= window - order and window <= first for order, window in candidates)


@pytest.fixture(scope="module")
def results() -> list[object]:
    with threadpool_limits(1):
        return list(run_calls(Here(), Study(TINY, 7).calls, lambda: None))


def test_a_pool_gives_the_same_bits(results: list[object]) -> None:
    done = []
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(2, mp_context=fork, initializer=threadpool_limits, initargs=(1,)) as pool:
        again = run_calls(pool, Study(TINY, 7).calls, lambda: done.append(1))
    assert digest(again) == digest(results)  # type: ignore[arg-type]
    assert len(done) == len(results)


def test_the_digest_sees_the_last_bit(results: list[np.ndarray]) -> None:
    changed = list(results)
    changed[-1] = np.nextafter(changed[-1], np.inf)
    assert digest(changed) != digest(results)


def outcome(results: list[object], pool_digest: str) -> Outcome:
    study = Study(TINY, 7)
    sweeps, prices = study.sweeps(results), study.prices(results)  # type: ignore[arg-type]
    serial, pool = Timing(2.0, "a", 1, 1), Timing(1.0, pool_digest, 2, 1)
    return Outcome(7, len(results), study.paths, sweeps, prices, serial, pool)


def test_the_tables_fit_80_columns_and_say_whether_the_numbers_agree(results: list[object]) -> None:
    for pool_digest, answer in (("a", "yes"), ("b", "NO")):
        text = io.StringIO()
        print_tables(Console(file=text, width=80), outcome(results, pool_digest))
        lines = text.getvalue().splitlines()
        assert any(line.startswith(f"same numbers both ways: {answer}") for line in lines)
        assert any(line.startswith("speed-up:") and "2.00×" in line for line in lines)
        assert sum("persistence" in line.split()[:1] for line in lines) == 2
        assert any("59 of 2284 weeks are missing" in line for line in lines)


def test_the_json_has_every_candidate_and_strike(results: list[object]) -> None:
    record = json.loads(to_json(outcome(results, "b")))
    assert record["same_numbers"] is False
    assert record["speedup"] == 2
    assert [len(series["candidates"]) for series in record["series"]] == [2, 1]
    assert record["series"][1]["missing"] == 59
    assert [price["strike"] for price in record["option"]["prices"]] == [90, 100, 110]


def test_serial_and_pool_are_compared_with_one_blas_thread_each() -> None:
    from repartir.demo.run import Executor, compare, one_blas_thread

    found = compare(TINY, lambda: Executor(2, initializer=one_blas_thread), 7)
    assert found.same_numbers
    assert found.serial.blas_threads == found.pool.blas_threads == 1
    assert (found.serial.workers, found.pool.workers) == (1, 2)
    assert found.calls == 6


@pytest.mark.slow
def test_quick_json_is_json_with_equal_numbers_both_ways() -> None:
    command = [sys.executable, "-m", "repartir", "demo", "--quick", "--json", "--workers", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert json.loads(ended.stdout)["same_numbers"] is True
