"""Workers as processes: names, parents, stdin, signals; what a task may do with processes of its own."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import time
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest

from . import option_tasks, tasks
from .conftest import Make
from .kinds import Kind, every_start, only_fork, processes, workers
from .scripts import run_script
from .sync import LIMIT_S, BellKeeper, GateKeeper, wait_for_end

NAME_PREFIXES = {"fork": "ForkProcess-", "spawn": "SpawnProcess-", "forkserver": "ForkServerProcess-"}


def _describe_process(bell: Any, gate: Any) -> dict[str, Any]:
    """Facts about the worker, gathered in it while another worker is kept busy."""
    bell.ring()
    gate.wait()
    process = multiprocessing.current_process()
    parent = multiprocessing.parent_process()
    return {
        "name": process.name,
        "pid matches": process.pid == os.getpid(),
        "daemon": process.daemon,
        "has parent": parent is not None and parent.pid == os.getppid() and parent.is_alive(),
        "children": len(multiprocessing.active_children()),
    }


@every_start
@processes
def test_names_and_parents(make: Make, kind: Kind, bell: BellKeeper, gate: GateKeeper) -> None:
    ex = make(2)
    futures = [ex.submit(_describe_process, bell.bell, gate.gate) for _ in range(2)]
    bell.hear(), bell.hear()
    gate.open()
    facts = [f.result(LIMIT_S) for f in futures]
    ex.shutdown()
    names = [fact.pop("name") for fact in facts]
    assert len(set(names)) == 2
    assert all(name.startswith(NAME_PREFIXES[kind.start_method]) for name in names)
    assert facts == [{"pid matches": True, "daemon": False, "has parent": True, "children": 0}] * 2


@processes
def test_the_client_is_still_the_main_process(ex: Executor) -> None:
    assert multiprocessing.current_process().name == "MainProcess"
    assert multiprocessing.parent_process() is None
    assert ex.submit(pow, 2, 5).result(LIMIT_S) == 32


@processes
def test_stdin_is_empty(ex: Executor) -> None:
    assert ex.submit(tasks.read_stdin).result(LIMIT_S) == ""


@processes
def test_finalizers_run_at_the_end_of_a_worker(make: Make, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with make(1, initializer=tasks.write_at_exit, initargs=(str(log),)) as ex:
        ex.submit(pow, 2, 2).result(LIMIT_S)
        assert not log.exists()
    assert log.read_text() == "finalised\n"


@workers
def test_exit_functions_run_at_the_end_of_a_worker(make: Make, tmp_path: Path) -> None:
    """As in the stdlib since 3.13: those that the worker registered, not those that it inherits."""
    log, inherited = tmp_path / "log", tmp_path / "inherited"
    atexit.register(tasks.append_line, str(inherited), "inherited")
    try:
        with make(1) as ex:
            ex.submit(atexit.register, tasks.append_line, str(log), "exited").result(LIMIT_S)
    finally:
        atexit.unregister(tasks.append_line)
    assert log.read_text() == "exited\n"
    assert not inherited.exists()


class TestWhatATaskMayDo:
    @processes
    def test_start_a_process(self, ex: Executor) -> None:
        assert ex.submit(tasks.run_child_process).result(LIMIT_S) == 5

    @processes
    def test_run_a_command(self, ex: Executor) -> None:
        assert ex.submit(tasks.run_command).result(LIMIT_S) == "hello\n"

    @processes
    def test_use_a_thread(self, ex: Executor) -> None:
        assert ex.submit(tasks.run_thread, 5).result(LIMIT_S) == 5

    @processes
    def test_use_a_stdlib_pool(self, ex: Executor, kind: Kind) -> None:
        if kind.name in ("spawn", "forkserver"):
            pytest.skip("the pool starts servers of its own, which live as long as the worker does")
        assert ex.submit(tasks.run_stdlib_pool, 5).result(LIMIT_S) == 6

    @workers
    def test_make_an_executor_of_ours(self, ex: Executor) -> None:
        """It works, or fails with an error that says what to do; it does not hang."""
        import repartir

        future = ex.submit(_run_own_executor, 5)
        error = future.exception(LIMIT_S)
        if error is None:
            assert future.result(0) == 25
        else:
            assert isinstance(error, repartir.RepartirError | RuntimeError)
            assert "current_executor" in str(error)
        assert ex.submit(pow, 2, 5).result(LIMIT_S) == 32

    @workers
    def test_fork_and_return_in_the_child(self, make: Make) -> None:
        """The child must end, not answer for the task, nor take another."""
        with make(1) as ex:
            worker = ex.submit(tasks.pid).result(LIMIT_S)
            for _ in range(5):
                own, child = ex.submit(tasks.fork_and_return).result(LIMIT_S)
                assert own == worker
                assert child != 0
                assert wait_for_end(child)
            assert [ex.submit(tasks.pid).result(LIMIT_S) for _ in range(5)] == [worker] * 5

    @workers
    def test_leave_a_child_behind(self, make: Make, bell: BellKeeper, gate: GateKeeper) -> None:
        """A child of the user's that lives on keeps neither the task's result nor the shutdown."""
        ex = make(1)
        child = ex.submit(_fork_a_waiter, bell.bell, gate.gate).result(LIMIT_S)
        assert int(bell.hear()) == child
        ex.shutdown(wait=True)
        gate.open()
        assert wait_for_end(child)


def _run_own_executor(value: int) -> int:
    from repartir import Executor

    with Executor(1) as inner:
        return int(inner.submit(pow, value, 2).result(LIMIT_S))


def _fork_a_waiter(bell: Any, gate: Any) -> int:
    child = os.fork()
    if child:
        return child
    try:
        bell.ring(os.getpid())
        gate.wait()
    finally:
        os._exit(0)


@workers
def test_a_change_of_folder_stays_in_the_worker(ex: Executor, tmp_path: Path) -> None:
    here = os.getcwd()
    ex.submit(os.chdir, str(tmp_path)).result(LIMIT_S)
    assert os.getcwd() == here


class TestSignals:
    """What a forked child would inherit from the client and must not: handlers, wake-up fds, masks."""

    @only_fork
    def test_the_clients_handlers_are_not_the_workers(self, make: Make) -> None:
        previous = signal.signal(signal.SIGUSR1, lambda *_: None)
        try:
            with make(1) as ex:
                assert ex.submit(_signal_state).result(LIMIT_S) == (True, -1, set())
        finally:
            signal.signal(signal.SIGUSR1, previous)

    @only_fork
    def test_a_blocked_signal_is_not_blocked_in_workers(self, make: Make) -> None:
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
        try:
            with make(1) as ex:
                assert ex.submit(_signal_state).result(LIMIT_S)[2] == set()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)

    @only_fork
    def test_the_clients_wakeup_fd_is_not_the_workers(self, make: Make) -> None:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            with make(1) as ex:
                assert ex.submit(_signal_state).result(LIMIT_S)[1] == -1
        finally:
            signal.set_wakeup_fd(previous)
            os.close(reader)
            os.close(writer)

    @workers
    def test_ctrl_c_does_not_disturb_a_task(self, make: Make) -> None:
        with make(1) as ex:
            pid = ex.submit(os.getpid).result(LIMIT_S)
            began = time.monotonic()
            future = ex.submit(time.sleep, 0.3)
            for _ in range(4):
                time.sleep(0.05)
                os.kill(pid, signal.SIGINT)
            assert future.result(LIMIT_S) is None
            assert time.monotonic() - began >= 0.3
            assert ex.submit(os.getpid).result(LIMIT_S) == pid

    @processes
    def test_ctrl_c_ends_what_a_task_starts(self, ex: Executor) -> None:
        """A command would keep an action that is to ignore it."""
        assert ex.submit(tasks.sigint_of_children).result(LIMIT_S) == (False, True)

    @workers
    def test_no_handler_is_installed_in_the_client(self, make: Make) -> None:
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)}
        with make(1) as ex:
            ex.submit(pow, 2, 2).result(LIMIT_S)
            assert {s: signal.getsignal(s) for s in before} == before


def _signal_state() -> tuple[bool, int, set[int]]:
    """(SIGUSR1 has its default action, wake-up fd, blocked signals) of this process."""
    wakeup = signal.set_wakeup_fd(-1)
    blocked = {int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])}
    return signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL, wakeup, blocked


@workers
def test_an_executor_inside_a_task(make: Make) -> None:
    """It works, and is gone with its task."""
    executor = make(2)
    futures = [executor.submit(option_tasks.run_an_executor_of_its_own, 5) for _ in range(4)]
    assert [future.result(LIMIT_S) for future in futures] == [[0, 1, 4, 9, 16]] * 4


@workers
def test_an_executor_in_a_daemon_process(kind: Kind, tmp_path: Path) -> None:
    """Where multiprocessing itself refuses to make children."""
    source = """
    import multiprocessing, sys
    def run(queue):
        with make(2) as ex:
            queue.put(ex.submit(pow, 2, 5).result(15))
    if __name__ == "__main__":
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        process = context.Process(target=run, args=(queue,), daemon=True)
        process.start()
        print(queue.get(timeout=20))
        process.join(20)
        print(process.exitcode)
    """
    ended = run_script(tmp_path, kind, source)
    assert (ended.returncode, ended.lines, ended.stderr) == (0, ["32", "0"], "")


@workers
def test_a_task_that_dies_takes_its_own_executor_with_it(make: Make, tmp_path: Path) -> None:
    executor = make(1)
    future = executor.submit(option_tasks.die_with_an_executor, tmp_path / "pids")
    assert future.exception(LIMIT_S) is not None
    deadline = time.monotonic() + LIMIT_S
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
