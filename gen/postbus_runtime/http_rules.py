"""The HTTP bindings of methods: google.api.http (AIP-127, google/api/http.proto)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from postbus_runtime.contract import Contract, ContractError
from postbus_runtime.fields import is_plain_message, is_structured
from postbus_runtime.options import HttpOption

__all__ = ["Binding", "FieldPath", "bindings", "json_path"]

FieldPath = tuple[FieldDescriptor, ...]
"""The fields from the request down to one of its fields, nested or not."""

_VARIABLE: Final = re.compile(r"\{([^{}=]+)(?:=([^{}]*))?\}")
_LITERAL: Final = r"[A-Za-z0-9._~-]+"
_PARAMETER: Final = re.compile(r"[^{}/?#]+")
_DOTS: Final = frozenset({".", ".."})
"""Segments that are removed before a URL is sent (RFC 3986, section 5.2.4)."""
_PATH: Final = re.compile(rf"(/({_LITERAL}|\{{[^{{}}]+\}}))+(:{_LITERAL})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One verb and path of a method. `path` has a parameter for each wildcard: `/v1/posts/{id}`."""

    verb: str
    path: str
    variables: tuple[tuple[FieldPath, str], ...]
    """Each field that the path sets, with its path parameters: `shelves/{shelf}`."""
    query: tuple[FieldPath, ...]
    body: str
    """JSON name of the field that the body sets; `*` for all fields that the path does not set."""
    response_field: FieldDescriptor | None
    """The field of the response that is the response body; None for the whole response."""
    status: int


def json_path(path: FieldPath) -> str:
    """Return the JSON names along a path: `filter.authorId`."""
    return ".".join(field.json_name for field in path)


def bindings(contract: Contract) -> dict[str, list[Binding]]:
    """Return the bindings of each method by its full name, the main one first.

    ContractError if a binding is not supported, or is that of another method as well.
    """
    taken: dict[str, MethodDescriptor] = {}
    found: dict[str, list[Binding]] = {}
    for method in contract.methods:
        reader = _Reader(contract, method)
        options = contract.method_options[method.full_name].http
        found[method.full_name] = [reader.read(option) for option in options]
        for binding in found[method.full_name]:
            shape = f"{binding.verb} {re.sub('{[^}]*}', '{}', binding.path)}"
            if other := taken.get(shape):
                raise ContractError(method, f"{shape} is taken by {other.full_name}")
            taken[shape] = method
    return found


