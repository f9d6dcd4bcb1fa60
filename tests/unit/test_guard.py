"""The guard must find each kind of leak, tolerate what its docstring says, and cost little."""

from __future__ import annotations

import ctypes
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tests import guard
from tests.helpers import module_main, package_root

SOON_S = 0.05


def wait_until_ended(pid: int) -> None:
    """Blocks until `pid`, a child, has ended, without reaping it."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def only(left: list[str]) -> str:
    assert len(left) == 1, left
    return left[0]


def test_nothing_new_is_no_leak() -> None:
    assert guard.settle(guard.snapshot(), SOON_S) == []


def test_names_a_segment() -> None:
    before = guard.snapshot()
    path = Path(guard.SHM) / f"guard-test-{os.getpid()}"
    path.write_bytes(b"x")
    try:
        assert guard.settle(before, SOON_S) == [str(path)]
    finally:
        path.unlink()


def test_a_segment_that_another_program_holds_is_its_own() -> None:
    path = Path(guard.SHM) / f"guard-test-{os.getpid()}"
    path.write_bytes(b"x")
    try:
        stranger = guard.Snapshot(frozenset(), {}, frozenset(), 0, frozenset(), frozenset())
        assert not guard._held_by_a_stranger(path.name, stranger)
        with subprocess.Popen(
            ["cat"], stdin=subprocess.PIPE, pass_fds=[fd := os.open(path, os.O_RDONLY)]
        ) as holder:
            os.close(fd)
            assert guard._held_by_a_stranger(
                path.name, stranger
            )  # an empty family: even our child is a stranger
            assert guard.leftovers(guard.snapshot()) == []
            holder.communicate(b"")
    finally:
        path.unlink()


def test_names_an_open_fd_and_where_it_leads(tmp_path: Path) -> None:
    before = guard.snapshot()
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert guard.settle(before, SOON_S) == [f"fd {fd} → {tmp_path}"]
    finally:
        os.close(fd)


def test_names_an_fd_that_was_closed(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    before = guard.snapshot()
    os.close(fd)
    line = only(guard.settle(before, SOON_S))
    assert line.startswith(f"fd {fd} → {tmp_path} was closed")


def test_names_a_python_thread() -> None:
    before = guard.snapshot()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, args=(30,), name="left over")
    thread.start()
    try:
        line = only(guard.settle(before, SOON_S))
        assert "left over" in line
    finally:
        end.set()
        thread.join()


def test_names_a_thread_that_python_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_pool_threads", lambda now, before: 0)
    libc = ctypes.CDLL(None)
    handle = ctypes.c_ulong()
    before = guard.snapshot()
    assert libc.pthread_create(ctypes.byref(handle), None, libc.pause, None) == 0
    try:
        assert guard.settle(before, SOON_S) == ["1 threads that Python does not know"]
    finally:
        libc.pthread_cancel(handle)
        assert libc.pthread_join(handle, None) == 0


def test_names_a_child_and_its_child() -> None:
    before = guard.snapshot()
    with subprocess.Popen(["sh", "-c", "cat; true"], stdin=subprocess.PIPE) as child:
        try:
            left = guard.settle(before, SOON_S)
            while not any("cat" in line for line in left if "sh -c" not in line):
                assert child.poll() is None
                left = guard.settle(before, SOON_S)
            assert sum("process" in line for line in left) == 2
            assert f"process {child.pid} " in "".join(left)
        finally:
            child.communicate(b"")


def test_names_a_child_that_nobody_waited_for() -> None:
    before = guard.snapshot()
    if (pid := os.fork()) == 0:
        os._exit(0)
    wait_until_ended(pid)
    try:
        line = only(guard.settle(before, SOON_S))
        assert line.startswith(f"process {pid}, ended")
    finally:
        os.waitpid(pid, 0)


def test_names_a_worker_whose_parent_died_and_kills_it() -> None:
    before = guard.snapshot()
    read, write = os.pipe()
    if (parent := os.fork()) == 0:
        if (orphan := os.fork()) == 0:
            signal.pause()
        os.write(write, orphan.to_bytes(4, "little"))
        os._exit(0)
    os.waitpid(parent, 0)
    orphan = int.from_bytes(os.read(read, 4), "little")
    try:
        assert f"process {orphan} " in "".join(guard.settle(before, SOON_S))
    finally:
        guard.kill_new_processes(before)
        os.close(read)
        os.close(write)
    assert guard.settle(before, SOON_S) == []


def test_names_a_temporary_file() -> None:
    before = guard.snapshot()
    with tempfile.NamedTemporaryFile(prefix="repartir-guard-") as file:
        assert file.name in guard.settle(before, SOON_S)


def test_what_is_on_its_way_out_is_waited_for() -> None:
    before = guard.snapshot()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, args=(30,))
    thread.start()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert guard.leftovers(before)
        waiter = threading.Thread(target=child.wait)
        waiter.start()
        child.stdin.close()
        end.set()
        assert guard.settle(before, timeout_s=10) == []


def test_garbage_is_collected_before_it_counts(tmp_path: Path) -> None:
    before = guard.snapshot()
    cycle: list[object] = [(tmp_path / "file").open("w")]
    cycle.append(cycle)
    assert guard.leftovers(before)
    with pytest.warns(ResourceWarning, match="unclosed file"):
        del cycle
        assert guard.settle(before, SOON_S) == []


def test_the_servers_of_multiprocessing_are_tolerated_but_no_others(tmp_path: Path) -> None:
    result = module_main(
        tmp_path,
        """
        import multiprocessing, os, sys
        from multiprocessing import resource_tracker
        sys.path.insert(0, sys.argv[1])
        from tests import guard

        before = guard.snapshot()
        process = multiprocessing.get_context("forkserver").Process(target=os.getpid)
        process.start()
        process.join()
        process.close()
        assert len(guard.snapshot().processes) == 2
        print(guard.settle(before, 10))
        stray = resource_tracker.ResourceTracker()
        stray.ensure_running()
        print(len(guard.leftovers(before)))
        stray._stop()
        """,
        str(Path(guard.__file__).parents[1]),
    )
    assert result.stdout.split("\n") == ["[]", "2", ""], result.stderr


def test_a_leaking_test_fails_and_the_next_one_does_not(tmp_path: Path) -> None:
    (tmp_path / "test_leaks.py").write_text(
        "import subprocess\n"
        "from tests import guard\n"
        f"guard.SETTLE_S = {SOON_S}\n"
        "def test_leaks(): subprocess.Popen(['sleep', '60'])\n"
        "def test_is_clean(): pass\n"
        "def test_fails_and_leaks():\n"
        "    subprocess.Popen(['sleep', '60'])\n"
        "    raise ValueError('its own failure')\n"
    )
    root = str(Path(guard.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, *"-m pytest -p tests.conftest -p no:cacheprovider -W ignore test_leaks.py".split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([root, str(package_root())])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "left behind by this test:\n  process " in result.stdout, result.stdout
    assert "): sleep 60" in result.stdout
    assert "1 failed, 2 passed, 1 error" in result.stdout
    assert result.returncode == 1


def test_costs_less_than_5_ms_a_test() -> None:
    seconds = []
    for _ in range(21):
        start = time.perf_counter()
        assert guard.settle(guard.snapshot(), SOON_S) == []
        seconds.append(time.perf_counter() - start)
    assert statistics.median(seconds) < 0.005
