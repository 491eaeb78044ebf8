"""gen/postbus/openapi.json: the REST API as an OpenAPI 3.1 document."""

from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.descriptor import MethodDescriptor

from postbus_runtime.http_rules import Binding, bindings
from postbus_runtime.locations import location
from postbus_runtime.options import Access
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.examples import Examples
from tools.contracts.generate.json_values import select_variant
from tools.contracts.generate.openapi_operation import Operation
from tools.contracts.generate.reasons import reasons_of
from tools.contracts.generate.rest_headers import RestHeaders, header_fields
from tools.contracts.generate.rest_responses import HEADERS, PROBLEM, ErrorResponses
from tools.contracts.generate.schemas import Schemas

__all__ = ["MAX_BODY_BYTES", "openapi"]

MAX_BODY_BYTES: Final = 2 << 20
"""Default of the gateway's setting."""
_INFO: Final = """\
JSON is [ProtoJSON](https://protobuf.dev/programming-guides/json). Responses, and the schemas here,
have its canonical form. Requests may also have: `null` for a member that is not set; the names of
the `.proto` (`page_size`) in place of the names shown; the numbers of enum values, known or not;
numbers as strings, and integers as `5.0` or `1e2`; base64 in both alphabets, with or without
padding. Unknown members are refused, and so are members that appear twice, under one name or under
both. Read-only members in a request are ignored: a resource can be sent back as it was read. A body
has at most {max_body_bytes} bytes, 100 levels and 20,000 values. Unless stated otherwise, a list
has at most 1,000 items, and a map as many members.

Bodies that are messages may also be binary: `application/protobuf` as `Content-Type` of a request,
or in `Accept` for the response; the schema names the message. The rules are those of JSON, but a
PATCH has to name its fields in `updateMask`. Errors and streams are JSON.

Every error is a problem (RFC 9457) with a code and a stable reason. The request header
`Request-Timeout` sets the time to wait for the response, from 0.001 to 30 seconds; `traceparent`
(W3C Trace Context) is propagated. Responses to reads have an ETag: with `If-None-Match` they are
sent again only if they have changed, and with `If-Match` a change applies only to the given version
of a resource. The body of a request has no content coding; methods without a described
body refuse one. Percent-encoding in a URL is UTF-8, and a query has at most 200 parameters. OPTIONS
returns the verbs of a path; web pages of other origins need a setting of the operator (CORS).
Events, and the same methods over a WebSocket, are described in `/asyncapi.json`; the contracts are
at `/contracts`.""".replace("{max_body_bytes}", f"{MAX_BODY_BYTES:,}")

_SERVER: Final = "The gateway. The document that a gateway serves has its address."


def openapi(contracts: Contracts) -> dict[str, Any]:
    """Return the document: every method that clients may call."""
    schemas = Schemas(contracts, header_fields(contracts))
    errors = ErrorResponses(reasons_of(contracts))
    paths = _paths(contracts, schemas, errors)
    services = {
        method.containing_service.full_name: method.containing_service
        for method, _ in _public(contracts)
    }
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "Postbus",
            "version": "1",
            "description": _INFO,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "http://localhost:8000", "description": _SERVER}],
        "tags": [
            {
                "name": schemas.names.tag(services[name]),
                "description": contracts.comment(name),
            }
            for name in sorted(services)
        ],
        "paths": paths,
        "components": {
            "schemas": {"Problem": PROBLEM} | dict(sorted(schemas.components.items())),
            "headers": HEADERS,
            "responses": errors.shared(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
            },
        },
    }
    readable: dict[str, Any] = select_variant(document, python=False)
    return readable


def _public(contracts: Contracts) -> list[tuple[MethodDescriptor, Sequence[Binding]]]:
    """Return the methods that clients may call over REST, with their bindings."""
    rules = bindings(contracts)
    return [
        (method, rules[method.full_name])
        for method in contracts.methods
        if rules[method.full_name]
        and contracts.method_options[method.full_name].access is not Access.INTERNAL
    ]


def _paths(
    contracts: Contracts, schemas: Schemas, errors: ErrorResponses
) -> dict[str, dict[str, Any]]:
    """Return the operations by path and verb; the schemas that they use are added to `schemas`."""
    rules, public = bindings(contracts), _public(contracts)
    read = {each.path for _, found in public for each in found if each.verb == "GET"}
    paths: dict[str, dict[str, Any]] = {}
    examples = Examples(contracts)
    for method, found in public:
        for index, binding in enumerate(found):
            headers = RestHeaders(
                contracts,
                method,
                binding,
                errors=errors,
                created=bool(location(contracts, rules, method, binding)),
                readable=binding.path in read,
            )
            operation = Operation(contracts, schemas, method, binding, headers, examples).document(
                index
            )
            paths.setdefault(binding.path, {})[binding.verb.lower()] = operation
    return paths
