"""The items of a map as they lie in a block: cut into pages, each a pickle of its own.

A member unpickles a page when it comes to it, so ranges may be split at any item.  The first part of the block holds a flag,
by which the client tells that nobody wants the rest, and where each page begins.
"""

from __future__ import annotations

import pickle
import sys
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from repartir.codec import ATOMS, PROTOCOL, Encoded, decode

PAGE_BYTES = 8192
"""Pages grow to about this size; an item that is larger has a page of its own."""
_MOST_ITEMS = 1024
_FLAG_BYTES = 8
_SEQUENCES = {tuple, list}


class Pages:
    """A block's worth of pages in the making: ``count`` items in about ``size`` bytes, and what must live as long."""

    __slots__ = ("_pages", "_starts", "count", "keep", "size")

    def __init__(self) -> None:
        self.count = self.size = 0
        self.keep: list[Any] = []
        self._pages: list[bytes] = []
        self._starts: list[int] = []

    def add(self, count: int, page: bytes | Encoded) -> int:
        """A page with the next ``count`` items; how many the next page should have."""
        if type(page) is not bytes:
            self.keep.append(page.keep)  # type: ignore[union-attr]
            page = page.meta  # type: ignore[union-attr]
        self._starts.append(self.count)
        self._pages.append(page)
        self.count += count
        self.size += len(page)
        if len(page) < PAGE_BYTES // 2:
            return min(count * 2, _MOST_ITEMS)
        return max(1, count * PAGE_BYTES // len(page))

    def parts(self) -> list[bytes]:
        """The parts of the block."""
        return [bytes(_FLAG_BYTES) + array("Q", (*self._starts, self.count)).tobytes(), *self._pages]


def are_plain(items: Sequence[Any], *, star: bool) -> bool:
    """Whether all items are numbers, strings and the like, which nothing can change, or tuples of them."""
    kinds = set(map(type, items))
    if kinds <= _SEQUENCES and (star or kinds == {tuple}):
        kinds = {type(value) for item in items for value in item}
    numpy = sys.modules.get("numpy")
    return all(kind in ATOMS or (numpy is not None and issubclass(kind, numpy.generic)) for kind in kinds)


def range_page(items: range) -> bytes:
    """A page of integers that follow on each other, which are made where they are used."""
    return pickle.dumps((items, {}), PROTOCOL)


def cancel(first_part: memoryview) -> None:
    """Tell members that nobody wants the items of a block any more."""
    first_part[0] = 1


class PagedItems:
    """The items in the parts of a block."""

    __slots__ = ("_items", "_page", "_pages", "_starts", "_told")

    def __init__(self, parts: Sequence[memoryview]) -> None:
        self._told, *self._pages = parts
        self._starts = self._told[_FLAG_BYTES:].cast("Q").tolist()
        self._page = -1
        self._items: Sequence[Any] = ()

    def cancelled(self) -> bool:
        """Whether nobody wants the items any more.  A hint."""
        return self._told[0] != 0

    def page_end(self, index: int) -> int:
        """The first item behind the page of item ``index``."""
        return int(self._starts[bisect_right(self._starts, index)])

    def take(self, first: int, end: int) -> Sequence[Any]:
        """The items from ``first`` on that lie on one page, at most up to ``end``.  Raises what unpickling raises."""
        page = bisect_right(self._starts, first) - 1
        if page != self._page:
            self._items, _ = decode(self._pages[page])
            self._page = page
        begins = self._starts[page]
        return self._items[first - begins : end - begins]
