"""Processes that store, hand over, load and free blocks of one small arena."""

from __future__ import annotations

import os
import random
from itertools import pairwise

import pytest

from repartir.errors import InternalError
from repartir.shm.arena import HANDLE_BYTES, Arena, Handle
from tests.shared import ArenaRoom, Family, Forked, Gate, Patience, Tally, Threads, gates


def content(seed: int, size: int) -> list[bytes]:
    """Two parts that tell which store they belong to."""
    return [seed.to_bytes(8, "little"), bytes([seed % 251]) * size]


def expect(arena: Arena, handle: Handle, seed: int, size: int) -> None:
    assert arena.load(handle) == content(seed, size)


def store_surely(arena: Arena, seed: int, size: int, owner: int) -> Handle:
    patience = Patience()
    while (handle := arena.store(content(seed, size), owner)) is None:
        patience()
    return handle


def churn(arena: Arena, seed: int, rounds: int, owner: int) -> None:
    """Keep up to 20 blocks of random sizes, look at each again before it is freed."""
    dice = random.Random(seed)
    kept: list[tuple[Handle, int, int]] = []
    for nth in range(rounds):
        size = int(2 ** dice.uniform(0, 15))
        handle = arena.store(content(seed + nth, size), owner)
        if handle is not None:
            kept.append((handle, seed + nth, size))
        if handle is None or len(kept) > 20:
            while kept and (len(kept) > 20 or dice.random() < 0.5):
                block = kept.pop(dice.randrange(len(kept)))
                expect(arena, *block)
                assert arena.free(block[0])
                assert not arena.free(block[0])
    for block in kept:
        expect(arena, *block)
        assert arena.free(block[0])


def expect_empty(arena: Arena) -> None:
    """Every block is free and can be had again, once."""
    assert arena.used() == (0, 0)
    arena.check()
    handles = []
    while handle := arena.store([b""], 1):
        handles.append(handle)
    assert len({each.offset for each in handles}) == len(handles) == len(list(arena._blocks()))
    for handle in handles:
        assert arena.free(handle)


def test_smoke(arena_place: ArenaRoom) -> None:
    arena = arena_place.arena
    first, second = store_surely(arena, 1, 10, 7), store_surely(arena, 2, 10_000, 7)
    expect(arena, first, 1, 10)
    expect(arena, second, 2, 10_000)
    assert arena.free(first)
    expect(arena, second, 2, 10_000)
    assert arena.free(second)
    expect_empty(arena)


def test_is_empty(arena_place: ArenaRoom, children: Family, scale: int) -> None:
    """Another process sees each store and each freeing that is over."""
    arena = arena_place.arena
    with gates(2) as (asked, answered):

        def observer() -> None:
            for nth in range(200 * scale):
                asked.wait()
                assert arena.used()[0] == (nth + 1) % 2
                answered.open()

        children.fork(observer)
        handle = None
        for nth in range(200 * scale):
            if handle is None:
                handle = store_surely(arena, nth, nth, 7)
            else:
                assert arena.free(handle)
                handle = None
            asked.open()
            answered.wait()
        children.join()


def test_spsc(arena_place: ArenaRoom, children: Family, scale: int) -> None:
    """One process stores, the other loads and frees; the handles go through a pipe."""
    arena, steps = arena_place.arena, 4000 * scale
    reader, writer = os.pipe()

    def producer() -> None:
        for nth in range(steps):
            os.write(writer, store_surely(arena, nth, nth * 37 % 9000, 7).pack())

    try:
        children.fork(producer)
        os.close(writer)
        writer = -1
        for nth in range(steps):
            handle = Handle.unpack(os.read(reader, HANDLE_BYTES))
            expect(arena, handle, nth, nth * 37 % 9000)
            assert arena.free(handle)
        children.join()
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    expect_empty(arena)


