"""Refusals of a document's form, gathered with the paths of the fields."""

from shared.errors import MAX_VIOLATIONS, FieldViolation, ServiceError
from shared.wire import invalid_fields

__all__ = ["Found", "RefusedError", "full", "note", "refusal"]

Found = list[tuple[str, str, str]]
"""Path, rule and message of each violation; the path is relative to the value that is read."""


class RefusedError(ValueError):
    """Raised by readers of values; `found` has at least one violation, and few more than 20."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(rule, message)
        self.found: Found = [("", rule, message)]

    @classmethod
    def all(cls, found: Found) -> "RefusedError":
        """Return a refusal with every violation of `found`."""
        refused = cls("", "")
        refused.found = found
        return refused


def note(found: Found | None, place: str, refused: RefusedError) -> Found:
    """Return `found` with the violations of the value at `place`, a member's name or a subscript.

    Readers make the list with the first refusal, for nearly all documents need none.
    """
    inside = [
        (f"{place}.{path}" if path and path[0] != "[" else place + path, rule, message)
        for path, rule, message in refused.found
    ]
    return inside if found is None else found + inside


def full(found: Found) -> bool:
    """Return whether there are more violations than are reported: reading can stop."""
    return len(found) > MAX_VIOLATIONS


def refusal(found: Found) -> ServiceError:
    """Return the error INVALID_FIELDS with these violations."""
    return invalid_fields(
        [FieldViolation(field=path, rule=rule, message=message) for path, rule, message in found]
    )
