"""Ctrl-C and `kill -9` of whole programs: how fast they end, what they print, what they leave."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .kinds import FORK, Kind, control_only, every_start, only_fork, workers
from .scripts import descendants, run_script, started, survivors
from .sync import LIMIT_S, BellKeeper, GateKeeper

ENDS_WITHIN_S = 2.0
LOADED_MACHINE_S = 2.0  # on top, for a fresh interpreter's own tear-down while other tests run

SUBMITS = """
import sys
from tests.conformance import tasks
from tests.conformance.sync import Bell, Gate
bell, gate = Bell(sys.argv[1]), Gate(sys.argv[2])
if __name__ == "__main__":
    with make(2) as ex:
        futures = [ex.submit(tasks.ring_and_wait, bell, gate) for _ in range(20)]
        for future in futures:
            future.result()
"""

MAPS = """
import functools, sys
from tests.conformance import tasks
from tests.conformance.sync import Bell, Gate
bell, gate = Bell(sys.argv[1]), Gate(sys.argv[2])
if __name__ == "__main__":
    with make(2) as ex:
        list(ex.map(functools.partial(tasks.ring_and_wait, bell, gate), range(20)))
"""

NOTEBOOK = """
import sys, time
from tests.conformance import tasks
from tests.conformance.sync import Bell, Gate
bell, gate = Bell(sys.argv[1]), Gate(sys.argv[2])
ex = make(2)
try:
    list(ex.map(lambda n: tasks.ring_and_wait(bell, gate, n), range(20)))
except KeyboardInterrupt:
    print("interrupted", flush=True)
began = time.monotonic()
print(ex.submit(pow, 2, 5).result(15), list(ex.map(abs, [-1, -2])))
print(time.monotonic() - began < 2)
ex.shutdown()
"""


RUNS_COMMANDS = """
import subprocess, sys
from tests.conformance.sync import Bell
def run():
    with subprocess.Popen(["sleep", "60"]) as command:
        Bell(sys.argv[1]).ring()
if __name__ == "__main__":
    with make(2) as ex:
        list(ex.map(lambda _: run(), range(2)))
"""


def end_of(process: subprocess.Popen[str]) -> tuple[float, str, str]:
    """Wait for the end of the program and of all that hold its stdout: (seconds, stdout, stderr)."""
    began = time.monotonic()
    stdout, stderr = process.communicate(timeout=LIMIT_S)
    return time.monotonic() - began, stdout, stderr


@every_start
@workers
@pytest.mark.parametrize("source", [SUBMITS, MAPS], ids=["submits", "map"])
def test_ctrl_c_ends_the_program(
    kind: Kind, tmp_path: Path, bell: BellKeeper, gate: GateKeeper, source: str
) -> None:
    """SIGINT to the process group, as a terminal sends it, while both workers are in tasks that never end."""
    before = set(os.listdir("/dev/shm"))
    with started(tmp_path, kind, source, bell.bell.path, gate.gate.path) as process:
        bell.hear(), bell.hear()
        family = descendants(process.pid)
        assert len(family) >= 2
        os.killpg(process.pid, signal.SIGINT)
        seconds, _, stderr = end_of(process)
    assert seconds < ENDS_WITHIN_S + LOADED_MACHINE_S
    assert survivors(family, 0.5) == []
    assert process.returncode in (-signal.SIGINT, 130, 1)
    assert stderr.count("Traceback (most recent call last)") <= 1
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    assert "Process-" not in stderr
    assert set(os.listdir("/dev/shm")) <= before


@only_fork
def test_ctrl_c_ends_the_commands_of_tasks(kind: Kind, tmp_path: Path, bell: BellKeeper) -> None:
    """As in any program that runs commands."""
    with started(tmp_path, kind, RUNS_COMMANDS, bell.bell.path) as process:
        bell.hear(), bell.hear()
        family = descendants(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        seconds, _, stderr = end_of(process)
    assert seconds < ENDS_WITHIN_S + LOADED_MACHINE_S
    assert survivors(family, 0.5) == []
    assert stderr.count("Traceback (most recent call last)") == 1


@workers
def test_ctrl_c_in_a_notebook_leaves_the_executor_usable(
    kind: Kind, tmp_path: Path, bell: BellKeeper, gate: GateKeeper
) -> None:
    """Without `with`: the tasks of the interrupted map stop, and the next cell's submit is answered."""
    with started(tmp_path, kind, NOTEBOOK, bell.bell.path, gate.gate.path) as process:
        bell.hear(), bell.hear()
        os.killpg(process.pid, signal.SIGINT)
        seconds, stdout, stderr = end_of(process)
    assert stdout.splitlines() == ["interrupted", "32 [1, 2]", "True"], stderr
    assert stderr == ""
    assert seconds < ENDS_WITHIN_S + LOADED_MACHINE_S
    assert process.returncode == 0
    assert len(bell.hear_all()) == 0


