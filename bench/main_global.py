"""Submits of a `__main__` function that reads a large global made before the pool, against the same without.

Run as a script, so that function and global are `__main__`'s.  `--size-mib` sets the size of the global.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from .common import Settings, measure_all, rows_of, run_script, spread_of
from .contenders import OURS, Contender, Pool
from .report import Goal, Report

SUBMITS = 2_000
MIB = 1 << 20
FULL_MIB, QUICK_MIB = 1024, 128

TABLE: NDArray[np.float64] = np.ones(1)


def with_global(index: int) -> float:
    """Read one number of the global."""
    return float(TABLE[index])


def without_global(index: int) -> float:
    """As much work, no global."""
    return float(index)


def _seconds(pool: Pool, function: Callable[[int], float], step: int) -> float:
    began = time.perf_counter()
    for future in [pool.submit(function, index * step) for index in range(SUBMITS)]:
        pool.take(future)
    return time.perf_counter() - began


def measure(settings: Settings, size_mib: int | None) -> Report:
    """Seconds with the global ÷ seconds without, for all contenders that do not send it by value."""
    global TABLE
    if with_global.__module__ != "__main__":
        raise RuntimeError("run this benchmark as a script: its function must live in __main__")
    mib = size_mib or settings.pick(FULL_MIB, QUICK_MIB)
    TABLE = np.ones(mib * MIB // 8)
    step = TABLE.size // SUBMITS

    def relative_time(contender: Contender) -> float:
        with contender.open(settings.workers) as pool:
            for function in (with_global, without_global):
                pool.take(pool.submit(function, 0))
            before = _seconds(pool, without_global, step)
            reading = _seconds(pool, with_global, step)
            after = _seconds(pool, without_global, step)
        return reading / ((before + after) / 2)

    series = measure_all(
        relative_time, rounds=settings.pick(7, 3), peer_rounds=settings.pick(2, 1), without=("loky",)
    )
    skipped = {"loky": f"sends {mib} MiB by value at each submit"}
    return Report(
        "main_global",
        "__main__ function that reads a large global",
        rows_of(f"{SUBMITS:,} submits, {mib:,} MiB", series, "× without global", skipped, paired=False),
        [Goal("time with the global, against without", spread_of(series, OURS), 1.2, at_least=False)],
    )


def main() -> int:
    """Take `--size-mib`, leave the rest to the common frame."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--size-mib", type=int)
    own, rest = parser.parse_known_args()
    return run_script("main_global", partial(measure, size_mib=own.size_mib), rest, __doc__)


if __name__ == "__main__":
    raise SystemExit(main())
