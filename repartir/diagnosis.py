"""Which part of an object makes its pickling fail; whether the pickling failed at all, or was interrupted."""

from __future__ import annotations

import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from types import CodeType, FunctionType, MethodType
from typing import Any

from repartir.pickler import global_names

MAX_DEPTH = 12
MAX_PARTS = 10_000


def first_failure(value: Any, pickle_it: Callable[[Any], object]) -> tuple[list[str], str] | None:
    """Path to the innermost part of `value` for which `pickle_it` raises, and what it says there.

    None if it raises for no part. The path is empty if `value` itself is the innermost. Looks at no more than
    MAX_PARTS parts of an object and MAX_DEPTH levels.
    """
    error = _error_of(value, pickle_it)
    if error is None:
        return None
    path: list[str] = []
    seen = {id(value)}
    while len(path) < MAX_DEPTH:
        for label, part in islice(_parts(value), MAX_PARTS):
            if id(part) in seen:
                continue
            part_error = _error_of(part, pickle_it)
            if part_error is not None:
                path.append(label)
                seen.add(id(part))
                value, error = part, part_error
                break
        else:
            break
    return path, error


def is_interruption(error: BaseException) -> bool:
    """Whether a signal handler raised `error`, as Ctrl-C and time-outs by `signal.alarm` do, so that it says nothing
    of what it interrupted.

    Handlers run in the main thread only. One in Python is known by its frame in the traceback.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    if isinstance(error, KeyboardInterrupt):
        return True
    codes = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code in codes:
            return True
        step = step.tb_next
    return False


def _code_of(handler: Any) -> CodeType | None:
    """The code that runs first when `handler` is called; None for what is not written in Python."""
    while isinstance(handler, partial):
        handler = handler.func
    if callable(handler) and not isinstance(handler, FunctionType | MethodType):
        handler = type(handler).__call__
    code = getattr(handler, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _error_of(value: Any, pickle_it: Callable[[Any], object]) -> str | None:
    try:
        pickle_it(value)
    except Exception as error:  # noqa: BLE001
        return describe(error)
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield f"key {key!r:.60}", key
            yield f"item {key!r:.60}", item
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield f"item {index}", item
    elif isinstance(value, set | frozenset):
        for item in value:
            yield f"member {item!r:.60}", item
    elif isinstance(value, MethodType):
        yield "its object", value.__self__
        yield "its function", value.__func__
    elif isinstance(value, FunctionType):
        yield from _parts_of_function(value, global_names(value.__code__))
    elif not isinstance(value, type):
        for name, item in getattr(value, "__dict__", {}).items():
            yield f"attribute {name!r}", item


def _parts_of_function(fn: FunctionType, names: Mapping[str, None]) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False):
        try:
            yield f"captured variable {name!r} of function {fn.__qualname__!r}", cell.cell_contents
        except ValueError:
            continue
    for name in names:
        if name in fn.__globals__:
            yield f"global {name!r} of function {fn.__qualname__!r}", fn.__globals__[name]
    for item in fn.__defaults__ or ():
        yield f"a default of function {fn.__qualname__!r}", item
    for name, item in {**(fn.__kwdefaults__ or {}), **fn.__dict__}.items():
        yield f"attribute {name!r} of function {fn.__qualname__!r}", item


def describe(error: BaseException) -> str:
    """The error's message, or its type where it has none or cannot say."""
    try:
        text = str(error).rstrip(".")
    except Exception:  # noqa: BLE001
        text = ""
    name = type(error).__name__
    if not text:
        return name
    return text if isinstance(error, TypeError | pickle.PicklingError) else f"{name}: {text}"
