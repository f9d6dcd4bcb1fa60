"""Every structure has bytes of its own, and every word and lock is aligned."""

from __future__ import annotations

from itertools import pairwise

import pytest

from repartir.shm import layout
from repartir.shm.layout import WORD, RingLayout

LAYOUTS = [
    RingLayout(1),
    RingLayout(2),
    RingLayout(7),
    RingLayout(65),
    RingLayout(layout.MAX_ROWS),
    RingLayout(1, capacity=4, spawn_capacity=4, outbox_bytes=64),
    RingLayout(3, capacity=4, spawn_capacity=4, outbox_bytes=64),
    RingLayout(5, capacity=4, spawn_capacity=2048, outbox_bytes=256),
    RingLayout(14, capacity=64, spawn_capacity=8, outbox_bytes=128),
    RingLayout(2, capacity=4, spawn_capacity=4, outbox_bytes=64, mailbox_capacity=4),
    RingLayout(3, capacity=4, spawn_capacity=4, outbox_bytes=64, depth=8, cells=1, shared_capacity=4),
]

Extent = tuple[int, int, str]


def lock_and_words(base: int, lock: int, words: dict[str, int], name: str) -> list[Extent]:
    extents = [(base + lock, layout.LOCK_BYTES, f"{name} lock")]
    return extents + [(base + word * WORD, WORD, f"{name} {what}") for what, word in words.items()]


def extents(shape: RingLayout) -> list[Extent]:
    """Start, size and name of everything that lies in a ring segment."""
    header = {
        "magic": layout.H_MAGIC,
        "version": layout.H_VERSION,
        "rows": layout.H_ROWS,
        "closing": layout.H_CLOSING,
        "client sleep": layout.H_CLIENT_SLEEP,
        "dirty": layout.H_PARKING_DIRTY_W,
    }
    found = lock_and_words(0, layout.H_PARKING_LOCK, header, "header")
    mask_bytes = layout.MAX_ROWS // 8
    found += lock_and_words(0, layout.H_SPLITTING_LOCK, {"dirty": layout.H_SPLITTING_DIRTY_W}, "splitting")
    found.append((layout.H_IDLE_MASK_W * WORD, mask_bytes, "idle mask"))
    found.append((layout.H_SPIN_MASK_W * WORD, mask_bytes, "spin mask"))
    found.append((layout.H_WAIT_MASK_W * WORD, mask_bytes, "wait mask"))
    row_words = (
        layout.R_KIND,
        layout.R_PID,
        layout.R_STATE,
        layout.R_CLAIM,
        layout.R_STARTED,
        layout.R_RUNS,
        layout.R_STEALS,
        layout.R_BLOCKED,
    )
    deque_words = {"dirty": layout.D_DIRTY_W, "head": layout.D_HEAD_W, "tail": layout.D_TAIL_W}
    outbox_words = {"dirty": layout.O_DIRTY_W, "head": layout.O_HEAD_W, "tail": layout.O_TAIL_W}
    nest_words = {"dirty": layout.N_DIRTY_W, "counter": layout.N_COUNTER_W, "ended": layout.N_ENDED_W}
    for row in range(shape.rows):
        found += [(shape.row(row) + word * WORD, WORD, f"row {row} word {word}") for word in row_words]
        found.append((shape.row(row) + layout.R_SEMAPHORE, 32, f"row {row} semaphore"))
        for name, base, capacity in (
            ("lane", shape.lane(row), shape.capacity),
            ("spawn", shape.spawn(row), shape.spawn_capacity),
            ("mailbox", shape.mailbox(row), shape.mailbox_capacity),
        ):
            found += lock_and_words(base, 0, deque_words, f"{name} {row}")
            slots = base + layout.DEQUE_HEADER_BYTES
            found.append((slots, capacity * layout.SLOT_BYTES, f"{name} {row} slots"))
        base = shape.outbox(row)
        found += lock_and_words(base, 0, outbox_words, f"outbox {row}")
        found.append((base + layout.OUTBOX_HEADER_BYTES, shape.outbox_bytes, f"outbox {row} ring"))
        hand_words = (
            layout.T_TASK_W,
            layout.T_NEXT_W,
            layout.T_END_W,
            layout.T_SIZE_W,
            layout.T_VICTIM_W,
            layout.T_FIRST_W,
            layout.T_BYTES_W,
        )
        for level in layout.LEVELS:
            base, name = shape.hand(row, level), f"hand {level} of {row}"
            found += [(base + word * WORD, WORD, f"{name} word {word}") for word in hand_words]
            found.append((base + layout.T_PAYLOAD, layout.SLOT_PAYLOAD_BYTES, f"{name} payload"))
            found.append((base + layout.HAND_HEADER_BYTES, shape.buffer_bytes, f"{name} buffer"))
        base = shape.nest(row)
        found += lock_and_words(base, 0, nest_words, f"nest {row}")
        claims = base + layout.NEST_HEADER_BYTES
        found.append((claims, shape.depth * WORD, f"claims {row}"))
        cells = claims + shape.depth * WORD
        found.append((cells, shape.cells * layout.CELL_BYTES, f"cells {row}"))
    for name, base in (("high lane", shape.high_lane), ("low lane", shape.low_lane)):
        found += lock_and_words(base, 0, deque_words, name)
        slots = base + layout.DEQUE_HEADER_BYTES
        found.append((slots, shape.shared_capacity * layout.SLOT_BYTES, f"{name} slots"))
    return found


