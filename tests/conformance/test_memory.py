"""Shared memory that is small or full: submits wait, spill or fail with a remedy, and idle memory goes back."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repartir
from repartir import broker as broker_module
from repartir import environment
from repartir.shm import blocks as blocks_module
from repartir.shm import board as board_module
from tests.helpers import package_root

from .kinds import FORK
from .sync import LIMIT_S, Gate, GateKeeper

MIB = 1 << 20

pytestmark = pytest.mark.kinds(FORK)
Make = Callable[..., repartir.Executor]


def first(array: Any) -> int:
    return int(array[0])


def wait_then_first(gate: Gate, array: Any) -> int:
    gate.wait()
    return int(array[0])


def zeros(size: int) -> Any:
    return np.zeros(size, np.uint8)


def mebibytes(count: int, value: int = 1) -> Any:
    return np.full(count * MIB, value, np.uint8)


def test_submit_waits_while_tasks_are_under_way_that_will_make_room(make: Make, gate: GateKeeper) -> None:
    with make(1, shm_limit="8MiB") as ex:
        held = [ex.submit(wait_then_first, gate.gate, mebibytes(3, nth)) for nth in range(2)]
        late: list[Any] = []
        thread = threading.Thread(target=lambda: late.append(ex.submit(first, mebibytes(3, 7))))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        assert ex.stats().spills == 0
        gate.open()
        thread.join(LIMIT_S)
        assert not thread.is_alive()
        assert [future.result(LIMIT_S) for future in (*held, *late)] == [0, 1, 7]
        assert ex.stats().spills == 0


def test_many_submits_share_little_memory(make: Make) -> None:
    with make(2, shm_limit="16MiB") as ex:
        futures = [ex.submit(first, mebibytes(2, nth % 200)) for nth in range(100)]
        assert [future.result(LIMIT_S) for future in futures] == [nth % 200 for nth in range(100)]
        assert ex.stats().backed_bytes <= 16 * MIB


def test_submit_gives_up_after_its_time_out(make: Make, gate: GateKeeper) -> None:
    with make(1, shm_limit="8MiB", shm_timeout=0.05) as ex:
        held = [ex.submit(wait_then_first, gate.gate, mebibytes(3, nth)) for nth in range(2)]
        error = ex.submit(first, mebibytes(3)).exception(LIMIT_S)
        gate.open()
        assert isinstance(error, repartir.SharedMemoryFull)
        assert "after 0.05 s" in str(error)
        assert "3,145,8" in str(error)
        assert "arguments of tasks 6,29" in str(error)
        assert [future.result(LIMIT_S) for future in held] == [0, 1]


def test_with_few_tasks_under_way_it_spills_so_that_no_worker_idles(make: Make, gate: GateKeeper) -> None:
    with make(2, shm_limit="8MiB") as ex:
        futures = [ex.submit(wait_then_first, gate.gate, mebibytes(6, nth)) for nth in range(2)]
        assert ex.stats().spills == 1
        assert "spilled 6 MiB in 1 block" in repr(ex)
        gate.open()
        assert [future.result(LIMIT_S) for future in futures] == [0, 1]
        assert ex.stats().spilled_bytes == 0


def test_a_callback_never_waits(make: Make, new_gate: Callable[[], GateKeeper]) -> None:
    early, gate = new_gate(), new_gate()
    with make(1, shm_limit="8MiB") as ex:
        made: list[Any] = []
        called = threading.Event()

        def submit_more(_: object) -> None:
            made.append(ex.submit(first, mebibytes(4, 9)))
            called.set()

        before = ex.submit(early.gate.wait)
        before.add_done_callback(submit_more)
        held = [ex.submit(wait_then_first, gate.gate, mebibytes(3, nth)) for nth in range(2)]
        early.open()
        assert called.wait(LIMIT_S)
        assert ex.stats().spills == 1
        gate.open()
        assert [future.result(LIMIT_S) for future in (*held, *made)] == [0, 1, 9]


def test_results_spill_where_memory_is_full(make: Make) -> None:
    with make(1, shm_limit="8MiB") as ex:
        assert ex.submit(zeros, 20 * MIB).result(LIMIT_S).shape == (20 * MIB,)
        assert ex.stats().spills == 0


def test_without_any_room_arguments_wait_in_the_client(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "_LARGEST_OVERFLOW", MIB)
    with make(2, shm_limit="8MiB") as ex:
        futures = [ex.submit(first, mebibytes(5, nth)) for nth in range(6)]
        assert [future.result(LIMIT_S) for future in futures] == list(range(6))
        error = ex.submit(first, mebibytes(9)).exception(LIMIT_S)
        assert isinstance(error, repartir.SharedMemoryFull)
        assert "shm-size" in str(error)
        assert "8,388,608" in str(error)


def test_idle_memory_goes_back(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "TRIM_AFTER_S", 0.05)
    with make(2) as ex:
        assert ex.submit(first, mebibytes(64)).result(LIMIT_S) == 1
        until = time.monotonic() + LIMIT_S
        while ex.stats().backed_bytes > MIB:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert ex.submit(first, mebibytes(64, 5)).result(LIMIT_S) == 5


def test_memory_goes_back_that_is_let_go_of_long_after_the_last_task(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "TRIM_AFTER_S", 0.05)
    with make(1) as ex:
        result = ex.submit(zeros, 64 * MIB).result(LIMIT_S)
        time.sleep(0.3)
        assert ex.stats().backed_bytes > 64 * MIB
        del result
        until = time.monotonic() + LIMIT_S
        while ex._broker.board.blocks.arenas[0].backed() > MIB:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_who_is_told_of_memory_that_was_let_go_of_finds_it(make: Make) -> None:
    """The broker's thread may run between the two callbacks of a view's death, and looks but once."""
    with make(1) as ex:
        result = ex.submit(zeros, 64 * MIB).result(LIMIT_S)
        views, found = ex._broker.pump.views, []
        tell = views._on_death

        def look_and_tell() -> None:
            found.append(len(views.dead))
            tell()

        views._on_death = look_and_tell
        del result
        views._on_death = tell
        assert found[0] == 1


def test_a_fork_keeps_only_what_is_alive(make: Make) -> None:
    """Not what nobody has swept yet: the child cannot reach it either."""
    with make(1) as ex:
        kept, dropped = (ex.submit(zeros, MIB).result(LIMIT_S) for _ in range(2))
        pump = ex._broker.pump
        with pump.mutex:  # nobody sweeps
            del dropped
            pump.views.pin()
            assert len(pump.views.handles) == 2
            assert len(pump.views.pinned) == 1
        assert kept.nbytes == MIB


def test_memory_stays_flat(make: Make) -> None:
    with make(2) as ex:
        sizes = []
        for _ in range(6):
            for nth in range(60):
                assert ex.submit(first, np.full(40_000, nth)).result(LIMIT_S) == nth
            wait([ex.submit(zeros, 300_000) for _ in range(20)], LIMIT_S)
            gc.collect()
            sizes.append(ex.stats().backed_bytes)
        assert sizes[-1] <= sizes[1]


SMALL_SHM = """
import os
import numpy as np
import repartir

