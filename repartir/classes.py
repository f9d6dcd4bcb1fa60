"""The identity of classes that travel by value: one class object a process for each class of its owner.

The process that defined a class owns it and names it by a token. Other processes rebuild it once under that
token and later bring the same object up to date, so `isinstance` holds there however often the definition is
sent. The owner maps the token back to its own object and never changes it, whatever comes back. Definitions
carry a version, which the owner raises when the contents change; an older one never undoes a newer one.

All tables are plain dicts changed by single operations, because class finalizers run between any two
bytecodes.
"""

from __future__ import annotations

import itertools
import os
import pickle
import weakref
from collections.abc import Callable
from typing import Any

UNDEFINED = -1
UNVERSIONED = 0

_versions = itertools.count(1)
_serials = itertools.count(1)
_owner = os.urandom(8)


def _become_another_owner() -> None:
    """In a forked child: classes inherited from the parent remain the parent's."""
    global _owner
    _owner = os.urandom(8)


os.register_at_fork(after_in_child=_become_another_owner)


class ClassRecord:
    """What this process knows of one class that travels by value.

    `token`: 16 bytes, owner then serial number.
    `version`: of the definition that the class object has; UNDEFINED while it is an empty skeleton.
    `contents`: digest and version of the contents when last looked at (owner only).
    `attributes`: names set by the last definition (receivers only).
    `loaded`: the last pickled definition that was unpickled or found to be no news (receivers only).
    `definition`: version and pickled definition, for peers that lack the class (receivers only).
    """

    __slots__ = ("_contents", "attributes", "definition", "loaded", "ref", "token", "version")

    def __init__(self, cls: type, token: bytes, version: int) -> None:
        key = id(cls)

        def forget(_: object) -> None:
            _by_id.pop(key, None)
            _by_token.pop(token, None)

        self.ref = weakref.ref(cls, forget)
        self.token = token
        self.version = version
        self._contents = (b"", UNVERSIONED)
        self.attributes: frozenset[str] = frozenset()
        self.loaded = b""
        self.definition: tuple[int, bytes] | None = None

    @property
    def is_own(self) -> bool:
        """Whether this process defined the class."""
        return self.token.startswith(_owner)

    def version_of(self, digest: bytes) -> int:
        """The version that stands for contents with this digest, a new one if they changed (owner only)."""
        known, version = self._contents
        if digest != known:
            version = next(_versions)
            self._contents = digest, version
            self.version = version
        return version


_by_id: dict[int, ClassRecord] = {}
_by_token: dict[bytes, ClassRecord] = {}


def find(token: bytes) -> type | None:
    """The class that this process has under `token`, if it has one that is still alive."""
    record = _by_token.get(token)
    return None if record is None else record.ref()


def record_of(cls: type) -> ClassRecord:
    """The record of `cls`; a class seen for the first time becomes this process's own."""
    record = _by_id.get(id(cls))
    if record is not None and record.ref() is cls:
        return record
    token = _owner + next(_serials).to_bytes(8, "little")
    return _adopt(cls, token, UNVERSIONED)


def _adopt(cls: type, token: bytes, version: int) -> ClassRecord:
    record = _by_token.setdefault(token, ClassRecord(cls, token, version))
    known = record.ref()
    if known is not None:
        _by_id[id(known)] = record
    return record


def define(token: bytes, make: Callable[..., type], args: tuple[Any, ...]) -> type:
    """The class under `token`: the known object, or an empty one from `make(*args)` for `update` to fill.

    Called by unpickling.
    """
    known = find(token)
    if known is not None:
        return known
    skeleton = make(*args)
    record = _adopt(skeleton, token, UNDEFINED)
    return record.ref() or skeleton


def update(cls: type, state: tuple[int, bool, Callable[[type, Any], Any], Any]) -> type:
    """Give `cls` the contents `state = (version, again, set_state, (attributes, slots))`, unless it has
    better ones.

    `again`: apply them also when the version is the one it has, so that its methods share the globals of the
    function that they came with. Called by unpickling.
    """
    version, again, set_state, contents = state
    record = record_of(cls)
    is_no_news = version < record.version or (version == record.version and not again)
    if record.version != UNDEFINED and (record.is_own or is_no_news):
        return cls
    attributes = frozenset(contents[0])
    for name in record.attributes - attributes:
        if name in cls.__dict__:
            delattr(cls, name)
    set_state(cls, contents)
    record.attributes = attributes
    record.version = version
    return cls


def recall(token: bytes, name: str, definition: bytes) -> type:
    """The class under `token`; `definition` is unpickled only if this process lacks it or has another one.

    The definition may be empty, if the owner must still have the class. Called by unpickling.
    """
    record = _by_token.get(token)
    cls = None if record is None else record.ref()
    if record is not None and cls is not None:
        if record.is_own or record.version == UNDEFINED or record.loaded == definition:
            return cls
    if not definition:
        raise LookupError(f"class {name!r} no longer exists in the process that defined it")
    rebuilt: type = pickle.loads(definition)
    record_of(rebuilt).loaded = definition
    return rebuilt
