"""Read ProtoJSON, by functions that are made once per message type.

Such a function returns the arguments of upb's constructor: a dictionary of the fields, with inner
messages as dictionaries.
"""

from threading import RLock
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from shared.bounds import is_map
from shared.protojson import structs, times
from shared.protojson.containers import list_reader, map_reader, object_reader
from shared.protojson.refusal import RefusedError, refusal
from shared.protojson.scalars import Read, scalar_reader

__all__ = ["Reader"]

_GOOGLE: Final = "google.protobuf."
_VALUE: Final = f"{_GOOGLE}Value"
_WRAPPERS: Final = "google/protobuf/wrappers.proto"
_SPECIAL_READERS: Final[dict[str, Read]] = {
    f"{_GOOGLE}Timestamp": times.read_time,
    f"{_GOOGLE}Duration": times.read_duration,
    f"{_GOOGLE}FieldMask": times.read_mask,
    f"{_GOOGLE}Struct": structs.read_struct,
    f"{_GOOGLE}ListValue": structs.read_list,
    _VALUE: structs.read_value,
}

_DOCUMENTS: Final = (f"{_GOOGLE}Struct", f"{_GOOGLE}ListValue")


class Reader:
    """Reads JSON documents as messages, in any thread. An Any may contain every message type."""

    def __init__(self) -> None:
        self._readers: dict[Descriptor, Read] = {}
        self._begun: dict[Descriptor, Read] = {}
        self._lock = RLock()
        self._recursive: dict[Descriptor, bool] = {}

    def __call__(self, kind: type[Message], document: Any) -> Message:
        """Return the message that a document describes.

        Raises INVALID_ARGUMENT, INVALID_FIELDS for a document that is not ProtoJSON of this type.
        """
        descriptor: Any = kind.DESCRIPTOR
        try:
            return self._message(kind, self._reader(descriptor)(document))
        except RefusedError as refused:
            raise refusal(refused.found) from None
        except RecursionError:
            raise refusal([("", "nesting", "has too many levels")]) from None

    def _message(self, kind: type[Message], values: Any) -> Message:
        """Return a message with these values; RefusedError beyond the nesting of protobuf."""
        descriptor: Any = kind.DESCRIPTOR
        message = kind(**_arguments(descriptor, values))
        recursive = self._recursive.get(descriptor)
        if recursive is None:
            recursive = self._recursive[descriptor] = _is_recursive(descriptor, ())
        if recursive:
            try:
                kind.FromString(message.SerializeToString())
            except DecodeError:
                raise RefusedError("nesting", "has too many levels") from None
        return message

    def _reader(self, kind: Descriptor) -> Read:
        """Return the reader of a message type, made at its first use."""
        found = self._readers.get(kind)
        return self._make(kind) if found is None else found

    def _make(self, kind: Descriptor) -> Read:
        """Make a reader. Inside a recursive type, return a reader that looks it up when called."""
        with self._lock:
            found = self._readers.get(kind) or self._begun.get(kind)
            if found is None:
                self._begun[kind] = lambda document: self._reader(kind)(document)
                found = self._readers[kind] = self._make_reader(kind)
                del self._begun[kind]
            return found

    def _make_reader(self, kind: Descriptor) -> Read:
        special = _SPECIAL_READERS.get(kind.full_name)
        if special is not None:
            return special
        if kind.full_name == f"{_GOOGLE}Any":
            return self._any(kind)
        if kind.file.name == _WRAPPERS:
            read = scalar_reader(kind.fields_by_name["value"])
            return lambda document: {"value": read(document)}
        return object_reader(kind, {each.name: self._field(each) for each in kind.fields})

    def _field(self, field: FieldDescriptor) -> Read:
        if is_map(field):
            value = field.message_type.fields_by_name["value"]  # type: ignore[union-attr]  # a map's entry
            return map_reader(field, self._map_value(value))
        return list_reader(field, self._single(field)) if field.is_repeated else self._single(field)

    def _map_value(self, field: FieldDescriptor) -> Read:
        read, kind = self._single(field), field.message_type
        if kind is None or kind.full_name not in _DOCUMENTS:
            return read
        return lambda document: _arguments(kind, read(document))

    def _single(self, field: FieldDescriptor) -> Read:
        if field.message_type is None:
            return scalar_reader(field)
        return self._reader(field.message_type)

    def _any(self, kind: Descriptor) -> Read:
        """Return the reader of an Any: `@type`, and the JSON of the message beside it."""
        pool = kind.file.pool

        def read(document: Any) -> dict[str, Any]:
            if type(document) is not dict:
                raise RefusedError("type", "must be an object")
            if not document:
                return {}
            url = document.get("@type")
            inner = self._inner(pool, url)
            descriptor: Any = inner.DESCRIPTOR
            rest = {name: each for name, each in document.items() if name != "@type"}
            if _is_special(descriptor):
                if list(rest) != ["value"]:
                    raise RefusedError("type", "must have only the members @type and value")
                rest = rest["value"]
            message = self._message(inner, self._reader(descriptor)(rest))
            return {"type_url": url, "value": message.SerializeToString()}

        return read

    def _inner(self, pool: Any, url: Any) -> type[Message]:
        """Return the message class of a type URL."""
        if type(url) is not str:
            raise RefusedError("type", "must have an @type")
        _, slash, name = url.rpartition("/")
        try:
            if not slash:
                raise KeyError(name)
            return GetMessageClass(pool.FindMessageTypeByName(name))
        except KeyError:
            raise RefusedError("unknown_type", "has an unknown @type") from None


def _arguments(kind: Descriptor, values: Any) -> dict[str, Any]:
    """Return the arguments of a message's constructor.

    upb converts the documents of Struct and ListValue only in fields that are not maps.
    """
    if kind.full_name == f"{_GOOGLE}Struct":
        return {"fields": {key: structs.read_value(each) for key, each in values.items()}}
    if kind.full_name == f"{_GOOGLE}ListValue":
        return {"values": [structs.read_value(each) for each in values]}
    arguments: dict[str, Any] = values
    return arguments


def _is_special(kind: Descriptor) -> bool:
    """Return whether the JSON of a message type is something else than the object of its fields."""
    any_ = f"{_GOOGLE}Any"
    return (
        kind.full_name in _SPECIAL_READERS or kind.full_name == any_ or kind.file.name == _WRAPPERS
    )


def _is_recursive(kind: Descriptor, outer: tuple[Descriptor, ...]) -> bool:
    """Return whether messages may contain their own type, so that their depth has no limit."""
    if kind in outer:
        return True
    inner = (field.message_type for field in kind.fields if field.message_type is not None)
    return any(_is_recursive(each, (*outer, kind)) for each in inner)
