from __future__ import annotations

import ctypes
import errno
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from repartir.shm import parking as parking_module
from repartir.shm.parking import ParkingLot, Semaphore
from tests.shared import (
    LIMIT_S,
    LOCK_KINDS,
    Deadly,
    Forked,
    Fuse,
    Gate,
    Interrupted,
    Room,
    Threads,
    family,
    gates,
    room,
    until,
)

MEMBERS = 70  # more than one word of the masks


@pytest.fixture(params=LOCK_KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Room]:
    with room(request.param) as made:
        yield made
    request.node.funcargs.clear()  # they hold the mapping, and the guard looks before pytest lets them go


Lot = tuple[ParkingLot, list[Semaphore]]


@pytest.fixture
def lot(place: Room) -> Lot:
    return place.lot(MEMBERS)


def posts(semaphores: list[Semaphore]) -> list[int]:
    """The row of every post that lies there, as often as it was posted; takes them away."""
    rows = []
    for row, semaphore in enumerate(semaphores):
        while semaphore.wait(0):
            rows.append(row)
    return rows


def idle(parking: ParkingLot) -> list[int]:
    return [row for row in range(MEMBERS) if parking.is_idle(row)]


def spinning(parking: ParkingLot) -> list[int]:
    return [row for row in range(MEMBERS) if parking.is_spinning(row)]


# ---- semaphore


def test_semaphore_counts(lot: Lot) -> None:
    semaphore = lot[1][0]
    for _ in range(3):
        assert semaphore.post() == 0
    assert [semaphore.wait(0) for _ in range(4)] == [True, True, True, False]


def test_semaphores_are_independent(lot: Lot) -> None:
    lot[1][1].post()
    assert not lot[1][0].wait(0)
    assert not lot[1][2].wait(0)
    assert lot[1][1].wait(0)


def test_wait_ends_after_its_time(lot: Lot) -> None:
    began = time.monotonic()
    assert not lot[1][0].wait(0.05)
    assert 0.05 <= time.monotonic() - began < 5


def test_wait_sleeps(lot: Lot) -> None:
    used = time.process_time()
    lot[1][0].wait(0.3)
    assert time.process_time() - used < 0.1


def test_post_of_another_process_wakes(lot: Lot) -> None:
    semaphore = lot[1][0]
    with family() as children, gates(1) as (go,):
        children.fork(lambda: (go.wait(), semaphore.post()))
        go.open()
        assert semaphore.wait(LIMIT_S)
        children.join()


def test_create_forgets_posts(lot: Lot) -> None:
    semaphore = lot[1][0]
    semaphore.post()
    semaphore.create()
    assert not semaphore.wait(0)


def test_signal_ends_a_wait_and_its_handler_runs(lot: Lot) -> None:
    rang = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(time.monotonic()))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    began = time.monotonic()
    assert not lot[1][0].wait(LIMIT_S)
    signal.signal(signal.SIGALRM, before)
    assert rang
    assert time.monotonic() - began < 1


def test_exception_of_a_handler_leaves_a_wait(lot: Lot) -> None:
    def ring(*_: object) -> None:
        raise Interrupted

    semaphore = lot[1][0]
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with pytest.raises(Interrupted):
        semaphore.wait(LIMIT_S)
    signal.signal(signal.SIGALRM, before)
    semaphore.post()
    assert semaphore.wait(0)


def test_other_threads_run_during_a_wait(lot: Lot) -> None:
    semaphore = lot[1][0]
    threads = Threads()
    threads.start(semaphore.post)
    assert semaphore.wait(LIMIT_S)
    threads.join()


