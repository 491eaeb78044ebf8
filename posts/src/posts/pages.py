"""Page tokens: where a list goes on. Opaque to clients."""

import base64
import binascii
from uuid import UUID

from shared.errors import Code, ServiceError

__all__ = ["page_token", "read_page_token"]


def page_token(last_id: str) -> str:
    """Return the token of the page that follows the item `last_id`."""
    return base64.urlsafe_b64encode(UUID(last_id).bytes).decode().rstrip("=")


def read_page_token(token: str) -> str:
    """Return the id that a token holds, empty for an empty token; INVALID_ARGUMENT if malformed."""
    if not token:
        return ""
    try:
        return str(UUID(bytes=base64.b64decode(token + "==", altchars=b"-_", validate=True)))
    except (binascii.Error, ValueError):
        raise ServiceError(
            Code.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID", "The page token is not one of ours."
        ) from None
