"""One binding of a method as an operation of the OpenAPI document."""

import re
from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, MethodDescriptor

from postbus_runtime.contract import ContractError
from postbus_runtime.http_rules import Binding, json_path
from postbus_runtime.options import Access
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.rest_headers import RestHeaders
from tools.contracts.generate.rest_responses import PROBLEM_REFERENCE
from tools.contracts.generate.schemas import Schema, Schemas

__all__ = ["Operation"]

_DERIVED: Final = frozenset({"update_mask"})
"""Fields that the gateway sets for a PATCH."""
_RAW_CONTENT: Final[Schema] = {"*/*": {}}
"""The content of a google.api.HttpBody: any media type."""
_CHANGES: Final = ("PATCH", "PUT")
"""Verbs that change a resource, which may be sent as it was read."""


class Operation:
    """One binding of a method."""

    def __init__(
        self,
        contracts: Contracts,
        schemas: Schemas,
        method: MethodDescriptor,
        binding: Binding,
        headers: RestHeaders,
    ) -> None:
        self._contracts = contracts
        self._schemas = schemas
        self._method = method
        self._binding = binding
        self._headers = headers

    def document(self, index: int) -> dict[str, Any]:
        """Return the operation; `index` is the number of the binding, 0 for the main one."""
        method = self._method
        summary, _, description = self._contracts.comment(method.full_name).partition("\n\n")
        operation: dict[str, Any] = {
            "operationId": self._schemas.names.operation_id(method, index),
            "tags": [self._schemas.names.tag(method.containing_service)],
            "summary": summary,
            "description": description,
            "parameters": [*self._path(), *self._query(), *self._headers.parameters()],
        }
        if self._binding.body:
            operation["requestBody"] = self._request_body()
        operation["responses"] = self._responses()
        for_users = self._contracts.method_options[method.full_name].access is Access.USER
        return operation | {"security": [{"bearer": []}] if for_users else [{}, {"bearer": []}]}

    def _path(self) -> Iterator[Schema]:
        for path, parts in self._binding.variables:
            names = re.findall(r"\{([^}]+)\}", parts)
            whole = self._schemas.field(path[-1], request=True, required=True)
            description = whole.pop("description", "")
            for name in names:
                schema = whole if parts == f"{{{name}}}" else {"type": "string"}
                yield {
                    "name": name,
                    "in": "path",
                    "required": True,
                    "description": description,
                    "schema": schema,
                }

    def _query(self) -> Iterator[Schema]:
        for path in self._binding.query:
            required = self._schemas.required(path[-1]) and len(path) == 1
            schema = self._schemas.field(path[-1], request=True, required=True)
            yield {
                "name": json_path(path),
                "in": "query",
                "required": required,
                "description": schema.pop("description", ""),
                "schema": schema,
            }

    def _request_body(self) -> Schema:
        """Return the body, which is optional if `{}` has all required members."""
        request, name = self._method.input_type, self._binding.body
        if _is_raw(request, "" if name == "*" else name):
            return {"required": False, "content": _RAW_CONTENT}
        schema = self._body()
        kinds = ["application/json"]
        if self._binding.verb == "PATCH":
            kinds.append("application/merge-patch+json")  # RFC 7396
        content = {kind: {"schema": schema} for kind in kinds}
        return {"required": not self._accepts_empty(schema), "content": content}

    def _accepts_empty(self, schema: Schema) -> bool:
        name = schema.get("$ref", "").rpartition("/")[2]
        resolved = self._schemas.components.get(name, schema)
        required = {"required", "allOf", "anyOf", "oneOf"}
        return resolved.get("type") == "object" and required.isdisjoint(resolved)

    def _body(self) -> Schema:
        request, binding = self._method.input_type, self._binding
        if binding.body != "*":
            field = next(each for each in request.fields if each.json_name == binding.body)
            return self._schemas.field(field, request=True, required=True)
        derived = _DERIVED if binding.verb == "PATCH" else frozenset()
        in_path = frozenset(path[0].name for path, _ in binding.variables)
        for path, _ in binding.variables:
            if len(path) > 1:
                raise ContractError(
                    self._method, f'{json_path(path)} is in the path: name the body field, not "*"'
                )
        schema = self._schemas.message(request, request=True, without=in_path | derived)
        schema["properties"] |= self._read_only(set(schema["properties"]))
        return schema

    def _read_only(self, writable: set[str]) -> dict[str, Schema]:
        """Return the read-only members of the resource, which a change ignores (AIP-203)."""
        field = self._binding.response_field
        resource = field.message_type if field else self._method.output_type
        if self._binding.verb not in _CHANGES or resource is None:
            return {}
        return {
            field.json_name: self._schemas.field(field, request=False) | {"readOnly": True}
            for field in resource.fields
            if field.json_name not in writable and self._contracts.is_output_only(field)
        }

    def _responses(self) -> dict[str, Any]:
        method = self._method
        empty = not (
            self._binding.response_field or method.output_type.fields or method.server_streaming
        )
        done = {"description": "Done."} if empty else self._done()
        return {
            str(self._binding.status): done | self._headers.of_success(),
            **self._headers.responses(),
        }

    def _done(self) -> Schema:
        field = self._binding.response_field
        raw = _is_raw(self._method.output_type, field.json_name if field else "")
        if raw and not self._method.server_streaming:
            return {"description": "Done.", "content": _RAW_CONTENT}
        schema = (
            self._schemas.reference(self._method.output_type)
            if field is None
            else self._schemas.field(field, request=False)
        )
        if self._method.server_streaming:
            lines = {"type": "object", "properties": {"result": schema, "error": PROBLEM_REFERENCE}}
            content = {"application/x-ndjson": {"schema": lines}}
            return {
                "description": "One line for each message, sent immediately.",
                "content": content,
            }
        return {"description": "Done.", "content": {"application/json": {"schema": schema}}}


def _is_raw(message: Descriptor, body: str) -> bool:
    """Return whether a body, a field of a message or the whole one, is a google.api.HttpBody."""
    field = next((each for each in message.fields if each.json_name == body), None)
    kind = field.message_type if field and not field.is_repeated else None if body else message
    return kind is not None and kind.full_name == "google.api.HttpBody"
