"""One suite for both locks: what the structures rely on, and what an owner's death or an exception may do."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from repartir.errors import InternalError
from repartir.shm import lock as lock_module
from repartir.shm.layout import LOCK_BYTES
from repartir.shm.lock import EOWNERDEAD, FcntlLock, Lock, LockFactory, PthreadLock, robust_mutex_works
from repartir.shm.segment import Segment
from tests.helpers import module_main
from tests.shared import (
    LIMIT_S,
    LOCK_KINDS,
    Forked,
    Gate,
    Interrupted,
    Room,
    Threads,
    family,
    gates,
    room,
    until,
)

DIRTY_W = LOCK_BYTES // 8
MUTEX_ONLY = pytest.mark.parametrize("place", ["pthread"], indirect=True)


@pytest.fixture(params=LOCK_KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Room]:
    with room(request.param, size=1 << 17) as made:
        yield made
    request.node.funcargs.clear()  # they hold the mapping, and the guard looks before pytest lets them go


@pytest.fixture
def lock(place: Room) -> Lock:
    made = place.lock(0, DIRTY_W)
    made.create()
    return made


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads change places as often as the interpreter lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def take(lock: Lock) -> None:
    if code := lock.try_acquire():
        lock.wait(code)


def count(lock: Lock, place: Room, times: int) -> None:
    """Add to the test's word 0 in a way that loses sums unless the lock keeps others out."""
    words, total = place.words, place.word(0)
    for _ in range(times):
        try:
            take(lock)
            seen = words[total]
            os.sched_yield()
            words[total] = seen + 1
        finally:
            lock.release()


def hold(lock: Lock, held: Gate, gate: Gate | None = None) -> None:
    """Take the lock, say so, and keep it until `gate` opens, or for ever."""
    try:
        take(lock)
        held.open()
        if gate is None:
            signal.pause()
        else:
            gate.wait()
    finally:
        lock.release()


def counted_repair(lock: Lock, place: Room, nth: int = 1) -> Callable[[], int]:
    """Count the lock's repairs in the test's word `nth`."""
    words, word = place.words, place.word(nth)

    def repair() -> None:
        words[word] = words[word] + 1

    lock.repair = repair
    return lambda: words[word]


def in_thread(target: Callable[[], int]) -> int:
    results: list[int] = []
    threads = Threads()
    threads.start(lambda: results.append(target()))
    threads.join()
    return results[0]


def is_free(lock: Lock) -> bool:
    """Whether another thread can take it, through which nothing is changed."""

    def probe() -> int:
        try:
            return lock.try_acquire()
        finally:
            lock.release()

    return in_thread(probe) == 0


def killed_owner(lock: Lock, held: Gate) -> Forked:
    owner = Forked(hold, lock, held)
    held.wait()
    owner.kill()
    return owner


def test_taken_and_let_go(lock: Lock) -> None:
    for _ in range(3):
        assert lock.try_acquire() == 0
        assert not is_free(lock)
        lock.release()
        assert is_free(lock)


@pytest.mark.usefixtures("hasty")
def test_threads_exclude_each_other(lock: Lock, place: Room) -> None:
    threads = Threads()
    for _ in range(4):
        threads.start(count, lock, place, 200)
    threads.join()
    assert place.words[place.word(0)] == 800


@pytest.mark.usefixtures("hasty")
def test_processes_exclude_each_other(lock: Lock, place: Room) -> None:
    with family() as children:
        for _ in range(3):
            children.fork(count, lock, place, 300)
        count(lock, place, 300)
        children.join()
    assert place.words[place.word(0)] == 1200


@pytest.mark.usefixtures("hasty")
def test_threads_of_several_processes_exclude_each_other(lock: Lock, place: Room) -> None:
    def child() -> None:
        threads = Threads()
        for _ in range(3):
            threads.start(count, lock, place, 100)
        threads.join()

    with family() as children:
        children.fork(child)
        children.fork(child)
        children.join()
    assert place.words[place.word(0)] == 600


