"""How methods are reached over HTTP: google.api.http (AIP-127, google/api/http.proto)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from tools.contracts.generate.descriptors import Contracts, GeneratorError
from tools.contracts.generate.fields import is_plain_message, is_structured
from tools.contracts.generate.options import expected_version

__all__ = ["Binding", "FieldPath", "bindings", "json_path"]

FieldPath = tuple[FieldDescriptor, ...]
"""A field of the request, or a field of a field of it, and so on."""

_VERBS: Final = ("get", "put", "post", "delete", "patch")
_VARIABLE: Final = re.compile(r"\{([^{}=]+)(?:=([^{}]*))?\}")
_LITERAL: Final = r"[A-Za-z0-9._~-]+"
_PATH: Final = re.compile(rf"(/({_LITERAL}|\{{[^{{}}]+\}}))+(:{_LITERAL})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One verb and path of a method. `path` has a parameter for each wildcard: `/v1/posts/{id}`."""

    verb: str
    path: str
    variables: tuple[tuple[FieldPath, str], ...]
    """Fields that the path sets, and of which parameters: `shelves/{shelf}`."""
    query: tuple[FieldPath, ...]
    body: str
    """Name of the field that the body holds; `*` for all that the path does not."""
    answer: FieldDescriptor | None
    """The field of the response that the body of the answer holds, if it is one."""
    status: int


def json_path(path: FieldPath) -> str:
    """Name a field as JSON does: `filter.authorId`."""
    return ".".join(field.json_name for field in path)


def bindings(contracts: Contracts) -> dict[str, list[Binding]]:
    """Return the bindings of each method by its full name, the main one first."""
    taken: dict[str, MethodDescriptor] = {}
    found: dict[str, list[Binding]] = {}
    for method in contracts.methods:
        rules = contracts.option(method, "google.api.http")
        reader = _Reader(contracts, method)
        found[method.full_name] = [
            reader.read(rule)
            for rule in (rules, *rules.additional_bindings)
            if rule.WhichOneof("pattern")
        ]
        for binding in found[method.full_name]:
            shape = f"{binding.verb} {re.sub('{[^}]*}', '{}', binding.path)}"
            if other := taken.get(shape):
                raise GeneratorError(method, f"{shape} is taken by {other.full_name}")
            taken[shape] = method
    return found


class _Reader:
    def __init__(self, contracts: Contracts, method: MethodDescriptor) -> None:
        self._contracts = contracts
        self._method = method
        self._request = method.input_type
        expected = expected_version(contracts, method)
        field = self._request.fields_by_name.get(expected)
        self._in_header = {field.json_name} if field else set()

    def read(self, rule: Any) -> Binding:
        verb = rule.WhichOneof("pattern")
        if verb not in _VERBS:
            raise self._error("custom HTTP methods are not supported")
        path, variables = self._path(getattr(rule, verb))
        body = self._body(verb, rule.body)
        said = {json_path(variable) for variable, _ in variables} | {body}
        if self._in_header & said:
            raise self._error("expected_version comes from If-Match, not from path or body")
        said |= self._in_header
        query = () if rule.body == "*" else tuple(self._query(self._request, (), said))
        return Binding(
            verb=verb.upper(),
            path=path,
            variables=variables,
            query=query,
            body=rule.body,
            answer=self._answer(rule.response_body),
            status=self._status(),
        )

    def _path(self, template: str) -> tuple[str, tuple[tuple[FieldPath, str], ...]]:
        variables = []

        def expand(match: re.Match[str]) -> str:
            field = self._field(match[1])
            parts = self._parameters(json_path(field), match[2] or "*")
            variables.append((field, parts))
            return parts

        path = _VARIABLE.sub(expand, template)
        if not _PATH.fullmatch(path):
            raise self._error(f"the path {template!r} is not supported")
        return path, tuple(variables)

    def _parameters(self, name: str, pattern: str) -> str:
        """Name the wildcards of a variable: `shelves/*` is `shelves/{shelves}`, `*` is `{name}`."""
        parts = pattern.split("/")
        if any(part != "*" and not re.fullmatch(_LITERAL, part) for part in parts):
            raise self._error(f"the pattern {pattern!r} of {name!r} is not supported")
        if len(parts) == 1:
            return f"{{{name}}}" if parts == ["*"] else pattern
        named = [
            (f"{{{parts[place - 1] if place else name}}}" if part == "*" else part)
            for place, part in enumerate(parts)
        ]
        if len(set(named)) < len(named):
            raise self._error(f"the pattern {pattern!r} of {name!r} is not supported")
        return "/".join(named)

    def _field(self, name: str) -> FieldPath:
        message: Descriptor | None = self._request
        path: list[FieldDescriptor] = []
        for part in name.split("."):
            field = message.fields_by_name.get(part) if message else None
            if field is None:
                raise self._error(f"the path parameter {name} is not a field of the request")
            path.append(field)
            message = field.message_type
        if path[-1].is_repeated or is_structured(path[-1]):
            raise self._error(f"the path parameter {name} is not a single value")
        return tuple(path)

    def _body(self, verb: str, name: str) -> str:
        """Return the JSON name of the field that the body holds."""
        if name and verb in ("get", "delete"):
            raise self._error(f"{verb.upper()} has no body")
        if name in ("", "*"):
            return name
        field = self._request.fields_by_name.get(name)
        if field is None:
            raise self._error(f"the body {name!r} is not a field of the request")
        return str(field.json_name)

    def _answer(self, name: str) -> FieldDescriptor | None:
        if not name:
            return None
        field = self._method.output_type.fields_by_name.get(name)
        if field is None:
            raise self._error(f"response_body {name!r} is not a field of the response")
        return field

    def _status(self) -> int:
        rules = self._contracts.option(self._method, "postbus.options.v1.method")
        return rules.http_status or (200 if self._method.output_type.fields else 204)

    def _query(self, message: Descriptor, outer: FieldPath, said: set[str]) -> Iterator[FieldPath]:
        """The fields that are left for the query: single and repeated values, nested ones too."""
        for field in message.fields:
            path = (*outer, field)
            if json_path(path) in said:
                continue
            if not is_structured(field):
                yield path
            elif not is_plain_message(field) or field.message_type is None:
                raise self._error(f"{json_path(path)} can't be a query parameter")
            elif field.message_type in [each.containing_type for each in path]:
                raise self._error(f"{json_path(path)} contains itself: no query parameter")
            else:
                yield from self._query(field.message_type, path, said)

    def _error(self, reason: str) -> GeneratorError:
        return GeneratorError(self._method, reason)
