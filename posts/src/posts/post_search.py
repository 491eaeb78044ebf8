"""Lists of posts by filter, at a bounded cost for the database."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from odmantic.query import QueryExpression

from posts.models import Post
from posts.post_filters import Index, Order, PostFilter
from posts.repository import COUNTED
from shared.data.mongo_database import Mongo
from shared.data.pages import Page, Position

__all__ = ["EXAMINED", "UNLISTED", "PostSearch"]

EXAMINED: Final = 2000
"""Posts that one page or one total examines if no index has exactly the posts of the list."""
UNLISTED: Final = ("body", "slugs", "tag_keys", "words")
"""Fields of posts that lists do not return."""


@dataclass(frozen=True, slots=True)
class _Scan:
    """A range of an index, from the first item of a page."""

    index: Index
    last: Position
    """The last position to examine; empty if the list ends within the bound."""


class PostSearch:
    """Finds and counts posts.

    With at most one condition, an index has the posts of a list in their order. With several
    conditions, the index of the most selective one is read, up to EXAMINED posts. Each query has an
    index hint, because the index that MongoDB selects has no bound and can require a sort.
    """

    def __init__(self, mongo: Mongo) -> None:
        self._posts = mongo.collection(Post)

    async def find(
        self, wanted: PostFilter, page: Page, order: Order
    ) -> tuple[list[Post], Position]:
        """Return posts without their bodies, and the position after which the next page begins.

        The position is empty if this page is the last. Otherwise the page can be short or empty.
        """
        if wanted.matches_nothing:
            return [], ()
        scan = await self._scan(wanted, order, page.after)
        found = await self._posts.find(
            *wanted.queries(),
            *order.after(page.after),
            *order.until(scan.last),
            sort=order.sort,
            limit=page.limit,
            without=UNLISTED,
            hint=scan.index,
        )
        posts = found[: page.size]
        return posts, order.position(posts[-1]) if len(found) > page.size else scan.last

    async def count(self, wanted: PostFilter, order: Order) -> int | None:
        """Count the posts that `find` returns on all pages; None if a bound is exceeded."""
        if wanted.matches_nothing:
            return 0
        if order.has_exact_index(wanted):
            return await self._posts.count_at_most(COUNTED, *wanted.queries())
        scan = await self._scan(wanted, order, ())
        if scan.last:
            return None
        return await self._posts.count(*wanted.queries(), hint=scan.index)

    async def count_all(self, lists: Sequence[PostFilter], order: Order) -> int | None:
        """Count the posts of disjoint lists; None if a bound is exceeded."""
        total = 0
        for wanted in lists:
            count = await self.count(wanted, order)
            if count is None or total + count > COUNTED:
                return None
            total += count
        return total

    async def _scan(self, wanted: PostFilter, order: Order, after: Position) -> _Scan:
        """Return a scan that includes the end of the list, else the one with the furthest bound."""
        conditions = order.indexable_conditions(wanted)
        if order.has_exact_index(wanted):
            [condition] = conditions
            return _Scan(order.index(condition), ())
        scans = await asyncio.gather(
            *(self._scan_by(condition, wanted, order, after) for condition in conditions)
        )
        ending = next((scan for scan in scans if not scan.last), None)
        furthest = max if order.direction > 0 else min
        return ending or furthest(scans, key=lambda scan: scan.last)

    async def _scan_by(
        self, condition: QueryExpression | None, wanted: PostFilter, order: Order, after: Position
    ) -> _Scan:
        """Return the scan of at most EXAMINED posts by the index of one condition."""
        index = order.index(condition)
        last = await self._posts.find(
            *wanted.base(),
            *([condition] if condition else []),
            *order.after(after),
            sort=order.sort,
            skip=EXAMINED - 1,
            limit=1,
            without=UNLISTED,
            hint=index,
        )
        return _Scan(index, order.position(last[0]) if last else ())
