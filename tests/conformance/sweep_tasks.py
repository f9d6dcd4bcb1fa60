"""Functions that sweeps of the tests call."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repartir

from .sync import Gate


def loss(lr: float, depth: int, rng: np.random.Generator) -> dict[str, float]:
    return {"loss": (lr - 0.1) ** 2 + depth, "noise": rng.random()}


def below(lr: float) -> float:
    return float(repartir.task_rng().random())


def inverse(x: float) -> float:
    return 1 / x


def identity(x: Any) -> Any:
    return x


class Model:
    fits = 0


def changes_all(
    layers: list[int], start: np.ndarray[Any, Any], model: Model, x: int
) -> tuple[int, float, int]:
    layers.append(x)
    start += 1
    model.fits += 1
    return len(layers), float(start[0]), model.fits


def fails_by_chance(x: int, epochs: int, rng: np.random.Generator) -> dict[str, float]:
    if rng.random() < 0.2:
        raise ValueError(x)
    return {"at": x}


def lock_or(x: Any) -> Any:
    return threading.Lock() if x == "lock" else x


def own_rng(rng: int) -> int:
    return rng


def exits_at(x: int, at: int) -> int:
    if x == at:
        os._exit(3)
    return x


def dies_once(x: int, folder: Path, rng: np.random.Generator) -> float:
    first = rng.random()
    if x == 1 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return first


def fails_twice(x: int, folder: Path) -> int:
    path = folder / f"tries-{x}"
    with path.open("a") as file:
        file.write("x")
    if len(path.read_text()) < 3:
        raise ValueError(x)
    return x


def sleeps_at(x: int, at: int, folder: Path) -> int:
    (folder / f"began-{x}").touch()
    if x == at:
        time.sleep(60)
        (folder / f"ended-{x}").touch()
    return x


def nested(n: int) -> list[int]:
    return [row.result for row in repartir.sweep(identity, repartir.grid(x=range(n)))]


def who(x: int) -> int:
    return os.getpid()


def trained(epochs: int, lr: float) -> float:
    return abs(lr - 0.3) / epochs


def name_of(x: type) -> str:
    return x.__name__


def waits_at(x: int, at: int, gate: Gate) -> int:
    if x == at:
        gate.wait()
    return x


def in_steps(x: int, folder: str, rng: np.random.Generator) -> tuple[int, float]:
    """Adds up random numbers in five steps, keeps how far it is, and is killed or fails as files say."""
    began, total = repartir.restored() or (0, 0.0)
    for step in range(began, 5):
        total = rng.bit_generator.random_raw() % 100 if step == 0 else total + step
        repartir.checkpoint((step + 1, total))
        for how in ("dies", "fails"):
            mark = Path(folder, f"{how}-{x}-{step}")
            if mark.exists():
                mark.unlink()
                if how == "dies":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise ValueError(step)
    return began, total


def keeps_in_a_child(x: int) -> bool:
    repartir.checkpoint(x)
    with pytest.raises(RuntimeError, match=r"repartir\.sweep"):
        repartir.current_executor().submit(repartir.checkpoint, 5).result()
    return bool(repartir.restored() == x)
