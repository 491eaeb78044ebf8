"""Limits on the number of elements of messages, checked before the elements are validated."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

__all__ = [
    "MAX_ELEMENTS",
    "MAX_NESTING",
    "MAX_PATHS",
    "MAX_VALUES",
    "OverBoundError",
    "count_elements",
    "is_map",
    "max_elements",
    "over_bound",
]

MAX_ELEMENTS: Final = 1_000
"""Elements of a list or map without a rule `max_items` or `max_pairs`."""
MAX_PATHS: Final = 100
"""Paths of a FieldMask."""
MAX_VALUES: Final = 20_000
"""Values of a JSON document (members and elements of all levels), or elements of a message."""
MAX_NESTING: Final = 100
"""Levels of a JSON document; the limit of protobuf for binary messages."""
_IGNORE_ALWAYS: Final = 3
"""Number in buf.validate.Ignore."""

Count = Callable[[Any], int]


class OverBoundError(ValueError):
    """Raised for a message with too many elements; has the field's path, the rule and a text."""

    def __init__(self, path: str, rule: str, message: str) -> None:
        super().__init__(path, rule, message)
        self.path = path
        self.rule = rule
        self.message = message

    def inside(self, parent: str) -> "OverBoundError":
        """Return the error with the path of the field `parent` in front of its own."""
        path = f"{parent}.{self.path}" if self.path else parent
        return OverBoundError(path, self.rule, self.message)


def is_map(field: FieldDescriptor) -> bool:
    """Return whether a field is a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def over_bound(field: FieldDescriptor) -> tuple[str, str]:
    """Return the rule and the message for a list or map with too many elements."""
    limit = max_elements(field)
    if is_map(field):
        return "map.max_pairs", f"must have at most {limit} pairs"
    return "repeated.max_items", f"must have at most {limit} items"


@cache
def max_elements(field: FieldDescriptor) -> int:
    """Return the largest number of elements of a list or map: by buf.validate, else 1,000."""
    if field.full_name == "google.protobuf.FieldMask.paths":
        return MAX_PATHS
    rules = _rules(field)
    if rules is None or rules.ignore == _IGNORE_ALWAYS:
        return MAX_ELEMENTS
    if is_map(field):
        return int(rules.map.max_pairs) if rules.map.HasField("max_pairs") else MAX_ELEMENTS
    repeated = rules.repeated
    return int(repeated.max_items) if repeated.HasField("max_items") else MAX_ELEMENTS


def _rules(field: FieldDescriptor) -> Any:
    """Return the buf.validate.FieldRules of a field, None if its pool has no buf.validate."""
    pool = field.containing_type.file.pool  # type: ignore[union-attr]  # None only for extensions
    try:
        extension = pool.FindExtensionByName("buf.validate.field")
        kind = pool.FindMessageTypeByName("google.protobuf.FieldOptions")
    except KeyError:
        return None
    options: Any = GetMessageClass(kind).FromString(field.GetOptions().SerializeToString())
    return options.Extensions[extension]


def count_elements(message: Any) -> int:
    """Return the number of elements of all lists and maps of a message.

    Raises OverBoundError if one of them, or all together, have too many. The elements of a list
    that is too long are not counted.
    """
    count = _counter(message.DESCRIPTOR)
    return 0 if count is None else count(message)


@cache
def _counter(kind: Descriptor) -> Count | None:
    """Return a function that counts the elements of a message, None for a type without lists."""
    if not _has_lists(kind, set()):
        return None
    lists = [(each, *_in_list(each)) for each in kind.fields if each.is_repeated]
    single = [
        each
        for each in kind.fields
        if not each.is_repeated and each.message_type and _has_lists(each.message_type, set())
    ]

    def count(message: Any) -> int:
        total = 0
        for field, name, limit, of_values in lists:
            elements = getattr(message, name)
            if size := len(elements):
                if size > limit:
                    raise OverBoundError(field.json_name, *over_bound(field))
                total += size
                if of_values is not None:
                    total += of_values(elements)
        for field in single:
            if message.HasField(field.name):
                total += _inside(field.json_name, getattr(message, field.name))
        if total > MAX_VALUES:
            raise _too_many()
        return total

    return count


def _in_list(field: FieldDescriptor) -> tuple[str, int, Count | None]:
    """Return the name of a list or map, its limit, and a function that counts in its elements."""
    value = field
    if is_map(field) and field.message_type is not None:
        value = field.message_type.fields_by_name["value"]
    if value.message_type is None or not _has_lists(value.message_type, set()):
        return field.name, max_elements(field), None

    def in_list(elements: Any) -> int:
        name = field.json_name
        return _total(_inside(f"{name}[{i}]", each) for i, each in enumerate(elements))

    def in_map(elements: Any) -> int:
        return _total(_inside(field.json_name, elements[key]) for key in elements)

    return field.name, max_elements(field), in_map if is_map(field) else in_list


def _total(counts: Iterable[int]) -> int:
    total = 0
    for count in counts:
        total += count
        if total > MAX_VALUES:
            raise _too_many()
    return total


def _too_many() -> OverBoundError:
    return OverBoundError("", "max_values", f"must have at most {MAX_VALUES} values in all")


def _inside(parent: str, message: Any) -> int:
    try:
        return count_elements(message)
    except OverBoundError as error:
        raise error.inside(parent) from None


def _has_lists(kind: Descriptor, seen: set[str]) -> bool:
    """Return whether a message type, or the type of one of its fields, has lists or maps."""
    if kind.full_name in seen:
        return False
    seen.add(kind.full_name)
    return any(
        field.is_repeated
        or (field.message_type is not None and _has_lists(field.message_type, seen))
        for field in kind.fields
    )
