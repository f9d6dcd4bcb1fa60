"""Executors in storms of signals, exceptions, Ctrl-C and garbage collection: see storm.py for the scenes.

After each: no lock is held, no task is lost (each future that was returned has its value), nothing hung, the executor
answers, shutdown ended, and neither process, thread, fd nor block of shared memory is left.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import module_main
from tests.stress import storm

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = f"""
import sys
sys.path.append({str(ROOT)!r})
from tests.stress import storm
if __name__ == "__main__":
    storm.main()
"""
BAD = [name for name in storm.WEATHERS if name != "none"]


def weather(tmp_path: Path, scene: str, weather: str, seed: int, seconds: float, *more: str) -> None:
    scenes = len(storm.SCENES) if scene == "all" else 1
    limit = scenes * seconds + storm.HANG_S + 30
    ended = module_main(tmp_path, SCRIPT, scene, weather, str(seed), str(seconds), *more, timeout=limit)
    told = f"{scene} {weather} {seed} {seconds}: {ended.stdout}\n{ended.stderr}"
    assert ended.returncode == 0, told
    assert ended.stdout.endswith("calm\n"), told
    assert ended.stderr == "", told


@pytest.mark.parametrize("name", storm.WEATHERS)
def test_every_scene_for_a_moment(tmp_path: Path, name: str) -> None:
    weather(tmp_path, "all", name, 1, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_with_record_locks(tmp_path: Path, name: str) -> None:
    """As where the C library has no robust mutexes."""
    weather(tmp_path, "all", name, 2, 0.5, "record locks")


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("scene", storm.SCENES)
def test_one_scene_for_seconds(tmp_path: Path, scene: str, name: str) -> None:
    weather(tmp_path, scene, name, 100, 2)


@pytest.mark.soak
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("scene", storm.SCENES)
def test_one_scene_for_half_a_minute(tmp_path: Path, scene: str, name: str) -> None:
    weather(tmp_path, scene, name, 1000, 30)
