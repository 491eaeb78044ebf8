"""One binding of a method as an operation of the OpenAPI document."""

import re
from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from postbus_runtime.contract import ContractError
from postbus_runtime.http_rules import Binding, json_path
from postbus_runtime.options import Access, Idempotency
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.examples import Examples
from tools.contracts.generate.names import body_component
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
        examples: Examples,
    ) -> None:
        self._contracts = contracts
        self._schemas = schemas
        self._method = method
        self._binding = binding
        self._headers = headers
        self._examples = examples

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
            operation["requestBody"] = self._request_body(operation["operationId"])
        operation["responses"] = self._responses()
        return operation | {"security": self._security()}

    def _security(self) -> list[dict[str, list[str]]]:
        """Return the access that the method needs: for sign-up and log-in, none."""
        options = self._contracts.method_options[self._method.full_name]
        if options.access is Access.USER:
            return [{"bearer": []}]
        if options.idempotency is not Idempotency.NO_SIDE_EFFECTS:
            return []
        return [{}, {"bearer": []}]  # a response may depend on the user, such as `liked`

    def _path(self) -> Iterator[Schema]:
        for path, parts in self._binding.variables:
            names = re.findall(r"\{([^}]+)\}", parts)
            whole = self._schemas.field(path[-1], request=True, required=True)
            description = whole.pop("description", "")
            for name in names:
                alone = parts == f"{{{name}}}"
                example = self._examples.of_field(path[-1]) if alone else None
                yield {
                    "name": name,
                    "in": "path",
                    "required": True,
                    "description": description,
                    "schema": whole if alone else {"type": "string"},
                } | ({} if example is None else {"example": example})

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

    def _request_body(self, operation: str) -> Schema:
        """Return the body, which is optional if `{}` has all required members."""
        request, name = self._method.input_type, self._binding.body
        if _is_raw(request, "" if name == "*" else name):
            return {"required": False, "content": _RAW_CONTENT}
        schema = self._body(operation)
        kinds = ["application/json"]
        if self._binding.verb == "PATCH":
            kinds.append("application/merge-patch+json")  # RFC 7396
        media: dict[str, Any] = {"schema": schema}
        example = self._request_example()
        if example is not None:
            media["example"] = example
        content = dict.fromkeys(kinds, media) | _binary(request, "" if name == "*" else name)
        return {"required": not self._accepts_empty(schema), "content": content}

    def _request_example(self) -> Any:
        """Return the example of the body; None if no value is known that keeps the rules."""
        request, binding = self._method.input_type, self._binding
        if binding.body != "*":
            field = next(each for each in request.fields if each.json_name == binding.body)
            example = self._examples.of_field(field)
            whole: dict[str, Any] | None = {field.json_name: example}
            parts: set[str] = {field.name}
        else:
            outside = self._outside_body()
            example = whole = self._examples.of_request(request, outside)
            members: tuple[Any, ...] = (*request.fields, *request.oneofs)
            parts = {member.name for member in members} - outside
            parts |= set() if outside else {""}
        if example is None or whole is None or not self._examples.is_valid(request, whole, parts):
            return None
        return example

    def _outside_body(self) -> frozenset[str]:
        """Return the fields that are not in the body: path parameters and derived fields."""
        derived = _DERIVED if self._binding.verb == "PATCH" else frozenset()
        return derived | {path[0].name for path, _ in self._binding.variables}

    def _accepts_empty(self, schema: Schema) -> bool:
        name = schema.get("$ref", "").rpartition("/")[2]
        resolved = self._schemas.components.get(name, schema)
        required = {"required", "allOf", "anyOf", "oneOf"}
        return resolved.get("type") == "object" and required.isdisjoint(resolved)

    def _body(self, operation: str) -> Schema:
        """Return the body's schema: a component, named after the operation if it is a part.

        A part is the request message without the fields of the path, headers and derived fields.
        """
        request, binding = self._method.input_type, self._binding
        if binding.body != "*":
            field = next(each for each in request.fields if each.json_name == binding.body)
            return self._schemas.field(field, request=True, required=True)
        for path, _ in binding.variables:
            if len(path) > 1:
                raise ContractError(
                    self._method, f'{json_path(path)} is in the path: name the body field, not "*"'
                )
        schema = self._schemas.message(request, request=True, without=self._outside_body())
        read_only = self._read_only(set(schema["properties"]))
        if not read_only and len(schema["properties"]) == len(request.fields):
            return self._schemas.reference(request, request=True)
        schema["properties"] |= read_only
        name = body_component(operation)
        self._schemas.components[name] = schema
        return {"$ref": f"#/components/schemas/{name}"}

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
        example = self._response_example(field)
        if self._method.server_streaming:
            lines = {"type": "object", "properties": {"result": schema, "error": PROBLEM_REFERENCE}}
            media = {"schema": lines, "example": {"result": example}}
            return {
                "description": "One line for each message, sent immediately.",
                "content": {"application/x-ndjson": media},
            }
        media = {"schema": schema, "example": example}
        content = {"application/json": media} | _binary(
            self._method.output_type, field.json_name if field else ""
        )
        return {"description": "Done.", "content": content}

    def _response_example(self, field: FieldDescriptor | None) -> Any:
        whole = self._examples.of_response(self._method.output_type)
        return whole if field is None else whole.get(field.json_name)


def _binary(message: Descriptor, body: str) -> dict[str, Schema]:
    """Return the binary content of a body that is a message, which JSON Schema cannot describe."""
    field = next((each for each in message.fields if each.json_name == body), None)
    kind = message if field is None else None if field.is_repeated else field.message_type
    if kind is None:
        return {}
    return {"application/protobuf": {"schema": {"description": f"A binary `{kind.full_name}`."}}}


def _is_raw(message: Descriptor, body: str) -> bool:
    """Return whether a body, a field of a message or the whole one, is a google.api.HttpBody."""
    field = next((each for each in message.fields if each.json_name == body), None)
    kind = field.message_type if field and not field.is_repeated else None if body else message
    return kind is not None and kind.full_name == "google.api.HttpBody"
