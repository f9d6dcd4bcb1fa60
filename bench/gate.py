"""A gate that keeps workers busy at no CPU cost until the client opens it; works with every start method."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType


class Gate:
    """Tasks `tasks.pass_gate(gate.path)` block until `with gate.opened():` lets them all through."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bench-gate-")
        self.path = str(Path(self._folder.name) / "gate")
        os.mkfifo(self.path)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the gate open; whoever waits passes, whoever comes meanwhile does not wait."""
        writer = os.open(self.path, os.O_RDWR)
        try:
            yield
        finally:
            os.close(writer)

    def __enter__(self) -> Gate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()
