"""Pages of lists: cursors of a sort key, opaque to clients and signed (AIP-158)."""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import betterproto
from pydantic import SecretStr

from shared.errors import ServiceError, invalid_field
from shared.wire import to_upb

__all__ = ["Page", "Pages", "Position"]

T = TypeVar("T")
Position = tuple[str | int, ...]
"""Where an item stands in the order of its list: its sort key, whose last part is unique."""

_DEFAULT_SIZE: Final = 20
_MAC_BYTES: Final = 16
_PAGING: Final = frozenset({"page_size", "page_token", "include_total"})


@dataclass(frozen=True, slots=True)
class Page:
    """The part of a list that a request asks for: up to `size` items that follow `after`."""

    size: int
    after: Position
    """Empty for the beginning of the list."""
    _token: Callable[[Position], str]

    @property
    def limit(self) -> int:
        """How many items to look for: one more tells that there is a next page."""
        return self.size + 1

    def cut(self, found: Sequence[T], position: Callable[[T], Position]) -> tuple[list[T], str]:
        """Return the items of the page, and the token of the next; empty if this is the last."""
        items = list(found[: self.size])
        return items, self.token(position(items[-1])) if len(found) > self.size else ""

    def token(self, position: Position) -> str:
        """Return the token of the page that follows the item at `position`."""
        return self._token(position)


class Pages:
    """Reads and signs page tokens; all processes of a service share the key.

    A token goes on with the list that it came from: with another method, or with other filters, it
    is INVALID_ARGUMENT with PAGE_TOKEN_INVALID, as is one that was tampered with.
    """

    def __init__(self, key: SecretStr) -> None:
        self._key = hashlib.sha256(key.get_secret_value().encode()).digest()

    def of(self, request: betterproto.Message) -> Page:
        """Return the page that `request` asks for by its `page_size` and `page_token`."""
        asked: Any = request
        scope = _scope(request)

        def token(position: Position) -> str:
            text = json.dumps(position, separators=(",", ":"), ensure_ascii=False).encode()
            return base64.urlsafe_b64encode(self._mac(scope, text) + text).decode().rstrip("=")

        after = self._read(scope, asked.page_token) if asked.page_token else ()
        return Page(asked.page_size or _DEFAULT_SIZE, after, token)

    def _read(self, scope: bytes, token: str) -> Position:
        try:
            padded = token.encode("ascii") + b"=" * (-len(token) % 4)
            data = base64.b64decode(padded, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise _invalid() from None
        mac, text = data[:_MAC_BYTES], data[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(scope, text)):
            raise _invalid()
        return tuple(json.loads(text))

    def _mac(self, scope: bytes, text: bytes) -> bytes:
        return hashlib.blake2b(scope + text, key=self._key, digest_size=_MAC_BYTES).digest()


def _scope(request: betterproto.Message) -> bytes:
    """Name the list: what is asked for, but for the page."""
    asked = to_upb(request)
    for field in asked.DESCRIPTOR.fields:
        if field.name in _PAGING:
            asked.ClearField(field.name)
    filters = asked.SerializeToString(deterministic=True)
    return hashlib.sha256(asked.DESCRIPTOR.full_name.encode() + filters).digest()


def _invalid() -> ServiceError:
    return invalid_field(
        "PAGE_TOKEN_INVALID",
        "pageToken",
        "page_token",
        "The page token is not one that this list has given: begin without one.",
    )
