"""What a signal handler raises is told from what pickling raises.  (Which part fails: test_codec.py.)"""

from __future__ import annotations

import functools
import os
import pickle
import signal
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from repartir.codec import decode, encode_call, encode_function, encode_result, encode_value
from repartir.diagnosis import is_interruption
from repartir.errors import TaskNotSerializable
from repartir.outcome import Error, Value, decode_outcome, encode_outcome


class AlarmError(Exception):
    """What the handlers below raise."""


def function(_number: int, _frame: object) -> NoReturn:
    deeper()


def deeper() -> NoReturn:
    raise AlarmError


class Handler:
    def method(self, _number: int, _frame: object) -> NoReturn:
        raise AlarmError

    def __call__(self, _number: int, _frame: object) -> NoReturn:
        raise AlarmError


def with_more(_more: str, _number: int, _frame: object) -> NoReturn:
    raise AlarmError


HANDLERS: list[Callable[[int, Any], Any]] = [
    function,
    Handler().method,
    Handler(),
    functools.partial(with_more, "more"),
    functools.partial(functools.partial(with_more), "more"),
]
NAMES = ["function", "method", "object", "partial", "partial of a partial"]


@pytest.fixture(params=HANDLERS, ids=NAMES)
def handler(request: pytest.FixtureRequest) -> Any:
    previous = signal.signal(signal.SIGUSR1, request.param)
    yield request.param
    signal.signal(signal.SIGUSR1, previous)


def strike() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


class Interrupted:
    """Something whose pickling, or whose unpickling, meets a signal."""

    def __init__(self, when: str) -> None:
        self.when = when

    def __getstate__(self) -> dict[str, str]:
        if self.when == "pickled":
            strike()
        return self.__dict__

    def __setstate__(self, state: dict[str, str]) -> None:
        self.__dict__.update(state)
        strike()


def caught(raises: Callable[[], object]) -> BaseException:
    try:
        raises()
    except BaseException as error:  # noqa: BLE001 - looked at
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.usefixtures("handler")
class TestInterrupted:
    def test_by_a_handler(self) -> None:
        assert is_interruption(caught(strike))

    @pytest.mark.parametrize("encode", [encode_value, encode_result, encode_function])
    def test_encoding_is_no_failure(self, encode: Callable[[Any], Any]) -> None:
        with pytest.raises(AlarmError):
            encode(Interrupted("pickled"))

    def test_encoding_of_a_call_is_no_failure(self) -> None:
        with pytest.raises(AlarmError):
            encode_call((Interrupted("pickled"),), {})

    def test_decoding_of_a_result_is_no_failure(self) -> None:
        data = encode_outcome(Value(Interrupted("unpickled")))
        assert isinstance(data, bytes)
        with pytest.raises(AlarmError):
            decode_outcome(data)

    def test_decoding_of_an_exception_is_no_failure(self) -> None:
        error = ValueError()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it is unpickled once where it was raised
        error.detail = Interrupted("unpickled")  # type: ignore[attr-defined]
        data = encode_outcome(Error(error, "traceback"))
        signal.signal(signal.SIGUSR1, function)
        assert isinstance(data, bytes)
        with pytest.raises(AlarmError):
            decode_outcome(data)

    def test_the_same_type_raised_by_pickling_itself_is_a_failure(self) -> None:
        error = caught(deeper)
        assert isinstance(error, AlarmError)
        assert not is_interruption(error)

        class Refuses:
            def __reduce__(self) -> NoReturn:
                raise AlarmError

        with pytest.raises(TaskNotSerializable):
            encode_value(Refuses())

    def test_no_other_thread_is_ever_interrupted(self) -> None:
        error = caught(strike)
        told: list[bool] = []
        thread = threading.Thread(target=lambda: told.append(is_interruption(error)))
        thread.start()
        thread.join()
        assert told == [False]


def test_ctrl_c_is_an_interruption_in_the_main_thread_alone() -> None:
    assert is_interruption(KeyboardInterrupt())
    told: list[bool] = []
    thread = threading.Thread(target=lambda: told.append(is_interruption(KeyboardInterrupt())))
    thread.start()
    thread.join()
    assert told == [False]


def test_handlers_in_c_and_none_at_all_disturb_nothing() -> None:
    previous = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        assert not is_interruption(caught(lambda: 1 / 0))
        signal.signal(signal.SIGUSR1, print)
        assert not is_interruption(caught(lambda: 1 / 0))
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_what_was_interrupted_can_be_done_again() -> None:
    hit: list[int] = []

    def once(number: int, _frame: object) -> None:
        if not hit:
            hit.append(number)
            raise AlarmError

    previous = signal.signal(signal.SIGUSR1, once)
    try:
        data = pickle.dumps(Interrupted("unpickled"))
        with pytest.raises(AlarmError):
            decode(data)
        assert decode(data).when == "unpickled"
    finally:
        signal.signal(signal.SIGUSR1, previous)
