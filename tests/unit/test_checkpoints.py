"""A state is the one before or the one after, whatever ends the task; only tasks of a sweep have one."""

from __future__ import annotations

import contextvars
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repartir
from repartir import checkpoints
from repartir.checkpoints import checkpointing, forget
from tests.helpers import package_root


def test_a_state_is_there_in_the_next_attempt_until_it_is_forgotten(tmp_path: Path) -> None:
    folder = str(tmp_path / "deep" / "er")
    with checkpointing(folder, "row"):
        assert repartir.restored() is None
        repartir.checkpoint({"step": 1, "field": np.arange(3)})
        repartir.checkpoint({"step": 2, "field": np.arange(3)})
        assert repartir.restored()["step"] == 2
    with checkpointing(folder, "row"):
        found = repartir.restored()
        assert found["step"] == 2
        assert found["field"].tolist() == [0, 1, 2]
    with checkpointing(folder, "other"):
        assert repartir.restored() is None
    forget(folder, "row")
    forget(folder, "row")
    assert os.listdir(folder) == []


@pytest.mark.parametrize("call", [lambda: repartir.checkpoint(1), repartir.restored])
def test_elsewhere_there_is_none(call: Any) -> None:
    with pytest.raises(RuntimeError, match=r"in the tasks of repartir\.sweep\(\) only"):
        call()
    with checkpointing("nowhere", "row"):
        pass
    with pytest.raises(RuntimeError):
        call()


@pytest.mark.parametrize("name", ["", "a/b", "/a", "a/"])
def test_a_name_must_be_one_of_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="must be one of a file"), checkpointing(str(tmp_path), name):
        pass


def test_what_cannot_be_pickled_leaves_the_state_before(tmp_path: Path) -> None:
    with checkpointing(str(tmp_path), "row"):
        repartir.checkpoint(1)
        with pytest.raises(TypeError, match=r"the state \(dict\) cannot be stored: item 'lock'"):
            repartir.checkpoint({"lock": threading.Lock()})
        assert repartir.restored() == 1
    assert len(os.listdir(tmp_path)) == 1


def test_a_disk_that_fails_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with checkpointing(str(tmp_path), "row"):
        repartir.checkpoint(1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(OSError, match="No space"):
                repartir.checkpoint(2)
        assert repartir.restored() == 1
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"", lambda data: b"x" + data, lambda data: data + b"x"]
)
def test_a_broken_file_counts_as_none_and_is_logged(
    tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with checkpointing(str(tmp_path), "row"):
        repartir.checkpoint([1, 2, 3])
        (path,) = tmp_path.iterdir()
        path.write_bytes(damage(path.read_bytes()))
        with caplog.at_level(logging.WARNING, "repartir"):
            assert repartir.restored() is None
        assert "is broken" in caplog.text
        repartir.checkpoint(4)
        assert repartir.restored() == 4


class Gone:
    pass


def test_a_state_whose_class_is_gone_counts_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with checkpointing(str(tmp_path), "row"):
        repartir.checkpoint(Gone())
        monkeypatch.delattr(sys.modules[__name__], "Gone")
        assert repartir.restored() is None
    assert "cannot be read" in caplog.text


def test_threads_with_the_context_of_the_task_share_its_state(tmp_path: Path) -> None:
    with checkpointing(str(tmp_path), "row"):
        threads = [
            threading.Thread(
                target=contextvars.copy_context().run, args=(repartir.checkpoint, [number] * 1000)
            )
            for number in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(repartir.restored())) == 1
    assert len(os.listdir(tmp_path)) == 1


_WRITER = """
    import itertools, sys
    import numpy as np
    import repartir
    from repartir.checkpoints import checkpointing
    with checkpointing(sys.argv[1], "row"):
        for step in itertools.count():
            repartir.checkpoint(np.full(200_000, step))
            print(step, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_a_kill_in_the_middle_leaves_a_whole_state(tmp_path: Path, steps: int) -> None:
    command = [sys.executable, "-c", textwrap.dedent(_WRITER), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(package_root())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer:
        assert writer.stdout is not None
        for _ in range(steps):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        said = [steps - 1, *map(int, writer.stdout.read().split())][-1]
    with checkpointing(str(tmp_path), "row"):
        found = repartir.restored()
    assert found.shape == (200_000,)
    assert len(set(found.tolist())) == 1
    assert said <= found[0] <= said + 1
    checkpoints.forget(str(tmp_path), "row")
    assert os.listdir(tmp_path) == []
