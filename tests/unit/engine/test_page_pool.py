"""Pages: who holds them, how they are found again, and which is overwritten first."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from workers.inference.engine.page_pool import PagePool


def digests(*names: str) -> list[bytes]:
    return [name.encode() for name in names]


def computed(pool: PagePool, *names: str) -> list[int]:
    """Hold new pages with this content."""
    pages = pool.take([], len(names))
    assert pages is not None
    for page, digest in zip(pages, digests(*names), strict=True):
        pool.publish(page, digest)
    return pages


def test_released_page_is_found_until_it_is_overwritten() -> None:
    pool = PagePool(2, 16)
    pages = computed(pool, "a")
    pool.release(pages)

    found = pool.match(digests("a"))
    pool.take([], 2)

    assert found == pages
    assert pool.match(digests("a")) == []


def test_match_ends_at_the_first_page_that_is_missing() -> None:
    pool = PagePool(4, 16)
    first, _ = computed(pool, "a", "c")

    assert pool.match(digests("a", "b", "c")) == [first]


def test_page_is_available_again_when_its_last_holder_releases_it() -> None:
    pool = PagePool(2, 16)
    pages = computed(pool, "a")
    pool.take(pages, 0)

    pool.release(pages)
    shared = pool.num_available
    pool.release(pages)

    assert (shared, pool.num_available) == (1, 2)


def test_page_unused_for_longest_is_overwritten_first() -> None:
    pool = PagePool(3, 16)
    for name in ("a", "b", "c"):
        pool.release(computed(pool, name))
    pool.take(pool.match(digests("a")), 0)

    pool.take_one()

    assert pool.match(digests("b")) == []
    assert pool.match(digests("c")) != []


def test_end_of_a_chain_is_overwritten_before_its_beginning() -> None:
    pool = PagePool(3, 16)
    pages = computed(pool, "a", "b", "c")
    pool.release(pages)

    pool.take_one()

    assert pool.match(digests("a", "b", "c")) == pages[:2]


def test_blank_page_is_taken_before_one_that_can_be_found() -> None:
    pool = PagePool(3, 16)
    pool.release(computed(pool, "a"))

    pool.take([], 2)

    assert len(pool.match(digests("a"))) == 1


def test_second_page_of_equal_content_is_not_kept() -> None:
    pool = PagePool(2, 16)
    first, second = computed(pool, "a"), computed(pool, "a")

    pool.release(second)
    pool.release(first)

    assert pool.match(digests("a")) == first
    assert pool.take_one() == second[0]


def test_nothing_is_taken_when_not_enough_is_left() -> None:
    pool = PagePool(4, 16)
    pages = computed(pool, "a")
    pool.release(pages)

    # The found page is one of the four, so only three others are there.
    refused = [pool.take(pages, 4), pool.take(pages, 2, reserve=2)]

    assert refused == [None, None]
    assert pool.num_available == 4
    assert pool.take(pages, 2, reserve=1) is not None


def test_usage_counts_held_pages_only() -> None:
    pool = PagePool(4, 16)
    pool.release(computed(pool, "a"))

    computed(pool, "b")

    assert pool.usage == 0.25


class PoolMachine(RuleBasedStateMachine):
    """The pool against plain lists. Chains are over few letters, so that they often meet."""

    chains = st.text("ab", min_size=1, max_size=4)

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(6, 16)
        self.holds: list[tuple[str, list[int]]] = []  # chain and pages of each holder
        self.content: dict[int, bytes] = {}  # what can be found in which page
        self.kept: list[int] = []  # held by nobody but can be found, in order of release

    @property
    def held(self) -> set[int]:
        return {page for _, pages in self.holds for page in pages}

    def overwrite(self, page: int) -> None:
        assert page not in self.held
        if page in self.content:
            assert len(self.held) + len(self.kept) == self.pool.num_pages
            assert page == self.kept.pop(0)
            del self.content[page]

    @rule(chain=chains, reserve=st.integers(0, 2))
    def take(self, chain: str, reserve: int) -> None:
        wanted = prefixes(chain)
        found = self.pool.match(wanted)
        num_available = self.pool.num_pages - len(self.held | set(found))

        pages = self.pool.take(found, len(chain) - len(found), reserve=reserve)

        assert (pages is not None) == (num_available >= len(chain) - len(found) + reserve)
        if pages is not None:
            assert pages[: len(found)] == found
            self.kept = [page for page in self.kept if page not in found]
            self.holds.append((chain, found))
            for page in pages[len(found) :]:
                self.overwrite(page)
                found.append(page)

    @rule()
    def take_one(self) -> None:
        is_full = len(self.held) == self.pool.num_pages

        page = self.pool.take_one()

        assert (page is None) == is_full
        if page is not None:
            self.overwrite(page)
            self.holds.append(("", [page]))

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        chain, pages = data.draw(st.sampled_from(self.holds))
        for page, digest in zip(pages, prefixes(chain), strict=False):
            is_new = digest not in self.content.values()
            self.pool.publish(page, digest)
            if is_new:
                self.content[page] = digest

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        i = data.draw(st.integers(0, len(self.holds) - 1))
        _, pages = self.holds.pop(i)

        self.pool.release(pages)

        released = [page for page in reversed(pages) if page not in self.held]
        self.kept += [page for page in released if page in self.content]

    @invariant()
    def holds_are_counted(self) -> None:
        assert self.pool.num_available == self.pool.num_pages - len(self.held)

    @invariant()
    def exactly_the_content_is_found(self) -> None:
        for chain in ("a", "b"):
            by_digest = {digest: page for page, digest in self.content.items()}
            digest = prefixes(chain)[0]
            expected = [by_digest[digest]] if digest in by_digest else []
            assert self.pool.match([digest]) == expected


def prefixes(chain: str) -> list[bytes]:
    """Like digests: each names a page and everything before it."""
    return [chain[: i + 1].encode() for i in range(len(chain))]


TestPoolEqualsItsModel = PoolMachine.TestCase
TestPoolEqualsItsModel.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, derandomize=True, database=None
)