@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_nothing_overlaps(shape: RingLayout) -> None:
    ordered = sorted(extents(shape))
    for (start, size, name), (next_start, _, next_name) in pairwise(ordered):
        assert start + size <= next_start, f"{name} reaches into {next_name}"
    start, size, name = ordered[-1]
    assert start + size <= shape.total_bytes, f"{name} reaches beyond the segment"


@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_words_and_locks_are_aligned(shape: RingLayout) -> None:
    for start, _, name in extents(shape):
        assert start % WORD == 0, name
        if name.endswith("lock"):
            assert start % layout.LOCK_BYTES == 0, name
    assert shape.total_bytes % 4096 == 0


@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_record_locks_have_bytes_of_their_own(shape: RingLayout) -> None:
    """`LockFactory` locks the byte `offset // LOCK_BYTES` of the lock file."""
    bytes_ = [start // layout.LOCK_BYTES for start, _, name in extents(shape) if name.endswith("lock")]
    assert len(bytes_) == len(set(bytes_))


def test_nothing_overlaps_in_the_arenas_header() -> None:
    words = {
        "magic": layout.A_MAGIC,
        "limit": layout.A_LIMIT,
        "reserved": layout.A_RESERVED,
        "carved": layout.A_CARVED,
        "generation": layout.A_GENERATION,
        "stale": layout.A_STALE,
        "free bytes": layout.A_FREE_BYTES,
        "freed": layout.A_FREED,
        "dirty": layout.A_DIRTY_W,
    }
    found = lock_and_words(0, layout.A_LOCK, words, "arena")
    found.append((layout.A_LISTED_W * WORD, -(-layout.A_CLASSES // 64) * WORD, "listed"))
    found.append((layout.A_FREE_W * WORD, layout.A_CLASSES * WORD, "free lists"))
    for (start, size, name), (next_start, _, next_name) in pairwise(sorted(found)):
        assert start + size <= next_start, f"{name} reaches into {next_name}"
    assert max(start + size for start, size, _ in found) <= layout.ARENA_HEADER_BYTES
    assert max(layout.B_OWNER, layout.B_GENERATION, layout.B_SIZE, layout.B_BACKED, layout.B_NEXT) * WORD < (
        layout.BLOCK_HEADER_BYTES
    )


@pytest.mark.parametrize("rows", [0, -1, layout.MAX_ROWS + 1])
def test_number_of_members_has_limits(rows: int) -> None:
    with pytest.raises(ValueError, match=str(layout.MAX_ROWS)):
        RingLayout(rows)


@pytest.mark.parametrize("bad", [0, 1, 2, 3, 5, 100, -8])
@pytest.mark.parametrize("field", ["capacity", "spawn_capacity", "outbox_bytes"])
def test_capacities_are_powers_of_two(field: str, bad: int) -> None:
    with pytest.raises(ValueError, match="powers of two"):
        RingLayout(2, **{field: bad})


@pytest.mark.parametrize("small", [4, 8, 16, 32])
def test_outbox_that_would_misalign_its_successors_is_refused(small: int) -> None:
    with pytest.raises(ValueError, match="at least 64"):
        RingLayout(2, outbox_bytes=small)


def test_slot_words_tell_flags_from_sizes() -> None:
    flags = (layout.IN_BLOCK, layout.CALL_MANY, layout.CALL_EACH)
    assert all(flag & layout.SIZE_MASK == 0 and flag < 1 << 64 for flag in flags)
    assert len(set(flags)) == 3
    assert layout.SLOT_HEADER_BYTES >= (max(layout.S_TASK, layout.S_SIZE) + 1) * WORD
    assert layout.SLOT_PAYLOAD_BYTES + layout.SLOT_HEADER_BYTES == layout.SLOT_BYTES


def test_task_word_holds_both_numbers_and_is_never_0() -> None:
    assert layout.task_word(1, 0) != 0
    word = layout.task_word(123_456_789, 77)
    assert word >> layout.ATTEMPT_BITS == 123_456_789
    assert word & layout.ATTEMPT_MASK == 77
    assert layout.task_word((1 << 47) - 1, layout.ATTEMPT_MASK) < 1 << 63, "the top bit marks results' blocks"


def test_the_word_of_a_child_says_who_waits_where() -> None:
    last = layout.MAX_ROWS - 1
    words = [
        layout.child_word(row, cell, count)
        for row in (0, 5, last)
        for cell in (0, 7, layout.NO_CELL)
        for count in (1, layout.COUNTER_MASK)
    ]
    assert len(set(words)) == len(words)
    for word in words:
        assert word & layout.CHILD
        assert word < layout.CHILD << 1
        assert layout.child_word(layout.spawner_of(word), layout.cell_of(word), word) == word
    assert not layout.task_word((1 << 45) - 1, layout.ATTEMPT_MASK) & layout.CHILD


@pytest.mark.parametrize("numbers", [{"cells": 0}, {"cells": layout.NO_CELL}, {"depth": 4}, {"depth": 12}])
def test_a_nest_that_does_not_fit_is_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a nest of"):
        RingLayout(1, **numbers)
