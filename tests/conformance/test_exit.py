"""Ends of whole programs: pending work, exit-time threads, nothing printed, nothing left."""

from __future__ import annotations

import os
from pathlib import Path

from .kinds import Kind, every_start, ours, processes
from .scripts import run_script


@every_start
@processes
def test_pending_work_is_done_before_the_interpreter_ends(kind: Kind, tmp_path: Path) -> None:
    log = tmp_path / "log"
    ended = run_script(
        tmp_path,
        kind,
        """
        import sys
        from tests.conformance import tasks
        if __name__ == "__main__":
            ex = make(2)
            for n in range(200):
                ex.submit(tasks.append_line, sys.argv[1], str(n))
            print("main ends")
        """,
        log,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.lines == ["main ends"]
    assert sorted(log.read_text().split(), key=int) == [str(n) for n in range(200)]


@processes
def test_a_submit_from_a_thread_at_exit_is_refused_or_done(kind: Kind, tmp_path: Path) -> None:
    """Before the interpreter shuts down it counts, later it is the stdlib's RuntimeError; it never hangs."""
    ended = run_script(
        tmp_path,
        kind,
        """
        import threading
        from tests.conformance import tasks

        def late(ex):
            threading.main_thread().join()
            try:
                print(ex.submit(pow, 2, 5).result(15))
            except RuntimeError as error:
                print(error)

        if __name__ == "__main__":
            ex = make(2)
            ex.submit(pow, 2, 2).result(15)
            threading.Thread(target=late, args=(ex,)).start()
        """,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.lines in (
        ["32"],
        ["cannot schedule new futures after shutdown"],
        ["cannot schedule new futures after interpreter shutdown"],
    )


@processes
def test_a_submit_in_atexit_is_refused(kind: Kind, tmp_path: Path) -> None:
    ended = run_script(
        tmp_path,
        kind,
        """
        import atexit

        def late():
            try:
                print(ex.submit(pow, 2, 5).result(15))
            except RuntimeError as error:
                print(error)

        if __name__ == "__main__":
            ex = make(2)
            ex.submit(pow, 2, 2).result(15)
            atexit.register(late)
        """,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.lines) == 1
    assert ended.lines[0].startswith("cannot schedule new futures after")


@every_start
@processes
def test_text_printed_before_and_in_tasks_appears_once(kind: Kind, tmp_path: Path) -> None:
    """What stood unflushed in the client's buffer when it forked is not printed by its children too."""
    ended = run_script(
        tmp_path,
        kind,
        """
        import sys
        if __name__ == "__main__":
            sys.stdout.write("buffered ")
            sys.stderr.write("")
            with make(2) as ex:
                ex.submit(print, "from a task").result(15)
            print("end")
        """,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.count("buffered") == 1
    assert ended.stdout.count("from a task") == 1
    assert ended.stdout.count("end") == 1


@every_start
@ours
def test_the_main_module_is_never_imported_again(kind: Kind, tmp_path: Path) -> None:
    """No guard, an executor used at the top of `__main__`, no shutdown: with every start method."""
    ended = run_script(
        tmp_path,
        kind,
        """
        print("top of", __name__)
        ex = make(2)
        double = lambda value: 2 * value
        print(ex.submit(double, 21).result(15))
        """,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.lines == ["top of __main__", "42"]


@processes
def test_an_exception_that_ends_the_program_leaves_nothing(kind: Kind, tmp_path: Path) -> None:
    """The script's stdout reaches its end, so no descendant holds it, and /dev/shm is as before."""
    before = set(os.listdir("/dev/shm"))
    ended = run_script(
        tmp_path,
        kind,
        """
        if __name__ == "__main__":
            with make(2) as ex:
                futures = [ex.submit(pow, n, 2) for n in range(100)]
                raise LookupError("the user's own")
        """,
    )
    assert ended.returncode == 1
    assert ended.stderr.count("Traceback (most recent call last)") == 1
    assert ended.stderr.strip().endswith("LookupError: the user's own")
    assert set(os.listdir("/dev/shm")) <= before


@processes
def test_sys_exit_in_main_with_an_open_executor(kind: Kind, tmp_path: Path) -> None:
    ended = run_script(
        tmp_path,
        kind,
        """
        import sys
        if __name__ == "__main__":
            ex = make(2)
            future = ex.submit(pow, 2, 5)
            print(future.result(15))
            sys.exit(3)
        """,
    )
    assert (ended.returncode, ended.lines, ended.stderr) == (3, ["32"], "")


@processes
def test_many_open_executors_at_exit(kind: Kind, tmp_path: Path) -> None:
    ended = run_script(
        tmp_path,
        kind,
        """
        if __name__ == "__main__":
            executors = [make(1) for _ in range(4)]
            print([ex.submit(pow, n, 2).result(15) for n, ex in enumerate(executors)])
        """,
    )
    assert (ended.returncode, ended.lines, ended.stderr) == (0, ["[0, 1, 4, 9]"], "")
