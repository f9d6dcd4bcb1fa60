"""What an idle executor costs: CPU time and wake-ups of its whole process tree, watched from outside.

A wake-up is a voluntary context switch of one thread; the goal is for the most restless thread of the tree.
A thread that wakes once a second may do so once more within the window than the window has seconds.
"""

from __future__ import annotations

import sys
import time

from .common import Settings, client_process, measure_all, rows_of, run_script, spread_of
from .contenders import CONTENDERS, OURS, Contender
from .procfs import thread_uses, tree
from .report import Goal, Report
from .stats import Series
from .tasks import noop

SETTLE_S = 0.5


def client(name: str, workers: int) -> None:
    """Make a pool, use it, then leave it alone until stdin ends."""
    with CONTENDERS[name].open(workers) as pool:
        for future in [pool.submit(noop) for _ in range(100)]:
            pool.take(future)
        print("ready", flush=True)
        sys.stdin.read()


def watch(pid: int, window_s: float) -> tuple[float, float, float]:
    """CPU in per cent of a core, wake-ups per second of the busiest thread, and of all threads together."""
    pids = tree(pid)
    before, began = thread_uses(pids), time.monotonic()
    time.sleep(window_s)
    after, seconds = thread_uses(pids), time.monotonic() - began
    shared = before.keys() & after.keys()
    cpu_ns = sum(after[key].cpu_ns - before[key].cpu_ns for key in shared)
    sleeps = [after[key].sleeps - before[key].sleeps for key in shared]
    return cpu_ns / seconds / 1e9 * 100, max(sleeps) / seconds, sum(sleeps) / seconds


def measure(settings: Settings) -> Report:
    """One window for each contender: ours the longest, the others' shorter."""
    own_window_s, other_window_s = settings.pick(10, 3), settings.pick(4, 1)
    highest = 1 + 1 / own_window_s
    busiest: dict[str, Series] = {}
    total: dict[str, Series] = {}

    def cpu_percent(contender: Contender) -> float:
        window_s = own_window_s if contender.name == OURS else other_window_s
        with client_process("idle", "--client", contender.name, str(settings.workers)) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("the client made no pool")
            time.sleep(SETTLE_S)
            cpu, most, all_threads = watch(process.pid, window_s)
            process.stdin.close()
            process.wait(timeout=30)
        busiest.setdefault(contender.name, Series()).values.append(most)
        total.setdefault(contender.name, Series()).values.append(all_threads)
        return cpu

    cpu = measure_all(cpu_percent, rounds=1, peer_rounds=1)
    for name, series in cpu.items():
        for other in (busiest, total):
            other.setdefault(name, Series()).failure = series.failure
    return Report(
        "idle",
        "an idle executor",
        [
            *rows_of("CPU of the process tree", cpu, "% of a core"),
            *rows_of("wake-ups, busiest thread", busiest, "1/s"),
            *rows_of("wake-ups, all threads", total, "1/s"),
        ],
        [
            Goal("CPU in % of a core", spread_of(cpu, OURS), 0.2, at_least=False),
            Goal(
                "wake-ups per second of the busiest thread", spread_of(busiest, OURS), highest, at_least=False
            ),
        ],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        client(sys.argv[2], int(sys.argv[3]))
    else:
        raise SystemExit(run_script("idle", measure, description=__doc__))
