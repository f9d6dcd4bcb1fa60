"""The Ising model in two dimensions: magnetisation and susceptibility around the critical temperature.

Clusters are flipped as Swendsen and Wang do.  The cumulants of two sizes cross where Onsager says: at T = 2.269.
"""

import argparse

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from repartir import grid, sweep

options = argparse.ArgumentParser(description=__doc__)
options.add_argument("--quick", action="store_true", help="fewer temperatures and steps")
options.add_argument("--out", help="a file for the picture, which needs matplotlib")
args = options.parse_args()


def ising(T, L, steps, rng):
    site = np.arange(L * L).reshape(L, L)
    one, other = np.ravel([site, site]), np.ravel([np.roll(site, 1, axis) for axis in (0, 1)])
    spins, m = np.ones(L * L), np.empty(steps)
    for step in range(
        -steps // 10, steps
    ):  # what is below 0 is overwritten: there the beginning is forgotten
        bound = (spins[one] == spins[other]) & (rng.random(one.size) < 1 - np.exp(-2 / T))
        bonds = coo_array((np.ones(bound.sum()), (one[bound], other[bound])), shape=(L * L, L * L))
        clusters, cluster = connected_components(bonds, directed=False)
        spins = rng.choice([-1.0, 1.0], clusters)[cluster]
        m[step] = abs(spins.mean())
    return {
        "magnetisation": m.mean(),
        "susceptibility": m.var() * L * L / T,
        "binder": 1 - np.mean(m**4) / (3 * np.mean(m**2) ** 2),
    }


T = np.linspace(2.0, 2.6, 7 if args.quick else 17)
sizes, repeats, steps = ([8, 32], 2, 150) if args.quick else ([16, 64], 4, 300)
found = {L: sweep(ising, grid(T=T, L=[L], steps=[steps]), repeats=repeats, seed=1) for L in sizes}
small, large = (np.reshape(found[L].columns()["binder"], (-1, repeats)).mean(1) for L in sizes)
gap = large - small  # positive below the critical temperature
last = np.flatnonzero(gap > 0)[-1]
crossing = np.interp(0, -gap[last : last + 2], T[last : last + 2])
critical = 2 / np.log(1 + np.sqrt(2))
below = np.linspace(2.0, critical - 1e-6, 500)
exact = (1 - np.sinh(2 / below) ** -4) ** (1 / 8)
print(f"critical temperature: {crossing:.3f}, Onsager's {critical:.3f}")
print(f"magnetisation at T = 2: {found[sizes[1]][0].result['magnetisation']:.4f}, Onsager's {exact[0]:.4f}")
if args.out:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for L in sizes:
        found[L].plot("magnetisation", x="T", ax=axes[0])
        found[L].plot("susceptibility", x="T", ax=axes[1])
    axes[0].plot(below, exact, "k:")
    axes[1].axvline(critical, color="k", linestyle=":")
    figure.savefig(args.out)
