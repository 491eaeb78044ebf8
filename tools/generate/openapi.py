"""gen/postbus/openapi.json: the REST interface, OpenAPI 3.1."""

import re
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from tools.generate.contracts import Contracts, GeneratorError, HttpBinding
from tools.generate.schemas import Schema, Schemas

__all__ = ["openapi"]

_PARAMETER: Final = re.compile(r"\{([^}]+)\}")
_DERIVED: Final = frozenset({"update_mask"})
"""Fields that the gateway fills in for a PATCH."""
_PROBLEM: Final[Schema] = {
    "type": "object",
    "description": "Why a request failed (RFC 9457).",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string", "description": "The reason, for people."},
        "status": {"type": "integer", "description": "The HTTP status."},
        "detail": {"type": "string", "description": "What is wrong. May change; never parse it."},
        "code": {"type": "string", "description": "Canonical code, such as `NOT_FOUND`."},
        "reason": {"type": "string", "description": "Stable cause, such as `USERNAME_TAKEN`."},
        "outcome": {
            "enum": ["NO_EFFECT", "UNKNOWN"],
            "description": "Whether the change may have happened although the request failed.",
        },
        "violations": {
            "type": "array",
            "description": "Every field that breaks a rule.",
            "items": {
                "type": "object",
                "properties": {
                    "field": {"type": "string"},
                    "rule": {"type": "string"},
                    "message": {"type": "string"},
                },
                "required": ["field", "rule", "message"],
            },
        },
        "traceId": {"type": "string", "description": "Finds the failure in logs."},
    },
    "required": [
        "type",
        "title",
        "status",
        "detail",
        "code",
        "reason",
        "outcome",
        "violations",
        "traceId",
    ],
}
_HEADERS: Final = [
    {
        "name": "Request-Timeout",
        "in": "header",
        "description": "Seconds to wait for the answer, up to 30.",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 30},
    }
]
_IDEMPOTENCY_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Names the operation: a repetition with the same key has no second effect.",
    "schema": {"type": "string", "pattern": "^[\\x21-\\x7e]{1,128}$"},
}


def openapi(contracts: Contracts) -> dict[str, Any]:
    """Return the document."""
    schemas = Schemas(contracts)
    paths: dict[str, dict[str, Any]] = {}
    for method in contracts.methods:
        for index, rule in enumerate(contracts.http(method)):
            operations = paths.setdefault(rule.path, {})
            if rule.verb.lower() in operations:
                raise GeneratorError(method, f"{rule.verb} {rule.path} is taken")
            operations[rule.verb.lower()] = _operation(contracts, schemas, method, rule, index)
    components = {"Problem": _PROBLEM} | dict(sorted(schemas.components.items()))
    services = {method.containing_service for method in contracts.methods if contracts.http(method)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Postbus", "version": "1", "license": {"name": "MIT"}},
        "tags": [
            {"name": service.name, "description": contracts.comment(service.full_name)}
            for service in sorted(services, key=lambda service: service.full_name)
        ],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
            },
        },
    }


def _operation(
    contracts: Contracts, schemas: Schemas, method: MethodDescriptor, rule: HttpBinding, index: int
) -> dict[str, Any]:
    rules = contracts.option(method, "postbus.options.v1.method")
    summary, _, description = contracts.comment(method.full_name).partition("\n\n")
    in_path = frozenset(_PARAMETER.findall(rule.path))
    operation: dict[str, Any] = {
        "operationId": method.name + (f"_{index}" if index else ""),
        "tags": [method.containing_service.name],
        "summary": summary,
        "description": description,
        "parameters": _parameters(contracts, schemas, method, rule, in_path),
    }
    if rule.body:
        schema = _body(schemas, method, rule, in_path)
        content = {"application/json": {"schema": schema}}
        operation["requestBody"] = {"required": True, "content": content}
    operation["responses"] = _responses(schemas, method, rule, rules.http_status)
    access_user = 2
    operation["security"] = (
        [{"bearer": []}] if rules.access == access_user else [{}, {"bearer": []}]
    )
    return operation


def _parameters(
    contracts: Contracts,
    schemas: Schemas,
    method: MethodDescriptor,
    rule: HttpBinding,
    in_path: frozenset[str],
) -> list[Schema]:
    fields = method.input_type.fields_by_name
    for name in in_path - set(fields):
        raise GeneratorError(method, f"the path parameter {name} is not a field of the request")
    parameters = [_parameter(schemas, fields[name], "path") for name in sorted(in_path)]
    if not rule.body:
        in_query = [field for field in fields.values() if field.name not in in_path]
        parameters += [
            _parameter(schemas, field, "query", required=contracts.is_required(field))
            for field in in_query
        ]
    safe = method.GetOptions().idempotency_level == 1
    return parameters + _HEADERS + ([] if safe else [_IDEMPOTENCY_KEY])


def _parameter(
    schemas: Schemas, field: FieldDescriptor, place: str, *, required: bool = True
) -> Schema:
    if field.message_type:
        raise GeneratorError(field, "messages are not supported as parameters yet")
    schema = schemas.field(field)
    description = schema.pop("description")
    name = field.name if place == "path" else field.json_name
    return {
        "name": name,
        "in": place,
        "required": required,
        "description": description,
        "schema": schema,
    }


def _body(
    schemas: Schemas, method: MethodDescriptor, rule: HttpBinding, in_path: frozenset[str]
) -> Schema:
    if rule.body != "*":
        raise GeneratorError(method, 'only body: "*" is supported yet')
    derived = _DERIVED if rule.verb == "PATCH" else frozenset()
    return schemas.message(method.input_type, answers=False, without=in_path | derived)


def _responses(
    schemas: Schemas, method: MethodDescriptor, rule: HttpBinding, status: int
) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    failure = {"description": "It failed.", "content": problem}
    if not method.output_type.fields:
        return {"204": {"description": "Done."}, "default": failure}
    answered = _answered(method, rule)
    content = {"application/json": {"schema": schemas.reference(answered)}}
    return {str(status or 200): {"description": "Done.", "content": content}, "default": failure}


def _answered(method: MethodDescriptor, rule: HttpBinding) -> Descriptor:
    """The message that the body of an answer holds."""
    if not rule.response_body:
        return method.output_type
    field = method.output_type.fields_by_name.get(rule.response_body)
    if field is None or field.message_type is None or field.is_repeated:
        raise GeneratorError(method, f"response_body is not a message field: {rule.response_body}")
    return field.message_type
