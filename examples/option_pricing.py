"""Price a European and an arithmetic Asian call, and see how fast the error of four kinds of Monte Carlo falls.

The geometric Asian call, whose price is known, is the control variate.  Black and Scholes say what the European one costs.
"""

import argparse

import numpy as np
from scipy.stats import norm

from repartir import Executor, monte_carlo

options = argparse.ArgumentParser(description=__doc__)
options.add_argument("--quick", action="store_true", help="fewer samples")
options.add_argument("--out", help="a file for the picture, which needs matplotlib")
args = options.parse_args()

SPOT, STRIKE, RATE, SIGMA = 100, 100, 0.05, 0.2
dates = np.arange(1, 13) / 12  # a year, watched monthly
drift = np.log(SPOT) + (RATE - SIGMA**2 / 2) * dates
covariance = SIGMA**2 * np.minimum.outer(dates, dates)
values, vectors = np.linalg.eigh(covariance)
factors = (np.sqrt(values) * vectors)[:, ::-1].T  # the most important first, where Sobol's points are best


def payoffs(z):
    price = np.exp(drift + z @ factors)
    worth = {"european": price[:, -1], "asian": price.mean(1), "geometric": np.exp(np.log(price).mean(1))}
    return {call: np.exp(-RATE) * np.maximum(end - STRIKE, 0) for call, end in worth.items()}


def black_scholes(mean, variance):
    d = (mean - np.log(STRIKE)) / variance**0.5
    expected = np.exp(mean + variance / 2)
    return np.exp(-RATE) * (expected * norm.cdf(d + variance**0.5) - STRIKE * norm.cdf(d))


normal, uniform = lambda rng, n: payoffs(rng.standard_normal((n, 12))), lambda u: payoffs(norm.ppf(u))
methods = {
    "plain": (normal, {}),
    "antithetic": (uniform, {"points": "antithetic", "dim": 12}),
    "control variate": (normal, {"control": {"geometric": black_scholes(drift.mean(), covariance.mean())}}),
    "Sobol": (uniform, {"points": "sobol", "dim": 12}),
}
counts = [2**k for k in ((14,) if args.quick else range(12, 21))]
print(f"European, Black and Scholes: {black_scholes(drift[-1], covariance[-1, -1]):.4f}")
errors = {}
with Executor() as pool:
    for name, (fn, how) in methods.items():
        found = [monte_carlo(fn, n, seed=1, executor=pool, **how) for n in counts]
        errors[name] = [each["asian"].stderr for each in found]
        print(f"{name}: European {found[-1]['european'].in_short()}, Asian {found[-1]['asian'].in_short()}")
if args.out:
    from matplotlib import pyplot

    pyplot.loglog(counts, np.transpose(list(errors.values())), "o-", label=list(errors))
    pyplot.gca().set(xlabel="samples", ylabel="standard error of the Asian call")
    pyplot.legend()
    pyplot.savefig(args.out)
