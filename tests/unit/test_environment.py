"""What the machine allows: cores by affinity and cgroup, both from fakes; the start method, and why not fork."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from repartir import environment
from repartir.environment import choose_start_method, default_workers, usable_cores
from repartir.shm.layout import MAX_ROWS


@pytest.fixture(autouse=True)
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with eight cores for this process, no quota, and nothing set in the environment."""
    monkeypatch.setattr(environment, "_CGROUP", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.delenv("REPARTIR_MAX_WORKERS", raising=False)
    monkeypatch.delenv("REPARTIR_START_METHOD", raising=False)
    return tmp_path


class TestCores:
    def test_are_those_of_the_affinity(self) -> None:
        assert usable_cores() == 8

    def test_without_affinity_those_of_the_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(os, "sched_getaffinity")
        monkeypatch.setattr(os, "cpu_count", lambda: 5)
        assert usable_cores() == 5
        monkeypatch.setattr(os, "cpu_count", lambda: None)
        assert usable_cores() == 1

    @pytest.mark.parametrize(
        ("cpu_max", "cores"),
        [
            ("max 100000\n", 8),
            ("200000 100000\n", 2),
            ("150000 100000\n", 2),  # rounded up: one and a half cores keep two workers busy now and then
            ("50000 100000\n", 1),
            ("6400000 100000\n", 8),
            ("", 8),
            ("two many words", 8),
        ],
    )
    def test_by_the_quota_of_cgroup_2(self, cgroup: Path, cpu_max: str, cores: int) -> None:
        (cgroup / "cpu.max").write_text(cpu_max)
        assert usable_cores() == cores

    @pytest.mark.parametrize(
        ("quota", "cores"), [("-1\n", 8), ("300000\n", 3), ("1000\n", 1), ("0\n", 8), ("nonsense\n", 8)]
    )
    def test_by_the_quota_of_cgroup_1(self, cgroup: Path, quota: str, cores: int) -> None:
        (cgroup / "cpu").mkdir()
        (cgroup / "cpu" / "cpu.cfs_quota_us").write_text(quota)
        (cgroup / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
        assert usable_cores() == cores


class TestDefaultWorkers:
    def test_are_the_usable_cores(self, cgroup: Path) -> None:
        (cgroup / "cpu.max").write_text("300000 100000")
        assert default_workers() == 3

    def test_are_no_more_than_a_ring_has_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(4 * MAX_ROWS)))
        assert default_workers() == MAX_ROWS

    def test_the_environment_decides_also_above_the_cores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REPARTIR_MAX_WORKERS", "20")
        assert default_workers() == 20

    def test_an_empty_variable_decides_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REPARTIR_MAX_WORKERS", "")
        assert default_workers() == 8

    @pytest.mark.parametrize("text", ["0", "-1", "2.5", "two", " ", str(MAX_ROWS + 1)])
    def test_other_values_are_named(self, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        monkeypatch.setenv("REPARTIR_MAX_WORKERS", text)
        with pytest.raises(ValueError, match=f"REPARTIR_MAX_WORKERS .*{text!r}"):
            default_workers()


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What this process has mapped: nothing, until a test fills the list."""
    mapped: list[str] = []
    text = environment._text
    monkeypatch.setattr(
        environment, "_text", lambda path: "\n".join(mapped) if path.endswith("maps") else text(path)
    )
    monkeypatch.setattr(environment, "_told", set())
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: None)
    return mapped


def with_threads(monkeypatch: pytest.MonkeyPatch, native: int, blas: int) -> None:
    """The process has `native` threads that Python does not know, and a BLAS pool of `blas` threads."""
    import threading

    import threadpoolctl

    tasks = [str(n) for n in range(native + threading.active_count())]
    monkeypatch.setattr(os, "listdir", lambda _path: tasks)
    pools = [{"user_api": "blas", "num_threads": blas}, {"user_api": "openmp", "num_threads": 64}]
    monkeypatch.setattr(threadpoolctl, "threadpool_info", lambda: pools)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere multiprocessing's default holds")
class TestStartMethod:
    def test_is_fork(self, maps: list[str]) -> None:
        assert choose_start_method(None) == "fork"

    def test_is_what_multiprocessing_was_told(self, maps: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "spawn")
        assert choose_start_method(None) == "spawn"

    def test_is_what_the_environment_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REPARTIR_START_METHOD", "forkserver")
        assert choose_start_method(None) == "forkserver"
        assert choose_start_method("spawn") == "spawn"
        assert choose_start_method(multiprocessing.get_context("fork")) == "fork"

    def test_an_unknown_one_in_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REPARTIR_START_METHOD", "nosuch")
        with pytest.raises(ValueError, match="nosuch"):
            choose_start_method(None)

    @pytest.mark.parametrize("context", [5, object(), ["fork"]])
    def test_something_that_is_no_context(self, context: Any) -> None:
        with pytest.raises(TypeError, match=f"^mp_context .* not {type(context).__name__}$"):
            choose_start_method(context)

    def test_a_cuda_context_does_not_survive_a_fork(
        self, maps: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        maps += ["/usr/lib/libcuda.so.1", "/dev/nvidia0"]
        with caplog.at_level(logging.WARNING, "repartir"):
            assert [choose_start_method(None) for _ in range(3)] == ["forkserver"] * 3
        assert len(caplog.records) == 1
        assert "a CUDA context" in caplog.text

    def test_a_cuda_library_without_a_device_does(self, maps: list[str]) -> None:
        maps += ["/usr/lib/libcuda.so.1"]
        assert choose_start_method(None) == "fork"

    def test_an_openmp_team_does_not(
        self, maps: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        maps += ["/usr/lib/libgomp.so.1"]
        with_threads(monkeypatch, native=4, blas=4)  # three of BLAS, one of OpenMP
        with caplog.at_level(logging.WARNING, "repartir"):
            assert choose_start_method(None) == "forkserver"
        assert "OpenMP" in caplog.text

    def test_openmp_without_a_team_does(self, maps: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        maps += ["/usr/lib/libgomp.so.1"]
        with_threads(monkeypatch, native=3, blas=4)
        assert choose_start_method(None) == "fork"

    def test_a_context_is_obeyed_whatever_the_process_holds(self, maps: list[str]) -> None:
        maps += ["/usr/lib/libcuda.so.1", "/dev/nvidia0"]
        assert choose_start_method("fork") == "fork"

    def test_where_the_kernel_shows_no_maps_it_is_fork(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unreadable(path: str) -> str:
            raise PermissionError(path)

        monkeypatch.setattr(environment, "_text", unreadable)
        monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: None)
        assert choose_start_method(None) == "fork"

    def test_elsewhere_it_is_multiprocessings(self, maps: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(environment, "sys", types.SimpleNamespace(platform="darwin"))
        assert choose_start_method(None) == multiprocessing.get_context().get_start_method()
