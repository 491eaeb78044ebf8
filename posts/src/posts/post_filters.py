"""Filters and orders of lists of posts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from odmantic.query import QueryExpression, eq, gt, gte, in_, lt, lte, or_

from posts.models import PUBLISHED, Post
from posts.post_texts import tag_key
from shared.data.pages import Position
from shared.data.search_terms import distinct_words

__all__ = ["NEWEST", "OLDEST", "UPDATED", "Order", "PostFilter"]

Index = list[tuple[str, int]]
"""Keys of an index, with their directions."""
Compare = Callable[[Any, Any], QueryExpression]
_MAX_WORDS: Final = 5
"""Words of a search whose indexes are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostFilter:
    """A filter of posts. None and empty strings match all posts."""

    status: str = PUBLISHED
    author_ids: Sequence[str] | None = None
    tag: str = ""
    q: str = ""
    updated_since: int | None = None
    """Microseconds since 1970."""

    @property
    def conditions(self) -> list[QueryExpression]:
        """The conditions besides status and time: each on one field, which has an index."""
        by_authors = [] if self.author_ids is None else [in_(Post.author_id, self.author_ids)]
        by_tag = [eq(Post.tag_keys, tag_key(self.tag))] if self.tag else []
        return [*by_authors, *by_tag, *(eq(Post.words, word) for word in distinct_words(self.q))]

    def queries(self) -> list[QueryExpression]:
        """Return all expressions of the filter."""
        return [*self.base(), *self.conditions]

    def base(self) -> list[QueryExpression]:
        """Return the expressions for status and time."""
        since = self.updated_since
        changed = [] if since is None else [gte(Post.updated_at, since)]
        return [eq(Post.status, self.status), *changed]

    @property
    def matches_nothing(self) -> bool:
        """Whether no post can match the filter."""
        return self.author_ids == [] or bool(self.q.strip() and not distinct_words(self.q))


@dataclass(frozen=True, slots=True)
class Order:
    """An order of posts: by `place`, or by `updated_at` and then id."""

    field: str
    direction: int

    @property
    def sort(self) -> Index:
        """The sort specification for MongoDB."""
        return [(self.field, self.direction), *self._ids]

    def index(self, condition: QueryExpression | None) -> Index:
        """Return the keys of the index for a condition, the status and this order."""
        leading = [(_field(condition), 1)] if condition else []
        stored = 1 if self.field == "updated_at" else -1
        return [*leading, ("status", 1), (self.field, stored), *self._ids]

    def has_exact_index(self, wanted: PostFilter) -> bool:
        """Return whether an index has exactly the posts of the filter in this order."""
        if self.field == "updated_at":
            return all(_field(each) == "author_id" for each in wanted.conditions)
        return len(wanted.conditions) <= 1

    def indexable_conditions(self, wanted: PostFilter) -> list[QueryExpression | None]:
        """Return the conditions that have an index; `[None]` if only the status has one."""
        if self.field == "updated_at":
            found = [each for each in wanted.conditions if _field(each) == "author_id"]
        else:
            words = [each for each in wanted.conditions if _field(each) == "words"]
            found = [each for each in wanted.conditions if _field(each) != "words"]
            found += words[:_MAX_WORDS]
        return [*found] or [None]

    def position(self, post: Post) -> Position:
        """Return the sort key of a post."""
        return (post.updated_at, post.id) if self.field == "updated_at" else (post.place,)

    def after(self, position: Position) -> list[QueryExpression]:
        """Return expressions for the posts after a position; an empty one is the start."""
        return self._side(position, *((gt, gte, gt) if self.direction > 0 else (lt, lte, lt)))

    def until(self, position: Position) -> list[QueryExpression]:
        """Return expressions for the posts up to a position; an empty one is the end."""
        return self._side(position, *((lt, lte, lte) if self.direction > 0 else (gt, gte, gte)))

    def _side(
        self, position: Position, beyond: Compare, bound: Compare, last: Compare
    ) -> list[QueryExpression]:
        """Return expressions for one side of a position; `last` compares its last part."""
        if not position:
            return []
        if self.field == "updated_at":
            time, id_ = position
            rest = or_(beyond(Post.updated_at, time), last(Post.id, id_))
            return [bound(Post.updated_at, time), rest]  # the first one bounds the index
        return [last(Post.place, position[0])]

    @property
    def _ids(self) -> Index:
        return [("_id", 1)] if self.field == "updated_at" else []


NEWEST: Final = Order("place", -1)
OLDEST: Final = Order("place", 1)
UPDATED: Final = Order("updated_at", 1)


def _field(condition: QueryExpression) -> str:
    return str(next(iter(condition)))
