"""`repartir demo`: the study in this process, then on the pool, with the speed-up and a check of equality.

BLAS is limited to one thread a process both times. Otherwise the serial run would use all cores inside each
matrix product, or the workers would fight for them, and the speed-up would say nothing.
"""

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor as AnyExecutor

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from threadpoolctl import threadpool_info, threadpool_limits

from repartir import Executor, SerialExecutor
from repartir.demo.report import Outcome, Timing, print_tables, to_json
from repartir.demo.study import FULL, QUICK, Call, Plan, Result, Study, digest, run_calls

REFRESH_S = 0.1


def run(*, quick: bool, workers: int | None, seed: int, as_json: bool) -> int:
    """Run and print; 0 when both ways gave the same bits, else 1."""
    outcome = compare(QUICK if quick else FULL, lambda: Executor(workers, initializer=one_blas_thread), seed)
    if as_json:
        print(to_json(outcome))
    else:
        print_tables(Console(), outcome)
    return 0 if outcome.same_numbers else 1


def compare(plan: Plan, make_pool: Callable[[], AnyExecutor], seed: int) -> Outcome:
    """The plan's calls one after another in this process, then on the executor that `make_pool` makes."""
    study = Study(plan, seed)
    calls = study.calls
    with _progress() as progress:
        with threadpool_limits(limits=1):
            serial, results = timed(SerialExecutor, calls, _advancer(progress, "serially", len(calls)))
        pool, _ = timed(make_pool, calls, _advancer(progress, "on the pool", len(calls)))
    return Outcome(seed, len(calls), study.paths, study.sweeps(results), study.prices(results), serial, pool)


def timed(
    make_executor: Callable[[], AnyExecutor], calls: Sequence[Call], on_done: Callable[[], None]
) -> tuple[Timing, list[Result]]:
    """Wall time from before the executor is made until after it is shut down, and the results."""
    start = time.perf_counter()
    with make_executor() as executor:
        results = run_calls(executor, calls, on_done)
        threads = executor.submit(blas_threads).result()
        workers = getattr(executor, "_max_workers", 1)
    return Timing(time.perf_counter() - start, digest(results), workers, threads), results


def one_blas_thread() -> None:
    """For each worker, so that the processes do not share the cores with threads of their own."""
    threadpool_limits(limits=1)


def blas_threads() -> int:
    """The most threads that a numeric library loaded in this process may use now."""
    return max((int(pool["num_threads"]) for pool in threadpool_info()), default=1)


def _progress() -> Progress:
    """A bar on stderr if that is a terminal; without a thread, since processes are forked while it is up."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not sys.stderr.isatty(),
    )


def _advancer(progress: Progress, label: str, total: int) -> Callable[[], None]:
    """A call that moves the bar by one and redraws it at most every REFRESH_S."""
    bar = progress.add_task(label, total=total)
    drawn_at = 0.0

    def advance() -> None:
        nonlocal drawn_at
        progress.advance(bar)
        if time.monotonic() - drawn_at >= REFRESH_S:
            drawn_at = time.monotonic()
            progress.refresh()

    return advance
