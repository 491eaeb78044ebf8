"""Lists of posts by filter, at a bounded cost for the database."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from posts.filters import Condition, Index, Order, PostFilter
from posts.models import Post
from shared.data.mongo_database import Mongo
from shared.data.pages import Page, Position

__all__ = ["COUNTED", "EXAMINED", "UNLISTED", "PostSearch"]

EXAMINED: Final = 2000
"""Posts that one page or one total examines where no index has exactly the posts of the list."""
COUNTED: Final = 50_000
"""Entries of an index that one total counts."""
UNLISTED: Final = ("body", "slugs", "tag_keys", "words")
"""Fields of posts that no list shows."""


@dataclass(frozen=True, slots=True)
class _Scan:
    """A part of an index, from where a page begins."""

    index: Index
    last: Position
    """The last position to examine; empty if the end of the list is within the bound."""


class PostSearch:
    """Finds and counts posts.

    With at most one condition, an index has the posts of a list in their order. With several, the
    index of the most selective condition is read, up to EXAMINED posts. The index is named in each
    query: MongoDB's own choice has no bound, and may sort.
    """

    def __init__(self, mongo: Mongo) -> None:
        self._posts = mongo.collection(Post)

    async def find(
        self, wanted: PostFilter, page: Page, order: Order
    ) -> tuple[list[Post], Position]:
        """Return posts without their bodies, and the position after which the next page begins.

        The position is empty if this page is the last. Otherwise the page may be short, or empty.
        """
        if wanted.nothing:
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
        """Count the posts that `find` returns on all pages; None if that exceeds a bound."""
        if wanted.nothing:
            return 0
        if _is_served(wanted, order):
            count = await self._posts.count(*wanted.queries(), limit=COUNTED + 1)
            return count if count <= COUNTED else None
        scan = await self._scan(wanted, order, ())
        if scan.last:
            return None
        return await self._posts.count(*wanted.queries(), hint=scan.index)

    async def count_all(self, lists: Sequence[PostFilter], order: Order) -> int | None:
        """Count the posts of lists that have none in common; None as in `count`."""
        total = 0
        for wanted in lists:
            count = await self.count(wanted, order)
            if count is None or total + count > COUNTED:
                return None
            total += count
        return total

    async def _scan(self, wanted: PostFilter, order: Order, after: Position) -> _Scan:
        """Return the scan that reaches the end of the list, or else the furthest."""
        drivers = order.drivers(wanted)
        if _is_served(wanted, order):
            [driver] = drivers
            return _Scan(order.index(driver), ())
        scans = await asyncio.gather(
            *(self._scan_by(driver, wanted, order, after) for driver in drivers)
        )
        ending = next((scan for scan in scans if not scan.last), None)
        furthest = max if order.direction > 0 else min
        return ending or furthest(scans, key=lambda scan: scan.last)

    async def _scan_by(
        self, driver: Condition | None, wanted: PostFilter, order: Order, after: Position
    ) -> _Scan:
        """Return the scan of EXAMINED posts by the index of one condition."""
        index = order.index(driver)
        driving = [driver.query] if driver else []
        edge = await self._posts.find(
            *wanted.base(),
            *driving,
            *order.after(after),
            sort=order.sort,
            skip=EXAMINED - 1,
            limit=1,
            without=UNLISTED,
            hint=index,
        )
        return _Scan(index, order.position(edge[0]) if edge else ())


def _is_served(wanted: PostFilter, order: Order) -> bool:
    """Whether an index has exactly the posts of a list in this order."""
    conditions = wanted.conditions
    if order.field == "updated_at":
        return all(each.field == "author_id" for each in conditions)
    return len(conditions) <= 1
