"""Parameters of paths and queries: text, put where the request message has it."""

import re
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

from shared.errors import FieldViolation, ServiceError
from shared.wire import invalid_fields

__all__ = ["Place", "field_named", "unknown"]

_INTEGER: Final = re.compile(r"-?\d{1,20}")
_NUMBER: Final = re.compile(r"-?\d{1,400}(\.\d{1,400})?([eE][+-]?\d{1,3})?")
_BOOLEANS: Final = {"true": True, "false": False}

Document = dict[str, Any]


class Place:
    """The field that a parameter names, as `authorId`, `author_id` or `author.id`."""

    def __init__(self, request: Any, name: str) -> None:
        *parents, last = name.split(".")
        self._parents = []
        for parent in parents:
            field = field_named(request, parent, of=name)
            if field.message_type is None or field.is_repeated:
                raise unknown(name)
            self._parents.append(field.json_name)
            request = field.message_type
        self._field = field_named(request, last, of=name)
        self.path = ".".join([*self._parents, self._field.json_name])

    def put(self, document: Document, text: str) -> None:
        """Set the field in the document; INVALID_ARGUMENT if it is given twice."""
        for parent in self._parents:
            document = document.setdefault(parent, {})
            if not isinstance(document, dict):
                raise unknown(self.path)
        value = _value(self._field, text)
        if self._field.is_repeated:
            document.setdefault(self._field.json_name, []).append(value)
        elif self._field.json_name in document:
            raise _violated(self.path, "repeated", "given more than once")
        else:
            document[self._field.json_name] = value


def field_named(message: Any, name: str, *, of: str = "") -> FieldDescriptor:
    """The field with this name, as proto or JSON writes it."""
    fields: list[FieldDescriptor] = message.fields
    for field in fields:
        if name in (field.name, field.json_name):
            return field
    raise unknown(of or name)


def _value(field: FieldDescriptor, text: str) -> Any:
    """Text as JSON would have it; what does not fit stays text, and is refused as such."""
    wrapped = field.message_type and field.message_type.fields_by_name.get("value")
    kind = (wrapped or field).cpp_type
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return _BOOLEANS.get(text, text)
    if kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32):
        return int(text) if _INTEGER.fullmatch(text) else text
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return float(text) if _NUMBER.fullmatch(text) else text
    return text


def unknown(name: str) -> ServiceError:
    return _violated(name, "unknown", "no such parameter")


def _violated(name: str, rule: str, message: str) -> ServiceError:
    return invalid_fields([FieldViolation(field=name, rule=rule, message=message)])