@every_start
@workers
@pytest.mark.parametrize("idle", [True, False], ids=["idle", "busy"])
def test_kill_9_of_the_client(
    kind: Kind, tmp_path: Path, bell: BellKeeper, gate: GateKeeper, idle: bool
) -> None:
    """All descendants end within two seconds, whatever they do, and nothing stays in /dev/shm."""
    before = set(os.listdir("/dev/shm"))
    source = IDLE if idle else SUBMITS
    with started(tmp_path, kind, source, bell.bell.path, gate.gate.path) as process:
        bell.hear()
        if not idle:
            bell.hear()
        family = descendants(process.pid)
        assert len(family) >= 2
        process.kill()
        process.wait(LIMIT_S)
        deadline = time.monotonic() + ENDS_WITHIN_S
        assert survivors(family, max(0.1, deadline - time.monotonic())) == []
    assert set(os.listdir("/dev/shm")) <= before


IDLE = """
import sys, threading
from tests.conformance import tasks
from tests.conformance.sync import Bell, Gate
if __name__ == "__main__":
    ex = make(2)
    ex.submit(pow, 2, 2).result(15)
    Bell(sys.argv[1]).ring()
    threading.Event().wait(30)
"""


@control_only
def test_the_control_leaves_workers_behind(
    kind: Kind, tmp_path: Path, bell: BellKeeper, gate: GateKeeper
) -> None:
    """So the test above would notice."""
    with started(tmp_path, kind, IDLE, bell.bell.path, gate.gate.path) as process:
        bell.hear()
        family = descendants(process.pid)
        process.kill()
        process.wait(LIMIT_S)
        assert survivors(family, 0.2) != []


@workers
def test_kill_9_of_the_client_while_a_users_fork_lives(
    kind: Kind, tmp_path: Path, bell: BellKeeper, gate: GateKeeper
) -> None:
    """A process that the client forked itself holds the pipes' other ends: end-of-file would never come."""
    source = """
    import os, sys, threading
    from tests.conformance.sync import Bell, Gate
    if __name__ == "__main__":
        ex = make(2)
        worker = ex.submit(os.getpid).result(15)
        child = os.fork()
        if child == 0:
            Gate(sys.argv[2]).wait()
            os._exit(0)
        Bell(sys.argv[1]).ring(f"{child} {worker}")
        threading.Event().wait(30)
    """
    with started(tmp_path, kind, source, bell.bell.path, gate.gate.path) as process:
        child, worker = map(int, bell.hear().split())
        ours = [pid for pid in descendants(process.pid) if pid != child]
        assert worker in ours
        process.kill()
        process.wait(LIMIT_S)
        assert survivors(ours, ENDS_WITHIN_S) == []
        gate.open()
        assert survivors([child], LIMIT_S) == []


USES_IT = """
try:
    with make(2) as ex:
        print(ex.submit(pow, 2, 5).result(15))
except Exception as error:
    print(type(error).__name__, isinstance(error, MemoryError), str(error).replace("\\n", " "))
"""


def assert_says_the_remedy(line: str) -> None:
    assert line.startswith("SharedMemoryFull True")
    assert "REPARTIR_SHM_DIR" in line or "--shm-size" in line


class TestSharedMemoryMissing:
    """/dev/shm missing or full at the start: an error with a remedy, never SIGBUS."""

    @pytest.mark.kinds(FORK)
    def test_a_missing_folder(self, kind: Kind, tmp_path: Path) -> None:
        missing = str(tmp_path / "missing")
        ended = run_script(tmp_path, kind, USES_IT, env={"REPARTIR_SHM_DIR": missing})
        assert (ended.returncode, ended.stderr) == (0, "")
        assert_says_the_remedy(ended.stdout)
        assert missing in ended.stdout

    @pytest.mark.kinds(FORK)
    @pytest.mark.parametrize("size", ["4k", "64k", "1m"])
    def test_a_tiny_file_system(self, kind: Kind, tmp_path: Path, size: str) -> None:
        """With too little it says so; with enough, however little that is, it works."""
        mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
        probe = ["unshare", "-m", "sh", "-c", mount]
        if os.getuid() != 0 or subprocess.run(probe, capture_output=True, timeout=LIMIT_S).returncode:
            pytest.skip("mounting in a mount namespace is not permitted here")
        prefix = ("unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh")
        ended = run_script(tmp_path, kind, USES_IT, prefix=prefix)
        assert (ended.returncode, ended.stderr) == (0, "")
        if size == "4k" or ended.stdout != "32\n":
            assert_says_the_remedy(ended.stdout)

    @pytest.mark.kinds(FORK)
    def test_another_folder_by_the_environment(self, kind: Kind, tmp_path: Path) -> None:
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        ended = run_script(tmp_path, kind, USES_IT, env={"REPARTIR_SHM_DIR": str(folder)})
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "32\n", "")
        assert list(folder.iterdir()) == []


