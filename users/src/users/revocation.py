"""The event that sessions have ended: gateways and workers then refuse their access tokens."""

from postbus.users.v1 import SessionsRevoked
from shared.bus import publish

__all__ = ["publish_revoked"]


async def publish_revoked(user_id: str, session_ids: list[str]) -> None:
    """Publish that these sessions of the user have ended; nothing if there are none."""
    if session_ids:
        await publish(SessionsRevoked(user_id=user_id, session_ids=session_ids))
