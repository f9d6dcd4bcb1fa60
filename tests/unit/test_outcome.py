from __future__ import annotations

import dataclasses
import functools
import gc
import pickle
import threading
import traceback
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repartir.chunks import Stopped, call_each, call_many
from repartir.codec import OUT_OF_BAND_BYTES, Encoded
from repartir.errors import TaskNotSerializable, WorkerDied
from repartir.outcome import Error, Value, capture, caught, decode_outcome, encode_outcome, format_exception
from tests.unit.peer import run_main


def settle(outcome: Value | Error) -> Value | Error:
    """What the client gets for what a worker captured."""
    encoded = encode_outcome(outcome)
    if isinstance(encoded, bytes):
        return decode_outcome(encoded)
    return decode_outcome(encoded.meta, [bytearray(bytes(buffer)) for buffer in encoded.buffers])


def raised(exception: BaseException) -> Error:
    """What the client gets for a task that raises `exception`."""

    def task() -> None:
        raise exception

    outcome = settle(capture(task, (), {}))
    assert isinstance(outcome, Error)
    return outcome


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    number: int = 1


class StrictError(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"no {name} for you")

    def with_traceback(self, *_: object) -> NoReturn:  # type: ignore[override]
        raise AttributeError("nor this")


@pytest.mark.parametrize("exception", [FrozenError(7), StrictError("told")])
def test_exceptions_that_refuse_new_attributes_come_back(exception: Exception) -> None:
    outcome = raised(exception)
    assert type(outcome.exception) is type(exception)
    assert (vars(outcome.exception), outcome.exception.args) == (vars(exception), exception.args)
    assert "in task" in str(outcome.exception.__cause__)
    assert outcome.exception.__traceback__ is None


@pytest.mark.parametrize("chunk", [call_each, call_many])
def test_they_end_a_chunk_like_others(chunk: Any) -> None:
    def task(_: object) -> NoReturn:
        raise FrozenError(7)

    stopped = chunk(task, (1,) if chunk is call_each else ((1,),))
    assert isinstance(stopped, Stopped)
    assert type(stopped.exception()) is FrozenError


# --- values -------------------------------------------------------------------------------------------------


@given(
    st.none()
    | st.integers()
    | st.text()
    | st.lists(st.binary())
    | st.dictionaries(st.text(), st.floats(allow_nan=False))
)
def test_values_come_back(value: Any) -> None:
    outcome = settle(capture(lambda given: given, (value,), {}))
    assert isinstance(outcome, Value)
    assert outcome.value == value
    assert repr(outcome) == f"Value({value!r})"


def test_large_results_are_the_receivers_own() -> None:
    made = np.zeros(OUT_OF_BAND_BYTES)
    made.flags.writeable = False
    assert isinstance(encode_outcome(Value(made)), Encoded)
    outcome = settle(Value(made))
    assert isinstance(outcome, Value)
    outcome.value[0] = 1
    assert made[0] == 0


def test_keyword_arguments_are_passed() -> None:
    outcome = capture(dict, ((("a", 1),),), {"b": 2})
    assert isinstance(outcome, Value)
    assert outcome.value == {"a": 1, "b": 2}


# --- exceptions ---------------------------------------------------------------------------------------------


