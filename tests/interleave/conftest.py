from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest


@pytest.fixture(autouse=True, scope="package")
def memory_without_a_file() -> Iterator[None]:
    """All of a fake segment is there from the start."""
    with mock.patch("repartir.shm.arena.reserve"):
        yield
