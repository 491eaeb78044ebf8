"""Metadata of calls: header fields that travel beside the messages, in Request and Reply."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from types import MappingProxyType
from typing import Any, Final

__all__ = ["MAX_METADATA_BYTES", "NO_METADATA", "Metadata", "OutgoingMetadata", "read_metadata"]

Metadata = Mapping[str, Sequence[str]]
"""The values of each name, in order; names are in lower case."""

NO_METADATA: Final[Metadata] = MappingProxyType({})
MAX_METADATA_BYTES: Final = 8 * 1024
"""Most bytes of all names and values of a request, of the headers or of the trailers of a reply."""
_VALUE_BYTES: Final = 8
"""Bytes that each value counts besides its text: the framing of protobuf and HTTP."""
_MAX_VALUES: Final = 1024
"""Entries that are read, and values of an entry: more exceed the bytes by their framing alone."""
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_TEXT: Final = re.compile(r"(?:[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)?")
"""A field value of HTTP in ASCII (RFC 9110, section 5.5)."""


class OutgoingMetadata:
    """Metadata that is being built: within the bounds, and valid as header fields of HTTP."""

    __slots__ = ("_bytes", "values")

    def __init__(self) -> None:
        self.values: dict[str, list[str]] = {}
        self._bytes = 0

    def add(self, name: str, *values: str) -> None:
        """Add values to a name, which is not case-sensitive.

        Raises ValueError for a name or value that is no header field in ASCII, and if all names
        and values together would exceed MAX_METADATA_BYTES.
        """
        lower = name.lower()
        if not _NAME.fullmatch(lower) or not all(map(_TEXT.fullmatch, values)):
            raise ValueError(f"not a header field in ASCII: {name[:100]!r}")
        size = sum(len(lower) + len(value) + _VALUE_BYTES for value in values)
        if self._bytes + size > MAX_METADATA_BYTES:
            raise ValueError(f"more than {MAX_METADATA_BYTES} bytes of metadata")
        self._bytes += size
        self.values.setdefault(lower, []).extend(values)


def read_metadata(entries: Iterable[Any]) -> Metadata:
    """Return the metadata of an envelope; entries that exceed the bounds are left out.

    `entries` are messages of postbus.bus.v1.Metadata. Any client of the broker can send them.
    """
    found = OutgoingMetadata()
    for entry in islice(entries, _MAX_VALUES):
        if len(entry.values) <= _MAX_VALUES:
            with suppress(ValueError):
                found.add(entry.name, *entry.values)
    return found.values
