import csv
import itertools
import multiprocessing

import numpy as np


def decay(rate, noise, steps, rng):
    x = np.exp(-rate * np.arange(steps) / steps) + noise * rng.standard_normal(steps)
    return {"mean": float(x.mean()), "spread": float(x.std())}


def row(params, repeat, seed):
    return {**params, "repeat": repeat, **decay(**params, rng=np.random.default_rng(seed))}


if __name__ == "__main__":
    points = [
        {"rate": rate, "noise": noise, "steps": 100_000}
        for rate, noise in itertools.product(np.linspace(0.1, 2, 20), [0.01, 0.1, 1.0])
    ]
    jobs = [(params, repeat) for params in points for repeat in range(20)]
    seeds = np.random.SeedSequence(7).spawn(len(jobs))
    with multiprocessing.Pool(2) as pool:
        rows = pool.starmap(row, [(*job, seed) for job, seed in zip(jobs, seeds, strict=True)])
    with open("sweep.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    spreads = [
        np.mean([row["spread"] for row in rows[first : first + 20]]) for first in range(0, len(rows), 20)
    ]
    print(points[int(np.argmin(spreads))])
