"""Modules that only some programs load: each enters itself here once it is complete.

``sys.modules`` would show them while another thread still runs their first lines.
"""

from __future__ import annotations

from typing import Any

shared: Any = None
"""``repartir.shared``, or None."""
