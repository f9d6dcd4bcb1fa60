"""Globals that belong to the workers: those that the initializer refers to.

A function that goes by value brings the globals that it names, as they are in the client. Not so what an initializer of
the same module has set up (``STATE = load()``, ``CONFIG["k"] = v``): tasks find that through the builtins of
their functions, where every name is looked up that is not in their own globals.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from types import CodeType, FunctionType
from typing import Any, NamedTuple

_builtins: dict[str, Any] | None = None


class OwnedGlobals(NamedTuple):
    """``names`` of the module namespace ``namespace`` that functions do not bring along."""

    namespace: dict[str, Any]
    names: frozenset[str]


def publish(namespace: dict[str, Any], names: Iterable[str]) -> None:
    """In a worker, after its initializer: what ``names`` mean to the functions that arrive from now on."""
    global _builtins
    _builtins = vars(builtins) | {name: namespace[name] for name in names if name in namespace}


def make_function(
    code: CodeType, namespace: dict[str, Any], name: str | None, defaults: Any, closure: Any
) -> FunctionType:
    """An empty function that sees what was published. Called by unpickling."""
    namespace["__builtins__"] = builtins if _builtins is None else _builtins
    return FunctionType(code, namespace, name, defaults, closure)
