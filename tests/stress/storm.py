"""Storms of signals and of garbage collection over an executor, and what must be true after each.

Storms run in a fresh interpreter: `python -c "from tests.stress import storm; storm.main()" SCENE WEATHER SEED
SECONDS`, with `all` for each scene; one more argument, whatever it is, chooses the locks of systems without robust
mutexes.  It prints how often each scene was played and the weather struck, and `calm` at
the end; anything on stderr is a failure.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import faulthandler
import functools
import gc
import inspect
import logging
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from types import FrameType
from typing import Any, TypeVar

import numpy as np

import repartir
import repartir.future
import repartir.shm.board
from tests import guard

T = TypeVar("T")

LIMIT_S = 15.0
HANG_S = 40.0
LONGEST_S, SHORTEST_S = 2e-3, 20e-6
BEGIN_S = 40e-3
"""About the time that making an executor takes."""
PATIENCE = 1.3
"""By how much an operation's share of peace grows each time that it was interrupted, so that it ends some day."""


class StormError(Exception):
    """What the handler of the weather `error` raises, as `signal.alarm` time-outs of users do."""


class Calm:
    """No weather: what the scenes do without interruption, and the interface of the weathers."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.hits = 0

    def survive(self, operation: Callable[[], T]) -> T:
        """Do `operation` in the storm, again and again until it ends without an exception of the storm."""
        return operation()

    def strike(self, operation: Callable[[], object], within_s: float) -> None:
        """Do `operation` once; the weather may end it within so many seconds."""
        operation()

    @contextlib.contextmanager
    def blows(self) -> Iterator[None]:
        """While the context is open the weather may be bad also outside `survive`."""
        yield


def _blocking_lines() -> frozenset[int]:
    """Where `Condition.wait` sleeps, prepared for an exception."""
    lines, first = inspect.getsourcelines(threading.Condition.wait)
    inside = next(at for at, line in enumerate(lines) if line.strip().startswith("try:"))
    return frozenset(first + at for at, line in enumerate(lines) if at > inside and "waiter.acquire(" in line)


_SLEEPS = _blocking_lines()
_LEAKY = {threading.__file__, concurrent.futures._base.__file__}


def in_a_hole(frame: FrameType | None) -> bool:
    """Whether an exception now, in the standard library's own code, would leave a lock held or a wait half begun.

    `Condition.__enter__`, `Event.set` and `_AcquireFutures` are Python code that takes locks: an exception after the
    lock and before the block leaves it held, for its own futures as for ours.  Asleep in `Condition.wait` is safe.
    """
    while frame is not None:
        if frame.f_code is threading.Condition.wait.__code__:
            return frame.f_lineno not in _SLEEPS
        if frame.f_code.co_filename in _LEAKY and frame.f_code.co_name not in _HARMLESS:
            return True
        frame = frame.f_back
    return False


_HARMLESS = {
    "submit",
    "map",
    "result",
    "exception",
    "result_iterator",
    "as_completed",
    "wait",
    "add_done_callback",
}
"""Functions there that hold no lock but for a `with` of a condition, which for our futures is one call into C."""


class Signals(Calm):
    """A handler that does nothing, every 0.05 to 0.5 ms, whatever the program does."""

    @contextlib.contextmanager
    def blows(self) -> Iterator[None]:
        previous = signal.signal(signal.SIGALRM, self._handle)
        signal.setitimer(signal.ITIMER_REAL, 1e-4, self.rng.uniform(5e-5, 5e-4))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)

    def _handle(self, *_: object) -> None:
        self.hits += 1


class Exceptions(Calm):
    """A handler that raises once at a random time in each operation, which is then tried again.

    Not where the standard library would be left with a lock held, whoever's future it is: see `in_a_hole`.
    """

    kind: type[BaseException] = StormError

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._armed = False

    @contextlib.contextmanager
    def blows(self) -> Iterator[None]:
        previous = signal.signal(signal.SIGALRM, self._handle)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)

    def survive(self, operation: Callable[[], T]) -> T:
        longest, ended = LONGEST_S, []
        while not ended:
            self.strike(lambda: ended.append(operation()), longest)
            longest *= PATIENCE
        return ended[0]

    def strike(self, operation: Callable[[], object], within_s: float) -> None:
        try:
            try:
                self._armed = True
                after = SHORTEST_S + (within_s - SHORTEST_S) * self.rng.random() ** 3
                signal.setitimer(signal.ITIMER_REAL, after)
                operation()
            finally:
                self._armed = False
        except self.kind:
            pass

    def _handle(self, _number: int, frame: FrameType | None) -> None:
        if not self._armed:
            return
        if in_a_hole(frame):
            signal.setitimer(signal.ITIMER_REAL, SHORTEST_S)
        else:
            self._armed = False
            self.hits += 1
            raise self.kind


class Interrupts(Exceptions):
    """The same with KeyboardInterrupt."""

    kind = KeyboardInterrupt


class Garbage(Calm):
    """Garbage is collected at every other allocation, and there is always some: cycles that hold what is dropped."""

    @contextlib.contextmanager
    def blows(self) -> Iterator[None]:
        before = gc.get_threshold()
        gc.callbacks.append(self._count)
        gc.set_threshold(1)
        try:
            yield
        finally:
            gc.set_threshold(*before)
            gc.callbacks.remove(self._count)

    def _count(self, phase: str, _info: object) -> None:
        self.hits += phase == "start"


WEATHERS: dict[str, type[Calm]] = {
    "none": Calm,
    "signals": Signals,
    "errors": Exceptions,
    "interrupts": Interrupts,
    "garbage": Garbage,
}


class Cycle:
    """Keeps what it is given alive until the garbage collector comes."""

    def __init__(self, *kept: object) -> None:
        self.kept = kept
        self.me = self


# ---- tasks


def echo(value: Any) -> Any:
    return value


def total(array: Any) -> float:
    return float(array.sum())


def grow(count: int) -> Any:
    return np.arange(count, dtype=np.float64)


def litter(value: int) -> int:
    """A task in whose process garbage is collected all the time, with arrays and functions in the cycles."""
    gc.set_threshold(1)
    for _ in range(5):
        Cycle(np.zeros(10), lambda: value, Cycle())
    return value


# ---- scenes: each does its part once and asserts what it got


class Scene:
    """One executor in a storm."""

    def __init__(self, ex: repartir.Executor, weather: Calm) -> None:
        self.ex = ex
        self.weather = weather
        self.rng = weather.rng
        self.survive = weather.survive

    def submit(self) -> None:
        """Every future that submit returned has its value; tasks of interrupted submits disturb nobody."""
        futures = []
        for n in range(100):
            futures.append((n, self.survive(lambda n=n: self.ex.submit(echo, n))))
        for n, future in futures:
            assert future.result(LIMIT_S) == n

    def result(self) -> None:
        for n in range(30):
            future = self.ex.submit(echo, n)
            assert self.survive(lambda future=future: future.result(LIMIT_S)) == n

    def both(self) -> None:
        for n in range(30):
            assert self.survive(lambda n=n: self.ex.submit(echo, n).result(LIMIT_S)) == n

    def errors(self) -> None:
        for n in range(20):
            future = self.survive(lambda n=n: self.ex.submit(divmod, n, 0))
            assert isinstance(
                self.survive(lambda future=future: future.exception(LIMIT_S)), ZeroDivisionError
            )

    def map(self) -> None:
        count = self.rng.randrange(1, 200)
        assert self.survive(lambda: list(self.ex.map(echo, range(count), timeout=LIMIT_S))) == list(
            range(count)
        )
        limited = self.survive(
            lambda: list(self.ex.map(echo, range(50), chunksize=3, buffersize=4, timeout=LIMIT_S))
        )
        assert limited == list(range(50))

    def wait(self) -> None:
        futures = [self.ex.submit(echo, n) for n in range(20)]
        done = self.survive(lambda: concurrent.futures.wait(futures, LIMIT_S)).done
        assert done == set(futures)
        assert [future.result(0) for future in futures] == list(range(20))

    def as_completed(self) -> None:
        futures = {self.ex.submit(echo, n): n for n in range(20)}
        ended = self.survive(lambda: list(concurrent.futures.as_completed(futures, LIMIT_S)))
        assert set(ended) == set(futures)
        assert {future.result(0) for future in ended} == set(range(20))

    def callbacks(self) -> None:
        """A callback whose adding was not interrupted is called; none is called twice for one adding."""
        called: list[Any] = []
        attempts = 0

        def add(future: Any) -> None:
            nonlocal attempts
            attempts += 1
            future.add_done_callback(called.append)

        futures = [self.ex.submit(echo, n) for n in range(20)]
        for future in futures:
            self.survive(lambda future=future: add(future))
        last = threading.Event()
        for future in futures:
            future.result(LIMIT_S)
        final = self.ex.submit(echo, 0)
        final.add_done_callback(lambda _: last.set())
        assert last.wait(LIMIT_S), final
        assert set(called) == set(futures)
        assert len(called) <= attempts

    def cancel(self) -> None:
        """A future is cancelled or has its value, and whoever waits for it hears of either."""
        futures = [self.ex.submit(echo, n) for n in range(40)]
        for future in futures[::2]:
            self.survive(future.cancel)
        assert concurrent.futures.wait(futures, LIMIT_S).not_done == set(), "some are still open"
        for n, future in enumerate(futures):
            assert future.cancelled() or future.result(0) == n
        assert not any(future.cancelled() for future in futures[1::2])

    def arrays(self) -> None:
        """Arguments and results in arena blocks."""
        for n in range(5):
            count = self.rng.randrange(9000, 30000)
            array = np.full(count, float(n))
            assert self.survive(lambda array=array: self.ex.submit(total, array).result(LIMIT_S)) == n * count
            grown = self.survive(lambda count=count: self.ex.submit(grow, count).result(LIMIT_S))
            assert len(grown) == count
            assert grown[-1] == count - 1

    def functions(self) -> None:
        """New functions, whose blocks finalizers free."""
        for n in range(10):
            fn = self.local(n)
            future = self.survive(lambda fn=fn: self.ex.submit(fn, 1))
            Cycle(fn, Cycle())
            del fn
            assert self.survive(lambda future=future: future.result(LIMIT_S)) == n + 1
            Cycle(future)

    def local(self, n: int) -> Callable[[int], int]:
        return lambda value: value + n

    def dropped(self) -> None:
        """Futures that nobody keeps, in cycles and without."""
        for n in range(30):
            future = self.survive(lambda n=n: self.ex.submit(echo, n))
            if n % 2:
                Cycle(future)
            del future
        assert self.survive(lambda: self.ex.submit(echo, 5).result(LIMIT_S)) == 5

    def litter(self) -> None:
        """The storm is in the workers, too."""
        assert self.survive(lambda: list(self.ex.map(litter, range(30), timeout=LIMIT_S))) == list(range(30))

    def beside(self) -> None:
        """Another thread submits and waits while this one is interrupted: it is never left behind."""
        failed: list[BaseException] = []

        def other() -> None:
            try:
                for n in range(60):
                    assert self.ex.submit(echo, n).result(LIMIT_S) == n
                futures = [self.ex.submit(echo, n) for n in range(30)]
                assert concurrent.futures.wait(futures, LIMIT_S).not_done == set()
            except BaseException as error:  # noqa: BLE001 - raised in the main thread
                failed.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        n = 0
        while thread.is_alive():
            n += 1
            assert self.survive(lambda n=n: self.ex.submit(echo, n).result(LIMIT_S)) == n
        thread.join(LIMIT_S)
        if failed:
            raise failed[0]


ON_ONE_EXECUTOR = [name for name in vars(Scene) if not name.startswith("_") and name != "local"]


def one_executor(name: str, weather: Calm, seconds: float) -> int:
    """The scene again and again on one executor, which works as ever afterwards."""
    rounds = 0
    with repartir.Executor(2) as ex:
        ex.submit(echo, 0).result(LIMIT_S)
        scene, end = Scene(ex, weather), time.monotonic() + seconds
        with weather.blows():
            while time.monotonic() < end:
                getattr(scene, name)()
                rounds += 1
        check_usable(ex)
    return rounds


def shutdown(weather: Calm, seconds: float) -> int:
    """Interrupted shutdowns, tried again: all tasks settle, and all processes go."""
    rounds, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        ex = repartir.Executor(2)
        cancel = weather.rng.random() < 0.3
        with weather.blows():
            submits = [functools.partial(ex.submit, echo, n) for n in range(weather.rng.randrange(30))]
            futures = [weather.survive(submit) for submit in submits]
            weather.survive(functools.partial(ex.shutdown, cancel_futures=cancel))
        for n, future in enumerate(futures):
            assert future.done(), future
            assert (cancel and future.cancelled()) or future.result(0) == n
        check_unlocked(ex)
        rounds += 1
    return rounds


def leave(weather: Calm, seconds: float) -> int:
    """One interruption somewhere in a `with` block, its end included: every task is settled, and everything goes."""
    rounds, end = 0, time.monotonic() + seconds

    def block(ex: repartir.Executor, futures: list[Any]) -> None:
        with ex:
            for n in range(30):
                futures.append(ex.submit(echo, n))
            assert [future.result(LIMIT_S) for future in futures] == list(range(30))
            assert list(ex.map(echo, range(20), timeout=LIMIT_S)) == list(range(20))

    while time.monotonic() < end:
        ex, futures = repartir.Executor(2), []
        with weather.blows():
            weather.strike(functools.partial(block, ex, futures), 4 * LONGEST_S)
        ex.shutdown()
        for n, future in enumerate(futures):
            assert future.done(), future
            if not future.cancelled() and future.exception() is None:
                assert future.result() == n
            elif not future.cancelled():
                assert isinstance(future.exception(), BrokenProcessPool)
        check_unlocked(ex)
        rounds += 1
    return rounds


def begin(weather: Calm, seconds: float) -> int:
    """An interruption while an executor is made: whether it comes to be or not, nothing of the attempt is left.

    The other thread receives signals while the main thread blocks them; the handler runs in the main thread all the same.
    """
    rounds, end = 0, time.monotonic() + seconds
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    over = threading.Event()
    other = threading.Thread(target=over.wait, daemon=True)
    other.start()
    while time.monotonic() < end:
        made: list[repartir.Executor] = []
        with weather.blows():
            weather.strike(lambda: made.append(repartir.Executor(2)), BEGIN_S)  # noqa: B023 - called at once
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
        for ex in made:
            assert ex.submit(echo, 5).result(LIMIT_S) == 5
            ex.shutdown()
        rounds += 1
    over.set()
    other.join()
    return rounds


def drop(weather: Calm, seconds: float) -> int:
    """Executors that nobody shuts down, with tasks under way: the tasks settle, then everything goes."""
    rounds, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        ex = repartir.Executor(2)
        thread = ex._broker.thread
        with weather.blows():
            submits = [functools.partial(ex.submit, echo, n) for n in range(20)]
            futures = [weather.survive(submit) for submit in submits]
            del submits
            if rounds % 2:
                Cycle(ex, futures[0])
            del ex
            gc.collect()
        assert [future.result(LIMIT_S) for future in futures] == list(range(20))
        thread.join(LIMIT_S)
        assert not thread.is_alive()
        rounds += 1
    return rounds


SCENES: dict[str, Callable[[Calm, float], int]] = {
    **{name: functools.partial(one_executor, name) for name in ON_ONE_EXECUTOR},
    "begin": begin,
    "shutdown": shutdown,
    "leave": leave,
    "drop": drop,
}


# ---- what must be true afterwards


def check_usable(ex: repartir.Executor) -> None:
    """It answers, nothing is held, nothing is left of what the storm dropped."""
    check_unlocked(ex)
    assert [ex.submit(echo, n).result(LIMIT_S) for n in range(5)] == list(range(5))
    assert list(ex.map(echo, range(20), timeout=LIMIT_S)) == list(range(20))
    futures = [ex.submit(echo, n) for n in range(5)]
    assert concurrent.futures.wait(futures, LIMIT_S).not_done == set()
    check_unlocked(ex)
    check_arena(ex)


def check_unlocked(ex: repartir.Executor) -> None:
    """This thread holds no lock of the executor's, and can take each."""
    assert _released(repartir.future._lock)
    broker = ex._broker
    for part in (broker, *vars(broker).values()):
        for name, lock in list(getattr(part, "__dict__", {}).items()):
            if isinstance(lock, type(threading.RLock())):
                assert not lock._is_owned(), f"{name} is held"  # type: ignore[attr-defined]
    assert _released(broker.pump.mutex)
    if broker.thread.is_alive():
        for shared in broker.board._locks():
            try:
                if code := shared.try_acquire():
                    shared.wait(code)
            finally:
                shared.release()


