"""A shared 64 MiB array given to 20 tasks that sum it, against summing it 20 times in this process.

The ceiling is what bare forked processes reach that sum the array which they inherited: memory that all cores share.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import time

import numpy as np

from .common import Settings, alternate_plain, run_script
from .report import Goal, Report, Row
from .stats import pair_ratios, spread
from .tasks import total

MIB = 1 << 20
SIZE_MIB = 64
TASKS = 20
OURS, SERIAL, JOBLIB, BARE = "repartir, shared", "serial", "joblib, memory-mapped", "bare forks"


def measure(settings: Settings) -> Report:
    """Sums a second, in pairs; the array is shared before, the workers are warm."""
    array = np.ones(SIZE_MIB * MIB // 8)
    repartir = importlib.import_module("repartir")
    joblib = importlib.import_module("joblib") if importlib.util.find_spec("joblib") else None

    def serial() -> float:
        began = time.perf_counter()
        for _ in range(TASKS):
            total(array)
        return TASKS / (time.perf_counter() - began)

    def ours() -> float:
        with repartir.Executor(settings.workers, "fork") as executor, executor.share(array) as shared:
            list(executor.map(total, [shared] * settings.workers * 2, chunksize=1))
            began = time.perf_counter()
            for future in [executor.submit(total, shared) for _ in range(TASKS)]:
                future.result()
            return TASKS / (time.perf_counter() - began)

    def mapped() -> float:
        assert joblib is not None
        with joblib.Parallel(n_jobs=settings.workers) as parallel:
            parallel(joblib.delayed(total)(array) for _ in range(settings.workers * 2))
            began = time.perf_counter()
            parallel(joblib.delayed(total)(array) for _ in range(TASKS))
            return TASKS / (time.perf_counter() - began)

    def bare() -> float:
        began = time.perf_counter()
        children = []
        for _ in range(settings.workers):
            child = os.fork()
            if child == 0:
                for _ in range(TASKS // settings.workers):
                    total(array)
                os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        return TASKS // settings.workers * settings.workers / (time.perf_counter() - began)

    measures = {SERIAL: serial, OURS: ours, BARE: bare, **({} if joblib is None else {JOBLIB: mapped})}
    series = alternate_plain(measures, rounds=settings.pick(9, 3))
    case = f"sum of {SIZE_MIB} MiB, {TASKS} times"
    rows = []
    for name in (SERIAL, OURS, BARE, JOBLIB):
        own = series.get(name)
        values = [] if own is None else own.values
        against = pair_ratios(series[OURS].values, values)
        note = "not installed" if own is None else own.failure or ""
        ratio = spread(against) if against and name != OURS else None
        rows.append(Row(case, name, spread(values) if values else None, "1/s", ratio, note))
    against = pair_ratios(series[OURS].values, series[SERIAL].values)
    measured = spread(against) if against else None
    return Report(
        "array_shared",
        f"a shared {SIZE_MIB} MiB array, {TASKS} tasks",
        rows,
        [Goal(f"{case}, {settings.workers} workers, against serial", measured, 1.7, at_least=True)],
    )


if __name__ == "__main__":
    raise SystemExit(run_script("array_shared", measure, description=__doc__))
