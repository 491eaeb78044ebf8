"""Collect the violations of a JSON document, with the paths of their fields."""

from shared.errors import MAX_VIOLATIONS, FieldViolation, ServiceError
from shared.wire import invalid_fields

__all__ = ["Found", "RefusedError", "full", "note", "refusal"]

Found = list[tuple[str, str, str]]
"""Path, rule and message of each violation; the path is relative to the value being read."""


class RefusedError(ValueError):
    """Raised by the reader of a value; `found` has its violations, at least one."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(rule, message)
        self.found: Found = [("", rule, message)]

    @classmethod
    def all(cls, found: Found) -> "RefusedError":
        """Return a refusal with every violation of `found`."""
        refused = cls("", "")
        refused.found = found
        return refused


def note(found: Found | None, step: str, refused: RefusedError) -> Found:
    """Return `found` with the violations of an inner value; `step` is its name or subscript.

    `found` is None before the first violation: most documents need no list.
    """
    inside = [
        (f"{step}.{path}" if path and path[0] != "[" else step + path, rule, message)
        for path, rule, message in refused.found
    ]
    return inside if found is None else found + inside


def full(found: Found) -> bool:
    """Return whether `found` has more violations than an error, so that reading can stop."""
    return len(found) > MAX_VIOLATIONS


def refusal(found: Found) -> ServiceError:
    """Return INVALID_ARGUMENT, INVALID_FIELDS with these violations."""
    return invalid_fields(
        [FieldViolation(field=path, rule=rule, message=message) for path, rule, message in found]
    )