def test_stampede(arena_place: ArenaRoom, children: Family, scale: int) -> None:
    """All at the same moment: no two blocks overlap, and no two get the last one."""
    arena, members = arena_place.arena, 4
    reader, writer = os.pipe()
    try:
        for size in [100, 3000, 40_000] * (3 * scale):
            with gates(1) as (start,):

                def member(me: int, start: Gate = start, size: int = size) -> None:
                    start.wait()
                    for nth in range(12):
                        if handle := arena.store(content(me * 100 + nth, size), me):
                            os.write(writer, (me * 100 + nth).to_bytes(8, "little") + handle.pack())

                for me in range(1, members + 1):
                    children.fork(member, me)
                start.open(members)
                children.join()
            found = os.read(reader, 1 << 16)
            blocks = []
            for at in range(0, len(found), 8 + HANDLE_BYTES):
                seed = int.from_bytes(found[at : at + 8], "little")
                handle = Handle.unpack(found[at + 8 : at + 8 + HANDLE_BYTES])
                expect(arena, handle, seed, size)
                blocks.append(handle)
            assert len(blocks) == arena.used()[0]
            blocks.sort(key=lambda handle: handle.offset)
            for before, after in pairwise(blocks):
                assert before.offset + before.size <= after.offset
            assert sum(arena.free_owned(me) for me in range(1, members + 1)) == len(blocks)
            assert not any(arena.free(handle) for handle in blocks)
    finally:
        os.close(reader)
        os.close(writer)
    expect_empty(arena)


def test_stress(arena_place: ArenaRoom, children: Family, scale: int) -> None:
    """Random sizes; full at times; threads too."""
    arena = arena_place.arena

    def two_threads() -> None:
        threads = Threads()
        threads.start(churn, arena, 3000, 200 * scale, 3)
        threads.start(churn, arena, 4000, 200 * scale, 4)
        threads.join()

    children.fork(churn, arena, 1000, 400 * scale, 1)
    children.fork(two_threads)
    churn(arena, 2000, 400 * scale, 2)
    children.join()
    expect_empty(arena)


def test_no_starvation(arena_place: ArenaRoom, children: Family, scale: int) -> None:
    """There is room for two blocks and there are four takers, who hold them for a moment."""
    arena, share = arena_place.arena, 30 * scale
    tally = Tally(4, 1)

    def taker(me: int) -> None:
        for nth in range(share):
            handle = store_surely(arena, nth, 300_000, me + 1)
            expect(arena, handle, nth, 300_000)
            assert arena.free(handle)
            os.sched_yield()
        tally.count(me, 0)

    for me in range(4):
        children.fork(taker, me)
    children.join()
    assert [tally.of(me)[0] for me in range(4)] == [1] * 4
    expect_empty(arena)


def test_destructors(arena_place: ArenaRoom, children: Family, scale: int, dice: random.Random) -> None:
    """Processes are killed at any moment; what they owned is freed, once, and nothing else is."""
    arena = arena_place.arena
    mine = [(store_surely(arena, nth, nth * 50, 99), nth, nth * 50) for nth in range(10)]
    with gates(1) as (ready,):

        def member(owner: int) -> None:
            ready.open()
            churn(arena, owner * 1000, 1 << 30, owner)

        members: dict[int, Forked] = {}
        for owner in range(1000, 1000 + 40 * scale):
            members[owner] = children.fork(member, owner)
            ready.wait()
            for _ in range(dice.randrange(4)):
                churn(arena, owner, 5, 98)
            if len(members) == 3 or dice.random() < 0.2:
                victim = dice.choice(list(members))
                members.pop(victim).kill()
                arena.free_owned(victim)
                assert arena.free_owned(victim) == 0
        for owner, child in members.items():
            child.kill()
            arena.free_owned(owner)
    arena.check()
    for block in mine:
        expect(arena, *block)
        assert arena.free(block[0])
        with pytest.raises(InternalError):
            arena.load(block[0])
    expect_empty(arena)
