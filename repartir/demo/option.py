"""A Monte Carlo: a European call on the arithmetic average of a basket of correlated lognormal assets.

The arithmetic average has no closed form. The geometric average has one and is priced on the same paths, as a
check (the Monte Carlo must agree with the formula) and as a control variate (it takes out most variance).
"""

from dataclasses import dataclass
from math import erfc, exp, log, sqrt

import numpy as np

from repartir.demo.series import Floats


@dataclass(frozen=True, slots=True)
class Basket:
    """Equally weighted assets with one correlation; rate and volatilities a year, continuously compounded."""

    spots: tuple[float, ...]
    volatilities: tuple[float, ...]
    correlation: float
    rate: float
    years: float
    strikes: tuple[float, ...]

    def covariance(self) -> Floats:
        """(assets, assets) covariance of the log returns to maturity."""
        vol = np.array(self.volatilities)
        correlation = np.full((len(vol), len(vol)), self.correlation)
        np.fill_diagonal(correlation, 1.0)
        return correlation * np.outer(vol, vol) * self.years

    def log_means(self) -> Floats:
        """(assets,) risk-neutral means of the log prices at maturity."""
        return np.log(self.spots) + self.rate * self.years - np.diag(self.covariance()) / 2


FIVE_ASSETS = Basket(
    spots=(100.0, 100.0, 100.0, 100.0, 100.0),
    volatilities=(0.15, 0.20, 0.25, 0.30, 0.40),
    correlation=0.5,
    rate=0.03,
    years=1.0,
    strikes=(90.0, 100.0, 110.0),
)


@dataclass(frozen=True, slots=True)
class Price:
    """Estimates for one strike, each with its standard error; `geometric_exact` is the closed form."""

    strike: float
    plain: float
    plain_se: float
    controlled: float
    controlled_se: float
    geometric: float
    geometric_se: float
    geometric_exact: float


def price_batch(basket: Basket, paths: int, seed: np.random.SeedSequence) -> Floats:
    """(2, strikes) mean discounted payoffs of `paths` draws: row 0 the arithmetic, row 1 the geometric."""
    rng = np.random.default_rng(seed)
    shocks = rng.standard_normal((paths, len(basket.spots))) @ np.linalg.cholesky(basket.covariance()).T
    log_prices = basket.log_means() + shocks
    averages = np.stack([np.exp(log_prices).mean(axis=1), np.exp(log_prices.mean(axis=1))])
    payoffs = np.maximum(averages[:, None, :] - np.array(basket.strikes)[:, None], 0.0)
    means: Floats = exp(-basket.rate * basket.years) * payoffs.mean(axis=2)
    return means


def geometric_price(basket: Basket, strike: float) -> float:
    """Closed form of the call on the geometric average; with one asset this is Black and Scholes."""
    mean = float(basket.log_means().mean())
    variance = float(basket.covariance().mean())
    d1 = (mean - log(strike) + variance) / sqrt(variance)
    d2 = d1 - sqrt(variance)
    discounted = exp(-basket.rate * basket.years)
    return discounted * (exp(mean + variance / 2) * _normal_cdf(d1) - strike * _normal_cdf(d2))


def estimate(basket: Basket, batches: Floats) -> list[Price]:
    """Prices from the (batches, 2, strikes) batch means, which are independent and of equal size."""
    return [
        _price(strike, geometric_price(basket, strike), batches[:, 0, i], batches[:, 1, i])
        for i, strike in enumerate(basket.strikes)
    ]


def _price(strike: float, exact: float, arithmetic: Floats, geometric: Floats) -> Price:
    covariance = np.cov(arithmetic, geometric)
    controlled = arithmetic - covariance[0, 1] / covariance[1, 1] * (geometric - exact)
    return Price(
        strike,
        *_mean_and_se(arithmetic),
        *_mean_and_se(controlled),
        *_mean_and_se(geometric),
        geometric_exact=exact,
    )


def _mean_and_se(batch_means: Floats) -> tuple[float, float]:
    return float(batch_means.mean()), float(batch_means.std(ddof=1) / sqrt(len(batch_means)))


def _normal_cdf(x: float) -> float:
    return erfc(-x / sqrt(2)) / 2
