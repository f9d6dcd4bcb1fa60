"""What this machine allows: cores by affinity and quota, and the start method that is safe."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from repartir import environment
from repartir.environment import choose_start_method, default_workers, usable_cores


class Files:
    """Stands in for `Path`: these files and no others can be read."""

    def __init__(self, **contents: str) -> None:
        self._contents = {f"/{name.replace('__', '/')}": text for name, text in contents.items()}

    def __call__(self, path: str) -> Any:
        contents = self._contents

        class File:
            def read_text(self) -> str:
                for name, text in contents.items():
                    if path.replace(".", "_") == name:
                        return text
                raise FileNotFoundError(path)

        return File()


def v2(text: str) -> Files:
    return Files(sys__fs__cgroup__cpu_max=text)


def v1(quota: str, period: str = "100000") -> Files:
    return Files(
        sys__fs__cgroup__cpu__cpu_cfs_quota_us=quota,
        sys__fs__cgroup__cpu__cpu_cfs_period_us=period,
    )


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("files", "cores"),
    [
        (Files(), 8),
        (v2("max 100000\n"), 8),
        (v2("200000 100000\n"), 2),
        (v2("150000 100000\n"), 2),
        (v2("10000 100000\n"), 1),
        (v2("9900000 100000\n"), 8),
        (v2("nonsense"), 8),
        (v2(""), 8),
        (v1("-1\n"), 8),
        (v1("300000\n"), 3),
        (v1("50000\n"), 1),
        (v1("nonsense"), 8),
    ],
)
def test_usable_cores(monkeypatch: pytest.MonkeyPatch, files: Files, cores: int) -> None:
    monkeypatch.setattr(environment, "Path", files)
    assert usable_cores() == cores


@pytest.mark.usefixtures("eight_cores")
def test_version_2_goes_before_version_1(monkeypatch: pytest.MonkeyPatch) -> None:
    both = v1("300000")
    both._contents.update(v2("max 100000")._contents)
    monkeypatch.setattr(environment, "Path", both)
    assert usable_cores() == 8


def test_without_affinity_all_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "Path", Files())
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert usable_cores() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


class TestDefaultWorkers:
    def test_the_environment_decides(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REPARTIR_MAX_WORKERS", "3")
        assert default_workers() == 3

    @pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", " "])
    def test_nonsense_is_an_error_that_names_the_variable(
        self, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        monkeypatch.setenv("REPARTIR_MAX_WORKERS", text)
        with pytest.raises(ValueError, match=f"REPARTIR_MAX_WORKERS.*{text!r}"):
            default_workers()

    @pytest.mark.parametrize("text", ["", None])
    def test_empty_and_unset_mean_the_cores(self, monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
        if text is None:
            monkeypatch.delenv("REPARTIR_MAX_WORKERS", raising=False)
        else:
            monkeypatch.setenv("REPARTIR_MAX_WORKERS", text)
        assert default_workers() == usable_cores()


class TestStartMethod:
    @pytest.fixture(autouse=True)
    def nothing_chosen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("REPARTIR_START_METHOD", raising=False)
        monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none=False: None)
        monkeypatch.setattr(environment, "_told", set())
        monkeypatch.setattr(environment, "Path", Files())
        monkeypatch.setattr(environment.sys, "platform", "linux")

    @pytest.mark.parametrize("name", ["fork", "spawn", "forkserver"])
    def test_a_context_or_its_name(self, name: str) -> None:
        assert choose_start_method(name) == name
        assert choose_start_method(multiprocessing.get_context(name)) == name

    def test_a_name_that_nobody_knows(self) -> None:
        with pytest.raises(ValueError, match="thread"):
            choose_start_method("thread")

    def test_no_context_at_all(self) -> None:
        with pytest.raises(TypeError, match="mp_context must be a multiprocessing context, not int"):
            choose_start_method(3)

    def test_fork_is_the_default_on_linux(self) -> None:
        assert choose_start_method(None) == "fork"

    def test_the_environment_decides(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REPARTIR_START_METHOD", "spawn")
        assert choose_start_method(None) == "spawn"
        assert choose_start_method("fork") == "fork", "an argument goes before it"

    def test_what_multiprocessing_was_told_decides(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none=False: "forkserver")
        assert choose_start_method(None) == "forkserver"

    def test_elsewhere_the_platforms_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(environment.sys, "platform", "darwin")
        context = multiprocessing.get_context("spawn")
        monkeypatch.setattr(multiprocessing, "get_context", lambda: context)
        assert choose_start_method(None) == "spawn"

    def test_a_cuda_context_does_not_survive_fork(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(
            environment, "Path", Files(proc__self__maps="x /usr/lib/libcuda.so.1\nx /dev/nvidia0\n")
        )
        with caplog.at_level(logging.WARNING, logger="repartir"):
            assert choose_start_method(None) == "forkserver"
            assert choose_start_method(None) == "forkserver"
        assert len(caplog.records) == 1, "told once"
        assert "a CUDA context" in caplog.text

    def test_the_cuda_library_alone_does(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(environment, "Path", Files(proc__self__maps="x /usr/lib/libcuda.so.1\n"))
        assert choose_start_method(None) == "fork"

    def test_openmp_threads_do_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import threadpoolctl

        monkeypatch.setattr(environment, "Path", Files(proc__self__maps="x /usr/lib/libgomp.so.1\n"))
        pools = [{"user_api": "blas", "num_threads": 3}, {"user_api": "openmp", "num_threads": 4}]
        monkeypatch.setattr(threadpoolctl, "threadpool_info", lambda: pools)
        known = threading.active_count() + 2
        monkeypatch.setattr(os, "listdir", lambda path: ["task"] * known)
        assert choose_start_method(None) == "fork"
        monkeypatch.setattr(os, "listdir", lambda path: ["task"] * (known + 1))
        assert choose_start_method(None) == "forkserver"


def test_this_process_may_fork() -> None:
    """Or the tests of the start method fork would say little about the default."""
    assert Path("/proc/self/maps").exists()
    assert environment._does_not_survive_fork() in (None, "a team of OpenMP threads")
