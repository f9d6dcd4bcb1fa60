"""Where every byte of the ring segment lies.  The only file that knows an offset.

One segment holds, in this order: the header, one row a member, then for every row its deques, its outbox, its mailbox,
its nest and its hands, and at the end two lanes of all members.

    header   640 bytes   magic, version, counts, the parking lock, the idle mask
    row      256 bytes   one member: kind, pid, state, claim, counters, its parking semaphore
    deque    256 bytes + capacity x 256     lock, head, tail, slots       (three a row: lane, spawn,
                                                                          mailbox behind the outbox; two of all:
                                                                          the high and the low lane)
    outbox   256 bytes + ring               lock, head, tail, bytes       (one a row)
    nest     256 bytes + depth x 8 + cells x 256   lock, claims of nested tasks, results of children   (one a row)
    hand     512 bytes + buffer             what a member has in hand of a map, answers to it (three a row)

All words are 64 bits, aligned, in the machine's byte order; offsets below that end in ``_W`` count words from the start
of their structure, all others count bytes.  Who writes each word is said in ``README.md`` beside this file.
"""

from __future__ import annotations

from dataclasses import dataclass

MAGIC = 0x5245504152544952  # "REPARTIR"
VERSION = 3
WORD = 8

HEADER_BYTES = 640
H_MAGIC, H_VERSION, H_ROWS, H_CLOSING, H_CLIENT_SLEEP = range(5)
H_PARKING_LOCK = 64  # byte offset
H_PARKING_DIRTY_W = 16
H_SPLITTING_DIRTY_W = 17
H_IDLE_MASK_W = 24  # one bit a row, 64 rows a word
H_SPIN_MASK_W = 40
H_SPLITTING_LOCK = 448  # byte offset
H_WAIT_MASK_W = 64
MAX_ROWS = (H_SPIN_MASK_W - H_IDLE_MASK_W) * 64

ROW_BYTES = 256
R_KIND, R_PID, R_STATE, R_CLAIM, R_STARTED, R_RUNS, R_STEALS, R_BLOCKED = range(8)
R_BEGAN, R_CONDEMNED, R_BASELINE = range(8, 11)
R_SEMAPHORE = 128  # byte offset; a POSIX sem_t needs 32

LOCK_BYTES = 64
DEQUE_HEADER_BYTES = 256
D_DIRTY_W, D_HEAD_W, D_TAIL_W = 8, 16, 24  # behind the lock; head and tail on cache lines of their own
SLOT_BYTES = 256
SLOT_WORDS = SLOT_BYTES // WORD
SLOT_HEADER_BYTES = 16
S_TASK, S_SIZE = range(2)  # the task word (0: removed); payload size, with IN_BLOCK when it lies in the arena
SLOT_PAYLOAD_BYTES = SLOT_BYTES - SLOT_HEADER_BYTES
IN_BLOCK = 1 << 63  # flags in the size word: the payload ends in a handle of an arena block
CALL_MANY = 1 << 62  # the arguments are argument tuples, for one call each
CALL_EACH = 1 << 61  # the arguments are for one call each
TIMED = 1 << 60  # the member notes when the call begins
AGAIN = 1 << 59  # the arguments may be needed for another attempt: the task gets copies
RANGE = 1 << 58  # items of a map: a member may leave the rest of them to others
STAR = 1 << 57  # each item is a tuple of arguments
FOLD = (
    1 << 56
)  # the function is a partial of an operator and a function: the operator folds what that returns
WHOLE = 1 << 55  # the items stay together
HIGH = 1 << 54  # the task lies in the high lane
LOW = 1 << 53  # the task lies in the low lane
CAPPED = 1 << 52  # the task's memory has a limit: what freed arrays of others take is given back first
SIZE_MASK = (1 << 32) - 1

AT_NORMAL, AT_HIGH, AT_LOW = LEVELS = range(3)
"""A priority, where it is an index: of a member's hands, of the client's queues."""

DEPTH_SHIFT = 32  # flags of a child: how deep in the tree of tasks it stands
DEPTH_MASK = 0xFFF

