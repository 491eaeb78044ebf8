"""Whether the copy of a user's data is at least as new as the user's own last change.

`posts` keeps a copy of the user data that it shows: cards (collection `authors`) and follows. In
`users`, each change of an account that the copy shows adds one to the account's revision, in the
transaction of the change: each UserProfileUpdated, and each FollowChanged of which the account is
the follower. The event carries the revision. The Reply to the change carries it too; gateways send
the highest revision that they know of a caller with the caller's next calls
(`Request.caller_revision`, `Context.caller_revision`).

The copy stores for each user `revision`, up to which no change is missing, and `ahead`, the stored
revisions after a missing one. A call is answered from the copy if `Context.caller_revision` is at
most `revision`; else `users` is asked (`posts.author_cards`).

- Order: profiles and follows come through two queues, and events of one queue may overtake each
  other. The set of stored revisions does not depend on the order.
- Late events: an event that comes after a later one of the same subject has no effect on the copy,
  but its revision is stored (`EventPattern(..., late=True)`).
- Repeated events: a revision is stored once, also if the inbox has forgotten the event.
- Missing events (dead letters; events that were handled by a release without revisions; more than
  MAX_AHEAD events after a missing one): `revision` stays, so `users` is asked. The first call that
  finds a later revision stored copies the user anew (`posts.resync`). If the missing event is the
  latest one, `users` is asked until the next change or the replay of the dead letter.
- Events without a revision (of releases before revisions) change the copy only. Accounts begin with
  revision 0 on both sides, for which the copy is always new enough.
- Deleted users: the tombstone refuses calls. The reply to DeleteMe carries a revision that no event
  has, so that `users` refuses calls until the tombstone is there. When follows of a deleted user
  are erased, no revision changes: the same event erases the follows from the copy.
- Another gateway knows the revision from the event, within milliseconds, and within a second while
  the broker is reachable. Until then it is answered from the copy as it is.
"""

from typing import Final

from posts.models import Author

__all__ = ["MAX_AHEAD", "has_stored", "with_revision"]

MAX_AHEAD: Final = 100
"""Revisions stored after a missing one. Further ones are not stored, and so are missing, too."""


def has_stored(author: Author, revision: int) -> bool:
    """Return whether the change with this revision is stored."""
    return revision <= author.revision or revision in (author.ahead or ())


def with_revision(author: Author, revision: int) -> tuple[int, list[int] | None]:
    """Return `revision` and `ahead` of an author once one more revision is stored."""
    ahead = sorted({*(author.ahead or ()), revision})[: MAX_AHEAD + 1]
    reached = author.revision
    while ahead and ahead[0] <= reached + 1:
        reached = max(reached, ahead.pop(0))
    return reached, ahead[:MAX_AHEAD] or None
