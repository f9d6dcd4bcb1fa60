"""Exceptions of tasks as bytes that are known to unpickle.

An exception pickles as a call of its class with `args`. Many classes do not take them: two required
arguments, keyword-only ones, a `__reduce__` that gives something else. So each is unpickled once where it was
raised; if it does not come out the same it is rebuilt without its constructor.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from types import TracebackType
from typing import Any

from repartir.diagnosis import describe
from repartir.pickler import dump_in_band

ATTEMPTS = "_repartir_attempts"
"""An attribute of the error of a task that was tried more than once: how often."""
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made at run time, not by C code

# Not as attributes: classes of users may have their own under these names.
_args_of: Callable[[BaseException], tuple[Any, ...]] = vars(BaseException)["args"].__get__
_message_of_group: Callable[[BaseException], str] = vars(BaseExceptionGroup)["message"].__get__
_parts_of_group: Callable[[BaseException], tuple[BaseException, ...]]
_parts_of_group = vars(BaseExceptionGroup)["exceptions"].__get__
_attributes_of: Callable[[BaseException], dict[str, Any]] = vars(BaseException)["__dict__"].__get__
set_cause: Callable[[BaseException, BaseException], None] = vars(BaseException)["__cause__"].__set__
"""Not by assignment, as in what follows: a class may refuse that (``@dataclass(frozen=True)``)."""
_set_traceback: Callable[[BaseException, TracebackType | None], None]
_set_traceback = vars(BaseException)["__traceback__"].__set__


def portable_pickle(exception: BaseException) -> tuple[bytes | None, str]:
    """A pickle that unpickles as `exception`, with its type, args and attributes; or None and the reason."""
    problem = ""
    second_best: bytes | None = None
    for prepare in (_as_it_is, _Rebuilt):
        try:
            payload = dump_in_band(prepare(exception), is_result=True)
            copy = pickle.loads(payload)
            if type(copy) is not type(exception):
                problem = problem or f"it unpickles as {type(copy).__qualname__}"
            elif _same(copy, exception):
                return payload, ""
            else:
                second_best = second_best or payload
        except BaseException as failure:  # noqa: BLE001
            problem = problem or describe(failure)
    return second_best, problem


def _as_it_is(exception: BaseException) -> BaseException:
    return exception


class _Rebuilt:
    """Stands for an exception in a pickle; unpickles as it, made without its class's Python code."""

    def __init__(self, exception: BaseException) -> None:
        args = _args_of(exception)
        if isinstance(exception, BaseExceptionGroup):
            args = (_message_of_group(exception), [_Rebuilt(part) for part in _parts_of_group(exception)])
        self._parts = type(exception), args, exception.__dict__

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, self._parts


def rebuild(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    """An exception with these `args` and attributes, whatever its constructor takes. Called by unpickling."""
    native = next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE)
    exception: BaseException = native.__new__(cls, *args)
    native.__init__(exception, *args)  # type: ignore[misc]
    exception.__dict__.update(state)
    return exception


def _shown(args: tuple[Any, ...]) -> str:
    try:
        return repr(args)
    except Exception:  # noqa: BLE001
        return ""


def _same(copy: BaseException, original: BaseException) -> bool:
    return (
        _shown(_args_of(copy)) == _shown(_args_of(original))
        and message_of(copy) == message_of(original)
        and copy.__dict__.keys() == original.__dict__.keys()
    )


def message_of(exception: BaseException) -> str:
    """`str(exception)`, or why there is none."""
    try:
        return f"{exception}"
    except Exception as failure:  # noqa: BLE001
        return f"<its message cannot be shown: {describe(failure)}>"


def in_a_line(exception: BaseException) -> str:
    """Its class and its message, as tables show it."""
    text, name = message_of(exception), type(exception).__name__
    return f"{name}: {text}" if text else name


def add_note(exception: BaseException, note: str) -> None:
    """What the method of this name does, whatever the class makes of that."""
    _attributes_of(exception).setdefault("__notes__", []).append(note)


def set_attribute(exception: BaseException, name: str, value: object) -> None:
    """Set an attribute, whatever the class makes of that."""
    _attributes_of(exception)[name] = value


def attribute(exception: BaseException, name: str, default: Any) -> Any:
    """What `set_attribute` set."""
    return _attributes_of(exception).get(name, default)


def without_outermost_frame(exception: BaseException) -> None:
    """Leave the frame of the caller, which has just caught the exception, out of its traceback."""
    frames = exception.__traceback__
    _set_traceback(exception, frames and frames.tb_next)


def strip_tracebacks(exception: BaseException) -> None:
    """Drop the tracebacks of the exception and of all that it chains to, and so their frames."""
    pending: list[BaseException | None] = [exception]
    seen: set[int] = set()
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        _set_traceback(one, None)
        pending += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            pending += _parts_of_group(one)
