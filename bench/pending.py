"""A million pending no-ops: do all settle, how long does it take, what does each cost the client meanwhile.

All workers are held at a gate while the tasks are submitted, so that all are pending at once.  Memory is the
growth of the client's resident set, shared segments that it touched included.
"""

from __future__ import annotations

import json
import os
import sys
import time

from .common import Settings, measure_all, rows_of, run_fresh, run_script, spread_of
from .contenders import CONTENDERS, OURS, Contender
from .gate import Gate
from .procfs import memory
from .report import Goal, Report
from .stats import Series
from .tasks import noop, pass_gate


def client(name: str, workers: int, tasks: int) -> None:
    """The fresh interpreter: hold the workers, submit no-ops, weigh them, let go, take every result."""
    with Gate() as gate, CONTENDERS[name].open(workers) as pool:
        for future in [pool.submit(noop) for _ in range(100)]:
            pool.take(future)
        held = [pool.submit(pass_gate, gate.path) for _ in range(workers)]
        before = memory(os.getpid()).resident
        began = time.perf_counter()
        futures = [pool.submit(noop) for _ in range(tasks)]
        grown = memory(os.getpid()).resident - before
        with gate.opened():
            for future in held:
                pool.take(future)
            settled = sum(pool.take(future) is None for future in futures)
        wall_s = time.perf_counter() - began
    print(json.dumps({"bytes": grown / tasks, "settled": settled / tasks, "wall_us": wall_s / tasks * 1e6}))


def measure(settings: Settings) -> Report:
    """Bytes and microseconds for each pending task: a million of ours, fewer of the slower contenders'."""
    ours, theirs = settings.pick(1_000_000, 100_000), settings.pick(50_000, 20_000)
    settled: dict[str, Series] = {}
    wall_us: dict[str, Series] = {}

    def bytes_per_task(contender: Contender) -> float:
        tasks = ours if contender.name == OURS else theirs
        found = run_fresh(
            "pending",
            "--client",
            contender.name,
            str(settings.workers),
            str(tasks),
            timeout_s=settings.pick(90, 30),
        )
        settled.setdefault(contender.name, Series()).values.append(float(found["settled"]))
        wall_us.setdefault(contender.name, Series()).values.append(float(found["wall_us"]))
        return float(found["bytes"])

    sizes = measure_all(bytes_per_task, rounds=1, peer_rounds=1)
    for name, series in sizes.items():
        for other in (settled, wall_us):
            other.setdefault(name, Series()).failure = series.failure
    return Report(
        "pending",
        f"{ours:,} pending no-ops ({theirs:,} for the others)",
        [
            *rows_of("client memory", sizes, "bytes/task"),
            *rows_of("submit to last result", wall_us, "µs/task"),
            *rows_of("settled", settled, "of all", paired=False),
        ],
        [
            Goal("share of tasks that settle", spread_of(settled, OURS), 1.0, at_least=True),
            Goal("bytes of client memory per pending task", spread_of(sizes, OURS), 1536, at_least=False),
        ],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        client(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        raise SystemExit(run_script("pending", measure, description=__doc__))
