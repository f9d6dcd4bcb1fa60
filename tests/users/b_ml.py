"""(b) An ML engineer, notebook cells: scikit-learn, joblib, Optuna.

Nothing is guarded by `if __name__ == "__main__"`.  What the promise says about each [B…] is asserted beside it.
"""

# %%
import asyncio
import os
import signal
import threading
import time
import warnings
from concurrent.futures import as_completed
from importlib.util import find_spec
from pathlib import Path

import joblib
import numpy as np
import optuna
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier as HGB
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_val_score

import repartir
import repartir.integrations.joblib

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.simplefilter("ignore", ConvergenceWarning)
X, y = load_digits(n_class=2, return_X_y=True)
HGB(max_iter=1).fit(X, y)  # a first fit in the kernel: libgomp has threads from here on
# [B1] Workers start from a fresh interpreter, so that OpenMP fits in them do not hang.
ex = repartir.Executor(2)
Xs = ex.share(X)
assert isinstance(Xs, np.ndarray)  # [B2] an array like others, also when ex is gone (see the last cell)
assert not ex.submit(lambda array: array.flags.writeable, Xs).result()


# %%
def fit(lr, depth, hidden=(64,), rng=None):
    m = HGB(learning_rate=lr, max_depth=depth, max_iter=5, random_state=int(rng.integers(2**31)))
    return {"acc": cross_val_score(m, Xs, y, cv=3).mean(), "lr_used": lr, "state": m.random_state}


first = ex.submit(fit, 0.1, 4, rng=np.random.default_rng(7)).result()
assert first == fit(0.1, 4, rng=np.random.default_rng(7))


space = repartir.grid(lr=[0.01, 0.1, 1], depth=[2, 4], hidden=[[64], [64, 64]])  # [B4] lists, as other values
told = []
res = repartir.sweep(
    fit, space, repeats=2, executor=ex, journal="run.db", progress=lambda *args: told.append(args)
)
assert (len(res), told[-1]) == (24, (24, 24))
assert res[1].params == {"lr": 0.01, "depth": 2, "hidden": [64]}
assert (res[1].repeat, res[2].params["hidden"]) == (1, [64, 64])  # in the space's order, repeats together
# [B3] fit(**params), and rng=, since fit names it: the stream of the row's parameters and repeat
alone = repartir.sweep(fit, [res[5].params], repeats=2, seed=res.seed, executor=ex)
assert [row.result for row in alone] == [row.result for row in res.rows[4:6]]
assert alone[0].result != alone[1].result

# %%  runs the cell again [B5]: the journal has the seed and the rows, so nothing is left to do
computed = []
again = repartir.sweep(fit, space, repeats=2, executor=ex, journal="run.db", on_row=computed.append)
assert (again.seed, again.rows, computed) == (res.seed, res.rows, [])

# %% [B6] the point whose mean over the repeats is best: of losses the least, unless it is told
best, worst = res.best("acc", mode="max"), res.best("acc")
means = [np.mean([row.result["acc"] for row in res.rows[first : first + 2]]) for first in range(0, 24, 2)]
assert (best.mean, worst.mean) == (max(means), min(means))
assert [row.params for row in best.rows] == [best.params] * 2

# %% [B7] a row a repeat; parameters, repeat, results, then what is known of the row
if find_spec("pandas"):
    df = res.to_dataframe()
    of_row = ["seconds", "worker", "attempts", "error"]
    assert list(df) == ["lr", "depth", "hidden", "repeat", "acc", "lr_used", "state", *of_row]
    assert df.groupby(["lr", "depth"]).acc.mean().shape == (6,)
    same_names = repartir.sweep(
        lambda seconds: {"seconds": 2 * seconds, "worker": "me"}, repartir.grid(seconds=[1]), executor=ex
    )
    clash = same_names.to_dataframe()
    assert clash.loc[0, ["seconds", "result.seconds", "result.worker"]].tolist() == [1, 2, "me"]
    assert list(clash)[4:] == ["row.seconds", *of_row[1:]]


# %%  edits fit, runs the cell again [B10]: the one that runs is the newest
def fit(lr, depth, hidden=(64,), rng=None):
    m = HGB(learning_rate=lr, max_depth=depth, max_iter=5, random_state=int(rng.integers(2**31)))
    return {
        "acc": cross_val_score(m, Xs, y, cv=3).mean(),
        "lr_used": lr,
        "state": m.random_state,
        "edited": True,
    }


again = ex.submit(fit, 0.1, 4, rng=np.random.default_rng(7)).result()
assert again == {**first, "edited": True}