class _Reader:
    def __init__(self, contract: Contract, method: MethodDescriptor) -> None:
        self._method = method
        self._request = method.input_type
        self._options = contract.method_options[method.full_name]
        field = self._request.fields_by_name.get(self._options.expected_version)
        self._in_header = {field.json_name} if field else set()

    def read(self, option: HttpOption) -> Binding:
        if option.custom:
            raise self._error("custom HTTP methods are not supported")
        path, variables = self._path(option.template)
        body = self._body(option.verb, option.body)
        bound = {json_path(variable) for variable, _ in variables} | {body}
        if self._in_header & bound:
            raise self._error("expected_version comes from If-Match, not from path or body")
        bound |= self._in_header
        query = () if option.body == "*" else tuple(self._query(self._request, (), bound))
        return Binding(
            verb=option.verb,
            path=path,
            variables=variables,
            query=query,
            body=body,
            response_field=self._response_field(option.response_body),
            status=self._options.http_status or self._default_status(),
        )

    def _path(self, template: str) -> tuple[str, tuple[tuple[FieldPath, str], ...]]:
        found = [(self._field(name), rest or "*") for name, rest in _VARIABLE.findall(template)]
        patterns = {json_path(field): pattern for field, pattern in found}
        if len(patterns) < len(found):
            raise self._error(f"the path {template!r} sets a field twice")
        taken = {field.json_name for field in self._request.fields} | patterns.keys()
        taken -= {name for name, pattern in patterns.items() if "/" in pattern}
        expanded = [self._parameters(name, patterns[name], taken) for name in patterns]
        parts = iter(expanded)
        path = _VARIABLE.sub(lambda _: next(parts), template)
        if not _PATH.fullmatch(path):
            raise self._error(f"the path {template!r} is not supported")
        if not _DOTS.isdisjoint(path.split("/")):
            raise self._error(f"the path {template!r} has a segment that clients remove")
        fields = [field for field, _ in found]
        return path, tuple(zip(fields, expanded, strict=True))

    def _parameters(self, name: str, pattern: str, taken: set[str]) -> str:
        """Return the pattern with named wildcards: `shelves/{shelves}` for `shelves/*`.

        A wildcard has the name of the literal before it, or else that of the field, `name`; if both
        are in `taken`, that of the field with a number.
        """
        parts = pattern.split("/")
        if any(part != "*" and not re.fullmatch(_LITERAL, part) for part in parts):
            raise self._error(f"the pattern {pattern!r} of {name!r} is not supported")
        if not _PARAMETER.fullmatch(name):
            raise self._error(f"the JSON name {name!r} can't be the name of a path parameter")
        if len(parts) == 1:
            return f"{{{name}}}" if parts == ["*"] else pattern
        named = [
            f"{{{_unused(before, name, taken)}}}" if part == "*" else part
            for before, part in zip([name, *parts], parts, strict=False)
        ]
        return "/".join(named)

    def _field(self, name: str) -> FieldPath:
        message: Descriptor | None = self._request
        path: list[FieldDescriptor] = []
        for part in name.split("."):
            field = message.fields_by_name.get(part) if message else None
            if field is None:
                raise self._error(f"the path parameter {name} is not a field of the request")
            path.append(field)
            message = field.message_type if is_plain_message(field) else None
        if path[-1].is_repeated or is_structured(path[-1]):
            raise self._error(f"the path parameter {name} is not a single value")
        return tuple(path)

    def _body(self, verb: str, name: str) -> str:
        """Return the JSON name of the field that the body sets."""
        if name and verb in ("GET", "DELETE"):
            raise self._error(f"{verb} has no body")
        if name in ("", "*"):
            return name
        field = self._request.fields_by_name.get(name)
        if field is None:
            raise self._error(f"the body {name!r} is not a field of the request")
        return str(field.json_name)

    def _response_field(self, name: str) -> FieldDescriptor | None:
        if not name:
            return None
        field = self._method.output_type.fields_by_name.get(name)
        if field is None:
            raise self._error(f"response_body {name!r} is not a field of the response")
        return field

    def _query(self, message: Descriptor, outer: FieldPath, bound: set[str]) -> Iterator[FieldPath]:
        """Yield the fields that are not bound: single and repeated values, nested ones too."""
        for field in message.fields:
            path = (*outer, field)
            if json_path(path) in bound:
                continue
            if "." in field.json_name:
                raise self._error(f"{json_path(path)} can't be a query parameter: it has a dot")
            if not is_structured(field):
                yield path
            elif not is_plain_message(field) or field.message_type is None:
                raise self._error(f"{json_path(path)} can't be a query parameter")
            elif field.message_type in [each.containing_type for each in path]:
                raise self._error(f"{json_path(path)} contains itself: no query parameter")
            else:
                yield from self._query(field.message_type, path, bound)

    def _default_status(self) -> int:
        """Return 200, or 204 for a response that is always empty."""
        content = self._method.output_type.fields or self._method.server_streaming
        return 200 if content else 204

    def _error(self, reason: str) -> ContractError:
        return ContractError(self._method, reason)


def _unused(before: str, name: str, taken: set[str]) -> str:
    """Return the name of a wildcard, and add it to `taken`; `before` may be a wildcard too."""
    candidates = chain([before], [name], (f"{name}_{number}" for number in count(2)))
    found = next(each for each in candidates if each not in {"*", *taken})
    taken.add(found)
    return found
