"""Every pair of state and event: in the table it leads where the table says, else it is an error of ours."""

from __future__ import annotations

import itertools

import pytest

from repartir.errors import InternalError
from repartir.states import FINAL, TRANSITIONS, TaskEvent, TaskState, after, diagram

PAIRS = list(itertools.product(TaskState, TaskEvent))
POSSIBLE = [pair for pair in PAIRS if pair in TRANSITIONS]
IMPOSSIBLE = [pair for pair in PAIRS if pair not in TRANSITIONS]


def ids(pairs: list[tuple[TaskState, TaskEvent]]) -> list[str]:
    return [f"{state.value}-{event.value}" for state, event in pairs]


@pytest.mark.parametrize(("state", "event"), POSSIBLE, ids=ids(POSSIBLE))
def test_a_pair_of_the_table_leads_where_the_table_says(state: TaskState, event: TaskEvent) -> None:
    assert after(state, event) is TRANSITIONS[state, event]


@pytest.mark.parametrize(("state", "event"), IMPOSSIBLE, ids=ids(IMPOSSIBLE))
def test_any_other_pair_is_an_internal_error_that_names_both(state: TaskState, event: TaskEvent) -> None:
    with pytest.raises(InternalError, match=f"{state.value} task cannot {event.value}"):
        after(state, event)


def test_nothing_leads_out_of_a_final_state() -> None:
    assert not [pair for pair in TRANSITIONS if pair[0] in FINAL]


def test_every_other_state_has_a_way_to_each_final_one() -> None:
    """So that no task can be in a state from which its future is never settled."""
    for start in set(TaskState) - FINAL:
        reached, new = {start}, {start}
        while new:
            new = {end for (begin, _), end in TRANSITIONS.items() if begin in new} - reached
            reached |= new
        assert reached >= FINAL


@pytest.mark.parametrize("state", sorted(set(TaskState) - FINAL, key=lambda state: state.value))
def test_an_executor_that_breaks_can_fail_a_task_in_any_state(state: TaskState) -> None:
    assert after(state, TaskEvent.FAIL) is TaskState.SETTLED


def test_only_the_final_states_end_a_task() -> None:
    assert {TaskState.SETTLED, TaskState.CANCELLED} == FINAL


def test_every_event_is_good_for_something() -> None:
    assert {event for _, event in TRANSITIONS} == set(TaskEvent)


def test_the_diagram_lists_every_transition_once() -> None:
    lines = [line.strip() for line in diagram().splitlines()]
    for (old, event), new in TRANSITIONS.items():
        assert lines.count(f"{old.value} --> {new.value}: {event.value}") == 1
    for state in FINAL:
        assert lines.count(f"{state.value} --> [*]") == 1
    assert len(lines) == 2 + len(TRANSITIONS) + len(FINAL)
    assert lines[:2] == ["stateDiagram-v2", "[*] --> pending: enter"]
