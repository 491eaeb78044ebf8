"""ProtoJSON to messages, by readers that are compiled once per message class.

A reader returns the argument of upb's constructor: a dictionary of the fields, in which messages
are dictionaries too. It continues after a refusal, to report every violation, up to one more than
20.
"""

from threading import RLock
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from shared.bounds import is_map, max_elements, over_bound
from shared.errors import shown_name
from shared.protojson import structs, times
from shared.protojson.refusal import Found, RefusedError, full, note, refusal
from shared.protojson.scalars import NULL_VALUE, Read, scalar_reader

__all__ = ["Reader"]

_GOOGLE: Final = "google.protobuf."
_VALUE: Final = f"{_GOOGLE}Value"
_WRAPPERS: Final = "google/protobuf/wrappers.proto"
_OWN_FORMS: Final[dict[str, Read]] = {
    f"{_GOOGLE}Timestamp": times.read_time,
    f"{_GOOGLE}Duration": times.read_duration,
    f"{_GOOGLE}FieldMask": times.read_mask,
    f"{_GOOGLE}Struct": structs.read_struct,
    f"{_GOOGLE}ListValue": structs.read_list,
    _VALUE: structs.read_value,
}
_TEXT_KEYS: Final = FieldDescriptor.TYPE_STRING


class Reader:
    """Reads documents as messages, in any thread. An Any may hold every message of the pool."""

    def __init__(self) -> None:
        self._readers: dict[Descriptor, Read] = {}
        self._begun: dict[Descriptor, Read] = {}
        self._compiling = RLock()
        self._recursive: dict[Descriptor, bool] = {}

    def __call__(self, kind: type[Message], document: Any) -> Message:
        """Return the message that a document describes.

        Raises INVALID_ARGUMENT, reason INVALID_FIELDS, with its violations of form.
        """
        descriptor: Any = kind.DESCRIPTOR
        try:
            return self._message(kind, self._reader(descriptor)(document))
        except RefusedError as refused:
            raise refusal(refused.found) from None
        except RecursionError:
            raise refusal([("", "nesting", "has too many levels")]) from None

    def _message(self, kind: type[Message], values: Any) -> Message:
        """Return a message with these values, unless it is too deep for binary protobuf."""
        descriptor: Any = kind.DESCRIPTOR
        name = descriptor.full_name
        if name == f"{_GOOGLE}Struct":  # as a field it takes the document itself
            values = {"fields": {key: structs.read_value(each) for key, each in values.items()}}
        elif name == f"{_GOOGLE}ListValue":
            values = {"values": [structs.read_value(each) for each in values]}
        message = kind(**values)
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
        """Return the reader of a message, compiled at its first use."""
        found = self._readers.get(kind)
        return self._first(kind) if found is None else found

    def _first(self, kind: Descriptor) -> Read:
        """Compile a reader; inside a message that holds itself, return one that looks it up."""
        with self._compiling:
            found = self._readers.get(kind) or self._begun.get(kind)
            if found is None:
                self._begun[kind] = lambda document: self._reader(kind)(document)
                found = self._readers[kind] = self._compiled(kind)
                del self._begun[kind]
            return found

    def _compiled(self, kind: Descriptor) -> Read:
        own = _OWN_FORMS.get(kind.full_name)
        if own is not None:
            return own
        if kind.full_name == f"{_GOOGLE}Any":
            return self._any(kind)
        if kind.file.name == _WRAPPERS:
            read = scalar_reader(kind.fields_by_name["value"])
            return lambda document: {"value": read(document)}
        return self._plain(kind)

    def _plain(self, kind: Descriptor) -> Read:
        """Return the reader of a message that is an object of its fields in JSON."""
        table: dict[str, tuple[str, str, Read, bool]] = {}
        for names in ("name", "json_name"):
            for field in kind.fields:
                entry = (field.name, field.json_name, self._field(field), _takes_null(field))
                table[getattr(field, names)] = entry
        get = table.get
        oneofs = [oneof for oneof in kind.oneofs if len(oneof.fields) > 1]

        def read(document: Any) -> dict[str, Any]:
            if type(document) is not dict:
                raise RefusedError("type", "must be an object")
            values: dict[str, Any] = {}
            found: Found | None = None
            for key, value in document.items():
                member = get(key)
                try:
                    if member is None:
                        raise RefusedError("unknown_field", "no such field")
                    if value is not None or member[3]:
                        values[member[0]] = member[2](value)
                except RefusedError as refused:
                    found = note(found, shown_name(key) if member is None else member[1], refused)
                    if full(found):
                        break
            if len(values) != len(document):
                found = _duplicates(found, [get(key) for key in document])
            for oneof in oneofs:
                found = _require_one(found, oneof, values)
            if found:
                raise RefusedError.all(found)
            return values

        return read

    def _field(self, field: FieldDescriptor) -> Read:
        if is_map(field):
            return self._map(field)
        return self._list(field) if field.is_repeated else self._single(field)

    def _single(self, field: FieldDescriptor) -> Read:
        if field.message_type is None:
            return scalar_reader(field)
        return self._reader(field.message_type)

    def _list(self, field: FieldDescriptor) -> Read:
        read_one, limit, (rule, message) = (
            self._single(field),
            max_elements(field),
            over_bound(field),
        )

        def read(document: Any) -> list[Any]:
            if type(document) is not list:
                raise RefusedError("type", "must be a list")
            if len(document) > limit:
                raise RefusedError(rule, message)
            values: list[Any] = []
            found: Found | None = None
            for index, each in enumerate(document):
                try:
                    values.append(read_one(each))
                except RefusedError as refused:
                    found = note(found, f"[{index}]", refused)
                    if full(found):
                        break
            if found:
                raise RefusedError.all(found)
            return values

        return read

    def _map(self, field: FieldDescriptor) -> Read:
        key_field, value_field = field.message_type.fields  # type: ignore[union-attr]  # a map's entry
        read_key, read_one = _key_reader(key_field), self._single(value_field)
        limit, (rule, message) = max_elements(field), over_bound(field)
        quoted = key_field.type == _TEXT_KEYS

        def read(document: Any) -> dict[Any, Any]:
            if type(document) is not dict:
                raise RefusedError("type", "must be an object")
            if len(document) > limit:
                raise RefusedError(rule, message)
            values: dict[Any, Any] = {}
            found: Found | None = None
            for name, each in document.items():
                try:
                    key = read_key(name)
                    if key in values:
                        raise RefusedError("duplicate", "given more than once")
                    values[key] = read_one(each)
                except RefusedError as refused:
                    place = shown_name(name)
                    found = note(found, f'["{place}"]' if quoted else f"[{place}]", refused)
                    if full(found):
                        break
            if found:
                raise RefusedError.all(found)
            return values

        return read

    def _any(self, kind: Descriptor) -> Read:
        """Return the reader of an Any: `@type`, and the message's own JSON form beside it."""
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
            if _has_own_form(descriptor):
                if list(rest) != ["value"]:
                    raise RefusedError("type", "must have the members @type and value alone")
                rest = rest["value"]
            message = self._message(inner, self._reader(descriptor)(rest))
            return {"type_url": url, "value": message.SerializeToString()}

        return read

    def _inner(self, pool: Any, url: Any) -> type[Message]:
        """Return the class that a type URL names."""
        if type(url) is not str:
            raise RefusedError("type", "must have an @type")
        _, slash, name = url.rpartition("/")
        try:
            if not slash:
                raise KeyError(name)
            return GetMessageClass(pool.FindMessageTypeByName(name))
        except KeyError:
            raise RefusedError("unknown_type", "its @type is not known here") from None


