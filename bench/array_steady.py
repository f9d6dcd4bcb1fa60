"""100 000 tasks with 64 KiB arrays, there and back: does anything grow after the first thousand.

Watched are the shared memory of the arena, and of the client and each process below it: resident memory, descriptors,
shared mappings.  Growth is what there is at the end over what there was after the first thousand; the highest on the way
stands beside it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

import numpy as np

from .arrays import identity
from .common import Settings, run_fresh, run_script
from .contenders import OURS
from .procfs import memory, open_files, shared_mappings, tree
from .report import Goal, Report, Row
from .stats import spread

ARRAY_BYTES = 64 * 1024
AT_ONCE = 50
SETTLED = 1_000
"""Tasks before the first look, and between two."""

Look = dict[str, list[float]]
"""What is watched → its figure of each process, in the order of their ids."""


def client(workers: int, tasks: int) -> None:
    """The fresh interpreter: run the tasks, look after every thousandth."""
    from repartir import Executor

    looks = []
    with Executor(workers, "fork") as executor:
        for first in range(0, tasks, AT_ONCE):
            indices = range(first, first + AT_ONCE)
            futures = [
                executor.submit(identity, np.full(ARRAY_BYTES // 8, float(index))) for index in indices
            ]
            for index, future in zip(indices, futures, strict=True):
                if future.result()[-1] != index:
                    raise RuntimeError(f"task {index} gave back another array than its own")
            del futures, future
            if (first + AT_ONCE) % SETTLED == 0:
                looks.append(look(executor.stats().backed_bytes))
    print(json.dumps({"looks": looks}))


def look(arena_bytes: int) -> Look:
    """The figures of now."""
    client, *others = tree(os.getpid())
    return {
        "shared memory of the arena": [arena_bytes],
        "resident, client": [memory(client).resident],
        "resident, processes below it": [memory(pid).resident for pid in others],
        "descriptors": [open_files(pid) for pid in (client, *others)],
        "shared mappings": [shared_mappings(pid) for pid in (client, *others)],
    }


def growth(looks: list[Look]) -> Iterator[tuple[str, float, float]]:
    """What was watched, its growth in per cent of the process that grew most: at the end, and at most."""
    for name, first in looks[0].items():
        later = [
            max(100 * (now / before - 1) for before, now in zip(first, each[name], strict=True))
            for each in looks[1:]
        ]
        yield name, later[-1], max(later)


def run_client(workers: int, tasks: int, timeout_s: float) -> list[Look]:
    looks: list[Look] = run_fresh("array_steady", "--client", str(workers), str(tasks), timeout_s=timeout_s)[
        "looks"
    ]
    return looks


def measure(settings: Settings) -> Report:
    """A fresh client a round; the goal is for whatever grew most."""
    tasks = settings.pick(100_000, 10_000)
    clients = [
        run_client(settings.workers, tasks, settings.pick(180, 60)) for _ in range(settings.pick(3, 1))
    ]
    rounds = [list(growth(looks)) for looks in clients]
    rows = []
    for since, of_all in (
        (f"since {SETTLED:,} tasks", rounds),
        (
            f"since {tasks // 10:,} tasks",
            [list(growth(looks[tasks // 10 // SETTLED - 1 :])) for looks in clients],
        ),
    ):
        for each in zip(*of_all, strict=True):
            most = max(most for _, _, most in each)
            rows.append(
                Row(
                    f"{each[0][0]}, {since}",
                    OURS,
                    spread([last for _, last, _ in each]),
                    "% growth",
                    note=f"at most {most:.2f}",
                )
            )
    worst = spread([max(last for _, last, _ in looks) for looks in rounds])
    return Report(
        "array_steady",
        f"{tasks:,} tasks with {ARRAY_BYTES // 1024} KiB arrays, after the first {SETTLED:,}",
        rows,
        [Goal("% growth of what grew most", worst, 2, at_least=False)],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        client(int(sys.argv[2]), int(sys.argv[3]))
    else:
        raise SystemExit(run_script("array_steady", measure, description=__doc__))