def _released(lock: Any) -> bool:
    taken = lock.acquire(timeout=LIMIT_S)
    if taken:
        lock.release()
    return bool(taken)


def check_arena(ex: repartir.Executor) -> None:
    """No block of an argument or a result is left once all tasks are settled: at most blocks of functions."""
    from repartir.shm.arena import FUNCTION_OWNER
    from repartir.shm.layout import B_OWNER, owner_of_functions

    board = ex._broker.board
    arena = board.blocks.arenas[0]
    functions = {FUNCTION_OWNER, *(owner_of_functions(row.index) for row in board.rows)}
    deadline = time.monotonic() + 5
    while True:
        ex.submit(echo, 0).result(LIMIT_S)
        gc.collect()
        owners = {arena._words[block + B_OWNER] for block in arena._blocks()} - {0, *functions}
        if not owners or time.monotonic() > deadline:
            break
    assert not owners, f"blocks of tasks that are over: {[hex(owner) for owner in owners]}"
    arena.check()


def _unless_of_the_storm(unraisable: Any) -> None:
    """What the storm raised in a finalizer is lost, as ever; the operation is not interrupted then."""
    if not isinstance(unraisable.exc_value, StormError | KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


def main() -> None:
    chosen, weather, seed, seconds, *record_locks = sys.argv[1:]
    if record_locks:
        repartir.shm.board.robust_mutex_works = lambda: False
    guard.install()
    # What strikes within a callback that add_done_callback calls at once is logged, as any exception there.
    logging.getLogger("concurrent.futures").disabled = True
    sys.unraisablehook = _unless_of_the_storm
    # What another thread received last is handled after the storm.
    signal.signal(signal.SIGALRM, lambda *_: None)
    for name in SCENES if chosen == "all" else [chosen]:
        faulthandler.dump_traceback_later(HANG_S + float(seconds), exit=True)
        print(name, end=" ", flush=True)
        before = guard.snapshot()
        storm = WEATHERS[weather](random.Random(f"{name} {seed}"))
        rounds = SCENES[name](storm, float(seconds))
        left = guard.settle(before, 5.0)
        assert not left, "left behind:\n" + "\n".join(left)
        print(f"{rounds}/{storm.hits}", end=" ", flush=True)
        faulthandler.cancel_dump_traceback_later()
    print("calm")
