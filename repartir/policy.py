"""What may be asked for one task: time-out, retries, back-off; the keywords of ``Executor.options``.

A ``Policy`` decides and does nothing: it knows no clock, and chance only as the generator that it is given.
"""

from __future__ import annotations

import dataclasses
import enum
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from repartir.environment import as_integer, check_seconds, size_in_bytes
from repartir.shm.layout import AT_HIGH, AT_LOW, AT_NORMAL, ATTEMPT_MASK, HIGH, LOW

MOST_RETRIES = ATTEMPT_MASK - 1
POISON_LIMIT = 3
"""A task that may be run again and killed so many workers is given up."""
LONGEST_BACKOFF_S = 60.0
MAX_REPOSTS = 3
"""How often a task that provably never began is posted again after its member died."""
MEMORY_LOOK_S = 0.25
"""How often the memory of a worker is looked at while its task has a limit: the kernel tells nobody when it grows."""
_JITTER = 0.5

TURNS = 16
_BY_PRIORITY = (AT_HIGH, AT_NORMAL, AT_LOW)
ORDERS = (
    *[_BY_PRIORITY] * 7,
    (AT_NORMAL, AT_HIGH, AT_LOW),
    *[_BY_PRIORITY] * 7,
    (AT_LOW, AT_HIGH, AT_NORMAL),
)
"""Which priorities come first at each of ``TURNS`` turns, so that none waits for ever while others keep coming."""

Backoff = float | Callable[[int], float]


class Priority(enum.StrEnum):
    """Which tasks are begun first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


_FLAGS = {Priority.HIGH: HIGH, Priority.NORMAL: 0, Priority.LOW: LOW}


class Unset:
    """The default of an option that is not given: it stays as it was."""

    def __repr__(self) -> str:
        return "unchanged"


UNSET: Any = Unset()


@dataclass(frozen=True)
class Policy:
    """How a task is to be treated.

    Attributes:
        timeout: seconds that one attempt may take, from the call of the function; None: no limit.
        grace: seconds between SIGTERM and SIGKILL when it is stopped; 0: SIGKILL at once.
        retries: how often a task that failed is run again.
        retry_on: exceptions that are worth another attempt; deaths and time-outs are exceptions, too.
        backoff: seconds before the first retry, doubled for each further one (at most a minute) and varied by half; or a
            function of the number of failures that gives the seconds.
        idempotent: a task whose worker died in it may be run again, whatever ``retries`` says.
        poison_limit: how many workers such a task may kill before it is given up; None: any number.
        memory_limit: bytes of memory that the worker may have taken since it was ready; None: no limit.
        warn_after: seconds after which a task that still runs is logged as a warning; None: never.
        name: what messages call the task; None: the function's name.
        worker: the row whose member is to run the task; others may steal it; None: any.
        exclusive: nobody but that member runs it.
        priority: which tasks are begun before it.
        limit: a name, and how many tasks of that name may be under way at a time; None: any number.
    """

    timeout: float | None = None
    grace: float = 0.0
    retries: int = 0
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    backoff: Backoff = 0.1
    idempotent: bool = False
    poison_limit: int | None = POISON_LIMIT
    memory_limit: int | None = None
    warn_after: float | None = None
    name: str | None = None
    worker: int | None = None
    exclusive: bool = False
    priority: Priority = Priority.NORMAL
    limit: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        for name in ("timeout", "warn_after"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, check_seconds(name, value, zero_is_allowed=False))
        object.__setattr__(self, "grace", check_seconds("grace", self.grace))
        if not callable(self.backoff):
            object.__setattr__(self, "backoff", check_seconds("backoff", self.backoff))
        object.__setattr__(self, "retries", _count("retries", self.retries, 0, MOST_RETRIES))
        for name in ("memory_limit", "poison_limit"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _count(name, value, 1))
        if not isinstance(self.idempotent, bool):
            raise TypeError(f"idempotent must be True or False, not {self.idempotent!r}")
        if self.worker is not None:
            object.__setattr__(self, "worker", _count("worker", self.worker, 0))
        if self.priority not in list(Priority):
            raise ValueError(f"priority must be 'high', 'normal' or 'low', not {self.priority!r}")
        object.__setattr__(self, "priority", Priority(self.priority))
        if self.limit is not None:
            object.__setattr__(self, "limit", _limit(self.limit))
        if not isinstance(self.retry_on, tuple):
            object.__setattr__(self, "retry_on", (self.retry_on,))
        for kind in self.retry_on:
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise TypeError(f"retry_on must be exception classes, not {kind!r}")
        if self.name is not None and not isinstance(self.name, str):
            raise TypeError(f"name must be a string or None, not {type(self.name).__name__}")

    def changed(self, **options: Any) -> Policy:
        """This policy with the options that are not ``UNSET``; the same object when nothing differs."""
        given = {name: value for name, value in options.items() if value is not UNSET}
        if isinstance(given.get("memory_limit"), str):
            given["memory_limit"] = size_in_bytes(given["memory_limit"], "memory_limit")
        changed = dataclasses.replace(self, **given)
        return self if changed == self else changed

    @property
    def may_repeat(self) -> bool:
        """Whether the task's arguments may be needed a second time."""
        return self.retries > 0 or self.idempotent

    @property
    def one_by_one(self) -> bool:
        """Whether each item of a map must be a task of its own."""
        return self.is_watched or self.may_repeat or self.limit is not None

    @property
    def flag(self) -> int:
        """What the slot of such a task says of its priority."""
        return _FLAGS[self.priority]

    @property
    def why_one_by_one(self) -> str:
        """The options that call for that."""
        given = {
            "timeout": self.timeout is not None,
            "memory_limit": self.memory_limit is not None,
            "warn_after": self.warn_after is not None,
            "retries": self.retries > 0,
            "idempotent": self.idempotent,
            "limit": self.limit is not None,
        }
        return ", ".join(name for name, is_given in given.items() if is_given)

    @property
    def is_watched(self) -> bool:
        """Whether somebody must look after the task while it runs."""
        return not (self.timeout is None and self.memory_limit is None and self.warn_after is None)

    @property
    def look_after(self) -> float:
        """So many seconds after the call there is something to look for, at the earliest."""
        times = (self.timeout, self.warn_after, None if self.memory_limit is None else MEMORY_LOOK_S)
        return min(time for time in times if time is not None)

    def retries_after(self, error: BaseException, failures: int) -> bool:
        """Whether there is to be another attempt after this error, the ``failures``-th."""
        return failures <= self.retries and isinstance(error, self.retry_on)

    def delay(self, failures: int, rng: random.Random) -> float:
        """Seconds between the ``failures``-th failure and the next attempt."""
        if callable(self.backoff):
            return check_seconds("what backoff returns", self.backoff(failures))
        longest = min(self.backoff * 2.0 ** min(failures - 1, 64), LONGEST_BACKOFF_S)
        return longest * (1 - _JITTER * rng.random())


def _count(what: str, value: Any, least: int, most: int | None = None) -> int:
    count = as_integer(what, value)
    if count < least:
        raise ValueError(f"{what} must be at least {least}, not {count}")
    if most is not None and count > most:
        raise ValueError(f"{what} must be at most {most}, not {count}")
    return count


def _limit(limit: Any) -> tuple[str, int]:
    if not (isinstance(limit, tuple) and len(limit) == 2 and isinstance(limit[0], str)):
        raise TypeError(f"limit must be a name and a number, ('licence', 2) for one, not {limit!r}")
    return limit[0], _count("the number of a limit", limit[1], 1)


NO_POLICY = Policy()
