"""Parameters of paths and queries, and the fields of request messages that they set."""

from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from shared.errors import FieldViolation, shown_name

__all__ = ["Document", "Place", "field_named", "find_place", "violation"]

_BOOLEANS: Final = {"true": True, "false": False}

Document = dict[str, Any]


class Place:
    """The field that a parameter names, as `authorId`, `author_id` or `author.id`.

    `path` is its JSON path in the request message.
    """

    def __init__(self, fields: list[FieldDescriptor]) -> None:
        *self._parents, self._field = fields
        self.path = ".".join(field.json_name for field in fields)

    def put(self, document: Document, text: str) -> FieldViolation | None:
        """Set the field in the document; return a violation if it has a value already."""
        holder = self._holder(document)
        if holder is None:  # no object where one must be: the reader refuses the document
            return None
        name, value = self._field.json_name, _value(self._field, text)
        if self._field.is_repeated:
            holder.setdefault(name, []).append(value)
        elif name in holder:
            return violation(self.path, "duplicate", "given more than once")
        else:
            holder[name] = value
        return None

    def replace(self, document: Document, text: str) -> FieldViolation | None:
        """Set the field as the path of the URL has it.

        A body may repeat the resource's name from the path, or give another of its names beside
        it; return a violation if it names another resource.
        """
        holder = self._holder(document)
        if holder is None:
            return None
        given = [holder.pop(name) for name in _names(self._field) if name in holder]
        conflict = (
            any(str(value) != text for value in given if value is not None)
            and text not in holder.values()
        )
        holder[self._field.json_name] = _value(self._field, text)
        if conflict:
            return violation(self.path, "duplicate", "is not the same as in the path")
        return None

    def _holder(self, document: Document) -> Document | None:
        """Return the object that holds the field, made where the document has none."""
        for parent in self._parents:
            name = next((each for each in _names(parent) if each in document), parent.json_name)
            if document.get(name) is None:
                document[name] = {}
            document = document[name]
            if type(document) is not dict:
                return None
        return document


def find_place(request: Any, name: str) -> Place | None:
    """Return where a request has the field of this name, None if it has none."""
    *parents, last = name.split(".")
    fields = []
    kind: Descriptor | None = request
    for part in parents:
        field = field_named(kind, part) if kind else None
        if field is None or field.is_repeated:
            return None
        fields.append(field)
        kind = field.message_type
    field = field_named(kind, last) if kind else None
    return Place([*fields, field]) if field else None


def field_named(message: Descriptor, name: str) -> FieldDescriptor | None:
    """Return the field with this name, as JSON or the .proto writes it."""
    return next((field for field in message.fields if name in _names(field)), None)


def _names(field: FieldDescriptor) -> set[str]:
    return {field.json_name, field.name}


def _value(field: FieldDescriptor, text: str) -> Any:
    """Return text as JSON has it: the reader takes numbers as strings, but no booleans."""
    wrapped = field.message_type and field.message_type.fields_by_name.get("value")
    if (wrapped or field).cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return _BOOLEANS.get(text, text)
    return text


def violation(name: str, rule: str, message: str) -> FieldViolation:
    """Return the violation of a parameter; its name is cut."""
    return FieldViolation(field=shown_name(name), rule=rule, message=message)
