"""Modules that only some programs load: each enters itself here once it is complete.

``sys.modules`` would show them while another thread still runs their first lines.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

shared: Any = None
"""``repartir.shared``, or None."""

noted: set[bytes] | None = None
"""Tokens of the shared things that unpickling meets, while somebody collects them."""


@contextlib.contextmanager
def noting() -> Iterator[set[bytes]]:
    """Collect the tokens of what is unpickled meanwhile."""
    global noted
    outer, tokens = noted, set[bytes]()
    noted = tokens
    try:
        yield tokens
    finally:
        noted = outer
