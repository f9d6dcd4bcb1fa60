"""Repartir: a drop-in ``concurrent.futures`` executor whose workers share memory and steal work from each other."""

from repartir.errors import PoisonTask, RepartirError, SharedMemoryFull, TaskNotSerializable, WorkerDied
from repartir.executor import Executor
from repartir.future import Future
from repartir.serial import SerialExecutor, current_executor

__version__ = "0.1.0"

__all__ = [
    "Executor",
    "Future",
    "PoisonTask",
    "RepartirError",
    "SerialExecutor",
    "SharedMemoryFull",
    "TaskNotSerializable",
    "WorkerDied",
    "__version__",
    "current_executor",
]
