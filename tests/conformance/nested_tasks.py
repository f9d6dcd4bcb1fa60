"""Tasks that submit tasks."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import threading
import time
from typing import Any

import numpy as np

import repartir
from repartir import current_executor

from .sync import Bell, Gate


def add(a: int, b: int) -> int:
    return a + b


def fib(n: int) -> int:
    if n < 2:
        return n
    left = current_executor().submit(fib, n - 1)
    return fib(n - 2) + left.result()


def deep(n: int) -> int:
    return 0 if n == 0 else 1 + current_executor().submit(deep, n - 1).result()


def wide(n: int) -> int:
    executor = current_executor()
    return sum(future.result() for future in [executor.submit(add, i, 1) for i in range(n)])


def tree(depth: int, width: int) -> int:
    """How many leaves a tree of tasks has."""
    if depth == 0:
        return 1
    executor = current_executor()
    return sum(future.result() for future in [executor.submit(tree, depth - 1, width) for _ in range(width)])


def with_wait(n: int, how: str) -> list[int]:
    executor = current_executor()
    futures = [executor.submit(add, i, i) for i in range(n)]
    done, _ = concurrent.futures.wait(futures, return_when=how)
    assert done
    return sorted(future.result() for future in futures)


def with_as_completed(n: int) -> list[int]:
    executor = current_executor()
    futures = [executor.submit(slowly, i, 0.001) for i in range(n)]
    return sorted(future.result() for future in concurrent.futures.as_completed(futures))


def slowly(value: Any, seconds: float) -> Any:
    time.sleep(seconds)
    return value


def with_map(n: int, chunksize: int | None) -> list[int]:
    return list(current_executor().map(add, range(n), range(n), chunksize=chunksize))


def map_squares(n: int) -> list[int]:
    return list(current_executor().map(square, range(n)))


def square(n: int) -> int:
    return n * n


def fail(message: str) -> None:
    raise ValueError(message)


def catches_error() -> tuple[str, bool]:
    future = current_executor().submit(fail, "child")
    try:
        future.result()
    except ValueError as error:
        return str(error), "in fail" in str(error.__cause__)
    return "", False


def error_in_map() -> list[int]:
    return list(current_executor().map(reciprocal, [1, 0, 2]))


def reciprocal(n: int) -> float:
    return 1 / n


def double_in_place(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array *= 2
    return array


def arrays_are_copies(size: int) -> list[float]:
    array = np.ones(size)
    future = current_executor().submit(double_in_place, array)
    array[0] = 7
    result = future.result()
    return [float(array[0]), float(array[1]), float(result[0]), float(result[-1])]


def append_to(items: list[int]) -> list[int]:
    items.append(1)
    return items


def lists_are_copies() -> tuple[list[int], list[int]]:
    items: list[int] = []
    result = current_executor().submit(append_to, items).result()
    return items, result


def closure_is_a_copy() -> tuple[list[int], int]:
    seen: list[int] = []

    def note(n: int) -> int:
        seen.append(n)
        return n

    return seen, current_executor().submit(note, 3).result()


def with_callback(n: int) -> list[int]:
    heard: list[int] = []
    executor = current_executor()
    for i in range(n):
        executor.submit(add, i, 1).add_done_callback(lambda future: heard.append(future.result()))
    return heard


def in_asyncio(n: int) -> list[int]:
    async def gather() -> list[int]:
        loop = asyncio.get_running_loop()
        executor = current_executor()
        first = await asyncio.gather(*[loop.run_in_executor(executor, add, i, 1) for i in range(n)])
        return [*first, await asyncio.wrap_future(executor.submit(add, 1, 1))]

    return asyncio.run(gather())


def in_thread() -> tuple[int, bool, int]:
    """A future of the task's, and a submit of its own, in another thread, for which the task waits."""
    future = current_executor().submit(add, 1, 2)
    results: list[int] = []

    def work() -> None:
        results.append(future.result())
        results.append(current_executor().submit(add, 3, 4).result())
        done, _ = concurrent.futures.wait([current_executor().submit(add, 5, 6)])
        results.append(len(done))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return results[0], results[1] == 7, results[2]


def not_waited_for(marks: str, n: int) -> str:
    for i in range(n):
        current_executor().submit(mark, marks, i)
    return "returned"


def mark(folder: str, n: int) -> None:
    time.sleep(0.001)
    with open(os.path.join(folder, str(n)), "w"):
        pass


def raises_with_children(bell: Bell, gate: Gate, marks: str) -> None:
    """Another worker has one child; those that nobody has begun are never run."""
    executor = current_executor()
    first = executor.submit(ring_and_pass, bell, gate)
    while not first.running():
        time.sleep(0.001)
    for i in range(10):
        executor.submit(mark, marks, i)
    raise KeyError("parent")


