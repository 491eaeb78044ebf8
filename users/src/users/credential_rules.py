"""Rules on passwords and usernames, in addition to the rules of the contract."""

import re
from typing import Final

from zxcvbn.frequency_lists import FREQUENCY_LISTS

from postbus import reasons
from shared.errors import invalid_field
from users.passwords import normalized

__all__ = ["require_uncommon", "require_unreserved"]

_MIN_LENGTH: Final = 8
"""Characters of a password, without words of the context (ASVS 6.1.2)."""
_MIN_DISTINCT: Final = 3
"""Different characters of a password."""
_COMMON: Final = frozenset(
    password for password in FREQUENCY_LISTS["passwords"] if len(password) >= _MIN_LENGTH
)
"""About 11,600, in lower case (ASVS 6.2.4 requires the 3,000 most common)."""
_PRODUCT: Final = "postbus"
_MIN_WORD: Final = 3
"""Characters of a context word; shorter ones are not removed from a password."""
_RESERVED: Final = frozenset(
    (  # noqa: SIM905  # the formatter would write a list with one name per line
        "abuse account admin administrator anonymous api billing contact deleted everyone ftp help"
        " hostmaster info mail moderator noreply notifications null official owner postbus"
        " postmaster privacy root security staff superuser support sysadmin system team undefined"
        " webmaster www"
    ).split()
)


def require_uncommon(password: str, *, username: str, email: str, field: str) -> None:
    """Raise INVALID_ARGUMENT with PASSWORD_TOO_COMMON if the password is easy to guess.

    `field` is the name of its field in the request, for the violation.
    """
    lower = normalized(password).lower()
    rest = _without_context(lower, username.lower(), email.lower())
    if (
        lower in _COMMON
        or rest in _COMMON
        or len(rest) < _MIN_LENGTH
        or len(set(lower)) < _MIN_DISTINCT
    ):
        message = "This password is too easy to guess. Choose another one."
        raise invalid_field(reasons.PASSWORD_TOO_COMMON, field, "password.common", message)


def _without_context(password: str, username: str, email: str) -> str:
    words = {username, email, email.partition("@")[0], _PRODUCT}
    for word in sorted(words, key=len, reverse=True):
        if len(word) >= _MIN_WORD:
            password = password.replace(word, "")
    return password


def require_unreserved(username: str) -> None:
    """Raise INVALID_ARGUMENT with USERNAME_RESERVED if the name suggests the operator."""
    if re.sub("[_-]", "", username.lower()) in _RESERVED:
        message = "This username is reserved. Choose another one."
        raise invalid_field(reasons.USERNAME_RESERVED, "username", "username.reserved", message)
