"""What faults cost: time-outs, deaths, and a run in which a random worker is killed twenty times a second.

*Stopped after the deadline*: from the moment when a task's time is over until its future says so.  *Next task after a
kill*: from the SIGKILL of the only worker to the result of a task that its successor serves.  *Chaos*: tasks of 1 ms while
random workers are killed, with retries (every result must be right, and come once) against the same without kills; and
without retries, where each kill may fail the task that ran and no other.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from repartir import Executor, TaskTimeout, WorkerDied

from .common import Settings, run_script
from .contenders import OURS
from .report import Goal, Report, Row
from .stats import exactly, spread

KILL_EVERY_S = 0.05
TASK_S = 1e-3
TIMEOUT_S = 0.2
RETRIES = 5


def task(number: int) -> int:
    """One millisecond of work."""
    until = time.perf_counter() + TASK_S
    while time.perf_counter() < until:
        pass
    return number * 3


def note_and_sleep(began: Any) -> None:
    """Says when it began and never ends."""
    began[0] = time.monotonic()
    time.sleep(60)


def stopped_after_s(executor: Executor) -> float:
    """Seconds between a task's deadline and its TaskTimeout."""
    with executor.share(np.zeros(1), writable=True) as began:
        error = executor.options(timeout=TIMEOUT_S).submit(note_and_sleep, began).exception(30)
        now = time.monotonic()
        if not isinstance(error, TaskTimeout):
            raise RuntimeError(f"not stopped: {error!r}")
        return float(now - (began[0] + TIMEOUT_S))


def next_task_ms(executor: Executor) -> float:
    """Milliseconds from the SIGKILL of the only worker to the result of the next task."""
    pid = executor.submit(os.getpid).result(30)
    began = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    while True:
        try:
            if executor.submit(os.getpid).result(30) != pid:
                return (time.perf_counter() - began) * 1e3
        except WorkerDied:
            continue


@contextmanager
def killing(executor: Executor, seed: int) -> Iterator[list[int]]:
    """Kills a random worker every 50 ms; gives the list of the pids that were killed."""
    killed: list[int] = []
    over = threading.Event()
    board, rng = executor._broker.board, random.Random(seed)

    def run() -> None:
        while not over.wait(KILL_EVERY_S):
            pid = board.words[rng.choice(board.rows).pid]
            if pid:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                killed.append(pid)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def chaos(workers: int, tasks: int, *, kills: bool, retries: int, seed: int = 1) -> tuple[float, int, int]:
    """Seconds for the tasks, how many failed, how many workers were killed.  Raises if a result is wrong or missing."""
    with Executor(workers, "fork", retries=retries, backoff=0, poison_limit=None) as executor:
        for future in [executor.submit(task, number) for number in range(50)]:
            future.result(30)
        delivered = [0] * tasks
        began = time.perf_counter()
        failed = 0
        if kills:
            with killing(executor, seed) as killed:
                failed = deliver(executor, delivered)
        else:
            killed = []
            failed = deliver(executor, delivered)
        seconds = time.perf_counter() - began
        executor.submit(task, 0).result(30)  # it goes on; nobody kills any more
    if delivered != [1] * tasks:
        raise RuntimeError(
            f"{delivered.count(0)} tasks lost, {sum(n > 1 for n in delivered)} delivered twice"
        )
    return seconds, failed, len(killed)


def deliver(executor: Executor, delivered: list[int]) -> int:
    """Run a task for each place and count what comes back; how many failed by the death of their worker."""
    failed = 0
    futures = [executor.submit(task, number) for number in range(len(delivered))]
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, number=number: count(delivered, number))  # type: ignore[misc]
    for number, future in enumerate(futures):
        error = future.exception(120)
        if isinstance(error, WorkerDied):
            failed += 1
        elif error is not None or future.result(0) != number * 3:
            raise RuntimeError(f"task {number}: {error!r}")
    return failed


def count(delivered: list[int], number: int) -> None:
    delivered[number] += 1


def measure(settings: Settings) -> Report:
    """The four figures; chaos once, for it takes minutes."""
    with Executor(2, "fork") as executor:
        late = [stopped_after_s(executor) for _ in range(settings.pick(20, 5))]
    with Executor(1, "fork") as executor:
        replaced = [next_task_ms(executor) for _ in range(settings.pick(40, 10))]
    tasks = settings.pick(100_000, 5_000)
    calm_s, _, _ = chaos(settings.workers, tasks, kills=False, retries=RETRIES)
    wild_s, lost, kills = chaos(settings.workers, tasks, kills=True, retries=RETRIES)
    _, failed, kills_alone = chaos(settings.workers, tasks // 5, kills=True, retries=0, seed=2)
    rows = [
        Row("stopped after the deadline", OURS, spread(late), "s"),
        Row("next task after a kill", OURS, spread(replaced), "ms"),
        Row(
            f"chaos, {tasks:,} tasks",
            OURS,
            exactly(wild_s),
            "s",
            note=f"{kills} kills; {calm_s:.1f} s without",
        ),
        Row(
            f"chaos without retries, {tasks // 5:,} tasks",
            OURS,
            exactly(failed),
            "tasks failed",
            note=f"{kills_alone} kills",
        ),
    ]
    return Report(
        "faults",
        "time-outs, deaths and a run with twenty kills a second",
        rows,
        [
            Goal("s from the deadline to the time-out, at most", exactly(max(late)), 0.2, at_least=False),
            Goal("ms from a kill to the next task served", spread(replaced), 25, at_least=False),
            Goal("tasks lost or failed in chaos with retries", exactly(lost), 0, at_least=False),
            Goal(
                "time of chaos, against the same without kills", exactly(wild_s / calm_s), 1.5, at_least=False
            ),
            Goal(
                "tasks failed per kill, without retries",
                exactly(failed / max(1, kills_alone)),
                1,
                at_least=False,
            ),
        ],
    )


if __name__ == "__main__":
    raise SystemExit(run_script("faults", measure, description=__doc__))
