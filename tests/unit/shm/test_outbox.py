from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from repartir.errors import InternalError
from repartir.shm.layout import O_HEAD_W, O_TAIL_W, RECORD_HEADER_BYTES
from repartir.shm.outbox import Answer, Outbox, records
from tests.shared import LOCK_KINDS, Deadly, Forked, Fuse, Interrupted, Room, room

SIZE = 256


@pytest.fixture(params=LOCK_KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Room]:
    with room(request.param) as made:
        yield made
    request.node.funcargs.clear()  # they hold the mapping, and the guard looks before pytest lets them go


@pytest.fixture
def outbox(place: Room) -> Outbox:
    return place.outbox(SIZE)


def drain(outbox: Outbox) -> list[Answer]:
    """All answers; the room that they took is free afterwards."""
    found = list(records(outbox.peek()))
    outbox.consumed()
    assert outbox.peek() == b""
    return found


def record_bytes(length: int) -> int:
    return RECORD_HEADER_BYTES + (length + 7 & ~7)


def test_records_come_in_order_and_whole(outbox: Outbox) -> None:
    answers = [(1 << 63 | 5, 0, b""), (2, 3, b"x"), (3, 1, b"12345678"), (4, 2, b"123456789")]
    for answer in answers:
        assert outbox.put(*answer)
    outbox.check()
    assert drain(outbox) == answers
    assert drain(outbox) == []


@pytest.mark.parametrize("start", range(0, SIZE, 8))
def test_wraps_around_at_every_offset(place: Room, outbox: Outbox, start: int) -> None:
    for word in (O_HEAD_W, O_TAIL_W):
        place.words[word] = 7 * SIZE + start
    again = place.outbox(SIZE)
    for length in (0, 1, 7, 8, 9, 31, 32, 100, SIZE - RECORD_HEADER_BYTES):
        payload = bytes(range(1, 256))[:length]
        assert again.put(length + 1, 1, payload)
        again.check()
        assert drain(again) == [(length + 1, 1, payload)]


def test_two_records_wrap_while_the_first_waits(outbox: Outbox) -> None:
    for nth in range(200):
        first, second = (nth + 1, 0, b"a" * (nth % 60)), (nth + 2, 1, b"b" * (nth % 47))
        assert outbox.put(*first)
        assert outbox.put(*second)
        assert drain(outbox) == [first, second]


def test_full_until_what_was_read_is_consumed_and_published(outbox: Outbox) -> None:
    count = SIZE // record_bytes(16)
    for nth in range(count):
        assert outbox.put(nth + 1, 0, bytes(16))
    assert not outbox.put(99, 0, b"")
    assert len(list(records(outbox.peek()))) == count
    assert not outbox.put(99, 0, b""), "what was read may be wanted again"
    outbox.consumed()
    assert not outbox.put(99, 0, b""), "the room is published under the next lock"
    assert outbox.peek() == b""
    assert outbox.put(99, 0, b"")


def test_record_that_fits_to_the_byte(outbox: Outbox) -> None:
    assert outbox.put(1, 0, bytes(SIZE - RECORD_HEADER_BYTES))
    assert not outbox.put(2, 0, b"")
    assert len(drain(outbox)[0][2]) == SIZE - RECORD_HEADER_BYTES
    outbox.peek()
    assert not outbox.put(1, 0, bytes(SIZE - RECORD_HEADER_BYTES + 1))
    assert outbox.put(1, 0, bytes(SIZE - RECORD_HEADER_BYTES))


def test_largest_payload_fits_several_times(outbox: Outbox) -> None:
    assert outbox.largest_bytes == SIZE // 8
    for nth in range(4):
        assert outbox.put(nth + 1, 0, bytes(outbox.largest_bytes))


def test_what_was_not_consumed_comes_again(outbox: Outbox) -> None:
    outbox.put(1, 0, b"a")
    assert [task for task, _, _ in records(outbox.peek())] == [1]
    outbox.put(2, 0, b"b")
    assert [task for task, _, _ in records(outbox.peek())] == [1, 2]
    outbox.put(3, 0, b"c")
    outbox.consumed()
    assert [task for task, _, _ in drain(outbox)] == [3], "consumed is only what was read"


def test_news(outbox: Outbox) -> None:
    assert not outbox.has_news()
    outbox.put(1, 0, b"")
    assert outbox.has_news()
    outbox.peek()
    assert outbox.has_news(), "it was read, but not consumed"
    outbox.consumed()
    assert not outbox.has_news()


