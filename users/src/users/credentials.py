"""Passwords and usernames that the service refuses although the contract's rules admit them."""

import re
from typing import Final

from zxcvbn.frequency_lists import FREQUENCY_LISTS

from shared.errors import Code, FieldViolation, ServiceError
from users.passwords import normal

__all__ = ["require_uncommon", "require_unreserved"]

_SHORTEST: Final = 8
"""Characters that a password has at least, words of the context not counted (ASVS 6.1.2)."""
_FEWEST_DISTINCT: Final = 3
"""Distinct characters of a password."""
_COMMON: Final = frozenset(
    password for password in FREQUENCY_LISTS["passwords"] if len(password) >= _SHORTEST
)
"""Some 11,600, in lower case (ASVS 6.2.4 asks for the 3,000 most common)."""
_PRODUCT: Final = "postbus"
_SHORTEST_WORD: Final = 3
"""Shorter words of the context are not removed from a password."""
_RESERVED: Final = frozenset(
    (  # noqa: SIM905  # a list would be one name a line
        "abuse account admin administrator anonymous api billing contact deleted everyone ftp help"
        " hostmaster info mail moderator noreply notifications null official owner postbus"
        " postmaster privacy root security staff superuser support sysadmin system team undefined"
        " webmaster www"
    ).split()
)


def require_uncommon(password: str, *, username: str, email: str, field: str) -> None:
    """Raise INVALID_ARGUMENT with PASSWORD_TOO_COMMON for a password that is soon guessed.

    `field` names the field of the request that has it.
    """
    lower = normal(password).lower()
    rest = _without_context(lower, username.lower(), email.lower())
    if (
        lower in _COMMON
        or rest in _COMMON
        or len(rest) < _SHORTEST
        or len(set(lower)) < _FEWEST_DISTINCT
    ):
        message = "This password is one of those that are guessed first: choose another one."
        raise ServiceError(
            Code.INVALID_ARGUMENT,
            "PASSWORD_TOO_COMMON",
            message,
            violations=[FieldViolation(field=field, rule="password.common", message=message)],
        )


def _without_context(password: str, username: str, email: str) -> str:
    words = {username, email, email.partition("@")[0], _PRODUCT}
    for word in sorted(words, key=len, reverse=True):
        if len(word) >= _SHORTEST_WORD:
            password = password.replace(word, "")
    return password


def require_unreserved(username: str) -> None:
    """Raise INVALID_ARGUMENT with USERNAME_RESERVED if the operator could have this name."""
    if re.sub("[_-]", "", username.lower()) in _RESERVED:
        message = "This username is reserved: choose another one."
        raise ServiceError(
            Code.INVALID_ARGUMENT,
            "USERNAME_RESERVED",
            message,
            violations=[
                FieldViolation(field="username", rule="username.reserved", message=message)
            ],
        )
