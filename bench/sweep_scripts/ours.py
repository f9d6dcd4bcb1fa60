import numpy as np

import repartir


def decay(rate, noise, steps, rng):
    x = np.exp(-rate * np.arange(steps) / steps) + noise * rng.standard_normal(steps)
    return {"mean": float(x.mean()), "spread": float(x.std())}


space = repartir.grid(rate=np.linspace(0.1, 2, 20), noise=[0.01, 0.1, 1.0], steps=[100_000])
found = repartir.sweep(decay, space, repeats=20, seed=7)
found.to_csv("sweep.csv")
print(found.best("spread").params)
