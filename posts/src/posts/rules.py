"""Who may do what with a post, and with what hangs on it."""

from posts.models import Post
from shared.context import Context
from shared.errors import Code, ServiceError, require_version

__all__ = ["own", "published", "readable"]


def readable(post: Post | None, context: Context) -> Post:
    """Return a post that the caller may read: a published one, or a draft of the caller's.

    Else it is NOT_FOUND, so that nobody learns of the drafts of others.
    """
    if post is None or not (post.published or _is_author(post, context)):
        raise _not_found()
    return post


def published(post: Post | None) -> Post:
    """Return a post that everyone may like and comment on; else NOT_FOUND."""
    if post is None or not post.published:
        raise _not_found()
    return post


def own(post: Post | None, context: Context, expected_version: int) -> Post:
    """Return a post that the caller may change: its author; PERMISSION_DENIED for others."""
    post = readable(post, context)
    if not _is_author(post, context):
        raise ServiceError(
            Code.PERMISSION_DENIED, "NOT_THE_AUTHOR", "Only its author may change a post."
        )
    require_version(post.version, expected_version)
    return post


def _is_author(post: Post, context: Context) -> bool:
    return context.caller is not None and context.caller.user_id == post.author_id


def _not_found() -> ServiceError:
    return ServiceError(Code.NOT_FOUND, "POST_NOT_FOUND", "There is no such post.")
