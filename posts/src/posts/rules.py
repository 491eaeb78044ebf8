"""Who may do what with a post, and with what hangs on it."""

import re
from typing import Final

from posts.models import Post
from posts.repository import PostRepository
from shared.context import Context
from shared.errors import Code, ServiceError, require_version

__all__ = ["own_post", "published_post", "readable_post"]

_UUID: Final = re.compile(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}")


async def readable_post(posts: PostRepository, id_or_slug: str, context: Context) -> Post:
    """Return a post that the caller may read: a published one, or a draft of the caller's.

    Else it is NOT_FOUND, so that nobody learns of the drafts of others.
    """
    name = id_or_slug.lower()
    post = await (posts.get(name) if _UUID.fullmatch(name) else posts.by_slug(name))
    if post is None or not (post.published or _is_author(post, context)):
        raise ServiceError(Code.NOT_FOUND, "POST_NOT_FOUND", "There is no such post.")
    return post


async def published_post(posts: PostRepository, id_: str) -> Post:
    """Return a post that everyone may like and comment on; else NOT_FOUND."""
    post = await posts.get(id_.lower())
    if post is None or not post.published:
        raise ServiceError(Code.NOT_FOUND, "POST_NOT_FOUND", "There is no such post.")
    return post


async def own_post(
    posts: PostRepository, id_: str, context: Context, expected_version: int
) -> Post:
    """Return a post that the caller may change: its author; PERMISSION_DENIED for others."""
    post = await readable_post(posts, id_, context)
    if not _is_author(post, context):
        raise ServiceError(
            Code.PERMISSION_DENIED, "NOT_THE_AUTHOR", "Only its author may change a post."
        )
    require_version(post.version, expected_version)
    return post


def _is_author(post: Post, context: Context) -> bool:
    return context.caller is not None and context.caller.user_id == post.author_id
