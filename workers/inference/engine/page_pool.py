"""The pages of one model's KV cache: which are held, and which hold something that can be found.

A page is held by any number of requests. A full page that was computed has a digest of its content,
under which it is found as long as it is not overwritten: when nobody holds it any more it is kept
until pages run out, and the one unused for longest goes first. Device thread only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PagePool:
    """Hands out page numbers 0 to `num_pages - 1`."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size  # tokens
        self._num_holders = [0] * num_pages
        self._digests: list[bytes | None] = [None] * num_pages
        self._pages: dict[bytes, int] = {}
        self._blank = list(range(num_pages - 1, -1, -1))  # held by nobody, found by nobody
        self._kept: OrderedDict[int, None] = OrderedDict()  # held by nobody; oldest release first

    @property
    def num_available(self) -> int:
        """Pages that nobody holds."""
        return len(self._blank) + len(self._kept)

    @property
    def usage(self) -> float:
        """Share of the pages that requests hold, 0 to 1."""
        return 1 - self.num_available / self.num_pages

    def num_pages_for(self, num_tokens: int) -> int:
        """Pages that hold this many tokens of one request."""
        return -(-num_tokens // self.page_size)

    def match(self, digests: Sequence[bytes]) -> list[int]:
        """Pages of the longest beginning of the chain that can be found. Doesn't hold them."""
        pages = []
        for digest in digests:
            page = self._pages.get(digest)
            if page is None:
                break
            pages.append(page)
        return pages

    def take(self, found: Sequence[int], num_new: int, *, reserve: int = 0) -> list[int] | None:
        """Hold the pages `found` by `match`, and `num_new` blank ones after them.

        None, and nothing is taken, if that left fewer than `reserve` pages available.
        """
        num_revived = sum(self._num_holders[page] == 0 for page in found)
        if self.num_available - num_revived - num_new < reserve:
            return None
        for page in found:
            self._hold(page)
        return [*found, *(self._take_blank() for _ in range(num_new))]

    def take_one(self) -> int | None:
        """Hold one blank page; None if requests hold all."""
        return self._take_blank() if self._blank or self._kept else None

    def publish(self, page: int, digest: bytes) -> None:
        """Let a held page that is full and computed be found. The first of equal pages stays."""
        if digest not in self._pages:
            self._pages[digest] = page
            self._digests[page] = digest

    def release(self, pages: Sequence[int]) -> None:
        """Give up one hold of each. Of a request's pages the last is overwritten first."""
        for page in reversed(pages):
            self._num_holders[page] -= 1
            if self._num_holders[page]:
                continue
            if self._digests[page] is None:
                self._blank.append(page)
            else:
                self._kept[page] = None

    def _hold(self, page: int) -> None:
        if self._num_holders[page] == 0:
            del self._kept[page]
        self._num_holders[page] += 1

    def _take_blank(self) -> int:
        page = self._blank.pop() if self._blank else self._forget_oldest()
        self._num_holders[page] = 1
        return page

    def _forget_oldest(self) -> int:
        page, _ = self._kept.popitem(last=False)
        digest = self._digests[page]
        assert digest is not None
        del self._pages[digest]
        self._digests[page] = None
        return page
