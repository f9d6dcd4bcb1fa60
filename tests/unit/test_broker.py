"""How long the client naps under backlog."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from repartir.broker import NAP_ANSWERS, NAP_MS, Bell, Broker

BACKLOG = 8
SHORTEST, LONGEST = NAP_MS
FEW, MANY = NAP_ANSWERS


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(Broker, "_a_core_is_free", lambda self: self.free)
    made: Any = Broker.__new__(Broker)
    made.free = False
    made.pump = SimpleNamespace(answered=0, backlog=BACKLOG, ledger=SimpleNamespace(records=range(BACKLOG)))
    made.board = SimpleNamespace(words=[3, 3, 5, 5], hands=[SimpleNamespace(next_word=0, end_word=1)] * 2)
    made.board.hands[1] = SimpleNamespace(next_word=2, end_word=3)
    made._nap_ms = made._answered_before = 0
    return made


def naps(broker: Any, *answers: int) -> list[int]:
    """The naps chosen after so many answers each."""
    chosen = []
    for count in answers:
        broker.pump.answered += count
        chosen.append(broker._choose_nap())
    return chosen


def test_no_nap_without_backlog(broker: Any) -> None:
    broker.pump.ledger.records = range(BACKLOG - 1)
    assert naps(broker, 5, 5) == [0, 0]


def test_items_that_members_have_in_hand_count_as_backlog(broker: Any) -> None:
    broker.pump.ledger.records = range(2)
    broker.board.words[:] = 3, 6, 5, 7
    assert naps(broker, 5, 5) == [0, 0]
    broker.board.words[1] += 1
    assert naps(broker, 5, 5) == [SHORTEST, 2 * SHORTEST]


def test_no_nap_while_a_core_is_free(broker: Any) -> None:
    broker.free = True
    assert naps(broker, 5, 5) == [0, 0]


def test_naps_grow_while_they_bring_little_and_shrink_while_they_bring_much(broker: Any) -> None:
    few, many = FEW - 1, MANY + 1
    assert naps(broker, 0, few, few, few) == [SHORTEST, 2 * SHORTEST, LONGEST, LONGEST]
    assert naps(broker, FEW, MANY) == [LONGEST, LONGEST]
    assert naps(broker, many, many, many) == [LONGEST // 2, SHORTEST, SHORTEST]


def test_after_a_nap_that_brought_nothing_the_first_answer_wakes(broker: Any) -> None:
    assert naps(broker, 0, 0, 0, 1) == [SHORTEST, 0, SHORTEST, 2 * SHORTEST]


def test_a_bell_is_set_until_it_is_heard() -> None:
    bell = Bell()
    assert not bell.is_set()
    assert not bell.wait(0)
    bell.set()
    bell.set()
    assert bell.is_set()
    assert bell.wait(0)
    assert not bell.wait(0)
    bell.set()
    bell.clear()
    assert not bell.is_set()


def test_a_driver_that_tells_of_reports_which_were_heard_listens_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may sleep without them since it told; who heard them before has to wake it once more."""
    pokes = []
    monkeypatch.setattr(Broker, "_poke", lambda self: pokes.append(True))
    made: Any = Broker.__new__(Broker)
    made._reports_due = True
    made._aborting = made.closing = made._shared_freed = False
    made.broken = None
    made.members = SimpleNamespace(starting=False, listen=lambda: False)
    made.pump = SimpleNamespace(said=(), doubtful=(), due=(), place_free=False)
    made._attempts = SimpleNamespace(look=lambda: False)
    made._keep_house()
    assert pokes
    assert not made._reports_due
    pokes.clear()
    made._keep_house()
    assert not pokes