def _has_own_form(kind: Descriptor) -> bool:
    """Return whether the JSON of a message is not the object of its fields."""
    any_ = f"{_GOOGLE}Any"
    return kind.full_name in _OWN_FORMS or kind.full_name == any_ or kind.file.name == _WRAPPERS


def _takes_null(field: FieldDescriptor) -> bool:
    """Return whether null is a value of the field; else null means that the field is not set."""
    if field.is_repeated:
        return False
    if field.enum_type is not None:
        return field.enum_type.full_name == NULL_VALUE
    return field.message_type is not None and field.message_type.full_name == _VALUE


def _key_reader(field: FieldDescriptor) -> Read:
    """Return the reader of a map's keys, which are strings in JSON."""
    if field.type == FieldDescriptor.TYPE_BOOL:
        return _read_bool_key
    return scalar_reader(field)


def _read_bool_key(name: str) -> bool:
    if name in ("true", "false"):
        return name == "true"
    raise RefusedError("type", "must be true or false")


def _duplicates(found: Found | None, members: list[Any]) -> Found | None:
    """Refuse fields that are named by both spellings, with null or without."""
    seen: set[str] = set()
    for member in filter(None, members):
        if member[0] in seen:
            found = note(found, member[1], RefusedError("duplicate", "given more than once"))
        seen.add(member[0])
    return found


def _require_one(found: Found | None, oneof: Any, values: dict[str, Any]) -> Found | None:
    given = [field.json_name for field in oneof.fields if field.name in values]
    if len(given) < 2:
        return found
    refused = RefusedError("oneof", f"only one of {oneof.name} may be set: {' or '.join(given)}")
    return (found or []) + refused.found


def _is_recursive(kind: Descriptor, outer: tuple[Descriptor, ...]) -> bool:
    """Return whether messages may hold their own kind, so that their depth has no bound."""
    if kind in outer:
        return True
    inner = (field.message_type for field in kind.fields if field.message_type is not None)
    return any(_is_recursive(each, (*outer, kind)) for each in inner)
