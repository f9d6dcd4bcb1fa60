"""(a) A physicist, who ports two scripts: one with ProcessPoolExecutor, one with multiprocessing.Pool.

Nothing is guarded by `if __name__ == "__main__"` [A2].  What the promise says about each [A…] is asserted beside it.  Not
here yet, since it is not built: repartir.Pool, whose call with a number of workers is to name compat.Pool [A11].
"""

import functools
import math
import multiprocessing
import os
import signal
import time

import numpy as np
from scipy.stats import norm

import repartir
from repartir import Executor
from repartir.compat import Pool

np.save("potential.npy", np.linspace(-1, 1, 1_000_000).reshape(10_000, 100))
TABLE = np.load("potential.npy")  # a global, read by the workers: the fork idiom


def energy(i, beta):
    if i == 4711:
        raise ValueError("diverges")
    if i == 815:
        time.sleep(60)
    return float(np.exp(-beta * TABLE[i]).sum())


def walk(seed_seq, n=200_000):
    return np.random.default_rng(seed_seq).standard_normal(n).cumsum()


def hits(rng, n):  # a rare event: its probability is 9.6e-6
    return (rng.standard_normal((n, 3)) ** 2).sum(1) > 26


def basket(rng, n, strike=100.0):
    return basket_of_normals(rng.standard_normal((n, 4)), strike)


def basket_of_normals(z, strike=100.0):
    s = 100 * np.exp(-0.02 + 0.2 * z)
    return {"call": np.maximum(s.mean(1) - strike, 0), "spot": s.mean(1)}


def refused(error, words, fn, *args, **kwargs):
    try:
        fn(*args, **kwargs)
    except error as exc:
        assert words in str(exc), exc
        return exc
    raise AssertionError("it was not refused")


ex = Executor(2)

# ── his script with ProcessPoolExecutor
# [A1] The function goes by value, the table not at all: workers have the pages that the fork gave them.
assert ex.submit(lambda: TABLE.ctypes.data).result() == TABLE.ctypes.data
fs = [ex.submit(energy, i, 0.3) for i in range(500)]
total = sum(f.result() for f in fs)
assert total == sum(energy(i, 0.3) for i in range(500))

paths = list(ex.map(walk, np.random.SeedSequence(7).spawn(8)))
paths[0] -= paths[0][0]  # [A3] results are the receiver's own to write, too
assert paths[0][0] == 0
assert (paths[1] == walk(np.random.SeedSequence(7).spawn(8)[1])).all()

# [A4] One of 10,000 items diverges, one hangs: each concerns itself alone.
good, bad = [], []
outcomes = ex.options(timeout=0.5).map(energy, range(10_000), [0.3] * 10_000, return_exceptions=True)
for i, r in enumerate(outcomes):
    (bad if isinstance(r, Exception) else good).append((i, r))
assert [(i, type(r)) for i, r in bad] == [(815, repartir.TaskTimeout), (4711, ValueError)]
assert len(good) == 9_998

# [A2] Not even where workers start from a fresh interpreter is the main module imported again.
with Executor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
    assert (fresh.submit(walk, 7, 10).result() == walk(7, 10)).all()

# ── Monte Carlo
# [A5] The tolerance is the half-width of the interval. No hits so far is no reason to stop.
e = repartir.monte_carlo(hits, samples=3_000_000, tol=1e-7, seed=7, executor=ex, progress=True)
assert not e.converged
assert e.samples == 3_000_000
assert abs(e.mean - 9.6e-6) < 4 * e.stderr
e = repartir.monte_carlo(hits, samples=10**9, tol=1e-5, seed=7, executor=ex)
assert e.converged
assert 0 < (e.ci[1] - e.ci[0]) / 2 <= 1e-5
assert math.isclose(e.ci[0] + e.ci[1], 2 * e.mean)
none = repartir.monte_carlo(lambda rng, n: np.zeros(n), samples=50_000, tol=1e-3, seed=7, executor=ex)
assert (none.converged, none.samples, none.mean) == (False, 50_000, 0)

b = repartir.monte_carlo(basket, samples=10**6, seed=7, executor=ex)
assert b.mean["call"] == b["call"].mean  # [A7] both
assert b.samples == 10**6  # [A7] a count
assert abs(b["spot"].mean - 100) < 4 * b["spot"].stderr
b2 = repartir.monte_carlo(basket, samples=10**6, seed=7, executor=ex)
assert b.mean == b2.mean  # [A8] to the last bit
assert b == b2
cheaper = repartir.monte_carlo(functools.partial(basket, strike=90.0), samples=10**5, seed=7, executor=ex)
assert cheaper["call"].mean > b["call"].mean + 5  # [A6] further arguments: a partial or a closure
assert "functools.partial" in repartir.monte_carlo.__doc__

# [A9] Antithetic pairs are of points, so they take a function of points.
refused(TypeError, "antithetic", repartir.monte_carlo, basket, samples=10**6, antithetic=True)
c = repartir.monte_carlo(
    lambda u: basket_of_normals(norm.ppf(u)), samples=10**6, seed=7, points="antithetic", dim=4, executor=ex
)
assert abs(c["call"].mean - b["call"].mean) < 4 * (c["call"].stderr + b["call"].stderr)
assert c["spot"].stderr < b["spot"].stderr / 4

# [A10] A mean where samples are wanted: the error says what shape came, and what should.
refused(ValueError, "()", repartir.monte_carlo, lambda rng, n: basket(rng, n)["call"].mean(), samples=10**6)

# [A12] Debugging: the same in this process, the same bits
assert repartir.monte_carlo(basket, samples=10**6, seed=7, executor=repartir.SerialExecutor()) == b


# [A13] One bad sample: the error names what draws its batch again at the prompt.
def poisoned(rng, n):
    x = rng.standard_normal(n)
    return np.where(x > 4, np.nan, x)


batch = refused(ValueError, "returned NaN", repartir.monte_carlo, poisoned, 10**6, seed=7, executor=ex)
(note,) = batch.__notes__  # "batch 416 of monte_carlo: fn(repartir.rng(7, 0x6D63, 416), 64) draws it again"
assert np.isnan(
    eval(note.partition(": ")[2].removesuffix(" draws it again"), {"fn": poisoned, "repartir": repartir})
).any()
omitted = repartir.monte_carlo(poisoned, 10**6, seed=7, executor=ex, nan_policy="omit")
assert omitted.samples + omitted.nan_omitted == 10**6


# [A14] Ctrl-C: an exception that has the estimate so far
def interrupt(done, total):
    if done > 10**6:
        os.kill(os.getpid(), signal.SIGINT)


stopped = refused(
    repartir.Interrupted,
    ".partial",
    repartir.monte_carlo,
    basket,
    10**9,
    seed=7,
    executor=ex,
    progress=interrupt,
)
assert isinstance(stopped, KeyboardInterrupt)
assert 10**6 < stopped.partial.samples < 10**8
assert abs(stopped.partial["spot"].mean - 100) < 4 * stopped.partial["spot"].stderr
assert ex.submit(energy, 1, 0.3).result() == energy(1, 0.3)
ex.shutdown()

# ── his script with multiprocessing.Pool
with Pool(2) as p:  # [A11] compat has it
    assert p.starmap(energy, [(1, 0.3), (2, 0.3)]) == [energy(1, 0.3), energy(2, 0.3)]
print("all of it ran")
