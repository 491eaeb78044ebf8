"""Publication of ended sessions: gateways and workers then refuse their access tokens."""

from postbus.users.v1 import SessionsRevoked
from shared.bus import publish

__all__ = ["publish_revocations"]


async def publish_revocations(user_id: str, session_ids: list[str]) -> None:
    """Publish SessionsRevoked for the ended sessions of a user, unless there are none."""
    if session_ids:
        await publish(SessionsRevoked(user_id=user_id, session_ids=session_ids))