NEST_HEADER_BYTES = 256
N_DIRTY_W, N_COUNTER_W, N_ENDED_W = (
    8,
    16,
    24,
)  # behind the lock; how many children were posted from this row, and ended
CELL_BYTES = 256
CELL_WORDS = CELL_BYTES // WORD
CELL_HEADER_BYTES = 24
C_TASK, C_STATUS, C_PARENT = range(
    3
)  # the child's word (0: free); how it ended and the payload's size; its parent's word
CELL_PAYLOAD_BYTES = CELL_BYTES - CELL_HEADER_BYTES
CELL_STATUS_SHIFT = 32
# How a child ended.  VALUE: an outcome; IN_BLOCK: a handle; NO_ROOM for its outcome; DIED, NEVER_BEGUN: its member has died.
CELL_OPEN, CELL_VALUE, CELL_IN_BLOCK, CELL_NO_ROOM, CELL_DIED, CELL_NEVER_BEGUN = range(6)

OUTBOX_HEADER_BYTES = 256
O_DIRTY_W, O_HEAD_W, O_TAIL_W = 8, 16, 24
RECORD_HEADER_BYTES = 16

HAND_HEADER_BYTES = 512
T_TASK_W, T_NEXT_W, T_END_W, T_SIZE_W, T_VICTIM_W = range(5)  # changed under the splitting lock
T_FIRST_W, T_BYTES_W = 8, 9  # the member's alone, on a cache line of their own
T_PAYLOAD = 256  # byte offset, SLOT_PAYLOAD_BYTES

ARENA_MAGIC = 0x52455041_4152454E
ARENA_HEADER_BYTES = 4096
A_MAGIC, A_LIMIT, A_RESERVED, A_CARVED, A_GENERATION, A_STALE, A_FREE_BYTES, A_FREED = range(8)
A_LOCK = 64  # byte offset
A_DIRTY_W = 16
A_LISTED_W = 24  # one bit a size class: 0 only if its free list is empty
A_FREE_W = 32  # heads of the free lists, one a size class
A_CLASSES = 296
A_OVERFLOW_LOCK = 2688  # byte offset, in the first arena: the lock of the second
A_OVERFLOW_DIRTY_W = 344
BLOCK_HEADER_BYTES = 64
B_OWNER, B_GENERATION, B_SIZE, B_BACKED, B_NEXT = range(5)

# The status of an outbox record.  IN_BLOCK: a handle; PIECE: which piece of how many, and its bytes.  Those that begin with
# ITEM answer items of a map: which ones, and then the same.
(
    ANSWER,
    ANSWER_IN_BLOCK,
    ANSWER_PIECE,
    ITEMS,
    ITEM,
    ITEM_IN_BLOCK,
    ITEM_PIECE,
    MEMBER_READY,
    MEMBER_BROKEN,
    MEMBER_LOG,
) = range(10)

ATTEMPT_BITS = 16
ATTEMPT_MASK = (1 << ATTEMPT_BITS) - 1


def task_word(task_id: int, attempt: int) -> int:
    """Task and attempt in one word, so that one store claims both; never 0, since task ids start at 1."""
    return task_id << ATTEMPT_BITS | attempt


CHILD = 1 << 61
"""Set in the word of a task that a task has submitted.  The words of the client's tasks are smaller."""
_ROW_SHIFT, CELL_SHIFT = 51, 43
NO_CELL = 0xFF
"""In place of a cell, where none was free: nobody else learns of this child."""
COUNTER_MASK = (1 << CELL_SHIFT) - 1


def child_word(row: int, cell: int, counter: int) -> int:
    """The word of a child: who waits for it, in which cell of that row its result belongs, and a number not used before."""
    return CHILD | row << _ROW_SHIFT | cell << CELL_SHIFT | counter & COUNTER_MASK


def spawner_of(word: int) -> int:
    """The row whose member has posted this child."""
    return word >> _ROW_SHIFT & 0x3FF


def cell_of(word: int) -> int:
    """The cell for the child's result."""
    return word >> CELL_SHIFT & 0xFF


