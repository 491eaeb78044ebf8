"""What is made of texts: slugs, keys of tags, mentions."""

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
"""At least one letter, so that a date at the end of a title is no suffix."""
_SLUG_LENGTH: Final = 80
"""Characters, without a suffix."""
_KEY_LENGTH: Final = 100
_MOST_MENTIONS: Final = 10


def is_id(name: str) -> bool:
    """Return whether a name is an id, in any case."""
    return bool(_UUID.fullmatch(name.lower()))


def slug_of(title: str) -> str:
    """Return the name of a post in addresses: its title's words, in lower case, without accents.

    It is never an id, and `post` for a title without words.
    """
    slug = "-".join(words(title))[:_SLUG_LENGTH].strip("-")
    return f"post-{slug}" if is_id(slug) else slug or "post"


def with_suffix(slug: str) -> str:
    """Return the slug with a random suffix of eight hexadecimal digits, one of them a letter."""
    while not _SUFFIX.fullmatch(suffix := f"-{secrets.token_hex(4)}"):
        pass
    return slug + suffix


def is_slug_of(slug: str, plain: str, post_id: str) -> bool:
    """Return whether a slug of a post was made of `plain`, with a suffix or without one.

    Posts older than slugs have the end of their id as suffix.
    """
    rest = slug.removeprefix(plain)
    made_of = slug.startswith(plain)
    return made_of and (rest in ("", f"-{post_id[-12:]}") or bool(_SUFFIX.fullmatch(rest)))


def tag_key(tag: str) -> str:
    """Return what tags have in common that are the same but for case.

    It is cut where it gets long (one letter may stand for eighteen): page tokens have to hold it.
    """
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFC", tag.strip()).casefold())
    return unicodedata.normalize("NFKC", plain.casefold())[:_KEY_LENGTH]  # ™ has become TM


def distinct_tags(tags: Iterable[str]) -> dict[str, str]:
    """Return tags by key, as they are first written, without spaces around them."""
    found: dict[str, str] = {}
    for tag in filter(str.strip, tags):
        found.setdefault(tag_key(tag), unicodedata.normalize("NFC", tag.strip()))
    return found


def mentions(*texts: str) -> list[str]:
    """Return usernames that texts name as `@username`, in lower case, once each, ten at most."""
    names = (name.lower() for text in texts for name in _MENTION.findall(text))
    return list(dict.fromkeys(names))[:_MOST_MENTIONS]
