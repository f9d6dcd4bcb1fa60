from __future__ import annotations

import array
import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from repartir.errors import InternalError, SharedMemoryFull
from repartir.shm import arena as arena_module
from repartir.shm.arena import HANDLE_BYTES, RESULT, Arena, Handle, arena_limit
from repartir.shm.layout import (
    A_CARVED,
    A_CLASSES,
    A_FREE_W,
    A_RESERVED,
    ARENA_HEADER_BYTES,
    B_CLASS,
    B_NEXT,
    BLOCK_HEADER_BYTES,
    WORD,
)
from tests.shared import LOCK_KINDS, ArenaRoom, Deadly, Forked, Fuse, Interrupted, arena_room

SIZES = arena_module._SIZES
MIB = 1 << 20


@pytest.fixture(params=LOCK_KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[ArenaRoom]:
    with arena_room(2 * MIB, request.param) as made:
        yield made
    request.node.funcargs.clear()  # they hold the mapping, and the guard looks before pytest lets them go


@pytest.fixture
def arena(place: ArenaRoom) -> Arena:
    return place.arena


def store(arena: Arena, *parts: bytes, owner: int = 7) -> Handle:
    handle = arena.store(parts, owner)
    assert handle is not None
    return handle


def fill(arena: Arena, size: int, owner: int = 7) -> list[Handle]:
    """Blocks of `size` bytes until there is no room for another."""
    handles = []
    while handle := arena.store([bytes(size)], owner):
        handles.append(handle)
    return handles


# ---- size classes


def test_sizes_grow_and_keep_the_alignment() -> None:
    assert len(SIZES) == A_CLASSES
    assert sorted(set(SIZES)) == SIZES
    assert all(size % 64 == 0 for size in SIZES)
    assert SIZES[-1] < 1 << 63


def test_every_size_gets_the_smallest_class_that_holds_it() -> None:
    sizes = {1, 64, 65, *range(400, 5000), *(size + step for size in SIZES[:160] for step in (-1, 0, 1))}
    for size in sizes:
        index = arena_module._class_of(size)
        assert SIZES[index] >= size
        assert index == 0 or SIZES[index - 1] < size


def test_at_most_a_quarter_of_a_block_is_waste() -> None:
    for size in {*range(SIZES[0], 20_000), *(size + 1 for size in SIZES[:-1])}:
        block = SIZES[arena_module._class_of(size)]
        assert block - size <= block / 4, size


# ---- store and load


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b""],
        [b"a"],
        [b"", b"", b""],
        [b"meta", bytes(range(256)) * 40, b"", b"tail"],
        [b"x" * 63, b"y" * 64, b"z" * 65],
    ],
    ids=lambda parts: "-".join(str(len(part)) for part in parts) or "none",
)
def test_parts_come_back_as_private_copies(arena: Arena, parts: list[bytes]) -> None:
    handle = store(arena, *parts)
    loaded = arena.load(handle)
    assert loaded == parts
    for copy in loaded:
        copy[:] = bytes(len(copy))
    assert arena.load(handle) == parts


def test_views_are_stored_as_bytes_are(arena: Arena) -> None:
    source = memoryview(bytearray(range(200)))
    handle = arena.store([source[10:20], source[100:]], 1)
    assert handle is not None
    assert arena.load(handle) == [source[10:20], source[100:]]


def test_parts_are_aligned_in_memory(place: ArenaRoom, arena: Arena) -> None:
    marks = [b"%c" % (65 + nth) * 37 for nth in range(5)]
    handle = store(arena, *marks)
    block = place.segment.data[handle.offset : handle.offset + handle.size]
    for mark in marks:
        assert (handle.offset + block.index(mark)) % 64 == 0


def test_handle_survives_packing() -> None:
    handle = Handle(1 << 40, 3, 1 << 33)
    assert len(handle.pack()) == HANDLE_BYTES
    assert Handle.unpack(handle.pack()) == handle


