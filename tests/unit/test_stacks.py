"""What a member's stacks are shown as."""

from __future__ import annotations

import os

from repartir.stacks import StackFile

OURS = """  File "/x/repartir/outcome.py", line 9 in capture
  File "/x/repartir/worker.py", line 9 in run
"""


def shown(text: str) -> str:
    file = StackFile()
    os.write(file.fd, text.encode())
    return file.text()


def test_frames_below_a_task_are_left_out() -> None:
    text = (
        'Thread 1:\n  File "a.py", line 1 in task\n' + OURS + '\nThread 2:\n  File "b.py", line 2 in other\n'
    )
    assert "repartir" not in shown(text)
    assert "in task" in shown(text)
    assert "in other" in shown(text)


def test_a_task_below_a_child_is_shown() -> None:
    child = 'Thread 1:\n  File "a.py", line 1 in child\n' + OURS
    assert "in task" in shown(child + '  File "a.py", line 5 in task\n' + OURS)
    assert shown(child + '  File "a.py", line 5 in task\n' + OURS).count("worker.py") == 1
