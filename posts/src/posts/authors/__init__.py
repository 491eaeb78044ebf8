"""Author data: a projection of the accounts in `users`, kept up to date by its events.

The projection has authors (collection `authors`) and follows. Revisions show whether it includes
the caller's own last change. In `users`, each change of an account that the projection shows
increments the account's revision, in the transaction of the change: each UserProfileUpdated, and
each FollowChanged of which the account is the follower. The event carries the revision. The Reply
to the change carries it too; a gateway sends the highest known revision of a caller with the
caller's next calls (`Request.caller_revision`, `Context.caller_revision`).

The projection stores for each user `revision`, up to which no change is missing, and `ahead`, the
stored revisions after a missing one. The response is made from the projection if
`Context.caller_revision` is at most `revision`; otherwise from a call of `users`
(`posts.authors.projection`).

- Order: profiles and follows arrive through two queues, and events of one queue can overtake each
  other. The set of stored revisions does not depend on the order.
- Late events: an event that arrives after a later one of the same subject does not change the
  projection, but its revision is stored (`EventPattern(..., late=True)`).
- Repeated events: a revision is stored once, even if the operation has expired from the inbox.
- Lost events (dead letters; events that were handled by a release without revisions; more than
  MAX_AHEAD events after a missing one): `revision` stays, so `users` is called. The first call that
  finds a later revision stored copies the user again (`posts.authors.resync`). If the lost event is
  the latest one, `users` is called until the next change or the replay of the dead
  letter.
- Events without a revision (of releases before revisions) change the projection only. A new account
  has revision 0; a caller revision of 0 is never higher, so the projection is used.
- Deleted users: calls are refused if the author is a tombstone. The reply to DeleteMe carries a
  revision that no event has, so that `users` refuses calls until the tombstone is stored. The
  erasure of the follows of a deleted user changes no revision: the same event erases them from the
  projection.
- Another gateway receives the revision with the event, within milliseconds, at most a second, while
  the broker is reachable. Until then its calls get the data of the projection as it is.
"""

from posts.authors.cache import AuthorCache
from posts.authors.projection import AuthorProjection
from posts.authors.resync import Resync
from posts.authors.storage import AuthorRepository, author_message

__all__ = ["AuthorCache", "AuthorProjection", "AuthorRepository", "Resync", "author_message"]
