"""Access rules for posts and their comments and likes."""

from postbus import reasons
from posts.models import Post
from shared.context import Context
from shared.errors import ServiceError, require_version

__all__ = ["require_author", "require_published", "require_readable"]


def require_readable(post: Post | None, context: Context) -> Post:
    """Return the post if it is published or a draft of the caller.

    Otherwise raise NOT_FOUND, which does not reveal the drafts of other users.
    """
    if post is None or not (post.published or _is_author(post, context)):
        raise _not_found()
    return post


def require_published(post: Post | None) -> Post:
    """Return the post if it is published; raise NOT_FOUND otherwise."""
    if post is None or not post.published:
        raise _not_found()
    return post


def require_author(post: Post | None, context: Context, expected_version: int) -> Post:
    """Return the post if the caller is its author and the version is current.

    Raises as `require_readable`, PERMISSION_DENIED, or FAILED_PRECONDITION for another version.
    """
    post = require_readable(post, context)
    if not _is_author(post, context):
        raise ServiceError(reasons.NOT_THE_AUTHOR, "Only the author of a post may change it.")
    require_version(post.version, expected_version)
    return post


def _is_author(post: Post, context: Context) -> bool:
    return context.caller is not None and context.caller.user_id == post.author_id


def _not_found() -> ServiceError:
    return ServiceError(reasons.POST_NOT_FOUND, "The post does not exist.")
