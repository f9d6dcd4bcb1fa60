from __future__ import annotations

import array
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from repartir.errors import InternalError, SharedMemoryFull
from repartir.shm import arena as arena_module
from repartir.shm.arena import HANDLE_BYTES, KEPT, RESULT, Arena, Handle, arena_limit
from repartir.shm.layout import (
    A_CARVED,
    A_CLASSES,
    A_FREE_W,
    A_RESERVED,
    ARENA_HEADER_BYTES,
    B_BACKED,
    B_NEXT,
    B_SIZE,
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


def test_at_most_an_eighth_of_a_block_is_waste() -> None:
    for size in {*range(SIZES[0], 20_000), *(size + 1 for size in SIZES[:-1])}:
        block = SIZES[arena_module._class_of(size)]
        assert block - size <= block / 8, size


def test_a_free_block_is_listed_where_it_serves() -> None:
    for size in {
        *range(SIZES[0], 20_000, 64),
        *(size + step for size in SIZES[1:200] for step in (-64, 0, 64)),
    }:
        below = arena_module._class_below(size)
        assert SIZES[below] <= size < SIZES[below + 1]


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
        handle._replace(offset=BLOCK_HEADER_BYTES),
        handle._replace(offset=1 << 50),
        handle._replace(offset=handle.offset + 4 * MIB),
    ):
        with pytest.raises(InternalError, match="points outside"):
            arena.load(bad)
    with pytest.raises(InternalError, match="larger than its block"):
        arena.load(handle._replace(size=MIB))
    with pytest.raises(InternalError, match="with parts of"):
        arena.load(handle._replace(size=handle.size + 1))


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
    assert place.words[A_CARVED] <= place.segment.size
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
    assert store(arena, bytes(100_000)).offset == large[0].offset, "its parts were joined"


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
        asked.append((offset, offset + size))
        really(fd, offset, size)

    def is_backed(byte: int) -> bool:
        return byte < ARENA_HEADER_BYTES or any(start <= byte < end for start, end in asked)

    monkeypatch.setattr(arena_module, "reserve", spy)
    generator, handles = random.Random(1), []
    for _ in range(300):
        handle = arena.store([bytes(generator.randrange(1, 200_000))], 7)
        if handle is not None:
            handles.append(handle)
            assert all(map(is_backed, range(handle.offset - 64, handle.offset + handle.size, 1024)))
        if handle is None or generator.random() < 0.3:
            arena.free(handles.pop(generator.randrange(len(handles))))
        for block in arena._blocks():
            start, end = block * WORD, block * WORD + place.words[block + B_BACKED]
            assert all(map(is_backed, range(start, end, 1024)))
    assert asked
    assert max(end for _, end in asked) <= place.segment.size


