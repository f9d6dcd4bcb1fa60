"""What the rows of a journal depend on: the function, by digest or version, and the seed; and how two of them differ."""

from __future__ import annotations

import difflib
import json
import operator
import sqlite3
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from repartir.functiondigest import FunctionDescription
from repartir.streams import Seed

_SHOWN_LINES = 60


@dataclass(frozen=True, slots=True)
class Definition:
    """``version`` replaces the digest where both sides have one."""

    description: FunctionDescription
    version: str | None
    seed: Seed

    def is_same_function(self, other: Definition) -> bool:
        if self.version is not None and other.version is not None:
            return self.version == other.version
        return self.description.digest == other.description.digest

    def agrees(self, other: Definition) -> bool:
        """Whether rows of one are right for the other."""
        return self.is_same_function(other) and seed_text(self.seed) == seed_text(other.seed)

    def noted_as(self) -> tuple[str, str, str | None, str]:
        description = self.description
        return description.name, description.digest, self.version, seed_text(self.seed)

    def difference(self, new: Definition, old_name: str = "in the journal", new_name: str = "now") -> str:
        """In words, and as a unified diff of what changed in the function."""
        found = []
        if not self.is_same_function(new):
            if self.version is not None and new.version is not None:
                found.append(f"version {self.version!r} {old_name}, {new.version!r} {new_name}")
            else:
                found.append(_difference(self.description, new.description, old_name, new_name))
        if seed_text(self.seed) != seed_text(new.seed):
            found.append(f"seed {seed_words(self.seed)} {old_name}, {seed_words(new.seed)} {new_name}")
        return "\n".join(found)


def _difference(old: FunctionDescription, new: FunctionDescription, old_name: str, new_name: str) -> str:
    if old.name == new.name:
        title = f"{new.name} is another function"
    else:
        title = f"the function is {old.name} {old_name}, {new.name} {new_name}"
    lines: list[str] = []
    for part in sorted(old.parts.keys() | new.parts.keys()):
        before, after = old.parts.get(part), new.parts.get(part)
        lines += difflib.unified_diff(
            [] if before is None else before.splitlines(),
            [] if after is None else after.splitlines(),
            f"{part}, {old_name}",
            f"{part}, {new_name}",
            "absent" if before is None else "",
            "absent" if after is None else "",
            lineterm="",
        )
    if not lines:
        return f"{title}: digest {old.digest} {old_name}, {new.digest} {new_name}"
    if len(lines) > _SHOWN_LINES:
        lines[_SHOWN_LINES:] = [f"… and {len(lines) - _SHOWN_LINES} more lines"]
    return "\n".join([f"{title}:", *lines])


def current(connection: sqlite3.Connection) -> tuple[int, int, Definition] | None:
    """The id of the newest definition, its lineage and itself; None in a journal that nobody has used."""
    row = connection.execute(
        "SELECT id, lineage, function, digest, parts, version, seed FROM definitions ORDER BY id DESC LIMIT 1"
    ).fetchone()
    if row is None:
        return None
    number, lineage, function, digest, parts, version, seed = row
    description = FunctionDescription(function, digest, json.loads(parts))
    return number, lineage, Definition(description, version, seed_of(seed))


def note(connection: sqlite3.Connection, lineage: int, definition: Definition) -> int:
    """Make ``definition`` the current one; its id."""
    function, digest, version, seed = definition.noted_as()
    cursor = connection.execute(
        "INSERT INTO definitions (lineage, function, digest, parts, version, seed, noted) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (lineage, function, digest, json.dumps(definition.description.parts), version, seed, time.time()),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def seed_text(seed: Seed) -> str:
    """The stored form of a seed, equal for equal seeds: an int and the ``SeedSequence`` of it alone are."""
    if isinstance(seed, np.random.SeedSequence):
        form: Any = {
            "entropy": _plain(seed.entropy),
            "spawn_key": _plain(tuple(seed.spawn_key)),
            "pool_size": seed.pool_size,
        }
        if not form["spawn_key"] and form["pool_size"] == np.random.SeedSequence(0).pool_size:
            form = form["entropy"]
    else:
        form = _plain(seed)
    return json.dumps(form)


def seed_of(text: str) -> Seed:
    """The seed that `seed_text` was given, or an equal one."""
    form = json.loads(text)
    if isinstance(form, dict):
        return np.random.SeedSequence(
            form["entropy"], spawn_key=tuple(form["spawn_key"]), pool_size=form["pool_size"]
        )
    return tuple(form) if isinstance(form, list) else form


def seed_words(seed: Seed) -> str:
    """A seed as messages show it."""
    if not isinstance(seed, np.random.SeedSequence):
        return str(seed)
    key = f", spawn_key={tuple(seed.spawn_key)}" if seed.spawn_key else ""
    return f"SeedSequence({seed.entropy}{key})"


def _plain(entropy: Any) -> int | list[int]:
    try:
        return operator.index(entropy)
    except TypeError:
        return [operator.index(word) for word in entropy]
