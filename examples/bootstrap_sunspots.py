"""How long is the cycle of the sunspots?  A bootstrap of the peak of their spectrum.

An autoregression of order 9 is fitted to the square roots of the yearly numbers since 1700.  With its residuals, shuffled,
other histories are made; the spread of their periods is the uncertainty of ours.
"""

import argparse
from importlib.resources import files

import numpy as np

from repartir import monte_carlo

options = argparse.ArgumentParser(description=__doc__)
options.add_argument("--quick", action="store_true", help="fewer histories")
options.add_argument("--out", help="a file for the picture, which needs matplotlib")
args = options.parse_args()

ORDER, PERIODS = 9, np.linspace(6, 20, 1401)
waves = np.exp(-2j * np.pi * np.outer(np.arange(1, ORDER + 1), 1 / PERIODS))
table = np.loadtxt(files("repartir") / "data" / "sunspots_yearly.csv", delimiter=",", skiprows=1)
numbers = np.sqrt(table[:, 1]) - np.sqrt(table[:, 1]).mean()


def fit(series):
    """Coefficients (n, ORDER) of series (n, years), by least squares."""
    past = np.stack([series[:, ORDER - lag : -lag] for lag in range(1, ORDER + 1)], axis=1)
    return np.linalg.solve(past @ past.transpose(0, 2, 1), past @ series[:, ORDER:, None])[:, :, 0]


def period(coefficients):
    """Where the spectrum has its peak, in years."""
    return PERIODS[np.abs(1 - coefficients @ waves).argmin(1)]


ours = fit(numbers[None])
residuals = np.convolve(numbers, [1, *-ours[0]], "valid")


def other_histories(rng, n):
    series = rng.choice(residuals, (n, 100 + len(numbers)))  # the first 100 years are to forget the beginning
    for year in range(ORDER, series.shape[1]):
        series[:, year] += series[:, year - ORDER : year] @ ours[0, ::-1]
    return period(fit(series[:, 100:]))


histories = 2_000 if args.quick else 200_000
found = monte_carlo(other_histories, histories, seed=1, quantiles=[0.025, 0.975], histogram=(50, (10, 12)))
low, high = found.quantiles.values()
print(f"period: {period(ours)[0]:.2f} years, 95 % of the histories from {low:.2f} to {high:.2f}")
if args.out:
    from matplotlib import pyplot

    pyplot.stairs(*found.histogram, fill=True)
    pyplot.axvspan(low, high, alpha=0.2)
    pyplot.axvline(period(ours)[0], color="k", linestyle=":")
    pyplot.gca().set(xlabel="period of the cycle in years", ylabel=f"histories, of {histories:,}")
    pyplot.savefig(args.out)
