"""Memory of an idle worker beyond what it shares with its parent, in a fresh client that has numpy imported.

Private memory is Private_Clean + Private_Dirty of /proc/PID/smaps_rollup.  Pages that only helper processes
and workers share are private to none of them: the second figure, the growth of the tree's proportional memory
for each worker, counts those too.
"""

from __future__ import annotations

import json
import os
import statistics
import sys

from .common import Settings, measure_all, rows_of, run_fresh, run_script, spread_of
from .contenders import CONTENDERS, OURS, Contender
from .gate import Gate
from .procfs import memory, tree
from .report import Goal, Report
from .stats import Series
from .tasks import noop, pass_gate

MIB = 1 << 20


def client(name: str, workers: int) -> None:
    """The fresh interpreter: numpy, a pool, some no-ops, then look at the workers."""
    import numpy as np

    np.ones(1000).sum()
    contender = CONTENDERS[name]
    alone = memory(os.getpid()).proportional
    with Gate() as gate, contender.open(workers) as pool:
        held = [pool.submit(pass_gate, gate.path) for _ in range(workers)]
        with gate.opened():
            pids = {pool.take(future) for future in held}
        for future in [pool.submit(noop) for _ in range(100)]:
            pool.take(future)
        private = statistics.mean(memory(pid).private for pid in pids)
        whole = sum(memory(pid).proportional for pid in tree(os.getpid()))
    print(json.dumps({"private": private, "tree": (whole - alone) / workers, "seen": len(pids)}))


def measure(settings: Settings) -> Report:
    """MiB for each worker, one fresh client a round."""
    trees: dict[str, Series] = {}

    def private_mib(contender: Contender) -> float:
        found = run_fresh("memory", "--client", contender.name, str(settings.workers), timeout_s=60)
        trees.setdefault(contender.name, Series()).values.append(float(found["tree"]) / MIB)
        return float(found["private"]) / MIB

    private = measure_all(private_mib, rounds=settings.pick(3, 1), peer_rounds=1)
    for name, series in private.items():
        trees.setdefault(name, Series()).failure = series.failure
    return Report(
        "memory",
        f"memory per idle worker, {settings.workers} workers",
        [
            *rows_of("private to the worker", private, "MiB"),
            *rows_of("growth of the whole tree ÷ workers", trees, "MiB"),
        ],
        [Goal("MiB private to an idle worker", spread_of(private, OURS), 4, at_least=False)],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        client(sys.argv[2], int(sys.argv[3]))
    else:
        raise SystemExit(run_script("memory", measure, description=__doc__))
