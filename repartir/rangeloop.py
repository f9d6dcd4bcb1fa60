"""How a member works on a range of a map's items; what it has in hand is in shared memory, see ``shm/hands.py``."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from itertools import starmap
from typing import Any, Protocol

from repartir import outcome
from repartir.batches import COLUMNS, KINDS, PICKLED, PLAIN, batch_bytes, pickled, plain
from repartir.children import Nest
from repartir.codec import ATOMS, Part, join_parts, parts_of
from repartir.pages import PagedItems
from repartir.payloads import HEAD_BYTES, RANGE, SPAN, pieces_of
from repartir.portable import without_outermost_frame
from repartir.shm.arena import UNSENT, Handle
from repartir.shm.board import Board
from repartir.shm.deque import Entry
from repartir.shm.layout import FOLD, ITEM, ITEM_IN_BLOCK, ITEM_PIECE, ITEMS, SIZE_MASK, STAR, WHOLE

SHARE_S, LARGE_SHARE_S = 250e-6, 1e-3
"""About so long a member works on items that nobody can take from it any more: the second while much is left for others."""
_GUIDED = 16
"""Much is so many shares and more.  Source: Polychronopoulos and Kuck 1987, guided self-scheduling."""
_SOON_S, _LATE_S = 100e-6, 1e-3
"""Answers wait so long at least and at most until they are sent, between them an eighth of the time since their range began.
That of the first item does not wait, nor do those of items that take long."""
_FOLD_S = 0.1
"""A part of a fold is sent so often, for those who look at the progress."""
_LEAST_COLUMN = 16
"""With fewer values of one type in a row than this a column does not pay."""
_COLUMN_BITS = 63
_ALL = 1 << 62


class Host(Protocol):
    """What the loop needs of its worker."""

    is_copy: bool
    """This process is a child that a task has forked, and nobody's worker."""
    nest: Nest

    def function(self, payload: bytes) -> Callable[..., Any]: ...

    def send(self, word: int, status: int, body: bytes) -> None: ...

    def pass_on(self) -> None: ...

    def goes_on(self) -> bool: ...

    def gives_way(self, level: int) -> bool: ...


