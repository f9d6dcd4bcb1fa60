"""How many threads of their own the numeric libraries in a process start: BLAS, OpenMP and the like."""

from __future__ import annotations

import os

VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
"""Each library reads its own when it is loaded."""


def limit_threads(count: int, *, always: bool = False) -> None:
    """Let the libraries of this process, loaded or to come, have ``count`` threads each.

    Those for which the environment says something keep to that, unless ``always``.
    """
    free = [name for name in VARIABLES if always or name not in os.environ]
    os.environ.update(dict.fromkeys(free, str(count)))
    limits = {}
    if "OMP_NUM_THREADS" in free:
        limits["openmp"] = count
        if {"OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"} <= set(free):
            limits["blas"] = count
    if limits:
        from threadpoolctl import threadpool_limits

        threadpool_limits(limits)