@workers
def test_sigusr1_makes_a_worker_write_its_stacks(
    kind: Kind, tmp_path: Path, bell: BellKeeper, gate: GateKeeper
) -> None:
    source = """
    import os, pathlib, signal, sys, time
    from tests.conformance import option_tasks
    if __name__ == "__main__":
        path = pathlib.Path(sys.argv[0]).parent / "pid"
        with make(1) as ex:
            future = ex.submit(option_tasks.ring_and_sleep, path)
            while not path.exists() or not path.read_text():
                time.sleep(0.01)
            os.kill(int(path.read_text()), signal.SIGUSR1)
            time.sleep(0.3)
            print(future.running())
            ex.kill_workers()
    """
    with started(tmp_path, kind, source) as process:
        _, stdout, stderr = end_of(process)
    assert stdout == "True\n", stderr
    assert "in sleep_long" in stderr
    assert "in ring_and_sleep" in stderr


TWICE = """
import sys
from tests.conformance import option_tasks
from tests.conformance.sync import Bell
def ring():
    Bell(sys.argv[1]).ring()
    option_tasks.sleep_long()
if __name__ == "__main__":
    with make(2) as ex:
        futures = [ex.submit(ring) for _ in range(6)]
        try:
            futures[0].result()
        finally:
            ex.shutdown()  # as an exit handler may: it waits, and is interrupted in its turn
"""

WITH_ASYNCIO = """
import asyncio, sys
from tests.conformance import option_tasks
from tests.conformance.sync import Bell
def ring():
    Bell(sys.argv[1]).ring()
    option_tasks.sleep_long()
async def main():
    with make(2) as ex:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(ex, ring) for _ in range(6)))
if __name__ == "__main__":
    asyncio.run(main())
"""


LEAVING = """
import psutil, sys
from tests.conformance import option_tasks
from tests.conformance.sync import Bell
def ring():
    Bell(sys.argv[1]).ring()
    option_tasks.sleep_long()
if __name__ == "__main__":
    try:
        with make(2) as ex:
            futures = [ex.submit(ring) for _ in range(6)]
    except KeyboardInterrupt:
        print(len(psutil.Process().children()), [future.cancelled() for future in futures])
"""


@workers
@pytest.mark.any_start
def test_ctrl_c_while_the_program_leaves_with(kind: Kind, tmp_path: Path, bell: BellKeeper) -> None:
    """It waits for its tasks there."""
    with started(tmp_path, kind, LEAVING, bell.bell.path) as process:
        bell.hear(), bell.hear()
        family = descendants(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        seconds, stdout, stderr = end_of(process)
    assert seconds < ENDS_WITHIN_S + LOADED_MACHINE_S
    assert (process.returncode, stdout, stderr) == (0, f"0 {[False] * 2 + [True] * 4}\n", "")
    assert survivors(family, 0.5) == []
    assert len(bell.hear_all()) == 0


@workers
@pytest.mark.parametrize("source", [TWICE, WITH_ASYNCIO], ids=["shutdown", "asyncio"])
def test_a_second_ctrl_c_ends_at_once(
    kind: Kind, tmp_path: Path, bell: BellKeeper, gate: GateKeeper, source: str
) -> None:
    """Whatever the first one left waiting; no worker prints a traceback, and nothing is left."""
    with started(tmp_path, kind, source, bell.bell.path, gate.gate.path) as process:
        bell.hear(), bell.hear()
        family = descendants(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        seconds, _, stderr = end_of(process)
    assert seconds < ENDS_WITHIN_S + LOADED_MACHINE_S
    assert process.returncode == -signal.SIGINT
    assert "worker" not in stderr
    assert "KeyboardInterrupt" in stderr
    assert survivors(family, ENDS_WITHIN_S) == []
    assert len(bell.hear_all()) == 0
