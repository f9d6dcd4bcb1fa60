from __future__ import annotations

import gc
import sys
import types
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from repartir.codec import OUT_OF_BAND_BYTES, Encoded, decode, encode_call, snapshot_inherited
from repartir.errors import InternalError
from tests.unit.peer import run_main


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    made = types.ModuleType("made_for_a_test")
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


def test_only_large_arrays_are_remembered(module: types.ModuleType) -> None:
    module.large = np.zeros(OUT_OF_BAND_BYTES, "u1")  # type: ignore[attr-defined]
    module.small = np.zeros(OUT_OF_BAND_BYTES - 1, "u1")  # type: ignore[attr-defined]
    module.table = list(range(OUT_OF_BAND_BYTES))  # type: ignore[attr-defined]
    inherited = snapshot_inherited([module.__name__, "no_such_module"])
    assert len(inherited) == 1
    assert inherited.name_of(module.large) == (module.__name__, "large")
    assert inherited.resolve(module.__name__, "large") is module.large
    for other in (module.small, module.table, module.large.copy(), module.large[:]):
        assert inherited.name_of(other) is None
    with pytest.raises(KeyError):
        inherited.resolve(module.__name__, "small")


def refers_to_large(module: types.ModuleType) -> Any:
    """A function whose global `large` is that of the module."""
    exec("make = lambda: lambda: large", vars(module))
    return module.make()


def test_an_inherited_global_is_sent_as_its_name(module: types.ModuleType) -> None:
    module.large = np.zeros(OUT_OF_BAND_BYTES)  # type: ignore[attr-defined]
    inherited = snapshot_inherited([module.__name__])
    call = encode_call((refers_to_large(module),), {}, inherited)
    assert isinstance(call, bytes)
    assert decode(call)[0][0]() is module.large
    module.large = module.large.copy()  # type: ignore[attr-defined]
    assert isinstance(encode_call((refers_to_large(module),), {}, inherited), Encoded)


def test_as_an_argument_it_is_sent_as_it_is_now(module: types.ModuleType) -> None:
    module.large = np.zeros(OUT_OF_BAND_BYTES)  # type: ignore[attr-defined]
    inherited = snapshot_inherited([module.__name__])
    assert isinstance(encode_call((module.large,), {}, inherited), Encoded)
    assert isinstance(encode_call(([{"a": module.large}],), {}, inherited), Encoded)


def test_release_lets_the_client_free_its_arrays(module: types.ModuleType) -> None:
    module.large = np.zeros(OUT_OF_BAND_BYTES)  # type: ignore[attr-defined]
    array = weakref.ref(module.large)
    inherited = snapshot_inherited([module.__name__])
    call = encode_call((refers_to_large(module),), {}, inherited)
    del module.large
    gc.collect()
    assert array() is not None
    inherited.release()
    assert array() is None
    with pytest.raises(InternalError, match=r"made_for_a_test\.large was sent as an inherited array"):
        decode(call)


def test_a_process_without_the_snapshot_says_so(module: types.ModuleType) -> None:
    module.large = np.zeros(OUT_OF_BAND_BYTES)  # type: ignore[attr-defined]
    inherited = snapshot_inherited([module.__name__])
    call = encode_call((refers_to_large(module),), {}, inherited)
    del inherited
    with pytest.raises(InternalError, match="did not inherit it"):
        decode(call)


def test_forked_workers_use_the_array_that_they_inherited() -> None:
    run_main(
        """
import numpy as np
from repartir.codec import snapshot_inherited
TABLE = np.arange(1e6)
peer = Peer(snapshot_inherited())
class Model:
    def total(self): return TABLE.sum()
def total(): return TABLE.sum()
def through(given): return given.sum(), given is TABLE
assert peer.run(total) == TABLE.sum() and peer.sent_bytes < 2_000
assert peer.run(total) == TABLE.sum()
assert peer.run(through, TABLE) == (TABLE.sum(), False) and peer.sent_bytes > 8_000_000
TABLE[0] = 5                           # an argument is sent as it is now, and is the receiver's own to write
def change(given): given += 1; return given[0]
assert [peer.run(change, TABLE) for _ in range(2)] == [6, 6] and TABLE[0] == 5
def holder(given): return lambda: given[0]
held = holder(TABLE)                   # so is what a function has captured
assert peer.run(held) == 5
TABLE[0] = 0
assert peer.run(held) == 0
assert peer.run(Model().total) == TABLE.sum() and peer.sent_bytes < 4_000
assert type(peer.run(Model)) is Model and peer.sent_bytes < 4_000
result = peer.run(lambda: TABLE)       # a result is a copy, the client's own
result[0] = 7
assert TABLE[0] == 0
TABLE = np.ones(1_000_000)             # another object: no longer the inherited one
assert peer.run(total) == 1e6 and peer.sent_bytes > 8_000_000
TABLE = TABLE[:10]
assert peer.run(total) == 10
"""
    )
