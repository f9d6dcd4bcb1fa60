"""The life of a task as a table: (state, event) → state.  A pair that is not in it is an error of ours.

The diagram in docs/design.md is generated from this table.
"""

from __future__ import annotations

import enum

from repartir.errors import InternalError


class TaskState(enum.Enum):
    """Where a task is."""

    __hash__ = object.__hash__  # that of Enum is written in Python, and every task is looked up twice

    PENDING = "pending"
    """Entered; waits in the client for room in a deque."""
    POSTED = "posted"
    """In a deque, or taken by a member."""
    SETTLED = "settled"
    """Its future has a result or an exception."""
    CANCELLED = "cancelled"
    """Taken back before a member began it."""


class TaskEvent(enum.Enum):
    """What happens to a task."""

    __hash__ = object.__hash__

    POST = "post"
    """The client puts it into a deque.  May be repeated after an interruption."""
    ANSWER = "answer"
    """Its member's answer arrived."""
    REPOST = "repost"
    """There is to be another attempt: its member died before it began the task, or the user wants a failed one repeated."""
    FAIL = "fail"
    """It will never run to its end: its member died in it, or the executor broke."""
    CANCEL = "cancel"
    """The user took it back in time."""


TRANSITIONS: dict[tuple[TaskState, TaskEvent], TaskState] = {
    (TaskState.PENDING, TaskEvent.POST): TaskState.POSTED,
    (TaskState.PENDING, TaskEvent.FAIL): TaskState.SETTLED,
    (TaskState.PENDING, TaskEvent.CANCEL): TaskState.CANCELLED,
    (TaskState.POSTED, TaskEvent.POST): TaskState.POSTED,
    (TaskState.POSTED, TaskEvent.ANSWER): TaskState.SETTLED,
    (TaskState.POSTED, TaskEvent.REPOST): TaskState.PENDING,
    (TaskState.POSTED, TaskEvent.FAIL): TaskState.SETTLED,
    (TaskState.POSTED, TaskEvent.CANCEL): TaskState.CANCELLED,
}

FINAL = frozenset((TaskState.SETTLED, TaskState.CANCELLED))


def after(state: TaskState, event: TaskEvent) -> TaskState:
    """The state that follows; ``InternalError`` for a pair that cannot be."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise InternalError(f"a {state.value} task cannot {event.value}") from None


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> pending: enter"]
    lines += [f"    {old.value} --> {new.value}: {event.value}" for (old, event), new in TRANSITIONS.items()]
    lines += [f"    {state.value} --> [*]" for state in TaskState if state in FINAL]
    return "\n".join(lines)