def test_system_without_sem_clockwait(place: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def __init__(self, *args: Any, **options: Any) -> None:
            self._library = ctypes.CDLL(*args, **options)

        def __getattr__(self, name: str) -> Any:
            if name == "sem_clockwait":
                raise AttributeError(name)
            return getattr(self._library, name)

    with monkeypatch.context() as patch:
        patch.setattr(parking_module, "ctypes", _Patched(Old))
        semaphore = Semaphore(place.segment, 0)
    semaphore.create()
    began = time.monotonic()
    assert not semaphore.wait(0.05)
    assert 0.04 <= time.monotonic() - began < 5
    semaphore.post()
    assert semaphore.wait(0)


class _Patched:
    """The module `ctypes` with another `CDLL`."""

    def __init__(self, library: type) -> None:
        self.CDLL = library

    def __getattr__(self, name: str) -> Any:
        return getattr(ctypes, name)


def test_errors_of_the_system_are_raised(lot: Lot) -> None:
    semaphore = lot[1][0]
    semaphore._wait = lambda: ctypes.set_errno(errno.EINVAL) or -1
    with pytest.raises(OSError, match="Invalid argument"):
        semaphore.wait(0)


# ---- parking lot


def test_nobody_sleeps_at_first(lot: Lot) -> None:
    parking, semaphores = lot
    assert not parking.anyone_idle()
    assert (idle(parking), spinning(parking)) == ([], [])
    assert parking.wake(5) == 0
    parking.wake_all()
    assert posts(semaphores) == []


@pytest.mark.parametrize("row", [0, 1, 63, 64, MEMBERS - 1])
def test_sleeper_is_woken_once(lot: Lot, row: int) -> None:
    parking, semaphores = lot
    parking.announce(row)
    assert parking.anyone_idle()
    assert idle(parking) == [row]
    assert parking.wake() == 1
    assert not parking.anyone_idle()
    assert parking.wake() == 0
    assert posts(semaphores) == [row]


def test_one_sleeper_a_task(lot: Lot) -> None:
    parking, semaphores = lot
    for row in (3, 64, 69):
        parking.announce(row)
    assert parking.wake(2) == 2
    assert posts(semaphores) == [3, 64]
    assert idle(parking) == [69]
    assert parking.wake(2) == 1
    assert posts(semaphores) == [69]


def test_preferred_sleeper_comes_first(lot: Lot) -> None:
    parking, semaphores = lot
    for row in (1, 2, 65):
        parking.announce(row)
    assert parking.wake(1, preferred=65) == 1
    assert posts(semaphores) == [65]
    assert parking.wake(2, preferred=65) == 2, "the preferred one is awake: others do"
    assert posts(semaphores) == [1, 2]


def test_spinners_count_as_awake(lot: Lot) -> None:
    parking, semaphores = lot
    parking.announce(1)
    parking.announce(2)
    assert parking.start_spinning(64, 1)
    assert parking.wake(1) == 0
    assert parking.wake(1, preferred=1) == 0
    assert parking.wake(2) == 1
    parking.stop_spinning(64)
    assert parking.wake(1) == 1
    assert posts(semaphores) == [1, 2]


def test_number_of_spinners_is_limited(lot: Lot) -> None:
    parking, _ = lot
    assert not parking.start_spinning(0, 0)
    assert parking.start_spinning(0, 2)
    assert parking.start_spinning(69, 2)
    assert not parking.start_spinning(1, 2)
    assert spinning(parking) == [0, 69]
    parking.stop_spinning(0)
    assert parking.start_spinning(1, 2)


def test_who_announces_spins_no_longer(lot: Lot) -> None:
    parking, _ = lot
    parking.start_spinning(66, 1)
    parking.announce(66)
    assert spinning(parking) == []
    assert idle(parking) == [66]


def test_retracting_takes_the_announcement_back(lot: Lot) -> None:
    parking, semaphores = lot
    parking.announce(1)
    parking.announce(2)
    parking.retract(1)
    assert idle(parking) == [2]
    assert posts(semaphores) == [], "nobody had woken it: there is nothing to pass on"


def test_retracting_after_a_wake_passes_it_on(lot: Lot) -> None:
    parking, semaphores = lot
    parking.announce(1)
    parking.announce(65)
    parking.wake()
    assert idle(parking) == [65]
    parking.retract(1)
    assert posts(semaphores) == [1, 65]
    parking.retract(65)
    assert posts(semaphores) == [], "there is nobody to pass it on to"


def test_dead_member_is_forgotten(lot: Lot) -> None:
    parking, semaphores = lot
    parking.announce(64)
    parking.forget(64)
    parking.start_spinning(3, 5)
    parking.forget(3)
    assert (idle(parking), spinning(parking)) == ([], [])
    parking.announce(0)
    assert parking.wake() == 1
    assert posts(semaphores) == [0]


def test_all_are_woken_whoever_spins(lot: Lot) -> None:
    parking, semaphores = lot
    rows = [0, 5, 63, 64, 69]
    for row in rows:
        parking.announce(row)
    parking.start_spinning(7, 1)
    parking.wake_all()
    assert posts(semaphores) == rows
    assert not parking.anyone_idle()


def test_one_row_is_woken_whoever_spins(lot: Lot) -> None:
    parking, semaphores = lot
    parking.announce(3)
    parking.announce(66)
    assert parking.start_spinning(5, MEMBERS)
    parking.wake_row(66)
    assert idle(parking) == [3]
    assert posts(semaphores) == [66]
    parking.wake_row(66)
    parking.wake_row(5)
    assert idle(parking) == [3]
    assert posts(semaphores) == []


def test_sleeper_of_another_process(lot: Lot) -> None:
    parking, semaphores = lot

    def sleeper(ready: Gate) -> None:
        parking.announce(3)
        ready.open()
        assert semaphores[3].wait(LIMIT_S)  # its flag may still be set: the poster clears it after the post

    with family() as children, gates(1) as (ready,):
        children.fork(sleeper, ready)
        ready.wait()
        assert parking.wake() == 1
        assert not parking.is_idle(3)
        children.join()


ACTS = {
    "announce": lambda parking: parking.announce(2),
    "retract": lambda parking: parking.retract(1),
    "retract, passing on": lambda parking: parking.retract(2),
    "forget": lambda parking: parking.forget(1),
    "wake": lambda parking: parking.wake(),
    "wake preferred": lambda parking: parking.wake(1, 65),
    "wake row": lambda parking: parking.wake_row(65),
    "wake all": lambda parking: parking.wake_all(),
    "start spinning": lambda parking: parking.start_spinning(4, 5),
    "stop spinning": lambda parking: parking.stop_spinning(3),
}


def prepared(lot: Lot) -> None:
    parking, semaphores = lot
    for row in range(MEMBERS):
        parking.forget(row)
    posts(semaphores)
    parking.announce(1)
    parking.announce(65)


@pytest.mark.parametrize("act", ACTS)
def test_cut_off_at_any_word_no_sleeper_is_lost(place: Room, act: str) -> None:
    """Whoever slept can still be woken, or was: a row whose flag is gone has its post."""
    for nth in range(200):
        fuse = Fuse(place.words)
        lot = parking, semaphores = place.lot(MEMBERS, words=fuse)
        prepared(lot)
        fuse.left = nth
        try:
            ACTS[act](parking)
        except Interrupted:
            gone = {1, 65} - set(idle(parking))
            gone -= {1} if act in ("retract", "forget") else set()
            assert gone <= set(posts(semaphores)), f"cut off at access {nth}"
        else:
            assert fuse.left >= 0
            return
    raise AssertionError(f"{act} needs more than 200 accesses")


@pytest.mark.parametrize("act", ACTS)
def test_killed_at_any_word_no_sleeper_is_lost(place: Room, act: str) -> None:
    for nth in range(200):
        deadly = Deadly(place.words)
        lot = parking, semaphores = place.lot(MEMBERS, words=deadly)
        prepared(lot)

        def child(parking: ParkingLot = parking, deadly: Deadly = deadly, nth: int = nth) -> None:
            deadly.left = nth
            ACTS[act](parking)
            assert deadly.left >= 0

        if (status := Forked(child).wait()) == 0:
            return
        assert status == -signal.SIGKILL
        parking.wake_all()
        woken = set(posts(semaphores)) | ({1} if act in ("retract", "forget") else set())
        assert {1, 65} <= woken, f"killed at access {nth}"
    raise AssertionError(f"{act} needs more than 200 accesses")


def test_threads_of_one_process_use_one_lot(lot: Lot) -> None:
    parking, semaphores = lot
    threads = Threads()
    awake = threading.Event()

    def sleeper() -> None:
        parking.announce(8)
        assert semaphores[8].wait(LIMIT_S)
        awake.set()

    threads.start(sleeper)
    until(parking.anyone_idle)
    assert parking.wake() == 1
    assert awake.wait(LIMIT_S)
    threads.join()


def test_post_that_is_interrupted_leaves_the_sleeper_announced(lot: Lot) -> None:
    """A wake too many is harmless, one too few is not."""
    parking, semaphores = lot

    def interrupted() -> None:
        raise Interrupted

    parking._post = [interrupted] * MEMBERS
    parking.announce(1)
    with pytest.raises(Interrupted):
        parking.wake()
    assert parking.is_idle(1)
    parking._post = [semaphore.post for semaphore in semaphores]
    assert parking.wake() == 1
    assert posts(semaphores) == [1]
