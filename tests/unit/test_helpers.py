"""The runner of scripts: what it passes on, and that a hang is ended with the stacks of all processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import module_main


def test_a_script_runs_with_its_arguments_and_no_stdin(tmp_path: Path) -> None:
    result = module_main(
        tmp_path,
        """
        import sys
        print(__name__, sys.argv[1:], repr(sys.stdin.read()))
        sys.exit("bad luck")
        """,
        "one",
        "two",
    )
    assert result.stdout == "__main__ ['one', 'two'] ''\n"
    assert (result.stderr, result.returncode) == ("bad luck\n", 1)


def test_a_script_without_children_that_hangs_is_ended(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"not done after 0\.4 s") as caught:
        module_main(tmp_path, "import signal\nsignal.pause()", timeout=0.4)
    assert "line 2 in <module>" in str(caught.value)


def test_a_script_that_hangs_is_ended_with_all_stacks(tmp_path: Path) -> None:
    source = """
        import os, signal

        def hang_in_parent():
            signal.pause()

        def hang_in_child():
            signal.pause()

        hang_in_parent() if os.fork() else hang_in_child()
        """
    with pytest.raises(AssertionError, match=r"not done after 0\.4 s") as caught:
        module_main(tmp_path, source, timeout=0.4)
    assert "hang_in_parent" in str(caught.value)
    assert "hang_in_child" in str(caught.value)