def test_limit_is_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = os.statvfs("/dev/shm")
    assert arena_limit() == pytest.approx(usage.f_bavail * usage.f_frsize * 0.8, rel=0.2)
    assert arena_limit() % 4096 == 0
    monkeypatch.setenv("REPARTIR_SHM_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(SharedMemoryFull, match="nowhere"):
        arena_limit()


# ---- joining, splitting and giving back


def test_neighbours_that_are_free_become_one_block(arena: Arena) -> None:
    handles = fill(arena, 10_000)
    for handle in handles:
        arena.free(handle)
    whole = store(arena, bytes(150 * 10_000))
    assert whole.offset == handles[0].offset
    arena.check()


def test_a_large_block_serves_small_ones_when_there_is_nothing_else(arena: Arena) -> None:
    arena.free(store(arena, bytes(2 * MIB - 8192 - 4096)))
    assert len(fill(arena, 1000)) > 1500
    arena.check()


def test_mixed_sizes_never_fill_it_with_holes(arena: Arena) -> None:
    """Whatever came before, what is free can be had again as one block."""
    generator, held = random.Random(7), []
    for _ in range(2000):
        handle = arena.store([bytes(generator.choice((100, 1000, 9000, 70_000, 300_000)))], 7)
        if handle is None or (held and generator.random() < 0.5):
            arena.free(held.pop(generator.randrange(len(held))))
        if handle is not None:
            held.append(handle)
    for handle in held:
        arena.free(handle)
    store(arena, bytes(2 * MIB - 3 * 4096))


@pytest.mark.parametrize("seed", range(3))
def test_fragmentation_is_bounded(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of blocks of 1 KiB to 64 MiB that come and go; the figure is in shm/README.md."""
    monkeypatch.setattr(arena_module, "reserve", lambda *_: None)
    with arena_room(1 << 34) as place:
        arena, dice = place.arena, random.Random(seed)
        live: list[Handle] = []
        in_use = most_in_use = most_backed = 0
        for nth in range(5000):
            if len(live) > 60 + nth // 1000 * 20:
                handle = live.pop(dice.randrange(len(live)))
                assert arena.free(handle)
                in_use -= handle.size
            made = arena._allocate(int(2 ** dice.uniform(10, 26)), 7)
            assert made is not None
            live.append(made)
            in_use += made.size
            most_in_use = max(most_in_use, in_use)
            if nth % 100 == 0:
                most_backed = max(most_backed, arena.backed())
        assert most_backed < 1.6 * most_in_use
        arena.check()


def memory_of(place: ArenaRoom) -> int:
    return os.fstat(place.segment.fd).st_blocks * 512


def test_trimming_gives_memory_back_and_keeps_content(place: ArenaRoom, arena: Arena) -> None:
    handles = [store(arena, bytes([nth]) * 200_000) for nth in range(8)]
    for handle in handles[::2]:
        arena.free(handle)
    before = memory_of(place)
    while arena.trim(MIB // 4):
        pass
    assert before - memory_of(place) > 3 * 200_000
    assert memory_of(place) <= arena.backed() + 8 * 4096
    for nth in range(1, 8, 2):
        assert arena.load(handles[nth]) == [bytes([nth]) * 200_000]
    again = [store(arena, b"n" * 200_000) for _ in range(4)]
    assert [arena.load(handle) for handle in again] == [[b"n" * 200_000]] * 4
    assert memory_of(place) >= 8 * 200_000
    arena.check()


def test_large_blocks_have_memory_for_what_they_hold_only(place: ArenaRoom, arena: Arena) -> None:
    store(arena, bytes(MIB + 1))
    assert memory_of(place) < MIB + 4 * 4096


def test_a_kept_block_is_its_keepers(arena: Arena) -> None:
    handle = store(arena, b"arguments")
    assert arena.keep(handle, 3)
    assert not arena.free(handle)
    assert arena.load(handle) == [b"arguments"]
    assert arena.free_owned(KEPT | 3) == 1
    assert not arena.keep(handle, 3)
    other = store(arena, b"arguments")
    assert arena.keep(other, 3)
    assert arena.free(other, kept=True)
    assert not arena.free(other, kept=True)


def test_all_but_some_are_given_back(arena: Arena) -> None:
    handles = [store(arena, bytes(5000), owner=nth + 1) for nth in range(6)]
    arena.free_all_but({handles[2].offset, handles[5].offset})
    assert arena.used()[0] == 2
    assert arena.load(handles[2]) == [bytes(5000)]


class Writer:
    """A part that writes itself."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __len__(self) -> int:
        return len(self.content)

    def write_to(self, target: memoryview) -> None:
        target[:] = self.content


def test_parts_may_write_themselves(arena: Arena) -> None:
    handle = arena.store([b"meta", Writer(b"elements" * 100)], 7)
    assert handle is not None
    assert arena.load(handle) == [b"meta", b"elements" * 100]


# ---- deaths and exceptions


def test_rebuild_finds_every_free_block(place: ArenaRoom, arena: Arena) -> None:
    handles = [store(arena, bytes(size)) for size in (1, 1, 2000, 2000, 30_000)]
    for handle in handles[::2]:
        arena.free(handle)
    for size_class in range(A_CLASSES):
        place.words[A_FREE_W + size_class] = 0
    arena.lock.repair()
    arena.check()
    assert {store(arena, bytes(size)).offset for size in (1, 2000, 30_000)} == {
        h.offset for h in handles[::2]
    }


@pytest.mark.parametrize("wrong", ["nowhere", "class", "loop"])
def test_check_refuses_a_broken_free_list(place: ArenaRoom, arena: Arena, wrong: str) -> None:
    handle = store(arena, b"a")
    arena.free(handle)
    block = (handle.offset - BLOCK_HEADER_BYTES) // WORD
    arena.check()
    if wrong == "nowhere":
        place.words[A_FREE_W] = block + 1
    elif wrong == "class":
        place.words[block + B_SIZE] = 1024
    else:
        place.words[block + B_NEXT] = block
    with pytest.raises(InternalError, match="arena block" if wrong == "class" else "free list"):
        arena.check()


Act = Callable[[Arena, Handle], object]
ACTS: dict[str, Act] = {
    "store from a free list": lambda arena, _: arena.store([b"x" * 3000], 9),
    "store in new memory": lambda arena, _: arena.store([b"x" * 90_000], 9),
    "store in a larger one": lambda arena, _: (fill(arena, 90_000, 9), fill(arena, 100, 9)),
    "free": lambda arena, handle: arena.free(handle),
    "free owned": lambda arena, _: arena.free_owned(7),
    "free, then store": lambda arena, handle: (arena.free(handle), arena.store([b"x"], 9)),
    "free, then join all": lambda arena, handle: (arena.free(handle), arena.store([bytes(256_000)], 9)),
    "trim": lambda arena, _: arena.trim(MIB),
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
    handles = fill(arena, 1)
    assert len(handles) == len({each.offset for each in handles}) == len(list(arena._blocks()))
    assert arena._words[A_CARVED] + SIZES[0] > arena.limit, f"{where}: memory was lost"
    arena.free(handle)
    assert arena.used()[0] == len(handles), f"{where}: an old handle freed another's block"


LONG = ("free, then join all", "trim")


@pytest.mark.parametrize(
    "act", [pytest.param(act, marks=pytest.mark.slow if act in LONG else ()) for act in ACTS]
)
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


@pytest.mark.parametrize(
    "act",
    [
        "store from a free list",
        "store in new memory",
        "free",
        "free owned",
        pytest.param("free, then join all", marks=pytest.mark.slow),
        pytest.param("trim", marks=pytest.mark.slow),
    ],
)
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