class TwoArgumentsError(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")
        self.a, self.b = a, b


class KeywordOnlyError(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__()
        self.code = code


class RewordedError(Exception):
    """Takes what it keeps, but changes it on the way."""

    def __init__(self, message: str) -> None:
        super().__init__(f"<{message}>")


class LyingError(Exception):
    def __reduce__(self) -> Any:
        return ValueError, ("somebody else",)


class RefusingError(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


class OwnNewError(Exception):
    def __new__(cls, a: int, *, b: int) -> OwnNewError:
        self = super().__new__(cls, a)
        self.b = b  # type: ignore[attr-defined]
        return self

    def __init__(self, a: int, *, b: int) -> None:
        super().__init__(a, b)


class MyOSError(OSError):
    def __init__(self, number: int, text: str, *, extra: int) -> None:
        super().__init__(number, text)
        self.extra = extra


EXCEPTIONS = [
    ValueError("plain", 1),
    KeyError("key"),
    SystemExit(3),
    KeyboardInterrupt(),
    StopIteration(5),
    GeneratorExit(),
    FileNotFoundError(2, "gone", "file"),
    UnicodeDecodeError("utf-8", b"abc", 0, 1, "bad"),
    TwoArgumentsError(1, 2),
    KeywordOnlyError(code=4),
    RewordedError("text"),
    LyingError("lies", 1),
    RefusingError("refuses"),
    OwnNewError(1, b=2),
    MyOSError(2, "gone", extra=3),
    WorkerDied("died", exit_code=1, task="fit"),
    ExceptionGroup("two", [ValueError(1), TwoArgumentsError(1, 2)]),
]


@pytest.mark.parametrize("exception", EXCEPTIONS, ids=lambda one: type(one).__name__)
def test_exceptions_come_back_as_themselves(exception: BaseException) -> None:
    exception.add_note("a note")
    exception.extra_attribute = [1]  # type: ignore[attr-defined]
    outcome = raised(exception)
    copy = outcome.exception
    assert type(copy) is type(exception)
    assert repr(copy.args) == repr(exception.args)
    assert str(copy) == str(exception)
    assert copy.__notes__ == ["a note"]
    assert repr(copy.__dict__) == repr(exception.__dict__)
    for name in ("errno", "strerror", "filename", "code", "value", "object", "reason"):
        assert getattr(copy, name, None) == getattr(exception, name, None)
    if isinstance(copy, ExceptionGroup):
        assert [type(one) for one in copy.exceptions] == [ValueError, TwoArgumentsError]
        assert copy.exceptions[1].b == 2
    assert repr(outcome) == f"Error({copy!r})"


def test_the_remote_traceback_is_the_cause_in_the_stdlibs_style() -> None:
    def inner() -> None:
        raise KeyError("first")

    def task() -> None:
        try:
            inner()
        except KeyError as error:
            raise ValueError("second") from error

    outcome = settle(capture(task, (), {}))
    assert isinstance(outcome, Error)
    cause = str(outcome.exception.__cause__)
    assert cause.startswith('\n"""\nTraceback (most recent call last):\n')
    assert cause.endswith('ValueError: second\n"""')
    assert "in inner" in cause
    assert "in task" in cause
    assert "direct cause" in cause
    assert "in capture" not in cause
    shown = "".join(traceback.format_exception(outcome.exception))
    assert "RemoteTraceback" in shown
    assert "in inner" in shown
    assert outcome.traceback in cause


def test_a_remote_traceback_survives_a_second_journey() -> None:
    first = raised(ValueError("inner")).exception
    second = raised(first)
    assert str(second.exception) == "inner"
    assert "RemoteTraceback" in str(second.exception.__cause__)
    assert str(pickle.loads(pickle.dumps(first.__cause__))) == str(first.__cause__)


def test_what_cannot_be_pickled_is_named_with_its_message_and_traceback() -> None:
    error = ValueError("bad lock")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    outcome = raised(error)
    assert type(outcome.exception) is TaskNotSerializable
    assert "builtins.ValueError: bad lock" in str(outcome.exception)
    assert "cannot pickle '_thread.lock' object" in str(outcome.exception)
    assert "in task" in str(outcome.exception.__cause__)


class MuteError(Exception):
    def __str__(self) -> str:
        raise LookupError("no message")


def test_an_exception_without_a_usable_message() -> None:
    outcome = raised(MuteError(1))
    assert type(outcome.exception) is MuteError
    assert "MuteError" in outcome.traceback


class StuckError(MuteError):
    def __init__(self) -> None:
        self.lock = threading.Lock()


def test_a_stuck_exception_without_a_usable_message() -> None:
    outcome = raised(StuckError())
    assert type(outcome.exception) is TaskNotSerializable
    assert "<its message cannot be shown: LookupError: no message>" in str(outcome.exception)


class BadGroup(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> Any:  # type: ignore[override]
        raise LookupError("none")


def test_a_traceback_that_cannot_be_formatted() -> None:
    text = format_exception(BadGroup("group", [ValueError()]))
    assert text.startswith("BadGroup (its traceback cannot be formatted: LookupError: none")


def test_a_very_deep_recursion_gives_a_short_traceback() -> None:
    def dive(n: int) -> int:
        return dive(n + 1)

    outcome = settle(capture(dive, (0,), {}))
    assert isinstance(outcome, Error)
    assert isinstance(outcome.exception, RecursionError)
    assert len(outcome.traceback) < 10_000


# --- results that cannot travel -----------------------------------------------------------------------------


def test_a_result_that_cannot_be_pickled_is_named() -> None:
    outcome = settle(Value({"a": [1, threading.Lock()]}))
    assert isinstance(outcome, Error)
    assert type(outcome.exception) is TaskNotSerializable
    assert "the result (dict): item 'a': item 1: cannot pickle '_thread.lock' object" in str(
        outcome.exception
    )


class Bomb:
    """Pickles, but does not unpickle."""

    def __init__(self, error: type[BaseException] = ZeroDivisionError) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return _explode, (self.error,)


def _explode(error: type[BaseException]) -> None:
    raise error("boom")


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, MemoryError, RecursionError])
def test_a_result_that_cannot_be_unpickled_fails_alone(error: type[BaseException]) -> None:
    outcome = settle(Value([Bomb(error)]))
    assert isinstance(outcome, Error)
    assert type(outcome.exception) is TaskNotSerializable
    assert f"cannot be unpickled in the client: {error.__name__}: boom" in str(outcome.exception)
    assert isinstance(outcome.exception.__cause__, error)
    assert "_explode" in outcome.traceback


def test_ctrl_c_in_the_client_is_not_taken_for_the_tasks_failure() -> None:
    with pytest.raises(KeyboardInterrupt):
        settle(Value(Bomb(KeyboardInterrupt)))


def test_an_exception_that_unpickles_only_in_the_worker_is_named() -> None:
    run_main(
        """
import sys
from repartir.errors import TaskNotSerializable
peer = Peer()
class Picky(Exception):
    def __setstate__(self, state):
        if not getattr(sys, "is_worker", False): raise ValueError("only there")
        self.__dict__.update(state)
    def __init__(self):
        self.attribute = 1
class Stuck(Exception):
    def __reduce__(self): return check, ()
def check():
    if not getattr(sys, "is_worker", False): raise ValueError("only there")
    return Stuck()
def task(kind):
    sys.is_worker = True
    raise kind()
for kind in (Picky, Stuck):
    error = peer.outcome(task, kind).exception
    assert type(error) is TaskNotSerializable, error
    assert f"{kind.__name__}" in str(error) and "in the client: ValueError: only there" in str(error)
    assert "in task" in str(error.__cause__)
"""
    )


def test_exceptions_of_the_main_module_are_the_clients() -> None:
    run_main(
        """
peer = Peer()
class Bad(Exception):
    def __init__(self, a, *, b):
        super().__init__(f"{a}-{b}")
        self.a, self.b = a, b
class Derived(Bad): pass
def boom(): raise Derived(1, b=2)
try:
    peer.run(boom)
except Bad as error:
    assert type(error) is Derived and (error.a, error.b, str(error)) == (1, 2, "1-2")
def group(): raise ExceptionGroup("all", [Bad(1, b=2), ValueError(3)])
try:
    peer.run(group)
except* Bad as caught:
    assert [one.b for one in caught.exceptions] == [2]
except* ValueError as caught:
    assert len(caught.exceptions) == 1
def local():
    class Local(Bad): pass
    raise Local(3, b=4)
try:
    peer.run(local)
except Bad as error:
    assert error.b == 4 and type(error).__name__ == "Local"
Old = Bad
class Bad(Exception): pass
assert isinstance(peer.outcome(boom).exception, Old)
def boom(): raise Bad(1)
assert type(peer.outcome(boom).exception) is Bad
"""
    )


# --- what is kept alive -------------------------------------------------------------------------------------


class Tracked:
    pass


def _fail(_: object) -> None:
    try:
        raise KeyError
    except KeyError as error:
        raise ValueError("failed") from error


def _fail_in_group(held: object) -> None:
    try:
        _fail(held)
    except ValueError as error:
        raise ExceptionGroup("group", [error]) from None


def _unpicklable(held: object) -> object:
    return [held, threading.Lock()]


@pytest.mark.parametrize("task", [_fail, _fail_in_group, _unpicklable])
def test_an_encoded_outcome_keeps_nothing_of_the_task_alive(task: Callable[[object], object]) -> None:
    gc.disable()
    try:
        tracked = Tracked()
        gone = weakref.ref(tracked)
        outcome = capture(task, (tracked,), {})
        exception = outcome.exception if isinstance(outcome, Error) else None
        encode_outcome(outcome)
        del tracked, outcome
        assert gone() is None
        assert exception is None or exception.__traceback__ is None
    finally:
        gc.enable()


def test_a_captured_error_still_has_its_traceback() -> None:
    outcome = capture(_fail, (1,), {})
    assert isinstance(outcome, Error)
    assert outcome.exception.__traceback__ is not None
    assert outcome.exception.__traceback__.tb_frame.f_code.co_name == "_fail"


def test_a_failing_builtin_has_no_frames() -> None:
    outcome = capture(functools.partial(int, "x"), (), {})
    assert isinstance(outcome, Error)
    assert outcome.traceback == "ValueError: invalid literal for int() with base 10: 'x'\n"


def test_caught_makes_an_error_of_what_is_being_handled() -> None:
    try:
        _fail(1)
    except ValueError as error:
        outcome = caught(error)
    assert outcome.traceback.endswith("ValueError: failed\n")
    assert "in _fail" in outcome.traceback


class HostileError(ExceptionGroup[Exception]):
    """Has names of its own where exceptions have theirs, and cannot show itself."""

    @property
    def exceptions(self) -> Any:  # type: ignore[override]
        raise LookupError("none")

    @property
    def message(self) -> Any:  # type: ignore[override]
        raise LookupError("none")

    @property
    def args(self) -> Any:  # type: ignore[override]
        raise LookupError("none")


class ExitingResult:
    def __reduce__(self) -> Any:
        raise SystemExit(1)


class NoRepr:
    def __repr__(self) -> str:
        raise LookupError("no repr")


def test_no_task_makes_the_worker_fail() -> None:
    outcome = raised(HostileError("hostile", [ValueError(3)]))
    assert type(outcome.exception) is HostileError
    outcome = raised(ValueError(NoRepr()))
    assert type(outcome.exception) is ValueError
    assert type(outcome.exception.args[0]) is NoRepr
    failed = settle(Value(ExitingResult()))
    assert isinstance(failed, Error)
    assert type(failed.exception) is SystemExit