def double(array):
    return array * 2

def largest(array):
    return float(array.max())

with repartir.Executor(2) as ex:
    assert ex.stats().arena_limit <= 64 << 20
    for size in (1, 40, 100):
        array = np.arange(size << 17, dtype="f8")
        result = ex.submit(double, array).result(60)
        assert (result == array * 2).all()
    del result
    kept = list(ex.map(double, [np.full(1 << 20, nth, "f8") for nth in range(40)], buffersize=4))
    assert [array[0] for array in kept] == [2 * nth for nth in range(40)]
    with ex.share(np.ones(100 << 17)) as shared:
        assert list(ex.map(largest, [shared] * 4)) == [1.0] * 4
    del kept, shared
    assert ex.submit(double, np.ones(20 << 17)).result(60)[-1] == 2
    with open("/dev/shm/of somebody else", "wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 20)):
                pass
        except OSError:
            pass
    for size in (20, 45, 1, 0):
        assert ex.submit(double, np.ones((size << 17) + 1)).result(60)[-1] == 2
    os.unlink("/dev/shm/of somebody else")
    assert ex.submit(double, np.ones(20 << 17)).result(60)[-1] == 2
    print(ex.stats())
print("done")
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="needs a mount namespace of its own"
)
def test_everything_works_with_64_mib(tmp_path: Path) -> None:
    """As in a container: the default of its /dev/shm."""
    script = tmp_path / "script.py"
    script.write_text(SMALL_SHM)
    command = f"mount -t tmpfs -o size=64m none /dev/shm && exec {sys.executable} {script}"
    namespace = ["unshare", "--mount", "sh", "-c"]
    if subprocess.run([*namespace, "mount -t tmpfs -o size=64m none /dev/shm"], check=False).returncode:
        pytest.skip("mounts are not allowed here")
    ended = subprocess.run(
        [*namespace, command],
        env={**os.environ, "PYTHONPATH": str(package_root())},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("done\n")


@pytest.mark.parametrize(
    ("size", "found"),
    [
        (7, 7),
        ("7", 7),
        ("2KiB", 2048),
        ("2 kB", 2000),
        ("1.5MiB", 3 << 19),
        ("1g", 1 << 30),
        ("3 GB", 3 * 10**9),
    ],
)
def test_sizes_in_words(size: int | str, found: int) -> None:
    assert environment.size_in_bytes(size, "it") == found


@pytest.mark.parametrize("option", ["out_of_band", "shm_limit"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        ("", ValueError),
        ("2 bananas", ValueError),
        (1.5, TypeError),
        (True, TypeError),
    ],
)
def test_bad_sizes_are_refused(option: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=option):
        repartir.Executor(1, **{option: value})


def test_a_bad_time_out_is_refused() -> None:
    with pytest.raises(ValueError, match="shm_timeout"):
        repartir.Executor(1, shm_timeout=-1)


def test_usage_is_told_by_kind(make: Make) -> None:
    with make(1) as ex:
        result = ex.submit(zeros, 3 * MIB).result(LIMIT_S)
        memory, spilled = ex._broker.board.blocks.usage()
        assert memory.results[0] == 1
        assert memory.results[1] >= result.nbytes
        assert spilled == blocks_module.NOTHING
        assert ex.stats().viewed_bytes >= 3 * MIB
        assert "arena 3 MiB in" in repr(ex)
