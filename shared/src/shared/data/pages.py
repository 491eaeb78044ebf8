"""Pages of lists: cursors of a sort key, opaque to clients and signed (AIP-158)."""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, ParamSpec, TypeVar

import betterproto
from pydantic import SecretStr

from postbus import reasons
from shared.errors import ServiceError, invalid_field
from shared.wire import to_upb

__all__ = ["Page", "Pages", "Position", "read_pages"]

P = ParamSpec("P")
T = TypeVar("T")
Position = tuple[str | int, ...]
"""The sort key of an item in its list; the last part is unique."""

_DEFAULT_SIZE: Final = 20
_MAC_BYTES: Final = 16
_PAGING: Final = frozenset({"page_size", "page_token", "include_total"})


@dataclass(frozen=True, slots=True)
class Page:
    """The part of a list that a request selects: up to `size` items that follow `after`."""

    size: int
    after: Position
    """Empty for the first page."""
    _token: Callable[[Position], str]
    include_total: bool = False

    @property
    def limit(self) -> int:
        """The number of items to query: one more than `size` shows whether a next page exists."""
        return self.size + 1

    def cut(self, found: Sequence[T], position: Callable[[T], Position]) -> tuple[list[T], str]:
        """Return the items of the page, and the token of the next page or an empty string."""
        items = list(found[: self.size])
        return items, self.token(position(items[-1])) if len(found) > self.size else ""

    def token(self, position: Position) -> str:
        """Return the token of the page that follows the item at `position`."""
        return self._token(position)

    async def total(
        self,
        count: Callable[P, Awaitable[int | None]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> int | None:
        """Return the result of `count` if the request includes the total, else None.

        total=await page.total(self.posts.count, author_id)
        """
        return await count(*args, **kwargs) if self.include_total else None


async def read_pages(
    find: Callable[[Page], Awaitable[Sequence[T]]],
    position: Callable[[T], Position],
    *,
    size: int,
    after: Position = (),
) -> AsyncGenerator[list[T], None]:
    """Yield all items of a list that follow `after`, in lists of up to `size`; none is empty.

    async for comments in read_pages(find, position, size=100): ...
    """
    while True:
        found = await find(Page(size, after, str))
        items = list(found[:size])
        if items:
            yield items
        if len(found) <= size:
            return
        after = position(items[-1])


class Pages:
    """Reads and signs page tokens; all processes of a service share the key.

    A token is valid only for the method and the filters that it came from. Any other token is
    refused: INVALID_ARGUMENT with reason PAGE_TOKEN_INVALID.
    """

    def __init__(self, key: SecretStr) -> None:
        self._key = hashlib.sha256(key.get_secret_value().encode()).digest()

    def of(self, request: betterproto.Message) -> Page:
        """Return the page that `page_size` and `page_token` of a list request select."""
        fields: Any = request
        scope = _scope(request)

        def token(position: Position) -> str:
            text = json.dumps(position, separators=(",", ":"), ensure_ascii=False).encode()
            return base64.urlsafe_b64encode(self._mac(scope, text) + text).decode().rstrip("=")

        after = self._read(scope, fields.page_token) if fields.page_token else ()
        include_total = getattr(fields, "include_total", False)
        return Page(fields.page_size or _DEFAULT_SIZE, after, token, include_total)

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
    """Return a digest of the method and its filters, without the paging fields."""
    filters = to_upb(request)
    for field in filters.DESCRIPTOR.fields:
        if field.name in _PAGING:
            filters.ClearField(field.name)
    encoded = filters.SerializeToString(deterministic=True)
    return hashlib.sha256(filters.DESCRIPTOR.full_name.encode() + encoded).digest()


def _invalid() -> ServiceError:
    return invalid_field(
        reasons.PAGE_TOKEN_INVALID,
        "pageToken",
        "page_token",
        "The page token does not belong to this list. Start again without a token.",
    )
