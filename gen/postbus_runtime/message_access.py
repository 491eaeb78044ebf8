"""Constructors and attribute access of the generated message classes.

betterproto looks up the oneof of a field at every access; only an unset field needs that.
"""

from typing import Any

import betterproto
from betterproto import PLACEHOLDER

__all__ = ["PLACEHOLDER", "get_set_attribute", "set_attribute"]

set_attribute = object.__setattr__
_get_attribute = object.__getattribute__


def get_set_attribute(message: betterproto.Message, name: str) -> Any:
    """Return an attribute; betterproto decides on a field that is unset."""
    value = _get_attribute(message, name)
    if value is PLACEHOLDER:
        return betterproto.Message.__getattribute__(message, name)
    return value
