"""What a task came to: a value or an error with its remote traceback, captured, encoded and decoded.

    capture(fn, args, kwargs) → Value | Error          worker
    encode_outcome(outcome)   → bytes | Encoded        worker; never raises for what the task did
    decode_outcome(data, buffers) → Value | Error      client; never raises for what the task did

On the wire a value is its pickle alone, an error is ERROR_MARK and an envelope of plain strings and bytes, so
an exception that cannot be unpickled in the client still arrives as a message with its traceback.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from repartir.codec import ATOMS, OUT_OF_BAND_BYTES, PROTOCOL, Encoded, decode, encode_result
from repartir.diagnosis import describe, is_interruption
from repartir.errors import TaskNotSerializable
from repartir.portable import (
    message_of,
    portable_pickle,
    set_cause,
    strip_tracebacks,
    without_outermost_frame,
)

ERROR_MARK = b"E"  # a pickle begins with b"\x80"


class RemoteTraceback(Exception):  # noqa: N818
    """The `__cause__` of an exception that was raised in another process; its text is the traceback there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class Value:
    """A task returned `value`."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def forget(self) -> None:
        """Drop the value, once it is encoded."""
        self.value = None

    def __repr__(self) -> str:
        return f"Value({self.value!r})"


class Error:
    """A task raised `exception`; `traceback` is the formatted traceback where it was raised."""

    __slots__ = ("exception", "traceback")

    def __init__(self, exception: BaseException, traceback_text: str) -> None:
        self.exception = exception
        self.traceback = traceback_text

    def forget(self) -> None:
        """Drop the exception, once it is encoded, and all that its frames and attributes keep alive."""
        del self.exception

    def __repr__(self) -> str:
        return f"Error({self.exception!r})"


def capture(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value | Error:
    """Call `fn` and catch all that it raises, also SystemExit and KeyboardInterrupt.

    The exception of an Error keeps its traceback, and so the frames of the task, until it is encoded or
    dropped.
    """
    try:
        return Value(fn(*args, **kwargs))
    except BaseException as exception:  # noqa: BLE001
        without_outermost_frame(exception)
        return caught(exception)


def caught(exception: BaseException) -> Error:
    """The Error of an exception that has just been caught, with its traceback from here on."""
    return Error(exception, format_exception(exception))


def format_exception(exception: BaseException) -> str:
    """The text of the traceback with all that the exception chains to; at least its type if that fails."""
    try:
        return "".join(traceback.format_exception(exception))
    except Exception as failure:  # noqa: BLE001
        return f"{type(exception).__qualname__} (its traceback cannot be formatted: {describe(failure)})\n"


def encode_outcome(outcome: Value | Error, threshold: int = OUT_OF_BAND_BYTES) -> Encoded | bytes:
    """The outcome as bytes; buffers of `threshold` or more bytes beside the pickle.

    What cannot be pickled becomes a TaskNotSerializable that says why.

    An Error loses its traceback and those of the exceptions that it chains to, so that no frame keeps the
    task's objects alive.
    """
    if isinstance(outcome, Value):
        value = outcome.value
        try:
            if type(value) in ATOMS:
                return pickle.dumps(value, PROTOCOL)
            return encode_result(value, threshold)
        except BaseException as exception:  # noqa: BLE001
            outcome = caught(exception)
    return _encode_error(outcome.exception, outcome.traceback)


def _encode_error(exception: BaseException, text: str) -> bytes:
    strip_tracebacks(exception)
    payload, problem = portable_pickle(exception)
    summary = f"{type(exception).__module__}.{type(exception).__qualname__}: {message_of(exception)}"
    return ERROR_MARK + pickle.dumps((summary, text, payload, problem), 5)


def decode_outcome(data: bytes | bytearray | memoryview, buffers: Sequence[Any] = ()) -> Value | Error:
    """The outcome that was encoded. What cannot be unpickled becomes an Error with TaskNotSerializable.

    Raises only what a signal handler raises meanwhile, such as KeyboardInterrupt, and what unpickling raises for bytes that
    `encode_outcome` did not make.
    """
    if data[:1] == ERROR_MARK:
        return _decode_error(memoryview(data)[1:])
    try:
        return Value(decode(data, buffers))
    except BaseException as failure:
        if is_interruption(failure):
            raise
        text = format_exception(failure)
        strip_tracebacks(failure)
        error = TaskNotSerializable(
            f"the result was computed and sent, but cannot be unpickled in the client: {describe(failure)}"
        )
        error.__cause__ = failure
        return Error(error, text)


def _decode_error(envelope: memoryview) -> Error:
    summary, text, payload, problem = pickle.loads(envelope)
    exception: BaseException
    try:
        exception = _load_exception(payload, summary, problem)
    except BaseException as failure:
        if is_interruption(failure):
            raise
        exception = TaskNotSerializable(
            f"the task raised {summary}; "
            f"this exception cannot be unpickled in the client: {describe(failure)}"
        )
    set_cause(exception, RemoteTraceback(text))
    return Error(exception, text)


def _load_exception(payload: bytes | None, summary: str, problem: str) -> BaseException:
    if payload is None:
        return TaskNotSerializable(f"the task raised {summary}; this exception cannot be pickled: {problem}")
    exception = pickle.loads(payload)
    if not isinstance(exception, BaseException):
        raise TypeError(f"it became a {type(exception).__qualname__}")
    return exception
