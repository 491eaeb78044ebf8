"""Update masks of requests (AIP-134, AIP-161), and members that a change ignores (AIP-203)."""

import re
from collections.abc import Container, Mapping
from functools import cache
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from gateway.parameters import field_named, violation
from postbus.codec import POOL
from postbus.registry import Method
from shared.errors import FieldViolation, shown_name
from shared.wire import message_class

__all__ = ["MASK", "Resource", "derive_mask", "resource_of", "unknown_paths"]

MASK: Final = "update_mask"
_OUTPUT_ONLY: Final = 3
"""Number in google.api.FieldBehavior."""
_CAPITAL: Final = re.compile("[A-Z]")
_FieldOptions: Any = GetMessageClass(POOL.FindMessageTypeByName("google.protobuf.FieldOptions"))
_BEHAVIOR: Any = POOL.FindExtensionByName("google.api.field_behavior")


class Resource:
    """The resource that a method changes.

    `fields` describes the message of the request with its fields; `shown` describes the resource in
    the response; `read_only` has the names of the members that a change ignores. `has_mask` tells
    whether the request has an update mask.
    """

    def __init__(self, fields: Descriptor, shown: Descriptor, *, has_mask: bool) -> None:
        self.fields = fields
        self.has_mask = has_mask
        self.shown = shown
        own = set() if fields is shown else {field.name for field in fields.fields}
        self.read_only = frozenset(
            name
            for field in shown.fields
            if field.name not in own and _is_output_only(field)
            for name in (field.name, field.json_name)
        )


@cache
def resource_of(method: Method) -> Resource | None:
    """Return the resource that a method with a PATCH changes; None for other methods."""
    request: Any = message_class(method.request_name).DESCRIPTOR
    rule = next((rule for rule in method.http if rule.verb == "PATCH"), None)
    if rule is None:
        return None
    has_mask = MASK in request.fields_by_name
    if rule.body != "*":
        held = _message_named(request, rule.body)
        return Resource(held, held, has_mask=has_mask)
    response: Any = message_class(method.response_name).DESCRIPTOR
    shown = _message_named(response, rule.response_body)
    return Resource(request, shown, has_mask=has_mask)


def _message_named(message: Descriptor, name: str) -> Descriptor:
    """Return the message that a field holds, the outer one where there is none."""
    field = field_named(message, name)
    return field.message_type if field and field.message_type else message


def _is_output_only(field: FieldDescriptor) -> bool:
    options = _FieldOptions.FromString(field.GetOptions().SerializeToString())
    return _OUTPUT_ONLY in options.Extensions[_BEHAVIOR]


def unknown_paths(resource: Resource, message: Any) -> list[FieldViolation]:
    """Return a violation for each path of a request's mask that no resource can have.

    The other paths are set to the names of the .proto; `*` stands for all fields.
    """
    found, paths = [], []
    for path in message.update_mask.paths:
        known = path if path == "*" else _resolved(resource, path)
        if known is None:
            found.append(
                violation("updateMask", "unknown_field", f"there is no field {shown_name(path)}")
            )
        else:
            paths.append(known)
    message.update_mask.paths[:] = paths
    return found


def _resolved(resource: Resource, path: str) -> str | None:
    for kind in (resource.fields, resource.shown):
        if (names := _walk(kind, path.split("."))) is not None:
            return ".".join(names)
    return None


def _walk(kind: Descriptor | None, parts: list[str]) -> list[str] | None:
    names = []
    for part in parts:
        fields = kind.fields if kind else []
        field = next((each for each in fields if part in (each.name, _snake(each.json_name))), None)
        if field is None or field.name == MASK:
            return None
        names.append(field.name)
        kind = field.message_type
    return names


def _snake(name: str) -> str:
    return _CAPITAL.sub(lambda found: f"_{found[0].lower()}", name)


def derive_mask(
    message: Any, resource: Resource, sent: Mapping[str, Any], *, without: Container[str]
) -> None:
    """Name in the mask the members that a client has sent, less the JSON names `without`."""
    changed = {}
    for name, value in sent.items():
        field = field_named(resource.fields, name)
        if field is not None and field.name != MASK and field.json_name not in without:
            changed[field.name] = value
    if paths := _paths(resource.fields, changed):
        message.update_mask.paths.extend(paths)


def _paths(message: Descriptor, document: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the fields that a document has: of messages their fields, of all else the whole."""
    paths = []
    for name, value in document.items():
        if (field := field_named(message, name)) is None:
            continue
        path = prefix + field.name
        if isinstance(value, dict) and value and _is_plain(field):
            paths += _paths(field.message_type, value, f"{path}.")  # type: ignore[arg-type]  # plain
        else:
            paths.append(path)
    return paths


def _is_plain(field: FieldDescriptor) -> bool:
    kind = field.message_type
    if kind is None or kind.full_name.startswith("google.protobuf."):
        return False
    return not kind.GetOptions().map_entry