def test_locks_of_one_segment_are_independent(place: Room) -> None:
    first, second = place.lock(0, DIRTY_W), place.lock(1024, 1024 // 8 + DIRTY_W)
    for each in (first, second):
        each.create()
    try:
        take(first)
        assert is_free(second)
        try:
            take(second)
            assert not is_free(first)
        finally:
            second.release()
        assert is_free(second)
        assert not is_free(first)
    finally:
        first.release()


def test_threads_may_wait_crosswise(place: Room) -> None:
    """Two processes, one thread of each holds what the other's second thread waits for: no deadlock, since the
    holders wait for nobody, though the kernel takes the threads of a process for one."""
    ours, theirs = place.lock(0, DIRTY_W), place.lock(1024, 1024 // 8 + DIRTY_W)
    for each in (ours, theirs):
        each.create()

    def waiter(lock: Lock, ready: threading.Event) -> None:
        code = lock.try_acquire()
        try:
            ready.set()
            if code:
                lock.wait(code)
        finally:
            lock.release()

    def process(mine: Lock, other: Lock, held: Gate, both_hold: Gate) -> None:
        threads, ready = Threads(), threading.Event()
        try:
            take(mine)
            held.open()
            both_hold.wait()
            threads.start(waiter, other, ready)
            ready.wait(LIMIT_S)
            time.sleep(0.1)  # the waiter waits by now; if not, the test proves less
        finally:
            mine.release()
        threads.join()

    with family() as children, gates(2) as (held, both_hold):
        children.fork(process, ours, theirs, held, both_hold)
        children.fork(process, theirs, ours, held, both_hold)
        held.wait()
        held.wait()
        both_hold.open(2)
        children.join()


def test_locks_of_two_segments_may_share_a_lock_file() -> None:
    with room("fcntl") as place:
        other = Segment.create(4096)
        here = place.lock(0, DIRTY_W)
        there = LockFactory(other, place.lock_fd, first_byte=1 << 40)(0, DIRTY_W)
        with family() as children, gates(2) as (held, go):
            children.fork(hold, here, held, go)
            held.wait()
            assert there.try_acquire() == 0
            there.release()
            assert here.try_acquire() == errno.EBUSY
            go.open()
            children.join()
        other.close()


def test_waiter_gets_what_a_process_lets_go(lock: Lock) -> None:
    with family() as children, gates(2) as (held, go):
        children.fork(hold, lock, held, go)
        held.wait()
        code = lock.try_acquire()
        assert code == errno.EBUSY
        go.open()
        try:
            lock.wait(code)
        finally:
            lock.release()
        children.join()


def test_waiter_sleeps_for_a_lock_that_is_held_long(place: Room, lock: Lock) -> None:
    """Through the C library's wait, not through the spin: the processor time tells."""
    with family() as children, gates(2) as (held, go):
        children.fork(hold, lock, held, go)
        held.wait()
        used = time.process_time()
        timer = threading.Timer(0.5, go.open)
        timer.start()
        try:
            take(lock)
        finally:
            lock.release()
        timer.join()
        children.join()
        assert time.process_time() - used < 0.25


def test_taker_after_a_dead_process_repairs_once(lock: Lock, place: Room) -> None:
    repairs = counted_repair(lock, place)
    with gates(1) as (held,):
        killed_owner(lock, held)
        try:
            code = lock.try_acquire()
            assert code in (0, EOWNERDEAD)
            if code:
                assert repairs() == 0
                lock.wait(code)
            assert repairs() == 1
        finally:
            lock.release()
        for _ in range(3):
            assert is_free(lock)
        assert repairs() == 1
        killed_owner(lock, held)
        try:
            take(lock)
        finally:
            lock.release()
        assert repairs() == 2


def test_waiter_learns_that_the_owner_died(lock: Lock, place: Room) -> None:
    repairs = counted_repair(lock, place)
    with family() as children, gates(1) as (held,):
        owner = children.fork(hold, lock, held)
        held.wait()
        code = lock.try_acquire()
        assert code == errno.EBUSY
        if isinstance(lock, PthreadLock):
            lock.try_acquire = lambda: errno.EBUSY  # no spinning: the C library's wait hears of the death
        threads = Threads()
        waiting = threading.Event()

        def waiter() -> None:
            try:
                waiting.set()
                lock.wait(code)
                assert repairs() == 1
            finally:
                lock.release()

        threads.start(waiter)
        waiting.wait(LIMIT_S)
        owner.kill()
        threads.join()
        assert repairs() == 1


def test_one_of_many_waiters_repairs(lock: Lock, place: Room) -> None:
    repairs = counted_repair(lock, place)
    with family() as children, gates(2) as (held, ready):
        owner = children.fork(hold, lock, held)
        held.wait()

        def waiter() -> None:
            ready.open()
            for _ in range(20):
                count(lock, place, 1)

        waiters = [children.fork(waiter) for _ in range(4)]
        for _ in waiters:
            ready.wait()
        owner.kill()
        for each in waiters:
            each.join()
        assert repairs() == 1
        assert place.words[place.word(0)] == 80


@MUTEX_ONLY
def test_thread_that_ends_with_the_lock_is_a_dead_owner(place: Room) -> None:
    lock = PthreadLock(place.segment, 0)
    lock.create()
    repairs = counted_repair(lock, place)
    assert in_thread(lock.try_acquire) == 0
    try:
        take(lock)
    finally:
        lock.release()
    assert repairs() == 1


def test_owner_that_takes_again_gets_an_error(lock: Lock) -> None:
    assert lock.try_acquire() == 0
    code = lock.try_acquire()
    assert code
    with pytest.raises(InternalError, match="again by its owner"):
        lock.wait(code)
    lock.release()
    assert not is_free(lock)
    lock.release()
    assert is_free(lock)


def refused(lock: Lock, inner: Callable[[], object] = lambda: None) -> None:
    """A section of a thread that has the lock."""
    with pytest.raises(InternalError, match="again by its owner"):
        try:
            try:
                take(lock)
            except InternalError:
                inner()
                raise
        finally:
            lock.release()


@pytest.mark.parametrize("inner", ["one", "one in another", "another thread's release"])
def test_refused_section_leaves_the_lock_to_the_outer_one(lock: Lock, place: Room, inner: str) -> None:
    acts: dict[str, Callable[[], object]] = {
        "one": lambda: None,
        "one in another": lambda: refused(lock),
        "another thread's release": lambda: is_free(lock),
    }
    release = lock.release
    try:
        take(lock)
        for _ in range(3):
            refused(lock, acts[inner])
            assert not is_free(lock)
    finally:
        lock.release()
    assert is_free(lock)
    assert lock.release is release


@MUTEX_ONLY
def test_lock_taken_by_the_last_spin_counts(place: Room) -> None:
    """The spin's last try is as good as any other: nobody takes the lock a second time on top of it."""
    lock = PthreadLock(place.segment, 0)
    lock.create()
    really = lock.try_acquire
    tries = iter([errno.EBUSY] * (lock_module._SPINS - 1))
    lock.try_acquire = lambda: next(tries, None) or really()
    try:
        lock.wait(errno.EBUSY)
    finally:
        lock.release()
    lock.try_acquire = really
    assert is_free(lock)


@MUTEX_ONLY
def test_death_seen_by_the_last_spin_is_repaired(place: Room) -> None:
    lock = PthreadLock(place.segment, 0)
    lock.create()
    repairs = counted_repair(lock, place)
    really = lock.try_acquire
    with gates(1) as (held,):
        killed_owner(lock, held)
    tries = iter([errno.EBUSY] * (lock_module._SPINS - 1))
    lock.try_acquire = lambda: next(tries, None) or really()
    try:
        lock.wait(errno.EBUSY)
        assert repairs() == 1
    finally:
        lock.release()
    lock.try_acquire = really
    assert is_free(lock)


def test_release_by_others_is_harmless(lock: Lock) -> None:
    lock.release()
    with family() as children, gates(2) as (held, go):
        children.fork(hold, lock, held, go)
        held.wait()
        lock.release()
        assert lock.try_acquire() == errno.EBUSY
        in_thread(lambda: lock.release() or 0)  # type: ignore[func-returns-value]
        assert lock.try_acquire() == errno.EBUSY
        go.open()
        children.join()
    assert lock.try_acquire() == 0
    in_thread(lambda: lock.release() or 0)  # type: ignore[func-returns-value]
    stranger = Forked(lock.release)
    stranger.join()
    assert not is_free(lock)
    lock.release()
    assert is_free(lock)


class _Alarm:
    """A signal that arrives `after` seconds, and its handler."""

    def __init__(self, after: float, raises: bool) -> None:
        self.after = after
        self.raises = raises
        self.rang_at = 0.0

    def __enter__(self) -> _Alarm:
        self._before = signal.signal(signal.SIGALRM, self._ring)
        self._due = time.monotonic() + self.after
        signal.setitimer(signal.ITIMER_REAL, self.after)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)

    @property
    def late_s(self) -> float:
        return self.rang_at - self._due

    def _ring(self, *_: object) -> None:
        self.rang_at = time.monotonic()
        if self.raises:
            raise Interrupted


def test_exception_of_a_signal_handler_ends_a_long_wait(lock: Lock) -> None:
    with family() as children, gates(2) as (held, go):
        children.fork(hold, lock, held, go)
        held.wait()
        with _Alarm(0.05, raises=True) as alarm, pytest.raises(Interrupted):
            try:
                take(lock)
            finally:
                lock.release()
        assert alarm.late_s < 1
        assert lock.try_acquire() == errno.EBUSY
        go.open()
        children.join()
    assert is_free(lock)


def test_wait_goes_on_after_a_signal_handler(lock: Lock) -> None:
    with family() as children, gates(2) as (held, go):
        children.fork(hold, lock, held, go)
        held.wait()
        with _Alarm(0.05, raises=False) as alarm:
            threads = Threads()
            threads.start(lambda: (until(lambda: alarm.rang_at), go.open()))
            try:
                take(lock)
            finally:
                lock.release()
            threads.join()
        assert alarm.late_s < 1
        children.join()
    assert is_free(lock)


def test_exception_in_the_section_leaves_it_usable(lock: Lock, place: Room) -> None:
    repairs = counted_repair(lock, place)
    with pytest.raises(Interrupted):
        try:
            take(lock)
            raise Interrupted
        finally:
            lock.release()
    assert is_free(lock)
    assert repairs() == 0


def test_interrupted_repair_is_done_before_the_exception_goes_on(lock: Lock, place: Room) -> None:
    tries = []

    def repair() -> None:
        tries.append(len(tries))
        if len(tries) == 1:
            raise Interrupted

    lock.repair = repair
    with gates(1) as (held,):
        killed_owner(lock, held)
    with pytest.raises(Interrupted):
        try:
            take(lock)
        finally:
            lock.release()
    try:
        take(lock)
    finally:
        lock.release()
    assert tries == [0, 1]
    assert is_free(lock)


def test_repair_that_always_fails_ends_in_an_error(lock: Lock) -> None:
    """Never in an endless loop under the lock."""

    def repair() -> None:
        raise IndexError("a corrupt word")

    lock.repair = repair
    with gates(1) as (held,):
        killed_owner(lock, held)
    with pytest.raises((InternalError, IndexError)):
        try:
            take(lock)
        finally:
            lock.release()
    with pytest.raises((InternalError, IndexError)):
        try:
            take(lock)
        finally:
            lock.release()


def test_structure_that_cannot_be_repaired_is_told_to_every_taker(lock: Lock) -> None:
    def repair() -> None:
        raise InternalError("nonsense in a word")

    lock.repair = repair
    with gates(1) as (held,):
        killed_owner(lock, held)
    for _ in range(3):
        with pytest.raises(InternalError):
            try:
                take(lock)
            finally:
                lock.release()


def test_owner_without_a_repair_of_its_own(lock: Lock) -> None:
    with gates(1) as (held,):
        killed_owner(lock, held)
    try:
        take(lock)
    finally:
        lock.release()
    assert is_free(lock)


def test_create_makes_a_lock_that_was_held_new(lock: Lock) -> None:
    with gates(1) as (held,):
        killed_owner(lock, held)
    lock.create()
    assert lock.try_acquire() == 0
    lock.release()


def test_self_test_finds_robust_mutexes_here() -> None:
    assert robust_mutex_works()


def test_self_test_waits_for_a_thread_that_is_slow_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Thread.join` returns before the kernel has let go of what the thread held."""
    end = threading.Event()

    class Lingering(threading.Thread):
        def run(self) -> None:
            super().run()
            end.wait(LIMIT_S)

        def join(self, timeout: float | None = None) -> None:
            threading.Timer(0.05, end.set).start()

    monkeypatch.setattr(lock_module.threading, "Thread", Lingering)
    works = lock_module._robust_mutex_works()
    monkeypatch.undo()
    assert works


def test_self_test_refuses_a_library_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: PthreadLock) -> None:
        raise AttributeError("pthread_mutexattr_setrobust")

    monkeypatch.setattr(PthreadLock, "create", missing)
    assert not lock_module._robust_mutex_works()


def test_self_test_refuses_mutexes_that_do_not_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "_ROBUST", 0)
    monkeypatch.setattr(lock_module, "_SELF_TEST_S", 0.05)
    assert not lock_module._robust_mutex_works()


def test_factory_gives_record_locks_where_there_is_a_lock_file() -> None:
    with room("pthread") as plain, room("fcntl") as other:
        assert isinstance(plain.lock(0, DIRTY_W), PthreadLock)
        assert isinstance(other.lock(0, DIRTY_W), FcntlLock)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_executor_works_on_record_locks(tmp_path: Path, method: str) -> None:
    done = module_main(
        tmp_path,
        """
        import os, signal, sys
        import repartir
        from repartir.shm import board
        from repartir.shm.lock import FcntlLock

        def work(n):
            return n * n

        def die(_):
            os.kill(os.getpid(), signal.SIGKILL)

        if __name__ == "__main__":
            board.robust_mutex_works = lambda: False
            with repartir.Executor(2, mp_context=sys.argv[1]) as ex:
                assert all(isinstance(lock, FcntlLock) for lock in ex._broker.board._locks())
                assert list(ex.map(work, range(500))) == [n * n for n in range(500)]
                for _ in range(3):
                    assert isinstance(ex.submit(die, 0).exception(20), repartir.WorkerDied)
                big = bytes(1_000_000)
                assert ex.submit(bytes, big).result(20) == big
                assert [f.result(20) for f in [ex.submit(work, n) for n in range(200)]] == [n * n for n in range(200)]
            print("done", len(os.listdir("/proc/self/fd")))
        """,
        method,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("done")
