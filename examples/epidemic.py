"""An epidemic of the SEIR kind in a town of 10,000 people, over reproduction numbers and shares of vaccinated people.

Every day chance decides who is infected, falls ill, recovers.  In a large epidemic the share z of the unprotected that
is infected solves z = 1 - exp(-R0 (1 - vaccinated) z), and there is none from vaccinated = 1 - 1 / R0 on.
"""

import argparse
from math import exp, expm1

import numpy as np

from repartir import grid, sweep

options = argparse.ArgumentParser(description=__doc__)
options.add_argument("--quick", action="store_true", help="fewer points and repeats")
options.add_argument("--out", help="a file for the picture, which needs matplotlib")
args = options.parse_args()


def epidemic(R0, vaccinated, rng, people=10_000, incubation=4, illness=6):
    exposed, ill = 0, 10
    healthy = unprotected = round(people * (1 - vaccinated))
    while exposed or ill:
        infected = rng.binomial(healthy, -expm1(-R0 / illness * ill / people))
        falls_ill, recovers = rng.binomial((exposed, ill), (1 / incubation, 1 / illness))
        healthy, exposed, ill = healthy - infected, exposed + infected - falls_ill, ill + falls_ill - recovers
    return {"share infected": 1 - healthy / unprotected}


def expected(R0, share=1.0):
    """The share infected where nobody is vaccinated."""
    for _ in range(100):
        share = 1 - exp(-R0 * share)
    return share


numbers, shares = np.linspace(1, 4, 4 if args.quick else 31), np.linspace(0, 0.8, 3 if args.quick else 21)
found = sweep(epidemic, grid(R0=numbers, vaccinated=shares), repeats=10, seed=1)
for R0 in (2, 3):
    ill = [row.result["share infected"] for row in found if row.params == {"R0": R0, "vaccinated": 0}]
    told = f"{np.mean(ill):.4f} ± {np.std(ill, ddof=1) / len(ill) ** 0.5:.4f}"
    print(f"R0 = {R0}, nobody vaccinated: {told} infected, the formula says {expected(R0):.4f}")
if args.out:
    axes = found.plot("share infected", x="R0", y="vaccinated")
    limit = np.interp(1 - 1 / numbers, shares, range(len(shares)))  # in cells of the picture
    axes.plot(limit, "w:")
    axes.figure.savefig(args.out)
