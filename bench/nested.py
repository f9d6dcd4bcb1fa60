"""Tasks that submit tasks: fib(30) with one branch spawned down to 15, against the serial call; a child that nobody takes.

The serial call runs in a worker, in turn with the other.  Depth: a chain of 200 tasks, each waiting for the next.
"""

from __future__ import annotations

import time

from repartir import Executor, current_executor

from .common import Settings, ratio_to, run_script, spread_of
from .contenders import OURS
from .report import Goal, Report, Row
from .stats import alternate, exactly, spread

N, CUTOFF, DEPTH = 30, 15, 200
LIMIT_S = 60.0
SERIAL = "serial"


def fib(n: int) -> int:
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def nested_fib(n: int) -> int:
    """One branch is a child, the other is called."""
    if n <= CUTOFF:
        return fib(n)
    left = current_executor().submit(nested_fib, n - 1)
    return nested_fib(n - 2) + left.result()


def chain(depth: int) -> int:
    return depth and 1 + current_executor().submit(chain, depth - 1).result()


def microseconds_a_child(children: int, rounds: int) -> list[float]:
    """Submit and result of a child with an atom as its argument, in a task whose worker is the only one."""
    executor, found = current_executor(), []
    for _ in range(rounds):
        began = time.perf_counter()
        for n in range(children):
            executor.submit(abs, n).result()
        found.append((time.perf_counter() - began) / children * 1e6)
    return found


def measure(settings: Settings) -> Report:
    """Tasks/s would say little here: seconds of both, their ratio, and the cost of a child."""
    rounds = settings.pick(15, 5)
    with Executor(settings.workers) as pool:

        def seconds(fn: object) -> float:
            began = time.perf_counter()
            pool.submit(fn, N).result(LIMIT_S)  # type: ignore[arg-type]
            return time.perf_counter() - began

        times = alternate(
            {SERIAL: lambda: seconds(fib), OURS: lambda: seconds(nested_fib)}, {SERIAL: rounds, OURS: rounds}
        )
        began = time.perf_counter()
        reached = pool.submit(chain, DEPTH).result(LIMIT_S)
        deep_s = time.perf_counter() - began
    with Executor(1) as pool:
        child = spread(pool.submit(microseconds_a_child, settings.pick(3000, 1000), 9).result(LIMIT_S))
    speedup = ratio_to(times[SERIAL].values, times[OURS].values)
    case = f"fib({N}), cut-off {CUTOFF}"
    return Report(
        "nested",
        f"tasks that submit tasks, {settings.workers} workers",
        [
            Row(case, OURS, spread_of(times, OURS), "s", note=times[OURS].failure or ""),
            Row(case, SERIAL, spread_of(times, SERIAL), "s"),
            Row(f"a chain {DEPTH} deep", OURS, exactly(deep_s), "s"),
            Row("a child that nobody takes", OURS, child, "µs"),
        ],
        [
            Goal(f"speed of fib({N}) against serial, two workers", speedup, 1.6, at_least=True),
            Goal("depth reached on two workers", exactly(reached), DEPTH, at_least=True),
            Goal("µs for submit and result of a child that nobody takes", child, 10, at_least=False),
        ],
    )


if __name__ == "__main__":
    raise SystemExit(run_script("nested", measure, description=__doc__))