def test_member_of_another_process(place: Room, outbox: Outbox) -> None:
    for nth in range(5):
        Forked(outbox.put, nth + 1, 1, b"from afar").join()
    assert [task for task, _, _ in drain(outbox)] == [1, 2, 3, 4, 5]


def test_client_that_starts_late_reads_on(place: Room, outbox: Outbox) -> None:
    outbox.put(1, 0, b"")
    drain(outbox)
    outbox.peek()
    outbox.put(2, 0, b"")
    assert [task for task, _, _ in drain(place.outbox(SIZE))] == [2]


@pytest.mark.parametrize(("head", "tail"), [(8, 0), (0, SIZE + 8), (0, 1 << 60)])
def test_impossible_ends_are_refused(place: Room, head: int, tail: int) -> None:
    place.words[O_HEAD_W] = head
    outbox = place.outbox(SIZE)
    place.words[O_TAIL_W] = tail
    with pytest.raises(InternalError, match="outbox with head"):
        outbox.check()
    with pytest.raises(InternalError, match="outbox with head"):
        outbox.peek()


def test_check_refuses_a_torn_end(place: Room, outbox: Outbox) -> None:
    place.words[O_TAIL_W] = 12
    with pytest.raises(InternalError):
        outbox.check()


def test_truncated_records_are_refused(outbox: Outbox) -> None:
    answers = [(1, 0, b"abc"), (2, 1, b"12345678"), (3, 0, b"")]
    ends = [0]
    for task, status, payload in answers:
        outbox.put(task, status, payload)
        ends.append(ends[-1] + record_bytes(len(payload)))
    whole = outbox.peek()
    for cut in range(len(whole)):
        complete = sum(
            cut >= end - (-len(payload) % 8) for end, (_, _, payload) in zip(ends[1:], answers, strict=True)
        )
        found: list[Answer] = []
        if cut - ends[complete] <= 0:
            assert list(records(whole[:cut])) == answers[:complete]
            continue
        with pytest.raises(InternalError, match="outbox record"):
            for answer in records(whole[:cut]):
                found.append(answer)
        assert found == answers[:complete]


def test_record_that_claims_to_be_larger_than_the_ring(place: Room, outbox: Outbox) -> None:
    outbox.put(1, 0, b"abc")
    place.segment.data[256 + 8 : 256 + 12] = b"\xff" * 4
    with pytest.raises(InternalError, match="4294967295 bytes"):
        list(records(outbox.peek()))


def test_put_cut_off_at_any_word_leaves_nothing_or_all(place: Room) -> None:
    for nth in range(50):
        fuse = Fuse(place.words)
        outbox = place.outbox(SIZE, words=fuse)
        drain(outbox)
        outbox.put(1, 0, b"first")
        fuse.left = nth
        try:
            outbox.put(2, 0, b"second")
        except Interrupted:
            outbox.check()
            assert [task for task, _, _ in drain(outbox)] in ([1], [1, 2])
        else:
            assert fuse.left >= 0
            return
    raise AssertionError("put needs more than 50 accesses")


def test_reading_cut_off_at_any_word_loses_nothing(place: Room) -> None:
    for nth in range(50):
        fuse = Fuse(place.words)
        outbox = place.outbox(SIZE, words=fuse)
        drain(outbox)
        outbox.put(1, 0, b"first")
        fuse.left = nth
        try:
            outbox.peek()
        except Interrupted:
            assert drain(outbox) == [(1, 0, b"first")]
        else:
            assert fuse.left >= 0
            return
    raise AssertionError("peek needs more than 50 accesses")


def test_member_killed_at_any_word_leaves_nothing_or_all(place: Room) -> None:
    for nth in range(50):
        deadly = Deadly(place.words)
        outbox = place.outbox(SIZE, words=deadly)
        drain(outbox)
        outbox.put(1, 0, b"first")

        def child(outbox: Outbox = outbox, deadly: Deadly = deadly, nth: int = nth) -> None:
            deadly.left = nth
            outbox.put(2, 0, b"second")
            assert deadly.left >= 0

        status = Forked(child).wait()
        found = [task for task, _, _ in drain(outbox)]
        if status == 0:
            assert found == [1, 2]
            return
        assert status == -signal.SIGKILL
        assert found == [1], "the commit is the last access"
        Forked(outbox.put, 3, 0, b"by the successor").join()
        assert drain(outbox) == [(3, 0, b"by the successor")]
    raise AssertionError("put needs more than 50 accesses")