def owner_of_arguments(row: int) -> int:
    """Owner word of blocks that hold arguments of children that the member of this row has posted."""
    return child_word(row, 0, 0)


def owner_of_functions(row: int) -> int:
    """Owner word of blocks that hold functions of children that the member of this row has posted."""
    return child_word(row, NO_CELL, 0)


def level_of(flags: int) -> int:
    """The priority of a task with these flags."""
    return AT_HIGH if flags & HIGH else AT_LOW if flags & LOW else AT_NORMAL


def _round_up(size: int, to: int) -> int:
    return -(-size // to) * to


@dataclass(frozen=True, slots=True)
class RingLayout:
    """Byte offsets of every part of a ring segment with ``rows`` members.

    ``capacity`` (slots of a deque) and ``outbox_bytes`` are powers of two; an outbox of less than a cache line would
    misalign what lies behind it.
    """

    rows: int
    capacity: int = 512
    spawn_capacity: int = 128
    outbox_bytes: int = 1 << 16
    mailbox_capacity: int = 32
    depth: int = 512
    cells: int = 192
    shared_capacity: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.rows <= MAX_ROWS:
            raise ValueError(f"a ring has 1 to {MAX_ROWS} members, not {self.rows}")
        deques = (self.capacity, self.spawn_capacity, self.mailbox_capacity, self.shared_capacity)
        for value, least in (*((each, 4) for each in deques), (self.outbox_bytes, LOCK_BYTES)):
            if value < least or value & (value - 1):
                raise ValueError(f"capacities are powers of two, at least {least}, not {value}")
        if not 1 <= self.cells < NO_CELL or self.depth < 8 or self.depth % 8:
            raise ValueError(f"a nest of {self.cells} cells and {self.depth} levels")

    @property
    def _deques(self) -> int:
        return _round_up(HEADER_BYTES + self.rows * ROW_BYTES, 4096)

    @property
    def _member_bytes(self) -> int:
        slots = (self.capacity + self.spawn_capacity + self.mailbox_capacity) * SLOT_BYTES
        outbox = OUTBOX_HEADER_BYTES + self.outbox_bytes
        hands = len(LEVELS) * self._hand_bytes
        return 3 * DEQUE_HEADER_BYTES + slots + outbox + self._nest_bytes + hands

    @property
    def _hand_bytes(self) -> int:
        return HAND_HEADER_BYTES + self.buffer_bytes

    @property
    def _shared_lane_bytes(self) -> int:
        return DEQUE_HEADER_BYTES + self.shared_capacity * SLOT_BYTES

    @property
    def _nest_bytes(self) -> int:
        return NEST_HEADER_BYTES + self.depth * WORD + self.cells * CELL_BYTES

    @property
    def buffer_bytes(self) -> int:
        """Room for answers to items, which then go through the outbox as one record."""
        return _round_up(self.outbox_bytes // 16, 64)

    @property
    def total_bytes(self) -> int:
        return _round_up(self.low_lane + self._shared_lane_bytes, 4096)

    @property
    def high_lane(self) -> int:
        return self._deques + self.rows * self._member_bytes

    @property
    def low_lane(self) -> int:
        return self.high_lane + self._shared_lane_bytes

    def row(self, index: int) -> int:
        return HEADER_BYTES + index * ROW_BYTES

    def lane(self, index: int) -> int:
        return self._deques + index * self._member_bytes

    def spawn(self, index: int) -> int:
        return self.lane(index) + DEQUE_HEADER_BYTES + self.capacity * SLOT_BYTES

    def outbox(self, index: int) -> int:
        return self.spawn(index) + DEQUE_HEADER_BYTES + self.spawn_capacity * SLOT_BYTES

    def hand(self, index: int, level: int) -> int:
        return self.nest(index) + self._nest_bytes + level * self._hand_bytes

    def nest(self, index: int) -> int:
        return self.mailbox(index) + DEQUE_HEADER_BYTES + self.mailbox_capacity * SLOT_BYTES

    def mailbox(self, index: int) -> int:
        return self.outbox(index) + OUTBOX_HEADER_BYTES + self.outbox_bytes