# %% [B8] the journal has rows of the fit that was: the error names what has changed in it, and what to do
wider = repartir.grid(lr=[0.003, 0.01, 0.1, 1], depth=[2, 4], hidden=[[64], [64, 64]])
try:
    repartir.sweep(fit, wider, repeats=2, executor=ex, journal="run.db")
except repartir.JournalMismatch as error:
    assert "fit is another function" in str(error)
    assert "'state': m.random_state, 'edited': True}" in str(error)
    assert 'on_change="rerun"' in str(error)
else:
    raise AssertionError("a changed function is noticed")
rerun = repartir.sweep(
    fit, wider, repeats=2, executor=ex, journal="run.db", on_change="rerun", on_row=computed.append
)
assert len(computed) == len(rerun) == 32
# [B9] streams go by parameters, not by places: the 24 old rows have the random numbers that they had
assert [row.result for row in rerun.rows[8:]] == [{**row.result, "edited": True} for row in res]

# %%
study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))


def objective(p):
    return repartir.current_executor() is not None, p  # [B11] in a task there is one


assert ex.submit(objective, 3).result() == (True, 3)
try:
    objective(3)
except RuntimeError as error:
    assert "works in tasks only" in str(error)
else:
    raise AssertionError("outside a task it raises")

for _ in range(2):
    space = {"lr": optuna.distributions.FloatDistribution(1e-3, 1, log=True)}
    trials = [study.ask(space) for _ in range(3)]
    limited = ex.options(timeout=600, retries=1)
    fs = {limited.submit(fit, t.params["lr"], 4, rng=np.random.default_rng(t.number)): t for t in trials}
    for f in as_completed(fs):  # plain futures
        try:
            study.tell(fs[f], f.result()["acc"])
        except repartir.TaskTimeout:
            study.tell(fs[f], state=optuna.trial.TrialState.FAIL)
assert len(study.trials) == 6
assert all(trial.state is optuna.trial.TrialState.COMPLETE for trial in study.trials)


# %% [B12] retries: own errors are retried too; the time-out is one attempt's, from the call
def flaky(folder):
    tries = len(list(folder.iterdir()))
    (folder / str(tries)).touch()
    time.sleep(0.4)
    if not tries:
        raise ValueError("mine")
    return tries


folder = Path("tries")
folder.mkdir()
assert ex.options(timeout=0.7, retries=1, backoff=0.01).submit(flaky, folder).result() == 1
trial = study.ask()
try:
    study.tell(trial, ex.options(timeout=0.2).submit(time.sleep, 60).result())
except repartir.TaskTimeout:
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
assert study.trials[-1].state is optuna.trial.TrialState.FAIL

# %%
model = HGB(max_iter=5, random_state=0)
serial = cross_val_score(model, X, y, cv=5)
with joblib.parallel_config(
    "repartir", executor=ex, n_jobs=8
):  # [B14] ex; more jobs than it has workers are as many
    assert joblib.effective_n_jobs() == 2
    assert cross_val_score(model, X, y, cv=5).tolist() == serial.tolist()
with joblib.parallel_config(
    "repartir", n_jobs=2
):  # [B14] without: one of its own, which the next call uses again
    pids = [set(joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(8))) for _ in range(2)]
    assert cross_val_score(model, X, y, cv=5).tolist() == serial.tolist()
assert len(pids[0] | pids[1]) <= 2


# %%
def nested(seed):
    return sum(ex.map(np.sin, range(seed)))  # [B15] in a task, ex is the current executor


told = []
sums = ex.map(nested, range(4), progress=lambda *args: told.append(args))  # [B16]
assert list(sums) == [sum(np.sin(range(n))) for n in range(4)]
assert told[-1] == (4, 4)


# %%  interrupts the kernel during ex.map [B17]: it computes no more, and ex is usable in the next cell
def long(path):
    Path(path).touch()
    time.sleep(60)
    Path(path + "-ended").touch()


def interrupt():
    while not Path("long-1").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


threading.Thread(target=interrupt).start()
try:
    list(ex.map(long, [f"long-{n}" for n in range(20)]))
except KeyboardInterrupt:
    pass
else:
    raise AssertionError("not interrupted")
assert ex.submit(fit, 0.1, 4, rng=np.random.default_rng(7)).result() == again
assert not list(Path().glob("*-ended"))


# %%
async def serve(seconds):
    return await asyncio.wait_for(ex.asubmit(time.sleep, seconds), 0.2)  # [B18] the time-out stops the task


try:
    asyncio.run(serve(60))
except TimeoutError:
    pass
else:
    raise AssertionError("it did not time out")
assert asyncio.run(serve(0)) is None

# %%
ex.shutdown()
assert (Xs == X).all()  # [B2]
print("all cells ran")
