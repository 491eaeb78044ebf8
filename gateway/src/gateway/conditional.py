"""Conditional requests (RFC 9110, sections 8.8.3 and 13).

The ETag of an answer is `"<version>-<hash>"`, or `"<hash>"` where its method has no version. The
hash makes 304 exact: counts change without the version. If-Match compares versions alone.
"""

import hashlib
import re
from typing import Any, Final

from google.protobuf.message import Message

from gateway.problems import HttpError
from gateway.request_headers import Fields
from postbus.registry import Idempotency, Method
from shared.errors import Code, ServiceError, version_mismatch

__all__ = ["Conditions", "entity_tag", "is_safe", "names_tag", "version_in"]

_MEMBER: Final = re.compile(r'[ \t]*(?:(?P<tag>(?:W/)?"[^"]*")[ \t]*)?(?:,|\Z)')
_VERSION: Final = re.compile(r'"([1-9][0-9]{0,18})(?:-.*)?"')
_MAX_VERSION: Final = 2**63 - 1
"""Largest int64."""

Versions = frozenset[int] | None
"""Versions that If-Match accepts; None for any."""


def entity_tag(content: bytes, version: int | None) -> str:
    """Return the strong ETag of a body, and of the version that it shows if there is one."""
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    return f'"{digest}"' if version is None else f'"{version}-{digest}"'


def names_tag(if_none_match: str, etag: str) -> bool:
    """Return whether the field names a tag, by weak comparison, without W/ (section 13.1.2)."""
    tags = [tag.removeprefix("W/") for tag in _entity_tags(if_none_match) or ()]
    return if_none_match.strip() == "*" or etag in tags


def is_safe(method: Method) -> bool:
    """Return whether calls of a method change nothing."""
    return method.idempotency is Idempotency.NO_SIDE_EFFECTS


def version_in(method: Method, response: Any) -> int | None:
    """Return the version that a response shows, None if its method has none."""
    for name in method.version:
        response = getattr(response, name)
    return response if method.version else None


class Conditions:
    """The conditions of a request: If-Match and If-None-Match.

    Raises 400, with IF_MATCH_INVALID for an If-Match that names no version or several where one is
    to be expected, with IF_MATCH_UNSUPPORTED where a change can't be bound to a version.
    """

    __slots__ = ("_expected_version", "_known", "_refusal", "_versions", "absent")

    def __init__(self, method: Method, verb: str, fields: Fields) -> None:
        self._expected_version = method.expected_version
        self._versions: Versions = None
        self._refusal = version_mismatch
        if (if_match := fields.get(b"if-match")) is not None:
            self._read_if_match(method, if_match.decode("latin-1"))
        if_none_match = fields.get(b"if-none-match", b"").decode("latin-1")
        reads = is_safe(method) and verb in ("GET", "HEAD")
        self._known = if_none_match if reads else ""
        self.absent = "" if is_safe(method) else if_none_match
        """If-None-Match of a change: it is made unless the field names the current ETag."""

    def _read_if_match(self, method: Method, field: str) -> None:
        self._versions = _versions(method, field)
        if self._versions == frozenset() and "W/" in field:
            self._refusal = _weak

    def expect(self, request: Message) -> None:
        """Put the version into the request, for its worker to compare; 412 if none can match."""
        if self._expected_version and self._versions is not None:
            if not self._versions:
                raise self._refusal()
            [version] = self._versions
            setattr(request, self._expected_version, version)

    def require(self, version: int | None) -> None:
        """Refuse an answer of another version than If-Match names: 412."""
        if self._expected_version or self._versions is None:
            return
        if version not in self._versions:
            raise self._refusal()

    def know(self, etag: str) -> bool:
        """Whether the client has this answer already: 304."""
        return bool(self._known) and names_tag(self._known, etag)


def _versions(method: Method, if_match: str) -> Versions:
    if not (method.expected_version or is_safe(method)):
        raise _refused("IF_MATCH_UNSUPPORTED", "This has no version to compare.")
    if not (method.expected_version or method.version):
        return None
    versions = _named(if_match)
    if method.expected_version and versions is not None and len(versions) > 1:
        raise _refused("IF_MATCH_INVALID", "If-Match names several versions: name one.")
    return versions


def _named(field: str) -> Versions:
    """The versions that the tags of If-Match begin with; weak and foreign ones have none."""
    if field.strip() == "*":
        return None
    tags = _entity_tags(field)
    if tags is None:
        raise _refused("IF_MATCH_INVALID", "If-Match takes * or a list of entity tags.")
    found = [_VERSION.fullmatch(tag) for tag in tags]
    versions = [int(match[1]) for match in found if match]
    return frozenset(version for version in versions if version <= _MAX_VERSION)


def _entity_tags(field: str) -> list[str] | None:
    """The members of a list of entity tags, which may have empty ones; None if it is no list."""
    tags, place = [], 0
    while place < len(field):
        member = _MEMBER.match(field, place)
        if member is None:
            return None
        tags += [member["tag"]] if member["tag"] else []
        place = member.end()
    return tags or None


def _weak() -> ServiceError:
    """Return the error of an If-Match with weak tags alone (section 13.1.1)."""
    return ServiceError(
        Code.FAILED_PRECONDITION,
        "VERSION_MISMATCH",
        "If-Match compares strongly, and a weak tag (W/) never matches: send the ETag without W/,"
        ' or "<version>".',
    )


def _refused(reason: str, message: str) -> HttpError:
    return HttpError(400, Code.INVALID_ARGUMENT, reason, message)
