"""What a worker's logging sends, in this process."""

from __future__ import annotations

import enum
import logging
import pickle
from typing import Any

import pytest

from repartir import logs
from repartir.errors import InternalError
from repartir.logs import SEQUENCE, Forwarder


class Wire:
    """What was sent: numbers and records."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.fields: list[dict[str, Any]] = []
        self.raises: BaseException | None = None
        self.forwarder = Forwarder("w", 1 << 20, self.send)

    def send(self, data: bytes) -> None:
        if isinstance(self.raises, InternalError):
            raise self.raises
        self.numbers.append(*SEQUENCE.unpack_from(data))
        self.fields.append(pickle.loads(data[SEQUENCE.size :])[1])
        if self.raises is not None:
            raise self.raises

    def emit(self, **fields: Any) -> None:
        self.forwarder.emit(logging.makeLogRecord({"name": "q", "msg": "text", **fields}))

    @property
    def texts(self) -> list[str]:
        return [fields["msg"] for fields in self.fields]


def test_records_are_numbered_in_the_order_in_which_they_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that logs, in the middle of another record."""
    wire = Wire()
    dumps = pickle.dumps

    def dumps_and_logs(value: object) -> bytes:
        monkeypatch.setattr(logs.pickle, "dumps", dumps)  # type: ignore[attr-defined]
        wire.emit(msg="inner")
        return dumps(value)

    def waiting_and_logs(data: bytes) -> object:
        monkeypatch.setattr(logs, "_Waiting", waiting)
        wire.emit(msg="innermost")
        return waiting(data)

    waiting = logs._Waiting
    monkeypatch.setattr(logs.pickle, "dumps", dumps_and_logs)  # type: ignore[attr-defined]
    monkeypatch.setattr(logs, "_Waiting", waiting_and_logs)
    wire.emit(msg="outer")
    assert sorted(wire.texts) == ["inner", "innermost", "outer"]
    assert wire.numbers == sorted(set(wire.numbers))


def test_a_record_that_may_have_been_sent_has_its_number_again() -> None:
    """The client drops it then."""
    wire = Wire()
    wire.raises = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        wire.emit(msg="twice")
    wire.raises = InternalError()
    wire.emit(msg="later")
    wire.raises = None
    wire.forwarder.flush()
    assert wire.texts == ["twice", "twice", "later"]
    assert wire.numbers == [1, 1, 2]


def test_values_of_classes_that_the_client_may_lack_are_plain() -> None:
    class Tag(str):
        __slots__ = ()

    class Level(enum.IntEnum):
        LOUD = 35

    class Seconds(float):
        __slots__ = ()

    wire = Wire()
    wire.emit(msg=Tag("m"), tag=Tag("t"), levelno=Level.LOUD, took=Seconds(1.5), what=[1], yes=True)
    (fields,) = wire.fields
    found = {name: fields[name] for name in ("msg", "tag", "levelno", "took", "what", "yes")}
    assert found == {"msg": "m", "tag": "t", "levelno": 35, "took": 1.5, "what": "[1]", "yes": True}
    assert {type(value) for value in found.values()} == {str, int, float, bool}
