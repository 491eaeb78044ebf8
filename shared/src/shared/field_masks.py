"""Update masks: the fields that a request changes (AIP-134)."""

from collections.abc import Set as AbstractSet

from betterproto.lib.google.protobuf import FieldMask

from postbus import reasons
from shared.errors import invalid_field

__all__ = ["require_paths"]


def require_paths(mask: FieldMask, changeable: AbstractSet[str]) -> set[str]:
    """Return the paths of an update mask.

    INVALID_ARGUMENT, UPDATE_MASK_INVALID if a path is not one of the `changeable` fields.
    """
    paths = set(mask.paths)
    if not paths <= changeable:
        message = f"The update mask may contain: {', '.join(sorted(changeable))}."
        raise invalid_field(reasons.UPDATE_MASK_INVALID, "updateMask", "field_mask.in", message)
    return paths