def ring_and_pass(bell: Bell, gate: Gate) -> int:
    bell.ring()
    gate.wait()
    return os.getpid()


def cancels() -> tuple[bool, bool, bool, int]:
    executor = current_executor()
    futures = [executor.submit(add, i, i) for i in range(3)]
    was = futures[2].cancel()
    again = futures[2].cancelled()
    result = futures[0].result()
    return was, again, futures[0].cancel(), result


def times_out(bell: Bell, gate: Gate) -> bool:
    future = current_executor().submit(ring_and_pass, bell, gate)
    while not future.running():
        time.sleep(0.001)
    try:
        future.result(timeout=0.01)
    except TimeoutError:
        return future.cancel(running=True)
    return False


def die_when_stolen(parent: int) -> int:
    """Dies in another worker than the parent's; there it waits to be taken by another."""
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def child_dies() -> tuple[str, Any]:
    future = current_executor().submit(die_when_stolen, os.getpid())
    while not future.running() and not future.done():
        time.sleep(0.001)
    try:
        return "lived", future.result()
    except repartir.WorkerDied as error:
        return str(error), error.signal


def dies_until(folder: str, parent: int, deaths: int) -> int:
    if os.getpid() != parent:
        number = len(os.listdir(folder))
        if number < deaths:
            with open(os.path.join(folder, str(number)), "w"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
    return len(os.listdir(folder))


def child_is_retried(folder: str) -> int:
    executor = current_executor().options(retries=2, retry_on=repartir.WorkerDied, backoff=0.01)
    future = executor.submit(dies_until, folder, os.getpid(), 1)
    until = time.monotonic() + 10
    while not os.listdir(folder) and time.monotonic() < until:
        time.sleep(0.001)
    return future.result()


def fails_until(folder: str, failures: int) -> int:
    number = len(os.listdir(folder))
    if number < failures:
        with open(os.path.join(folder, str(number)), "w"):
            pass
        raise OSError(number)
    return number


def retries(folder: str) -> int:
    executor = current_executor().options(retries=3, backoff=0.001)
    return executor.submit(fails_until, folder, 2).result()


def refuses_timeout() -> str:
    try:
        current_executor().options(timeout=1)
    except ValueError as error:
        return str(error)
    return ""


def hangs_with_children(bell: Bell, gate: Gate) -> None:
    """Its child runs in another worker, for ever; so does it."""
    future = current_executor().submit(ring_and_pass, bell, gate)
    while not future.running():
        time.sleep(0.001)
    future.result()


def forks() -> tuple[int, int]:
    """A process that a task has forked runs its calls in place."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        value = current_executor().submit(add, 20, 3).result()
        os.write(write, bytes([value]))
        os._exit(0)
    os.waitpid(pid, 0)
    return os.read(read, 1)[0], current_executor().submit(add, 1, 1).result()


def in_with() -> list[bool]:
    with current_executor() as executor:
        futures = [executor.submit(slowly, i, 0.001) for i in range(5)]
    return [future.done() for future in futures] + [current_executor().submit(add, 1, 1).result() == 2]


def not_picklable() -> str:
    future = current_executor().submit(len, threading.Lock())  # type: ignore[arg-type]
    error = future.exception()
    assert isinstance(error, repartir.TaskNotSerializable)
    return str(error)


def waits_for_itself() -> str:
    global leaked
    leaked = current_executor().submit(waits_for_leaked)
    return str(leaked.result())


leaked: Any = None


def waits_for_leaked() -> str:
    if leaked is None:
        return "in another process"
    try:
        return str(leaked.result())
    except RuntimeError as error:
        return str(error)


def pids(n: int) -> set[int]:
    return set(current_executor().map(pid_after, [0.01] * n, chunksize=1))


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def exits_in_child() -> str:
    future = current_executor().submit(exit_now)
    try:
        future.result()
    except SystemExit as error:
        return f"exit {error.code}"
    return "no exit"


def exit_now() -> None:
    raise SystemExit(5)


def large_error() -> int:
    future = current_executor().submit(fail, "x" * 5000)
    return len(str(future.exception()))


def map_of_exits() -> list[str]:
    return [repr(error) for error in current_executor().map(exit_with, [3, 4], return_exceptions=True)]


def exit_with(code: int) -> None:
    raise SystemExit(code)


def maps_one_list() -> set[int]:
    """What a nested map finds whose items are all the same list, which each call makes longer."""
    return set(current_executor().map(grown, [[0]] * 50)) | set(
        current_executor().map(grown, [[0]] * 50, range(50))
    )


def grown(values: list[int], *more: int) -> int:
    values.append(1)
    return len(values)
