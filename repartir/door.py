"""What is refused before any work starts: numbers that are none, functions that cannot be called as they will be."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any, Literal

from repartir.ledger import name_of

OnChange = Literal["raise", "rerun", "reuse"]

_ON_CHANGE = ("raise", "rerun", "reuse")


def positive(name: str, value: Any) -> int:
    """A number of things.  Raises ``TypeError`` and ``ValueError``, which name it, for no integer and for less than 1."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {value!r:.60}: write int(…) or 1_000_000")
    if number < 1:
        raise ValueError(f"{name} must be 1 or more, not {value!r}")
    return number


def check_call(fn: Callable[..., Any], how: str, /, *args: Any, **kwargs: Any) -> None:
    """Raise ``TypeError`` where ``fn`` takes no such arguments, or has not done its work when it returns.

    ``how``: these arguments in words.
    """
    if inspect.iscoroutinefunction(fn) or inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise TypeError(
            f"{name_of(fn)} is a coroutine or a generator, whose call only begins its work: give a function that returns "
            "the result, as lambda x: list(generator(x)) or lambda x: asyncio.run(coroutine(x))"
        )
    try:
        signature = inspect.signature(fn)
    except (ValueError, TypeError):
        return  # written in C: the call itself will tell
    try:
        signature.bind(*args, **kwargs)
    except TypeError as exc:
        raise TypeError(f"{name_of(fn)}{signature} cannot be called {how}: {exc}") from None


def check_on_change(on_change: Any) -> None:
    """Raise ``ValueError`` for what is none of `OnChange`."""
    if on_change not in _ON_CHANGE:
        raise ValueError(f'on_change must be "raise", "rerun" or "reuse", not {on_change!r}')
