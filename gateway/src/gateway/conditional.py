"""Conditional requests (RFC 9110, sections 8.8.3 and 13).

The ETag of a response is `"<version>-<hash>"`, or `"<hash>"` if its method has no version. The
hash makes 304 exact: counters change without the version. If-Match compares only versions.
"""

import hashlib
import re
from typing import Final

from google.protobuf.message import Message

from gateway.problems import HttpError
from gateway.request_headers import Headers
from postbus import reasons
from postbus.registry import Method
from shared.errors import ServiceError, version_mismatch

__all__ = ["Conditions", "contains_tag", "entity_tag"]

_MEMBER: Final = re.compile(r'[ \t]*(?:(?P<tag>(?:W/)?"[^"]*")[ \t]*)?(?:,|\Z)')
_VERSION: Final = re.compile(r'"([1-9][0-9]{0,18})(?:-.*)?"')
_MAX_VERSION: Final = 2**63 - 1
"""Largest int64."""

Versions = frozenset[int] | None
"""Versions that If-Match accepts; None accepts any."""


def entity_tag(content: bytes, version: int | None) -> str:
    """Return the strong ETag of a body with this version; None for a method without versions."""
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    return f'"{digest}"' if version is None else f'"{version}-{digest}"'


def contains_tag(if_none_match: str, etag: str) -> bool:
    """Return whether If-None-Match contains a tag, by weak comparison (section 13.1.2)."""
    tags = [tag.removeprefix("W/") for tag in _entity_tags(if_none_match) or ()]
    return if_none_match.strip() == "*" or etag in tags


class Conditions:
    """The preconditions of a request: If-Match and If-None-Match.

    Raises 400 with IF_MATCH_INVALID if If-Match is malformed, or has several versions for a method
    that compares one; with IF_MATCH_UNSUPPORTED if the method changes data and compares no version.
    """

    __slots__ = ("_expected_version", "_if_none_match", "_mismatch", "_versions", "absent")

    def __init__(self, method: Method, verb: str, headers: Headers) -> None:
        self._expected_version = method.expected_version
        self._versions: Versions = None
        self._mismatch = version_mismatch
        if (if_match := headers.get(b"if-match")) is not None:
            self._read_if_match(method, if_match.decode("latin-1"))
        if_none_match = headers.get(b"if-none-match", b"").decode("latin-1")
        reads = not method.has_side_effects and verb in ("GET", "HEAD")
        self._if_none_match = if_none_match if reads else ""
        self.absent = if_none_match if method.has_side_effects else ""
        """If-None-Match of a change, which is refused if the field contains the current ETag."""

    def _read_if_match(self, method: Method, field: str) -> None:
        self._versions = _accepted_versions(method, field)
        if self._versions == frozenset() and "W/" in field:
            self._mismatch = _weak_tag

    def put_expected_version(self, request: Message) -> None:
        """Set the field of the request that the worker compares; 412 if no version can match."""
        if self._expected_version and self._versions is not None:
            if not self._versions:
                raise self._mismatch()
            [version] = self._versions
            setattr(request, self._expected_version, version)

    def check_if_match(self, version: int | None) -> None:
        """Raise 412 if If-Match does not accept the version of a response to a safe method."""
        if self._expected_version or self._versions is None:
            return
        if version not in self._versions:
            raise self._mismatch()

    def matches_if_none_match(self, etag: str) -> bool:
        """Return whether If-None-Match contains the ETag (304)."""
        return bool(self._if_none_match) and contains_tag(self._if_none_match, etag)


def _accepted_versions(method: Method, if_match: str) -> Versions:
    if method.has_side_effects and not method.expected_version:
        raise HttpError(reasons.IF_MATCH_UNSUPPORTED, "The method compares no version.")
    if not (method.expected_version or method.version):
        return None
    versions = _versions_of_tags(if_match)
    if method.expected_version and versions is not None and len(versions) > 1:
        raise HttpError(reasons.IF_MATCH_INVALID, "If-Match has several versions: send one.")
    return versions


def _versions_of_tags(if_match: str) -> Versions:
    """Return the versions in the tags of If-Match. Weak tags and tags of another format have none.

    Raises 400 if the field is neither `*` nor a list of tags.
    """
    if if_match.strip() == "*":
        return None
    tags = _entity_tags(if_match)
    if tags is None:
        raise HttpError(reasons.IF_MATCH_INVALID, "If-Match takes * or a list of entity tags.")
    matches = [_VERSION.fullmatch(tag) for tag in tags]
    versions = [int(match[1]) for match in matches if match]
    return frozenset(version for version in versions if version <= _MAX_VERSION)


def _entity_tags(field: str) -> list[str] | None:
    """Return the tags of a list, which may have empty members; None if it is malformed or empty."""
    tags, position = [], 0
    while position < len(field):
        member = _MEMBER.match(field, position)
        if member is None:
            return None
        tags += [member["tag"]] if member["tag"] else []
        position = member.end()
    return tags or None


def _weak_tag() -> ServiceError:
    """Return the error of an If-Match that has only weak tags (section 13.1.1)."""
    return ServiceError(
        reasons.VERSION_MISMATCH,
        "If-Match compares strongly, and a weak tag (W/) never matches: send the ETag without W/,"
        ' or "<version>".',
    )
