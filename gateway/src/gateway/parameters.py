"""The fields of request messages that path and query parameters set."""

from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from shared.errors import FieldViolation, shown_name

__all__ = ["Document", "FieldPath", "field_named", "find_field_path", "violation"]

_BOOLEANS: Final = {"true": True, "false": False}

Document = dict[str, Any]
"""A request message as JSON."""


class FieldPath:
    """The path to the field of a parameter such as `authorId`, `author_id` or `author.id`.

    `path` is the JSON path in the request message.
    """

    def __init__(self, fields: list[FieldDescriptor]) -> None:
        *self._parents, self._field = fields
        self.path = ".".join(field.json_name for field in fields)

    def put(self, document: Document, text: str) -> FieldViolation | None:
        """Set the field in the document; return a violation if it has a value already."""
        holder = self._holder(document)
        if holder is None:
            return violation(self.path, "duplicate", "a field that contains it has a value")
        name, value = self._field.json_name, _value(self._field, text)
        if self._field.is_repeated:
            holder.setdefault(name, []).append(value)
        elif name in holder:
            return violation(self.path, "duplicate", "given more than once")
        else:
            holder[name] = value
        return None

    def replace(self, document: Document, text: str) -> FieldViolation | None:
        """Set the field to the value in the URL's path.

        The body may repeat this value under either name of the field, or in another field of the
        same object. Return a violation if the body has a different value.
        """
        holder = self._holder(document)
        if holder is None:  # the body has another value: the reader refuses the document
            return None
        given = [holder.pop(name) for name in _names(self._field) if name in holder]
        conflict = (
            any(str(value) != text for value in given if value is not None)
            and text not in holder.values()
        )
        holder[self._field.json_name] = _value(self._field, text)
        if conflict:
            return violation(self.path, "duplicate", "differs from the path")
        return None

    def differs(self, body: Any, parameters: Any) -> bool:
        """Return whether a message has a different value than the parameters, as in `replace`."""
        for parent in self._parents:
            body, parameters = getattr(body, parent.name), getattr(parameters, parent.name)
        given = dict(body.ListFields())
        value = getattr(parameters, self._field.name)
        return self._field in given and value not in given.values()

    def _holder(self, document: Document) -> Document | None:
        """Return the object that holds the field, created if missing; None if it is no object."""
        for parent in self._parents:
            name = next((each for each in _names(parent) if each in document), parent.json_name)
            if document.get(name) is None:
                document[name] = {}
            document = document[name]
            if type(document) is not dict:
                return None
        return document


def find_field_path(request: Any, name: str) -> FieldPath | None:
    """Return the path to the field of this name in a request, None if there is no such field."""
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
    return FieldPath([*fields, field]) if field else None


def field_named(message: Descriptor, name: str) -> FieldDescriptor | None:
    """Return the field with this JSON name or name of the .proto."""
    return next((field for field in message.fields if name in _names(field)), None)


def _names(field: FieldDescriptor) -> set[str]:
    return {field.json_name, field.name}


def _value(field: FieldDescriptor, text: str) -> Any:
    """Return the JSON value of a text: the reader accepts numbers, but not booleans, as strings."""
    wrapped = field.message_type and field.message_type.fields_by_name.get("value")
    if (wrapped or field).cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return _BOOLEANS.get(text, text)
    return text


def violation(name: str, rule: str, message: str) -> FieldViolation:
    """Return the violation of a parameter; its name is truncated."""
    return FieldViolation(field=shown_name(name), rule=rule, message=message)