def test_block_belongs_to_its_owner_until_it_is_freed(place: ArenaRoom, arena: Arena) -> None:
    assert arena.used() == (0, 0)
    first, second = store(arena, b"a" * 100), store(arena, bytes(10_000))
    assert arena.used()[0] == 2
    assert arena.used()[1] >= 10_100
    assert arena.free(first)
    assert arena.used()[0] == 1
    assert arena.free(second)
    assert arena.used() == (0, 0)
    arena.check()


def test_block_is_used_again(arena: Arena) -> None:
    first = store(arena, b"a" * 1000)
    arena.free(first)
    second = store(arena, b"b" * 1000)
    assert second.offset == first.offset
    assert second.generation > first.generation
    assert arena.load(second) == [b"b" * 1000]


def test_freeing_twice_frees_once(arena: Arena) -> None:
    handle = store(arena, b"a")
    assert arena.free(handle)
    assert not arena.free(handle)
    successor = store(arena, b"b")
    assert not arena.free(handle), "the block is another's by now"
    assert arena.load(successor) == [b"b"]
    assert arena.used()[0] == 1


def test_stale_handle_cannot_be_loaded(arena: Arena) -> None:
    handle = store(arena, b"a")
    arena.free(handle)
    with pytest.raises(InternalError, match="older generation"):
        arena.load(handle)
    store(arena, b"b")
    with pytest.raises(InternalError, match="older generation"):
        arena.load(handle)


def test_handle_that_leads_elsewhere_is_refused(arena: Arena) -> None:
    handle = store(arena, b"abc")
    for bad in (
        replace(handle, offset=BLOCK_HEADER_BYTES),
        replace(handle, offset=1 << 50),
        replace(handle, offset=handle.offset + SIZES[0]),
    ):
        with pytest.raises(InternalError, match="points outside"):
            arena.load(bad)
    with pytest.raises(InternalError, match="larger than its block"):
        arena.load(replace(handle, size=MIB))
    with pytest.raises(InternalError, match="with parts of"):
        arena.load(replace(handle, size=handle.size + 1))


