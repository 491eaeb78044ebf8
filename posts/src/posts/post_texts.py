"""Values derived from texts: slugs, tag keys and mentions."""

import re
import secrets
import unicodedata
from collections.abc import Iterable
from typing import Final

from shared.data.search_terms import words

__all__ = ["distinct_tags", "is_id", "is_slug_of", "mentions", "slug_of", "tag_key", "with_suffix"]

_UUID: Final = re.compile(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}")
_MENTION: Final = re.compile(r"(?<![\w@.-])@([A-Za-z][A-Za-z0-9_-]{2,39})")
_SUFFIX: Final = re.compile(r"-(?=[0-9]*[a-f])[0-9a-f]{8}")
"""A suffix has a letter, so that a date at the end of a title is not one."""
_SLUG_LENGTH: Final = 80
"""Characters, not counting the suffix."""
_KEY_LENGTH: Final = 100
_MAX_MENTIONS: Final = 10


def is_id(name: str) -> bool:
    """Return whether a name is an id, in any case."""
    return bool(_UUID.fullmatch(name.lower()))


def slug_of(title: str) -> str:
    """Return a slug: the words of the title in lower case, without accents.

    `post` for a title without words. A slug is never an id.
    """
    slug = "-".join(words(title))[:_SLUG_LENGTH].strip("-")
    return f"post-{slug}" if is_id(slug) else slug or "post"


def with_suffix(slug: str) -> str:
    """Append a random suffix of eight hexadecimal digits, at least one of them a letter."""
    while not _SUFFIX.fullmatch(suffix := f"-{secrets.token_hex(4)}"):
        pass
    return slug + suffix


def is_slug_of(slug: str, plain: str, post_id: str) -> bool:
    """Return whether a slug of a post is `plain`, with or without a suffix.

    Posts from before slugs existed have the end of their id as suffix.
    """
    rest = slug.removeprefix(plain)
    is_prefix = slug.startswith(plain)
    return is_prefix and (rest in ("", f"-{post_id[-12:]}") or bool(_SUFFIX.fullmatch(rest)))


def tag_key(tag: str) -> str:
    """Return the case-folded, normalised form of a tag, truncated to 100 characters.

    Case folding can lengthen a text (one letter to eighteen), and page tokens contain the key.
    """
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFC", tag.strip()).casefold())
    return unicodedata.normalize("NFKC", plain.casefold())[:_KEY_LENGTH]  # NFKC turns ™ into TM


def distinct_tags(tags: Iterable[str]) -> dict[str, str]:
    """Return tags by key, stripped. Of tags with the same key the first one is used."""
    found: dict[str, str] = {}
    for tag in filter(str.strip, tags):
        found.setdefault(tag_key(tag), unicodedata.normalize("NFC", tag.strip()))
    return found


def mentions(*texts: str) -> list[str]:
    """Return the distinct usernames in mentions (`@username`), in lower case, ten at most."""
    names = (name.lower() for text in texts for name in _MENTION.findall(text))
    return list(dict.fromkeys(names))[:_MAX_MENTIONS]