class RangeLoop:
    """Runs ranges of one priority for the member of row ``index``."""

    def __init__(
        self, board: Board, index: int, level: int, host: Host, threshold: int, piece_bytes: int
    ) -> None:
        self._level = level
        self._hand = board.hands_of(index)[level]
        self._words = board.words
        self._data = board.segments[0].data
        self._blocks = board.blocks
        self._row = board.rows[index]
        self._host = host
        self._nest = host.nest
        self._threshold = threshold
        self._piece_bytes = piece_bytes
        self._word = 0
        self._whole: tuple[int, int] | None = None
        """What is left of a range that stays whole: its items are all reserved."""
        self._of_type: type | None = None
        self._kind = PLAIN
        self._column: Any = None
        self._is_mixed = False
        """The range's answers are of several types: no more columns."""
        buffer = memoryview(self._data)[self._hand.buffer : self._hand.buffer + self._hand.buffer_bytes]
        self._columns: dict[str | None, Any] = {"q": buffer.cast("q"), "d": buffer.cast("d")}
        self._column_room = self._hand.buffer_bytes // 8
        self._folded: Any = None
        self._is_folding = False
        self._sent_at = 0.0

    def run(self, entry: Entry, most: int) -> int:
        """Work on a claimed range until nothing is left of it, ``most`` items are done, or something of another priority has
        its turn: then the rest is laid aside.  How many items were done; a range that stays whole is one task.
        """
        word, payload, flags = entry
        hand, words = self._hand, self._words
        words[self._row.started] = word
        self._word = word
        self._whole = self._of_type = None
        self._kind, self._is_mixed = PLAIN, False
        if words[hand.task_word] != word:
            first, end = RANGE.unpack_from(payload, HEAD_BYTES)
            hand.take(word, payload, flags, first, end)
            if flags & WHOLE:
                self._whole, most = (first, end), _ALL
        if hand.has_rest():
            self._host.pass_on()
        self._nest.called = payload
        try:
            fn = self._host.function(payload)
            items = PagedItems(self._blocks.peek(Handle.unpack(payload[HEAD_BYTES + RANGE.size :])))
        except BaseException as exc:  # noqa: BLE001 - unpickling runs the user's code
            return self._answer_all(outcome.caught(exc))
        done = self._work(fn, items, flags, most)
        return 1 if flags & WHOLE else done

    def _reserve(self, most: int) -> tuple[int, int] | None:
        if self._whole is None:
            return self._hand.reserve(most)
        first, end = self._whole
        last = min(first + most, end)
        self._whole = last, end
        return (first, last) if first < last else None

    def _put_down(self) -> None:
        self._words[self._row.started] = 0
        self._hand.put_down()

    def _lay_aside(self) -> None:
        self._words[self._row.started] = 0
        self._hand.lay_aside()

    def _work(self, fn: Callable[..., Any], items: PagedItems, flags: int, most: int) -> int:
        clock, host, words, hand = time.perf_counter, self._host, self._words, self._hand
        serve = self._fold if flags & FOLD else self._serve
        began = self._sent_at = clock()
        done, share, at = 0, 1, words[hand.first_word]
        while done < most and (host.goes_on() or self._whole is not None):
            if done and self._whole is None and host.gives_way(self._level):
                self._flush(at)
                self._lay_aside()
                return done
            reserved = self._reserve(min(share, most - done))
            if reserved is None:
                self._flush(at)
                self._put_down()
                return done
            first, end = reserved
            if items.cancelled():
                self._drop(first)
                return done
            start = clock()
            at = first
            chunk: Sequence[Any] = ()
            while at < end:
                try:
                    chunk = items.take(at, end)
                except BaseException as exc:  # noqa: BLE001 - unpickling runs the user's code
                    chunk_end = min(items.page_end(at), end)
                    self._flush(at)
                    self._answer_alone(at, chunk_end - at, outcome.caught(exc))
                    at = chunk_end
                    continue
                serve(fn, chunk, at, flags & STAR)
                at += len(chunk)
            del chunk
            done += end - first
            now = clock()
            took = now - start
            left_s = (words[hand.end_word] - words[hand.next_word]) * took / (end - first)
            share_s = min(max(left_s / _GUIDED, SHARE_S), LARGE_SHARE_S)
            if took < share_s / 2:
                share *= 2
            elif took > share_s:
                share = max(1, int(share * share_s / took))
            if flags & FOLD:
                is_due = now - self._sent_at >= _FOLD_S
            else:
                is_due = done == 1 or now - self._sent_at >= min(max((now - began) / 8, _SOON_S), _LATE_S)
            if is_due:
                self._flush(end)
        self._flush(at)
        return done

    # ---- the items

    def _serve(self, fn: Callable[..., Any], items: Sequence[Any], first: int, star: int) -> None:
        """Call ``fn`` for each item; what it answers is in shared memory before the next item begins."""
        words, word, host, nest = self._words, self._hand.bytes_word, self._host, self._nest
        of_type, column, kind = self._of_type, self._column, self._kind
        count, room = words[word] & SIZE_MASK, self._column_room
        for index, item in enumerate(items, first):
            try:
                value = fn(*item) if star else fn(item)
            except BaseException as exc:  # noqa: BLE001 - the item's own
                if host.is_copy:
                    os._exit(0)
                self._answer_outcome(index, 1, _without_a_frame(exc))
                count = 0
                continue
            if host.is_copy:
                os._exit(0)
            if nest.level is not None:
                self._answer_outcome(index, 1, outcome.Value(value))
                count = 0
                continue
            if type(value) is of_type and count < room:
                try:
                    if column is not None:
                        column[count] = value
                    count += 1
                    words[word] = kind | count
                    continue
                except ValueError:
                    pass  # an integer of more than 64 bits
            self._answer_otherwise(index, value)
            of_type, column, kind = self._of_type, self._column, self._kind
            count = words[word] & SIZE_MASK

    def _answer_otherwise(self, index: int, value: Any) -> None:
        """An answer that does not go into the column at hand: begin another one, or pickle it."""
        hand, words = self._hand, self._words
        found = COLUMNS.get(type(value))
        field = words[hand.bytes_word]
        if found is not None and found[0] != self._kind:
            self._is_mixed = self._is_mixed or 0 < field & SIZE_MASK < _LEAST_COLUMN
        if type(value) is int and value.bit_length() > _COLUMN_BITS:
            self._is_mixed = True
        if found is not None and not self._is_mixed:
            self._flush(index)
            self._kind, form = found
            self._of_type, self._column = type(value), self._columns.get(form)
            if self._column is not None:
                self._column[0] = value
            words[hand.bytes_word] = self._kind | 1
            return None
        kind, self._of_type = PLAIN, None
        encoded: Any = None
        if type(value) in ATOMS:
            body = plain(value)
        else:
            kind, encoded = PICKLED, outcome.encode_outcome(outcome.Value(value), self._threshold)
            if type(encoded) is not bytes or encoded[:1] == outcome.ERROR_MARK:
                self._flush(index)
                return self._answer_item(index, 1, encoded)
            body = pickled(encoded)
        if kind != field & KINDS or (field & SIZE_MASK) + len(body) > hand.buffer_bytes:
            self._flush(index)
            field = 0
            if len(body) > hand.buffer_bytes:
                encoded = encoded or outcome.encode_outcome(outcome.Value(value), self._threshold)
                return self._answer_item(index, 1, encoded)
        at = field & SIZE_MASK
        start = hand.buffer + at
        self._data[start : start + len(body)] = body
        self._kind = kind
        words[hand.bytes_word] = kind | at + len(body)
        return None

    def _fold(self, call: Any, items: Sequence[Any], first: int, star: int) -> None:
        """Fold what the function returns for these items into what is there of the range already."""
        operator, (fn,) = call.func, call.args
        try:
            values = starmap(fn, items) if star else map(fn, items)
            value = functools.reduce(operator, values)
            if self._is_folding:
                value = operator(self._folded, value)
        except BaseException as exc:  # noqa: BLE001 - an item's own, or the operator's
            if self._host.is_copy:
                os._exit(0)
            begins, self._is_folding = self._words[self._hand.first_word], False
            return self._answer_outcome(begins, first + len(items) - begins, _without_a_frame(exc))
        if self._host.is_copy:
            os._exit(0)
        if self._nest.level is not None:
            begins, self._is_folding = self._words[self._hand.first_word], False
            return self._answer_outcome(begins, first + len(items) - begins, outcome.Value(value))
        self._folded, self._is_folding = value, True

    # ---- the answers

    def _flush(self, end: int) -> None:
        """Send what is answered of the items before ``end``."""
        hand, words = self._hand, self._words
        first = words[hand.first_word]
        self._sent_at = time.perf_counter()
        if self._is_folding:
            value, self._folded, self._is_folding = self._folded, None, False
            body = outcome.encode_outcome(outcome.Value(value), self._threshold)
            return self._answer_item(first, end - first, body)
        _, field, batch = hand.answers(batch_bytes)
        if field & SIZE_MASK:
            self._host.send(self._word, ITEMS, SPAN.pack(first, field) + batch)
            words[hand.bytes_word] = 0
            words[hand.first_word] = end
        return None

    def _answer_outcome(self, first: int, count: int, result: outcome.Value | outcome.Error) -> None:
        """Send the outcome of items by itself, once the children that they have submitted have ended."""
        if not self._is_folding:
            self._flush(first)
        self._answer_alone(first, count, self._nest.end_bottom(result))

    def _answer_alone(self, first: int, count: int, result: outcome.Value | outcome.Error) -> None:
        body = outcome.encode_outcome(result, self._threshold)
        result.forget()
        self._answer_item(first, count, body)

    def _answer_item(self, first: int, count: int, body: Any) -> None:
        """Send one outcome for ``count`` items; nothing is in the buffer."""
        span = SPAN.pack(first, count)
        if type(body) is bytes and len(body) + SPAN.size <= self._piece_bytes:
            self._host.send(self._word, ITEM, span + body)
        else:
            self._send_large(span, parts_of(body))
        self._words[self._hand.first_word] = first + count

    def _send_large(self, span: bytes, parts: list[Part]) -> None:
        handle = self._blocks.store(parts, UNSENT | self._row.index)
        if handle is not None:
            return self._host.send(self._word, ITEM_IN_BLOCK, span + handle.pack())
        for piece in pieces_of(join_parts(parts), self._piece_bytes - SPAN.size):
            self._host.send(self._word, ITEM_PIECE, span + piece)
        return None

    def _answer_all(self, error: outcome.Error) -> int:
        """Nothing of this range can be run."""
        done = 0
        while reserved := self._reserve(_ALL):
            self._answer_alone(
                reserved[0], reserved[1] - reserved[0], outcome.Error(error.exception, error.traceback)
            )
            done += reserved[1] - reserved[0]
        error.forget()
        self._put_down()
        return done

    def _drop(self, first: int) -> None:
        """Nobody wants the rest any more: say of which items so."""
        self._flush(first)
        end = first
        while reserved := self._reserve(_ALL):
            end = reserved[1]
        end = max(end, self._words[self._hand.next_word])
        self._host.send(self._word, ITEM, SPAN.pack(first, end - first))
        self._words[self._hand.first_word] = end
        self._put_down()


def _without_a_frame(exc: BaseException) -> outcome.Error:
    """The Error of an exception that was caught in this file: its traceback begins with the user's function."""
    without_outermost_frame(exc)
    return outcome.caught(exc)
