"""Takers of locks: threads, processes, processes that are killed, and the main thread under a storm of signals."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time

import pytest

from repartir.shm.layout import LOCK_BYTES
from repartir.shm.lock import FcntlLock, Lock
from tests.shared import LIMIT_S, Family, Forked, Interrupted, Patience, Room, Threads

DIRTY_W = LOCK_BYTES // 8


def locks(place: Room, count: int) -> list[Lock]:
    made = [place.lock(nth * 256, nth * 32 + DIRTY_W) for nth in range(count)]
    for lock in made:
        lock.create()
    return made


def add(place: Room, lock: Lock, word: int, times: int = 1) -> None:
    """Count up in a way that loses counts unless others are kept out."""
    words = place.words
    for _ in range(times):
        try:
            if code := lock.try_acquire():
                lock.wait(code)
            words[word], words[word + 1] = words[word + 1] + 1, words[word] + 1
        finally:
            lock.release()


def counted(place: Room, word: int) -> int:
    assert place.words[word] == place.words[word + 1]
    return place.words[word]


def test_smoke(place: Room) -> None:
    (lock,) = locks(place, 1)
    add(place, lock, place.word(0), 5)
    assert counted(place, place.word(0)) == 5


def test_is_empty(place: Room, children: Family, scale: int) -> None:
    """A lock that was let go before the question is free, for everybody."""
    (lock,) = locks(place, 1)
    for _ in range(20 * scale):
        assert lock.try_acquire() == 0
        lock.release()
        child = Forked(lambda: None if lock.try_acquire() == 0 else pytest.fail("not free"))
        child.join()
        assert place.lock_fd is None or lock.try_acquire() == 0
        try:
            if not isinstance(lock, FcntlLock) and (code := lock.try_acquire()):
                lock.wait(code)  # the child ended with it
        finally:
            lock.release()


def test_spsc(place: Room, children: Family, scale: int) -> None:
    """Two that take turns: each sees what the other wrote."""
    (lock,) = locks(place, 1)
    words, turn = place.words, place.word(0)

    def player(parity: int) -> None:
        patience = Patience()
        for nth in range(parity, 1000 * scale, 2):
            mine = False
            while not mine:
                try:
                    if code := lock.try_acquire():
                        lock.wait(code)
                    if mine := words[turn] == nth:
                        words[turn] = nth + 1
                finally:
                    lock.release()
                if not mine:
                    patience()

    children.fork(player, 1)
    player(0)
    children.join()
    assert words[turn] == 1000 * scale


def test_stampede(place: Room, children: Family, scale: int) -> None:
    (lock,) = locks(place, 1)
    for _ in range(3):
        children.fork(add, place, lock, place.word(0), 5000 * scale)
    add(place, lock, place.word(0), 5000 * scale)
    children.join()
    assert counted(place, place.word(0)) == 20_000 * scale


def test_stress(place: Room, children: Family, scale: int, dice: random.Random) -> None:
    """Several locks, several processes, several threads in each."""
    several = locks(place, 4)

    def thread(seed: float) -> None:
        own = random.Random(seed)
        for _ in range(500 * scale):
            nth = own.randrange(4)
            add(place, several[nth], place.word(nth * 2))

    def process() -> None:
        threads = Threads()
        for _ in range(3):
            threads.start(thread, dice.random())
        threads.join()

    for _ in range(3):
        children.fork(process)
    children.join()
    assert sum(counted(place, place.word(nth * 2)) for nth in range(4)) == 3 * 3 * 500 * scale


def test_no_starvation(place: Room, children: Family, scale: int) -> None:
    (lock,) = locks(place, 1)
    words, over = place.words, place.word(100)

    def taker(me: int) -> None:
        end = time.monotonic() + LIMIT_S
        while not words[over]:
            assert time.monotonic() < end
            add(place, lock, place.word(me * 2))

    for me in range(4):
        children.fork(taker, me)
    patience = Patience()
    while min(words[place.word(me * 2)] for me in range(4)) < 100 * scale:
        patience()
    words[over] = 1
    children.join()


def test_destructors(place: Room, children: Family, scale: int, dice: random.Random) -> None:
    """Takers are killed at any moment: each section that was cut off is repaired once, before the next begins."""
    (lock,) = locks(place, 1)
    words = place.words
    inside, repairs, sections = place.word(0), place.word(1), place.word(2)

    def repair() -> None:
        words[repairs] += words[inside]
        words[inside] = 0

    def taker() -> None:
        while True:
            try:
                if code := lock.try_acquire():
                    lock.wait(code)
                assert words[inside] == 0, "the section of a dead owner was not repaired"
                words[inside] = 1
                words[sections] += 1
                if words[sections] % 3 == 0:
                    os.sched_yield()
                words[inside] = 0
            finally:
                lock.release()

    lock.repair = repair
    takers = [children.fork(taker) for _ in range(3)]
    cut_off = 0
    for _ in range(40 * scale):
        target = words[sections] + dice.randrange(20)
        patience = Patience()
        while words[sections] < target:
            patience()
        nth = dice.randrange(3)
        takers[nth].kill()
        takers[nth] = children.fork(taker)
    for each in takers:
        each.kill()
    try:
        if code := lock.try_acquire():
            lock.wait(code)
        cut_off = words[repairs]
        assert words[inside] == 0
    finally:
        lock.release()
    assert cut_off <= 40 * scale + 3
    repaired = words[repairs]
    add(place, lock, place.word(10))
    assert words[repairs] == repaired


@pytest.mark.parametrize("contended", [False, True], ids=["alone", "contended"])
def test_storm_of_signals(
    place: Room, children: Family, scale: int, dice: random.Random, contended: bool
) -> None:
    """A handler that raises, at any moment: the lock is free afterwards, and others get on."""
    (lock,) = locks(place, 1)
    words, over = place.words, place.word(100)

    def other() -> None:
        while not words[over]:
            add(place, lock, place.word(0))
            os.sched_yield()

    def ring(*_: object) -> None:
        raise Interrupted

    if contended:
        children.fork(other)
    before = signal.signal(signal.SIGALRM, ring)
    hits = 0
    end = time.monotonic() + 0.3 * scale
    try:
        while time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(20e-6, 200e-6))
                while True:
                    add(place, lock, place.word(4))
            except Interrupted:
                hits += 1
            threads = Threads()
            threads.start(add, place, lock, place.word(0))
            threads.join(5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        words[over] = 1
    children.join()
    assert hits


def test_storm_of_garbage(place: Room, scale: int) -> None:
    """Finalizers that take the lock in the middle of a section get an error, and never wait for ever."""
    (lock,) = locks(place, 1)
    errors: list[BaseException] = []
    done = threading.Event()

    class Finalized:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            try:
                try:
                    if code := lock.try_acquire():
                        lock.wait(code)
                finally:
                    lock.release()
            except BaseException as exc:  # noqa: BLE001 - a finalizer's exceptions are lost
                errors.append(exc)

    def section() -> None:
        for _ in range(8 * scale):
            try:
                if code := lock.try_acquire():
                    lock.wait(code)
                Finalized()
                gc.collect()
            finally:
                lock.release()
        done.set()

    section()
    assert done.is_set()
    assert len(errors) == 8 * scale
    add(place, lock, place.word(0))
