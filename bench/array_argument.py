"""A 64 MiB argument, one number back: against the other pools, and joblib with its memory-mapped arguments."""

from __future__ import annotations

import importlib
import importlib.util
import time

import numpy as np

from .common import Settings, against_stdlib, measure_all, ratio_to, rows_of, run_script
from .contenders import OURS, Contender
from .report import Goal, Report, Row
from .stats import Series, spread
from .tasks import touch

MIB = 1 << 20
SIZE_MIB = 64
WARM_UP = 2
JOBLIB, RAY = "joblib", "ray"


def measure(settings: Settings) -> Report:
    """GB/s of the way there, from the third call on, a new array each time."""
    calls = settings.pick(full=10, quick=4)
    arrays = [np.full(SIZE_MIB * MIB, nth, np.uint8) for nth in range(2)]

    def argument_rate(contender: Contender) -> float:
        with contender.open(settings.workers) as pool:
            for _ in range(WARM_UP):
                pool.take(pool.submit(touch, arrays[0]))
            count = calls if contender.name == OURS else 2
            began = time.perf_counter()
            for nth in range(count):
                pool.take(pool.submit(touch, arrays[nth % 2]))
            return count * arrays[0].nbytes / (time.perf_counter() - began) / 1e9

    def joblib_rate() -> float:
        """Dumps each array to a file, once for all calls that it recognises as having the same."""
        joblib = importlib.import_module("joblib")
        with joblib.Parallel(n_jobs=settings.workers) as parallel:
            parallel(joblib.delayed(touch)(array) for array in arrays)
            fresh = [array + 1 for array in arrays]
            began = time.perf_counter()
            parallel(joblib.delayed(touch)(array) for array in fresh)
            return sum(array.nbytes for array in fresh) / (time.perf_counter() - began) / 1e9

    def ray_rate() -> float:
        """Puts each array into the object store."""
        ray = importlib.import_module("ray")
        ray.init(num_cpus=settings.workers, log_to_driver=False)
        try:
            remote = ray.remote(touch)
            ray.get([remote.remote(array) for array in arrays])
            began = time.perf_counter()
            for nth in range(calls):
                ray.get(remote.remote(arrays[nth % 2]))
            return calls * arrays[0].nbytes / (time.perf_counter() - began) / 1e9
        finally:
            ray.shutdown()

    others = {
        name: rate
        for name, rate in ((JOBLIB, joblib_rate), (RAY, ray_rate))
        if importlib.util.find_spec(name) is not None
    }
    series = measure_all(
        argument_rate, rounds=settings.pick(7, 3), peer_rounds=settings.pick(2, 1), yardsticks=others
    )
    case = f"{SIZE_MIB} MiB argument"
    rows = []
    for name in (JOBLIB, RAY):
        own = series.pop(name, Series(failure=None if name in others else "not installed"))
        value = spread(own.values) if own.values else None
        rows.append(
            Row(case, name, value, "GB/s", ratio_to(series[OURS].values, own.values), own.failure or "")
        )
    return Report(
        "array_argument",
        f"{case}, one number back",
        [*rows_of(case, series, "GB/s"), *rows],
        [Goal(f"{case}, against ProcessPoolExecutor", against_stdlib(series), 40, at_least=True)],
    )


if __name__ == "__main__":
    raise SystemExit(run_script("array_argument", measure, description=__doc__))
