"""Repartir: a drop-in ``concurrent.futures`` executor whose workers share memory and steal from each other."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repartir import shared
    from repartir.checkpoints import checkpoint, restored
    from repartir.errors import (
        Interrupted,
        JournalError,
        JournalMismatch,
        MemoryLimitExceeded,
        NestingTooDeep,
        PoisonTask,
        RepartirError,
        SharedMemoryFull,
        TaskNotSerializable,
        TaskTimeout,
        WorkerDied,
    )
    from repartir.estimate import Estimate
    from repartir.executor import Executor
    from repartir.future import Future
    from repartir.montecarlo import monte_carlo
    from repartir.nested import current_executor
    from repartir.policy import Priority
    from repartir.results import SweepResult
    from repartir.rungs import halving
    from repartir.serial import SerialExecutor, worker_state
    from repartir.shared import SharedArray
    from repartir.space import grid, latin_hypercube, sampled, zipped
    from repartir.streams import rng, task_rng
    from repartir.sweeprow import SweepRow
    from repartir.sweeps import sweep

__version__ = "0.1.0"

__all__ = [
    "Estimate",
    "Executor",
    "Future",
    "Interrupted",
    "JournalError",
    "JournalMismatch",
    "MemoryLimitExceeded",
    "NestingTooDeep",
    "PoisonTask",
    "Priority",
    "RepartirError",
    "SerialExecutor",
    "SharedArray",
    "SharedMemoryFull",
    "SweepResult",
    "SweepRow",
    "TaskNotSerializable",
    "TaskTimeout",
    "WorkerDied",
    "__version__",
    "checkpoint",
    "current_executor",
    "grid",
    "halving",
    "latin_hypercube",
    "monte_carlo",
    "restored",
    "rng",
    "sampled",
    "shared",
    "sweep",
    "task_rng",
    "worker_state",
    "zipped",
]

_HOMES = {
    "Estimate": "estimate",
    "Executor": "executor",
    "Future": "future",
    "Priority": "policy",
    "SerialExecutor": "serial",
    "SharedArray": "shared",
    "SweepResult": "results",
    "SweepRow": "sweeprow",
    "checkpoint": "checkpoints",
    "current_executor": "nested",
    "grid": "space",
    "halving": "rungs",
    "latin_hypercube": "space",
    "monte_carlo": "montecarlo",
    "restored": "checkpoints",
    "rng": "streams",
    "sampled": "space",
    "sweep": "sweeps",
    "zipped": "space",
    "task_rng": "streams",
    "worker_state": "serial",
}


def __getattr__(name: str) -> object:
    """Load a public name when it is first used, so that ``repartir --version`` does not load everything."""
    if name not in __all__:
        raise AttributeError(f"module 'repartir' has no attribute {name!r}")
    from importlib import import_module

    if name == "shared":
        return import_module("repartir.shared")
    value: object = getattr(import_module(f"repartir.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value
