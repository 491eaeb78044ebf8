"""Filters and orders of lists of posts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from odmantic.query import QueryExpression, eq, gt, gte, in_, lt, lte, or_

from posts.models import PUBLISHED, Post
from posts.post_texts import tag_key
from shared.data.pages import Position
from shared.data.search_terms import distinct_words

__all__ = ["NEWEST", "OLDEST", "UPDATED", "Condition", "Order", "PostFilter"]

Index = list[tuple[str, int]]
"""Keys of an index, with their directions."""
_MAX_WORDS: Final = 5
"""Words of a search whose indexes are compared."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on one field of a post."""

    field: str
    query: QueryExpression


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
    def conditions(self) -> list[Condition]:
        """The conditions besides status and time. Each of them has an index."""
        found = [Condition("author_id", self._by_authors())] if self.author_ids is not None else []
        if self.tag:
            found.append(Condition("tag_keys", eq(Post.tag_keys, tag_key(self.tag))))
        found += [Condition("words", eq(Post.words, word)) for word in distinct_words(self.q)]
        return found

    def queries(self) -> list[QueryExpression]:
        """Return all expressions of the filter."""
        return [*self.base(), *(condition.query for condition in self.conditions)]

    def base(self) -> list[QueryExpression]:
        """Return the expressions for status and time."""
        since = self.updated_since
        changed = [] if since is None else [gte(Post.updated_at, since)]
        return [eq(Post.status, self.status), *changed]

    @property
    def matches_nothing(self) -> bool:
        """Whether no post can match the filter."""
        return self.author_ids == [] or bool(self.q.strip() and not distinct_words(self.q))

    def _by_authors(self) -> QueryExpression:
        ids = list(self.author_ids or ())
        return eq(Post.author_id, ids[0]) if len(ids) == 1 else in_(Post.author_id, ids)


@dataclass(frozen=True, slots=True)
class Order:
    """An order of posts: by `place`, or by `updated_at` and then id."""

    field: str
    direction: int

    @property
    def sort(self) -> Index:
        """The sort specification for MongoDB."""
        return [(self.field, self.direction), *self._ids]

    def index(self, condition: Condition | None) -> Index:
        """Return the keys of the index for a condition, the status and this order."""
        leading = [(condition.field, 1)] if condition else []
        stored = 1 if self.field == "updated_at" else -1
        return [*leading, ("status", 1), (self.field, stored), *self._ids]

    def indexable_conditions(self, wanted: PostFilter) -> list[Condition | None]:
        """Return the conditions that have an index; `[None]` if only the status has one."""
        if self.field == "updated_at":
            found = [each for each in wanted.conditions if each.field == "author_id"]
        else:
            words = [each for each in wanted.conditions if each.field == "words"]
            found = [each for each in wanted.conditions if each.field != "words"]
            found += words[:_MAX_WORDS]
        return [*found] or [None]

    def position(self, post: Post) -> Position:
        """Return the sort key of a post."""
        return (post.updated_at, post.id) if self.field == "updated_at" else (post.place,)

    def after(self, position: Position) -> list[QueryExpression]:
        """Return expressions for the posts after a position; an empty one is the start."""
        if not position:
            return []
        if self.field == "updated_at":
            time, id_ = position
            later = or_(gt(Post.updated_at, time), gt(Post.id, id_))
            return [gte(Post.updated_at, time), later]  # the first expression bounds the index
        beyond = gt if self.direction > 0 else lt
        return [beyond(Post.place, position[0])]

    def until(self, position: Position) -> list[QueryExpression]:
        """Return expressions for the posts up to a position; an empty one is the end."""
        if not position:
            return []
        if self.field == "updated_at":
            time, id_ = position
            earlier = or_(lt(Post.updated_at, time), lte(Post.id, id_))
            return [lte(Post.updated_at, time), earlier]
        within = lte if self.direction > 0 else gte
        return [within(Post.place, position[0])]

    @property
    def _ids(self) -> Index:
        return [("_id", 1)] if self.field == "updated_at" else []


NEWEST: Final = Order("place", -1)
OLDEST: Final = Order("place", 1)
UPDATED: Final = Order("updated_at", 1)