@pytest.mark.parametrize("count", [1 << 62, (1 << 20) + 1, 30])
def test_number_of_parts_is_checked_before_it_is_used(place: ArenaRoom, arena: Arena, count: int) -> None:
    handle = store(arena, b"abc")
    place.words[handle.offset // WORD] = count
    with pytest.raises(InternalError, match="parts"):
        arena.load(handle)


def test_sizes_of_parts_are_checked_before_they_are_used(place: ArenaRoom, arena: Arena) -> None:
    handle = store(arena, b"abc")
    place.words[handle.offset // WORD + 1] = 1 << 40
    with pytest.raises(InternalError, match="with parts of"):
        arena.load(handle)


def test_part_that_cannot_be_copied_costs_no_block(arena: Arena) -> None:
    with pytest.raises(IndexError):
        arena.store([b"good", memoryview(array.array("d", [1.0, 2.0]))], 7)
    assert arena.used() == (0, 0)
    arena.check()


# ---- owners


def test_blocks_of_one_owner_are_freed_together(arena: Arena) -> None:
    mine = [store(arena, bytes(size), owner=5 | RESULT) for size in (1, 1000, 50_000)]
    bare = store(arena, b"arguments", owner=5)
    other = store(arena, b"another's", owner=6 | RESULT)
    assert arena.free_owned(5 | RESULT) == 3
    assert arena.free_owned(5 | RESULT) == 0
    assert not any(arena.free(handle) for handle in mine)
    assert arena.load(bare) == [b"arguments"]
    assert arena.load(other) == [b"another's"]
    arena.check()
    assert (
        len({store(arena, bytes(size)).offset for size in (1, 1000, 50_000)} & {h.offset for h in mine}) == 3
    )


# ---- growth


def test_it_grows_to_its_limit_and_then_says_none(place: ArenaRoom, arena: Arena) -> None:
    reserved = place.words[A_RESERVED]
    handles = fill(arena, 10_000)
    assert place.words[A_RESERVED] > reserved
    assert place.words[A_CARVED] <= place.words[A_RESERVED] <= place.segment.size
    assert os.fstat(place.segment.fd).st_blocks * 512 >= place.words[A_CARVED]
    lost = place.segment.size - len(handles) * SIZES[arena_module._class_of(10_000 + 200)]
    assert lost < 20_000
    assert arena.store([bytes(10_000)], 7) is None
    small = arena.store([b"small"], 7)
    assert small is not None, "what is left at the end serves smaller ones"
    assert arena.free(handles[3])
    again = store(arena, bytes(10_000))
    assert again.offset == handles[3].offset
    arena.check()


def test_full_arena_gives_a_larger_block(arena: Arena) -> None:
    large = fill(arena, 100_000)
    fill(arena, 1)
    assert arena.store([b"x"], 7) is None
    arena.free(large[0])
    handle = store(arena, b"y")
    assert handle.offset == large[0].offset
    assert arena.load(handle) == [b"y"]
    arena.free(handle)
    assert store(arena, bytes(100_000)).offset == large[0].offset, "it kept its size"


def test_more_than_it_will_ever_hold(arena: Arena) -> None:
    assert arena.store([bytes(3 * MIB)], 7) is None
    assert arena.used() == (0, 0)
    store(arena, b"goes on")


def test_full_file_system_is_a_full_arena(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise SharedMemoryFull("no room")

    first = store(arena, b"a")
    with monkeypatch.context() as patch:
        patch.setattr(arena_module, "reserve", full)
        assert arena.store([bytes(MIB)], 7) is None
        assert arena.load(first) == [b"a"]
    assert arena.store([bytes(MIB)], 7) is not None
    arena.check()


def test_memory_is_reserved_before_it_is_used(
    place: ArenaRoom, arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, asked = arena_module.reserve, []

    def spy(fd: int, offset: int, size: int) -> None:
        assert offset == place.words[A_RESERVED]
        asked.append(offset + size)
        really(fd, offset, size)

    monkeypatch.setattr(arena_module, "reserve", spy)
    while arena.store([bytes(random.Random(len(asked)).randrange(1, 70_000))], 7):
        assert place.words[A_CARVED] <= asked[-1]
    assert asked[-1] <= place.segment.size


def test_limit_is_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = os.statvfs("/dev/shm")
    assert arena_limit() == pytest.approx(usage.f_bavail * usage.f_frsize * 0.8, rel=0.2)
    assert arena_limit() % 4096 == 0
    monkeypatch.setenv("REPARTIR_SHM_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(SharedMemoryFull, match="nowhere"):
        arena_limit()


# ---- deaths and exceptions


def test_rebuild_finds_every_free_block(place: ArenaRoom, arena: Arena) -> None:
    handles = [store(arena, bytes(size)) for size in (1, 1, 2000, 2000, 30_000)]
    for handle in handles[::2]:
        arena.free(handle)
    for size_class in range(A_CLASSES):
        place.words[A_FREE_W + size_class] = 0
    arena.lock.repair()
    arena.check()
    carved = place.words[A_CARVED]
    assert {store(arena, bytes(size)).offset for size in (1, 2000, 30_000)} == {
        h.offset for h in handles[::2]
    }
    assert place.words[A_CARVED] == carved


@pytest.mark.parametrize("wrong", ["nowhere", "class", "loop"])
def test_check_refuses_a_broken_free_list(place: ArenaRoom, arena: Arena, wrong: str) -> None:
    handle = store(arena, b"a")
    arena.free(handle)
    block = (handle.offset - BLOCK_HEADER_BYTES) // WORD
    arena.check()
    if wrong == "nowhere":
        place.words[A_FREE_W] = block + 1
    elif wrong == "class":
        place.words[block + B_CLASS] = 1
    else:
        place.words[block + B_NEXT] = block
    with pytest.raises(InternalError, match="free list"):
        arena.check()


Act = Callable[[Arena, Handle], object]
ACTS: dict[str, Act] = {
    "store from a free list": lambda arena, _: arena.store([b"x" * 3000], 9),
    "store in new memory": lambda arena, _: arena.store([b"x" * 90_000], 9),
    "store in a larger one": lambda arena, _: (fill(arena, 90_000, 9), fill(arena, 100, 9)),
    "free": lambda arena, handle: arena.free(handle),
    "free owned": lambda arena, _: arena.free_owned(7),
    "free, then store": lambda arena, handle: (arena.free(handle), arena.store([b"x"], 9)),
}


def prepared(words: Fuse, place: ArenaRoom) -> tuple[Arena, Handle]:
    """An empty arena, then one block in use and two free ones."""
    place.segment.data[0:ARENA_HEADER_BYTES] = bytes(ARENA_HEADER_BYTES)
    place.arena.lock.create()
    arena = Arena(place.segment, place.arena.lock)
    arena._words = words
    arena.create()
    free = [store(arena, bytes(3000), owner=3), store(arena, bytes(3000), owner=3)]
    handle = store(arena, b"in use")
    for each in free:
        arena.free(each)
    return arena, handle


def expect_sound(arena: Arena, handle: Handle, act: str, where: str) -> None:
    """After a repair: nothing is lost, nothing given twice, and the block in use is still its owner's or free."""
    arena.check()
    if act.startswith("store"):
        assert arena.load(handle) == [b"in use"], where
    arena.free_owned(9)
    arena.free(handle)
    assert arena.used() == (0, 0), f"{where}: a block belongs to nobody who could free it"
    blocks = len(arena._blocks())
    handles = fill(arena, 1)
    assert len(handles) == len({each.offset for each in handles}) == len(arena._blocks())
    assert len(handles) >= blocks, f"{where}: a free block was lost"
    arena.free(handle)
    assert arena.used()[0] == len(handles), f"{where}: an old handle freed another's block"


@pytest.mark.parametrize("act", ACTS)
def test_cut_off_at_any_word(act: str) -> None:
    with arena_room(MIB // 4) as place:
        for nth in range(5000):
            fuse = Fuse(place.words)
            arena, handle = prepared(fuse, place)
            fuse.left = nth
            try:
                ACTS[act](arena, handle)
            except Interrupted:
                arena.lock.repair()
                expect_sound(arena, handle, act, f"cut off at access {nth}")
            else:
                assert fuse.left >= 0
                return
            if nth > 200 and act == "store in a larger one":
                return
        raise AssertionError(f"{act} needs more than 5000 accesses")


@pytest.mark.parametrize("act", ["store from a free list", "store in new memory", "free", "free owned"])
def test_killed_at_any_word(act: str) -> None:
    with arena_room(MIB // 4) as place:
        for nth in range(5000):
            deadly = Deadly(place.words)
            arena, handle = prepared(deadly, place)

            def child(
                arena: Arena = arena, deadly: Deadly = deadly, nth: int = nth, handle: Handle = handle
            ) -> None:
                deadly.left = nth
                ACTS[act](arena, handle)
                assert deadly.left >= 0

            status = Forked(child).wait()
            expect_sound(arena, handle, act, f"killed at access {nth}")
            if status == 0:
                return
            assert status == -signal.SIGKILL
        raise AssertionError(f"{act} needs more than 5000 accesses")


def test_blocks_of_another_process(arena: Arena) -> None:
    handle = store(arena, b"from here")

    def child() -> None:
        assert arena.load(handle) == [b"from here"]
        store(arena, b"from there", owner=RESULT | 9)
        os.kill(os.getpid(), signal.SIGKILL)

    assert Forked(child).wait() == -signal.SIGKILL
    assert arena.used()[0] == 2
    assert arena.free_owned(RESULT | 9) == 1
    assert arena.used()[0] == 1
