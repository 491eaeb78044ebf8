"""Breaking changes between two versions of a contract: each rule on a pair, in both directions."""

import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tests.contract.compiled_contracts import compile_contracts
from tools.contracts.compatibility import compare

ROOT = Path(__file__).parents[2]
PACKAGE = "postbus.odd.v1."

REST, WEBSOCKET, WORKER = "REST client", "WebSocket client", "worker"
CODE = "generated code"
CALLERS = f"{REST}, {WEBSOCKET}, {WORKER}"
INTERNAL = "access: ACCESS_INTERNAL"
CLIENTS = f"{REST}, {WEBSOCKET}"
BY_KEY = f"{WEBSOCKET}, {WORKER}"
CONSUMER = "event consumer"
SUBSCRIBERS = f"{WEBSOCKET}, {CONSUMER}"
UNDECIDED = "constraint changed, effect unknown"
STALE = "event version not raised by a breaking change: 1 -> 1"

Found = dict[str, str]


def rpc(
    http: str = 'post: "/v1/things" body: "*"',
    rules: str = "access: ACCESS_USER",
    *,
    name: str = "Do",
    types: str = "(Ask) returns (Answer)",
    more: str = "",
) -> str:
    route = f"option (google.api.http) = {{{http}}};" if http else ""
    return (
        f"rpc {name}{types} {{ {route} option (postbus.options.v1.method) = {{{rules}}}; {more} }}"
    )


def service(*rpcs: str) -> str:
    return f"service Odd {{ {' '.join(rpcs or [rpc()])} }}"


def request_of(fields: str, more: str = "") -> str:
    """Return a contract with these fields in the request."""
    return f"{service()} message Ask {{ {fields} }} message Answer {{ bool ok = 1; }} {more}"


def response_of(fields: str, more: str = "") -> str:
    """Return a contract with these fields in the response."""
    return f"{service()} message Ask {{ }} message Answer {{ {fields} }} {more}"


def methods_of(*rpcs: str, more: str = "") -> str:
    """Return a contract with these methods."""
    messages = "message Ask { string id = 1; string name = 2; } message Answer { Ask ask = 1; }"
    return f"{service(*rpcs)} {messages} {more}"


def event(
    fields: str = "string id = 1;",
    rules: str = 'subject: "id"',
    access: str = "access: ACCESS_PUBLIC",
) -> str:
    """Return a contract with an event."""
    return f"message Done {{ option (postbus.options.v1.event) = {{{rules} {access}}}; {fields} }}"


def for_user(recipient: str) -> str:
    """Return a contract with an event for the user in the field `recipient`."""
    access = f'access: ACCESS_USER recipient: "{recipient}"'
    return event("string id = 1; string other = 2;", access=access)


def ruled(rules: str, kind: str = "string") -> str:
    """Return a contract with rules of a field in the request."""
    return request_of(f"{kind} a = 1 [{rules}];")


def both(text: str, audiences: str) -> tuple[Found, Found]:
    """Return the same finding in both directions, with the values around `<->` exchanged."""
    kind, _, values = text.rpartition(": ")
    before, _, after = values.partition(" <-> ")
    return {f"{kind}: {before} -> {after}": audiences}, {f"{kind}: {after} -> {before}": audiences}


def tighter(rule: str, before: str = "none", after: str = "true") -> tuple[Found, Found]:
    return {f"Ask.a: constraint tightened: {rule}: {before} -> {after}": CALLERS}, {}


def lay(rule: str) -> str:
    return f"(buf.validate.field).{rule}"


ROUTES = {
    "verb": (
        methods_of(rpc('put: "/v1/things" body: "*"')),
        methods_of(rpc('post: "/v1/things" body: "*"')),
        *both("Odd.Do: route removed: PUT /v1/things <-> POST /v1/things", REST),
    ),
    "second binding": (
        methods_of(rpc('get: "/v1/a" additional_bindings {get: "/v1/b"}')),
        methods_of(rpc('get: "/v1/a"')),
        {"Odd.Do: route removed: GET /v1/b -> removed": REST},
        {},
    ),
    "pattern": (
        methods_of(rpc('get: "/v1/{id=a/*}"')),
        methods_of(rpc('get: "/v1/{id=b/*}"')),
        *both("Odd.Do: route removed: GET /v1/{id=a/*} <-> GET /v1/{id=b/*}", REST),
    ),
    "parameter": (
        methods_of(rpc('get: "/v1/things/{id}"')),
        methods_of(rpc('get: "/v1/things/{name}"')),
        {
            "Odd.Do: path parameters renamed: GET /v1/things/{id} -> GET /v1/things/{name}": REST,
            "Odd.Do: field moved: id of GET /v1/things/{name}: path -> query": REST,
            "Odd.Do: field moved: name of GET /v1/things/{name}: query -> path": REST,
        },
        {
            "Odd.Do: path parameters renamed: GET /v1/things/{name} -> GET /v1/things/{id}": REST,
            "Odd.Do: field moved: id of GET /v1/things/{id}: query -> path": REST,
            "Odd.Do: field moved: name of GET /v1/things/{id}: path -> query": REST,
        },
    ),
    "body": (
        methods_of(rpc('post: "/v1/things"')),
        methods_of(rpc('post: "/v1/things" body: "*"')),
        *both("Odd.Do: body changed: POST /v1/things: none <-> *", REST),
    ),
    "response body": (
        methods_of(rpc('get: "/v1/things"')),
        methods_of(rpc('get: "/v1/things" response_body: "ask"')),
        *both("Odd.Do: response_body changed: GET /v1/things: none <-> ask", REST),
    ),
    "status": (
        methods_of(rpc(rules="access: ACCESS_USER")),
        methods_of(rpc(rules="access: ACCESS_USER http_status: 201")),
        *both("Odd.Do: status changed: POST /v1/things: 200 <-> 201", REST),
    ),
    "another verb captures nothing": (
        methods_of(rpc('get: "/v1/{id}"')),
        methods_of(rpc('post: "/v1/me"', name="Other"), rpc('get: "/v1/{id}"')),
        {},
        {
            "Odd.Other: method removed: Odd.Other -> removed": BY_KEY,
            "Odd.Other: route removed: POST /v1/me -> removed": REST,
        },
    ),
    "custom verb captures, whatever the HTTP verb": (
        methods_of(rpc('get: "/v1/{id}"')),
        methods_of(rpc('post: "/v1/{id}:go"', name="Go"), rpc('get: "/v1/{id}"')),
        {
            "notice: Odd.Do: route shadowed in part: GET /v1/{id} -> "
            "POST /v1/{id}:go of Odd.Go is matched first": REST
        },
        {
            "Odd.Go: method removed: Odd.Go -> removed": BY_KEY,
            "Odd.Go: route removed: POST /v1/{id}:go -> removed": REST,
        },
    ),
    "captured in part": (
        methods_of(rpc('get: "/v1/{id}"')),
        methods_of(rpc('get: "/v1/me"', name="Me"), rpc('get: "/v1/{id}"')),
        {
            "notice: Odd.Do: route shadowed in part: GET /v1/{id} -> "
            "GET /v1/me of Odd.Me is matched first": REST
        },
        {
            "Odd.Me: method removed: Odd.Me -> removed": BY_KEY,
            "Odd.Me: route removed: GET /v1/me -> removed": REST,
        },
    ),
    "order swapped, which decides nothing": (
        methods_of(rpc('get: "/v1/me"', name="Me"), rpc('get: "/v1/{id}"')),
        methods_of(rpc('get: "/v1/{id}"'), rpc('get: "/v1/me"', name="Me")),
        {},
        {},
    ),
}

METHODS = {
    "renamed with its route kept": (
        methods_of(rpc(name="Do")),
        methods_of(rpc(name="Make")),
        {"Odd.Do: method removed: Odd.Do -> removed": BY_KEY},
        {"Odd.Make: method removed: Odd.Make -> removed": BY_KEY},
    ),
    "internal one removed": (
        methods_of(rpc("", "access: ACCESS_INTERNAL"), rpc(name="Stays")),
        methods_of(rpc(name="Stays")),
        {"Odd.Do: method removed: Odd.Do -> removed": WORKER},
        {},
    ),
    "type renamed, the same inside": (
        methods_of(rpc(), more="message Wish { string id = 1; string name = 2; }"),
        methods_of(
            rpc(types="(Wish) returns (Answer)"),
            more="message Wish { string id = 1; string name = 2; }",
        ),
        *both("Odd.Do: request type changed: Ask <-> Wish", WEBSOCKET),
    ),
    "type replaced, other inside": (
        methods_of(rpc(), more="message Reply { int32 ask = 1; }"),
        methods_of(
            rpc(types="(Ask) returns (Reply)"),
            more="message Reply { int32 ask = 1; }",
        ),
        {
            "Odd.Do: response type changed: Answer -> Reply": WEBSOCKET,
            "Reply.ask: type changed: Ask -> int32": CALLERS,
            "Reply.ask: presence lost: optional -> always there": CALLERS,
        },
        {
            "Odd.Do: response type changed: Reply -> Answer": WEBSOCKET,
            "Answer.ask: type changed: int32 -> Ask": CALLERS,
            "Answer.ask: presence gained: always there -> optional": CLIENTS,
        },
    ),
    "field outside the response body": (
        methods_of(rpc('get: "/v1" response_body: "ask"')).replace(
            "Ask ask", "int32 a = 2; Ask ask"
        ),
        methods_of(rpc('get: "/v1" response_body: "ask"')),
        {"Answer.a: field removed: int32 -> removed": BY_KEY},
        {},
    ),
    "streaming": (
        methods_of(rpc()),
        methods_of(rpc(types="(Ask) returns (stream Answer)")),
        *both("Odd.Do: streaming changed: unary <-> server streaming", CALLERS),
    ),
    "public to user": (
        methods_of(rpc(rules="access: ACCESS_PUBLIC")),
        methods_of(rpc(rules="access: ACCESS_USER")),
        {
            "Odd.Do: access tightened: PUBLIC -> USER": CLIENTS,
            "Odd.Do: access token now required: PUBLIC -> USER": WORKER,
        },
        {"notice: Odd.Do: access loosened, check security: USER -> PUBLIC": CALLERS},
    ),
    "user to internal": (
        methods_of(rpc(rules="access: ACCESS_USER")),
        methods_of(rpc(rules="access: ACCESS_INTERNAL")),
        {"Odd.Do: access tightened: USER -> INTERNAL": CLIENTS},
        {
            "notice: Odd.Do: access loosened, check security: INTERNAL -> USER": WORKER,
            "Odd.Do: access token now required: INTERNAL -> USER": WORKER,
        },
    ),
    "idempotency": (
        methods_of(rpc(more="option idempotency_level = NO_SIDE_EFFECTS;")),
        methods_of(rpc(more="option idempotency_level = IDEMPOTENT;")),
        {"Odd.Do: idempotency weakened: NO_SIDE_EFFECTS -> IDEMPOTENT": CALLERS},
        {},
    ),
    "callers": (
        methods_of(rpc(rules=f'{INTERNAL} callers: ["posts", "users"]')),
        methods_of(rpc(rules=f'{INTERNAL} callers: "users"')),
        {"Odd.Do: callers restricted: posts, users -> users": WORKER},
        {},
    ),
    "callers of an open method": (
        methods_of(rpc(rules=INTERNAL)),
        methods_of(rpc(rules=f'{INTERNAL} callers: "users"')),
        {"notice: Odd.Do: callers restricted: none -> users": WORKER},
        {},
    ),
    "idempotency lost": (
        methods_of(rpc(more="option idempotency_level = IDEMPOTENT;")),
        methods_of(rpc()),
        {"Odd.Do: idempotency weakened: IDEMPOTENT -> UNKNOWN": CALLERS},
        {},
    ),
    "timeout": (
        methods_of(rpc()),
        methods_of(rpc(rules="access: ACCESS_USER default_timeout_ms: 100")),
        {"notice: Odd.Do: default_timeout_ms lowered: 5000 -> 100": CALLERS},
        {},
    ),
    "version": (
        methods_of(rpc(rules='access: ACCESS_USER version: "ask.version"')),
        methods_of(rpc()),
        {"Odd.Do: version removed: ask.version -> none": REST},
        {},
    ),
    "expected version": (
        methods_of(rpc(rules='access: ACCESS_USER expected_version: "name"')),
        methods_of(rpc()),
        {
            "Odd.Do: expected_version removed: name -> none": REST,
            "Odd.Do: field moved: name of POST /v1/things: If-Match -> body": REST,
        },
        {"Odd.Do: field moved: name of POST /v1/things: body -> If-Match": REST},
    ),
}

FIELDS = {
    "removed though reserved": (
        request_of("string a = 1;"),
        request_of("reserved 1; reserved 'a';"),
        {"Ask.a: field removed: string -> removed": CALLERS},
        {
            "Ask.a: number reused: reserved 1 -> a": WORKER,
            "Ask.a: reserved name reused: reserved a -> a": CLIENTS,
        },
    ),
    "renamed": (
        request_of("string a_b = 1;"),
        request_of("string b = 1;"),
        {
            "Ask.b: JSON name changed: aB -> b": CLIENTS,
            "Ask.b: number reused: a_b -> b": WORKER,
        },
        {
            "Ask.a_b: JSON name changed: b -> aB": CLIENTS,
            "Ask.a_b: number reused: b -> a_b": WORKER,
        },
    ),
    "renamed in JSON": (
        response_of("string a = 1;"),
        response_of('string a = 1 [json_name = "b"];'),
        *both("Answer.a: JSON name changed: a <-> b", CLIENTS),
    ),
    "renamed in a request with the same JSON name": (
        request_of("string a = 1;"),
        request_of('string b = 1 [json_name = "a"];'),
        {"Ask.b: field renamed: a -> b": CLIENTS},
        {"Ask.a: field renamed: b -> a": CLIENTS},
    ),
    "renamed in a response with the same JSON name": (
        response_of("string a = 1;"),
        response_of('string b = 1 [json_name = "a"];'),
        {},
        {},
    ),
    "renumbered": (
        request_of("string a = 1;"),
        request_of("string a = 2;"),
        *both("Ask.a: number changed: 1 <-> 2", WORKER),
    ),
    "wider, in JSON a string": (
        response_of("int32 a = 1;"),
        response_of("int64 a = 1;"),
        *both("Answer.a: type changed: int32 <-> int64", CALLERS),
    ),
    "string or bytes": (
        request_of("string a = 1;"),
        request_of("bytes a = 1;"),
        *both("Ask.a: type changed: string <-> bytes", CALLERS),
    ),
    "the same in JSON": (
        request_of("int32 a = 1;"),
        request_of("sint32 a = 1;"),
        *both("Ask.a: type changed: int32 <-> sint32", WORKER),
    ),
    "well-known type": (
        response_of("google.protobuf.Timestamp a = 1;"),
        response_of("google.protobuf.Duration a = 1;"),
        *both(
            "Answer.a: type changed: google.protobuf.Timestamp <-> google.protobuf.Duration",
            CALLERS,
        ),
    ),
    "inner message": (
        response_of("Part a = 1;", "message Part { string b = 1; }"),
        response_of("Other a = 1;", "message Other { }"),
        {"Part.b: field removed: string -> removed": CALLERS},
        {},
    ),
    "repeated": (
        request_of("string a = 1;"),
        request_of("repeated string a = 1;"),
        *both("Ask.a: cardinality changed: singular <-> repeated", CALLERS),
    ),
    "value of a map": (
        response_of("map<string, string> a = 1;"),
        response_of("map<string, bytes> a = 1;"),
        *both("Answer.AEntry.value: type changed: string <-> bytes", CALLERS),
    ),
    "map or list": (
        response_of("map<string, Part> a = 1;", "message Part { }"),
        response_of("repeated Part a = 1;", "message Part { }"),
        *both("Answer.a: type changed: map <-> Part", CALLERS),
    ),
    "presence in a request": (
        request_of("optional string a = 1;"),
        request_of("string a = 1;"),
        {"Ask.a: presence lost: optional -> always there": CALLERS},
        {},
    ),
    "presence in a response": (
        response_of("optional string a = 1;"),
        response_of("string a = 1;"),
        {"Answer.a: presence lost: optional -> always there": CALLERS},
        {"Answer.a: presence gained: always there -> optional": CLIENTS},
    ),
    "oneof joined": (
        request_of("optional string a = 1; optional string b = 2;"),
        request_of("oneof c { string a = 1; string b = 2; }"),
        {
            "Ask.a: oneof changed: excludes none -> excludes b": CALLERS,
            "Ask.b: oneof changed: excludes none -> excludes a": CALLERS,
        },
        {
            "Ask.a: oneof changed: excludes b -> excludes none": CALLERS,
            "Ask.b: oneof changed: excludes a -> excludes none": CALLERS,
        },
    ),
    "oneof renamed": (
        request_of("oneof c { string a = 1; string b = 2; }"),
        request_of("oneof d { string a = 1; string b = 2; }"),
        {},
        {},
    ),
    "oneof extended": (
        response_of("oneof c { string a = 1; }"),
        response_of("oneof c { string a = 1; string b = 2; }"),
        {"notice: Answer.b: case added to oneof: c: none -> string": CALLERS},
        {"Answer.b: field removed: string -> removed": CALLERS},
    ),
    "enum value renamed": (
        request_of("E a = 1;", "enum E { Z = 0; }"),
        request_of("E a = 1;", "enum E { Y = 0; }"),
        {
            "E.Y: enum value renamed: Z -> Y": CLIENTS,
            "E.Y: enum number reused: Z -> Y": WORKER,
        },
        {
            "E.Z: enum value renamed: Y -> Z": CLIENTS,
            "E.Z: enum number reused: Y -> Z": WORKER,
        },
    ),
    "enum value with an alias": (
        request_of("E a = 1;", "enum E { Z = 0; }"),
        request_of("E a = 1;", "enum E { option allow_alias = true; Y = 0; Z = 0; }"),
        {},
        {"E.Z: enum value renamed: Y, Z -> Z": CLIENTS},
    ),
    "enum value removed from a request": (
        request_of("E a = 1;", "enum E { Z = 0; B = 1; }"),
        request_of("E a = 1;", "enum E { Z = 0; }"),
        {"E.B: enum value removed: 1 -> removed": CALLERS},
        {},
    ),
    "enum value removed from a response": (
        response_of("E a = 1;", "enum E { Z = 0; B = 1; }"),
        response_of("E a = 1;", "enum E { Z = 0; }"),
        {"E.B: enum value removed: 1 -> removed": WORKER},
        {"notice: E.B: enum value added: none -> 1": CALLERS},
    ),
}

CEL = '(buf.validate.field).cel = {{id: "{}", message: "m", expression: "{}"}}'
THIS = "this != 'a'"
DIVIDES = """option (buf.validate.message).cel = {
  id: "x" message: "m" expression: "this.words[0] != '' && 10 / this.n > 1"
};"""
NAME = "string name = 3 [(buf.validate.field).string.min_len = 1];"
REQUIRED = "option (buf.validate.oneof).required = true;"
HEADER = "(buf.validate.field).string = {well_known_regex: KNOWN_REGEX_HTTP_HEADER_NAME"
SECONDS = "seconds: 1700000000"
CONSTRAINTS = {
    "longest": (
        ruled(lay("string.max_len = 9")),
        ruled(lay("string.max_len = 8")),
        *tighter("string.max_len", "9", "8"),
    ),
    "shortest": (
        ruled(lay("string.min_len = 1")),
        ruled(lay("string.min_len = 2")),
        *tighter("string.min_len", "1", "2"),
    ),
    "of a type that has changed": (
        ruled(lay("int32.lte = 9"), "int32"),
        ruled(lay("int64.lte = 8"), "int64"),
        *both("Ask.a: type changed: int32 <-> int64", CALLERS),
    ),
    "first rule": (
        request_of("string a = 1;"),
        ruled(lay("string.max_bytes = 2")),
        *tighter("string.max_bytes", "none", "2"),
    ),
    "exact length in another form": (
        ruled(lay("string.len = 2")),
        ruled(f"{lay('string.min_len = 2')}, {lay('string.max_len = 2')}"),
        {},
        {},
    ),
    "exact length": (
        ruled(lay("string.max_len = 2")),
        ruled(lay("string.len = 2")),
        *tighter("string.min_len", "none", "2"),
    ),
    "format": (
        request_of("string a = 1;"),
        ruled(lay("string.uuid = true")),
        *tighter("string.uuid", "none", "True"),
    ),
    "format in place of lengths": (
        ruled(lay("string = {min_len: 1, max_len: 250}")),
        ruled(lay("string.uuid = true")),
        {
            "Ask.a: constraint tightened: string.max_len: 250 -> 36": CALLERS,
            "Ask.a: constraint tightened: string.min_len: 1 -> 36": CALLERS,
            "Ask.a: constraint tightened: string.uuid: none -> True": CALLERS,
        },
        {},
    ),
    "pattern": (
        ruled(lay('string.pattern = "^a$"')),
        ruled(lay('string.pattern = "^b$"')),
        *both(f"Ask.a: {UNDECIDED}: string.pattern: ^a$ <-> ^b$", CALLERS),
    ),
    "fewer choices": (
        ruled(lay('string = {in: ["x", "y"]}')),
        ruled(lay('string = {in: ["x"]}')),
        *tighter("string.in", "[x, y]", "[x]"),
    ),
    "other choices": (
        ruled(lay('string = {in: ["x"]}')),
        ruled(lay('string = {in: ["y"]}')),
        *both(f"Ask.a: {UNDECIDED}: string.in: [x] <-> [y]", CALLERS),
    ),
    "more exceptions": (
        ruled(lay("int32 = {not_in: [1]}"), "int32"),
        ruled(lay("int32 = {not_in: [1, 2]}"), "int32"),
        *tighter("int32.not_in", "[1]", "[1, 2]"),
    ),
    "constant": (
        ruled(lay("int32.const = 1"), "int32"),
        ruled(lay("int32.const = 2"), "int32"),
        *both(f"Ask.a: {UNDECIDED}: int32.const: 1 <-> 2", CALLERS),
    ),
    "number's bound": (
        ruled(lay("int32.lte = 9"), "int32"),
        ruled(lay("int32.lte = 8"), "int32"),
        *tighter("int32.lte", "9", "8"),
    ),
    "bound of a number in another form": (
        ruled(lay("int32.gt = 0"), "int32"),
        ruled(lay("int32.gte = 1"), "int32"),
        {},
        {},
    ),
    "bound that excludes itself": (
        ruled(lay("double.gte = 0.5"), "double"),
        ruled(lay("double.gt = 0.5"), "double"),
        *tighter("double.gte", "0.5", "0.5 excluded"),
    ),
    "range turned inside out": (
        ruled(lay("int32 = {gte: 5, lte: 9}"), "int32"),
        ruled(lay("int32 = {gte: 9, lte: 5}"), "int32"),
        {"Ask.a: constraint tightened: int32.outside: none -> to 5, from 9": CALLERS},
        {
            "Ask.a: constraint tightened: int32.gte: none -> 5": CALLERS,
            "Ask.a: constraint tightened: int32.lte: none -> 9": CALLERS,
        },
    ),
    "duration": (
        ruled(lay("duration.lte = {seconds: 3}"), "google.protobuf.Duration"),
        ruled(lay("duration.lte = {seconds: 2, nanos: 500000000}"), "google.protobuf.Duration"),
        *tighter("duration.lte", "3", "2.5"),
    ),
    "known enum values only": (
        request_of("E a = 1;", "enum E { Z = 0; }"),
        request_of(f"E a = 1 [{lay('enum.defined_only = true')}];", "enum E { Z = 0; }"),
        *tighter("enum.defined_only", "none", "True"),
    ),
    "items": (
        ruled(lay("repeated = {max_items: 2, items: {string: {max_len: 9}}}"), "repeated string"),
        ruled(lay("repeated = {max_items: 1, items: {string: {max_len: 8}}}"), "repeated string"),
        {
            "Ask.a: constraint tightened: repeated.max_items: 2 -> 1": CALLERS,
            "Ask.a: constraint tightened: repeated.items.string.max_len: 9 -> 8": CALLERS,
        },
        {},
    ),
    "map": (
        ruled(lay("map.min_pairs = 1"), "map<string, string>"),
        ruled(lay("map = {min_pairs: 1, keys: {string: {min_len: 1}}}"), "map<string, string>"),
        *tighter("map.keys.string.min_len", "none", "1"),
    ),
    "required": (
        ruled(lay("string.max_len = 9")),
        ruled(f"{lay('string.max_len = 9')}, {lay('required = true')}"),
        *tighter("required", "none", "True"),
    ),
    "required field behavior": (
        request_of("string a = 1;"),
        ruled("(google.api.field_behavior) = REQUIRED"),
        *tighter("google.api.field_behavior REQUIRED", "none", "True"),
    ),
    "zero values no longer let through": (
        ruled(f"{lay('string.uuid = true')}, {lay('ignore = IGNORE_IF_ZERO_VALUE')}"),
        ruled(lay("string.uuid = true")),
        *tighter("ignore", "IGNORE_IF_ZERO_VALUE", "none"),
    ),
    "first rule, not for zero values": (
        request_of("string a = 1;"),
        ruled(f"{lay('string.uuid = true')}, {lay('ignore = IGNORE_IF_ZERO_VALUE')}"),
        *tighter("string.uuid", "none", "True"),
    ),
    "rule that is ignored": (
        request_of("string a = 1;"),
        ruled(f"{lay('string.uuid = true')}, {lay('ignore = IGNORE_ALWAYS')}"),
        {},
        {},
    ),
    "CEL added": (
        request_of("string a = 1;"),
        ruled(CEL.format("x.y", "this != 'a'")),
        *tighter("cel x.y", "none", "this != 'a'"),
    ),
    "CEL changed": (
        ruled(CEL.format("x.y", "this != 'a'")),
        ruled(CEL.format("x.y", "this != 'b'")),
        *both(f"Ask.a: {UNDECIDED}: cel x.y: this != 'a' <-> this != 'b'", CALLERS),
    ),
    "CEL under another id": (
        ruled(CEL.format("x", "this != 'a'")),
        ruled(CEL.format("y", "this != 'a'")),
        *both("Ask.a: id of a rule changed: x <-> y", CALLERS),
    ),
    "CEL twice": (
        ruled(f"{CEL.format('x', THIS)}, {CEL.format('y', THIS)}"),
        ruled(CEL.format("x", THIS)),
        {},
        {},
    ),
    "CEL of items instead of the list": (
        ruled(CEL.format("x", "size(this) != 1"), "repeated string"),
        ruled(
            lay('repeated.items.cel = {id: "x" expression: "size(this) != 1"}'), "repeated string"
        ),
        {"Ask.a: constraint tightened: repeated.items.cel x: none -> size(this) != 1": CALLERS},
        {"Ask.a: constraint tightened: cel x: none -> size(this) != 1": CALLERS},
    ),
    "new field beside CEL that an empty message cannot have": (
        request_of(f"{DIVIDES} repeated string words = 1; int32 n = 2;"),
        request_of(f"{DIVIDES} repeated string words = 1; int32 n = 2; {NAME}"),
        {"Ask.name: new field required: none -> string.min_len": CALLERS},
        {"Ask.name: field removed: string -> removed": CALLERS},
    ),
    "CEL of the message": (
        request_of("string a = 1;"),
        request_of(
            'option (buf.validate.message).cel = {id: "x", expression: "this.a != \'\'"};'
            "string a = 1;"
        ),
        {"Ask: constraint tightened: cel x: none -> this.a != ''": CALLERS},
        {},
    ),
    "oneof of the message": (
        request_of('option (buf.validate.message).oneof = {fields: "a"}; string a = 1;'),
        request_of(
            'option (buf.validate.message).oneof = {fields: "a" required: true}; string a = 1;'
        ),
        {"Ask: constraint tightened: oneof of a required: none -> True": CALLERS},
        {},
    ),
    "oneof": (
        request_of("oneof c { string a = 1; }"),
        request_of("oneof c { option (buf.validate.oneof).required = true; string a = 1; }"),
        {"Ask: constraint tightened: oneof with a required: none -> True": CALLERS},
        {},
    ),
    "required oneof renamed and extended": (
        request_of(f"oneof c {{ {REQUIRED} string a = 1; }}"),
        request_of(f"oneof d {{ {REQUIRED} string b = 2; string a = 1; }}"),
        {},
        {"Ask.b: field removed: string -> removed": CALLERS},
    ),
    "constant false": (
        request_of("bool a = 1;"),
        ruled(lay("bool.const = false"), "bool"),
        *tighter("bool.const", "none", "False"),
    ),
    "header name that need not be strict": (
        ruled(f"{HEADER} strict: false}}"),
        ruled(f"{HEADER}}}"),
        *tighter("string.strict", "False", "none"),
    ),
    "constant in a list": (
        ruled(lay('string.const = "b"')),
        ruled(lay('string = {in: ["b"]}')),
        {},
        {},
    ),
    "constant in a longer list": (
        ruled(lay('string = {in: ["b", "c"]}')),
        ruled(lay('string.const = "b"')),
        *tighter("string.in", "[b, c]", "[b]"),
    ),
    "nanosecond": (
        ruled(lay(f"timestamp.lt = {{{SECONDS} nanos: 2}}"), "google.protobuf.Timestamp"),
        ruled(lay(f"timestamp.lt = {{{SECONDS} nanos: 1}}"), "google.protobuf.Timestamp"),
        *tighter(
            "timestamp.lte",
            "1700000000.000000002 excluded",
            "1700000000.000000001 excluded",
        ),
    ),
    "new field required": (
        request_of(""),
        ruled("(google.api.field_behavior) = REQUIRED"),
        {"Ask.a: new field required: none -> google.api.field_behavior REQUIRED": CALLERS},
        {"Ask.a: field removed: string -> removed": CALLERS},
    ),
    "new field that may not be empty": (
        request_of(""),
        ruled(lay("string.min_len = 1")),
        {"Ask.a: new field required: none -> string.min_len": CALLERS},
        {"Ask.a: field removed: string -> removed": CALLERS},
    ),
    "new field that may be left out": (
        request_of(""),
        ruled(lay("string.min_len = 1"), "optional string"),
        {},
        {"Ask.a: field removed: string -> removed": CALLERS},
    ),
    "answer that promises less": (
        response_of(f"string a = 1 [{lay('string.max_len = 8')}];"),
        response_of(f"string a = 1 [{lay('string.max_len = 9')}];"),
        {"Answer.a: constraint loosened: string.max_len: 8 -> 9": CALLERS},
        {},
    ),
    "message in request and response": (
        methods_of(rpc(types="(Ask) returns (Ask)")),
        methods_of(rpc(types="(Ask) returns (Ask)")).replace(
            "string id = 1;", f"string id = 1 [{lay('string.max_len = 8')}];"
        ),
        {"Ask.id: constraint tightened: string.max_len: none -> 8": CALLERS},
        {"notice: Ask.id: limit relaxed: string.max_len: 8 -> none": CALLERS},
    ),
}

EVENTS = {
    "removed": (
        event(),
        "message Done { string id = 1; }",
        {"Done: event removed: Done -> removed": SUBSCRIBERS},
        {},
    ),
    "renamed": (
        event(),
        event().replace("Done", "Made"),
        {"Done: event removed: Done -> removed": SUBSCRIBERS},
        {"Made: event removed: Made -> removed": SUBSCRIBERS},
    ),
    "subject": (
        event("string id = 1; string other = 2;"),
        event("string id = 1; string other = 2;", 'subject: "other"'),
        {"Done: event subject changed: id -> other": SUBSCRIBERS, f"Done: {STALE}": SUBSCRIBERS},
        {"Done: event subject changed: other -> id": SUBSCRIBERS, f"Done: {STALE}": SUBSCRIBERS},
    ),
    "version": (
        event(rules='subject: "id" version: 2'),
        event(),
        {"Done: event version lowered: 2 -> 1": SUBSCRIBERS},
        {"notice: Done: event version raised: 1 -> 2": SUBSCRIBERS},
    ),
    "broken, version kept": (
        event("string id = 1; Part part = 2;") + "message Part { int32 a = 1; }",
        event("string id = 1; Part part = 2;") + "message Part { }",
        {"Part.a: field removed: int32 -> removed": SUBSCRIBERS, f"Done: {STALE}": SUBSCRIBERS},
        {},
    ),
    "broken, version raised": (
        event("string id = 1; int32 a = 2;"),
        event(rules='subject: "id" version: 2'),
        {
            "Done.a: field removed: int32 -> removed": SUBSCRIBERS,
            "notice: Done: event version raised: 1 -> 2": SUBSCRIBERS,
        },
        {"Done: event version lowered: 2 -> 1": SUBSCRIBERS},
    ),
    "promises less": (
        event(f"string id = 1 [{lay('string.uuid = true')}];"),
        event(),
        {
            "Done.id: constraint loosened: string.uuid: True -> none": SUBSCRIBERS,
            f"Done: {STALE}": SUBSCRIBERS,
        },
        {},
    ),
    "internal one broken": (
        event("string id = 1; int32 a = 2;", access=""),
        event(access=""),
        {"Done.a: field removed: int32 -> removed": CONSUMER, f"Done: {STALE}": CONSUMER},
        {},
    ),
    "for everyone to for one user": (
        event("string id = 1; string other = 2;"),
        for_user("other"),
        {"Done: event access tightened: PUBLIC -> USER": WEBSOCKET},
        {"notice: Done: event access loosened, check security: USER -> PUBLIC": SUBSCRIBERS},
    ),
    "for one user to internal": (
        for_user("other"),
        event("string id = 1; string other = 2;", access=""),
        {"Done: event access tightened: USER -> INTERNAL": WEBSOCKET},
        {"notice: Done: event access loosened, check security: INTERNAL -> USER": CONSUMER},
    ),
    "for another user": (
        for_user("id"),
        for_user("other"),
        *both("Done: event recipient changed: id <-> other", WEBSOCKET),
    ),
}


TABLES = {
    "route": ROUTES,
    "method": METHODS,
    "field": FIELDS,
    "constraint": CONSTRAINTS,
    "event": EVENTS,
}


@pytest.mark.parametrize(
    ("before", "after", "forth", "back"),
    [
        pytest.param(*case, id=f"{kind}: {name}")
        for kind, table in TABLES.items()
        for name, case in table.items()
    ],
)
def test_change_breaks_its_audiences(before: str, after: str, forth: Found, back: Found) -> None:
    assert breaks(before, after) == forth
    assert breaks(after, before) == back


@pytest.mark.parametrize(
    "contract",
    [
        methods_of(rpc()),
        methods_of(
            rpc(rules='access: ACCESS_USER version: "ask.version" expected_version: "name"')
        ),
        event(),
        for_user("id"),
        ruled(CEL.format("x", "true")),
    ],
)
def test_unchanged_contract_breaks_no_audience(contract: str) -> None:
    assert breaks(contract, contract) == {}


def breaks(before: str, after: str) -> Found:
    """Return the audiences of each finding, by its text without the package."""
    found = compare(compiled(before), compiled(after))
    assert all(finding.where.startswith("proto/postbus/odd/v1/odd.proto:") for finding in found)
    texts = [
        ("notice: " if finding.notice else "") + finding.text.replace(PACKAGE, "")
        for finding in found
    ]
    assert len(texts) == len(set(texts))
    order = [REST, WEBSOCKET, WORKER, CONSUMER, CODE]
    audiences = [", ".join(sorted(finding.audiences, key=order.index)) for finding in found]
    return dict(zip(texts, audiences, strict=True))


@pytest.mark.parametrize(
    ("message", "audiences"),
    [
        ("postbus.realtime.v1.ClientFrame", {WEBSOCKET}),
        ("postbus.realtime.v1.ServerFrame", {WEBSOCKET}),
        ("postbus.bus.v1.Request", {WORKER}),
        ("postbus.bus.v1.Reply", {WORKER}),
        ("postbus.bus.v1.Batch", {WORKER}),
        ("postbus.bus.v1.Control", {WORKER}),
        ("postbus.bus.v1.ProbeAnswer", {WORKER}),
        ("postbus.bus.v1.Event", {WORKER, CONSUMER}),
        ("postbus.bus.v1.Error", {WORKER, REST}),
    ],
)
def test_changed_frame_or_envelope_breaks_its_audiences(message: str, audiences: set[str]) -> None:
    package, _, name = message.rpartition(".")
    before = compiled(f"message {name} {{ string a = 1; }}", package)
    after = compiled(f"message {name} {{ }}", package)

    [finding] = compare(before, after)

    assert finding.text == f"{message}.a: field removed: string -> removed"
    assert finding.audiences == audiences


@cache
def compiled(contract: str, package: str = "postbus.odd.v1") -> bytes:
    """Return the descriptor set that protoc makes of a contract."""
    with tempfile.TemporaryDirectory() as folder:
        return compile_contracts(Path(folder), {package: contract})


def breaking(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.contracts.breaking", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def written(folder: Path, **contracts: str) -> list[Path]:
    for name, contract in contracts.items():
        (folder / name).write_bytes(compiled(contract))
    return [folder / name for name in contracts]


def test_command_reports_breaking_changes_by_audience_and_fails(tmp_path: Path) -> None:
    before = methods_of(rpc('get: "/v1/a"'), more=event("string id = 1; string a = 2;"))
    after = methods_of(rpc('get: "/v1/b"'), more="\n" + event())

    result = breaking(*written(tmp_path, before=before, after=after))

    file = "  proto/postbus/odd/v1/odd.proto"
    assert result.stdout.splitlines() == [
        "breaks REST client:",
        f"{file}:10: postbus.odd.v1.Odd.Do: route removed: GET /v1/a -> GET /v1/b. "
        "Keep the old route as one of `additional_bindings`.",
        "breaks WebSocket client, event consumer:",
        f"{file}:11: postbus.odd.v1.Done.a: field removed: string -> removed. "
        "Keep the field with `deprecated = true` until no client uses it.",
        f"{file}:11: postbus.odd.v1.Done: {STALE}. "
        "Undo the breaking change, or raise `version` of the event.",
        "breaks generated code:",
        f'{file}:11: Previously present field "2" with name "a" on message "Done" was deleted '
        "(FIELD_NO_DELETE). Keep the old element and add the new one beside it, or add a package "
        "of the next version.",
        "breaking: 4 breaking, 0 notices; "
        "breaks REST client, WebSocket client, event consumer, generated code",
    ]
    assert (result.returncode, result.stderr) == (1, "")


def test_command_reports_notices_and_succeeds(tmp_path: Path) -> None:
    before, after = methods_of(rpc()), methods_of(rpc(rules="access: ACCESS_PUBLIC"))

    result = breaking(*written(tmp_path, before=before, after=after))

    assert result.stdout.splitlines() == [
        "notices for REST client, WebSocket client, worker:",
        "  proto/postbus/odd/v1/odd.proto:10: postbus.odd.v1.Odd.Do: "
        "access loosened, check security: USER -> PUBLIC. "
        "Check that the additional callers may see and do everything that the rpc offers.",
        "breaking: 0 breaking, 1 notices; breaks no audience",
    ]
    assert (result.returncode, result.stderr) == (0, "")


def test_contracts_of_the_current_revision_break_no_audience() -> None:
    result = breaking("HEAD")

    assert result.stdout.splitlines()[-1].endswith("breaks no audience"), (
        result.stdout + result.stderr
    )
    assert result.returncode == 0


def test_findings_without_source_info_have_names_only() -> None:
    sets = []
    for contract in (event(), event("string id = 1; string a = 2;")):
        bare = FileDescriptorSet.FromString(compiled(contract))
        for file in bare.file:
            file.ClearField("source_code_info")
        sets.append(bare.SerializeToString())

    found = compare(sets[1], sets[0])

    assert {finding.where for finding in found} == {""}
    assert {finding.text for finding in found} == {
        "postbus.odd.v1.Done.a: field removed: string -> removed",
        f"postbus.odd.v1.Done: {STALE}",
    }


def test_rule_that_does_not_compile_is_an_error(tmp_path: Path) -> None:
    broken = 'option (buf.validate.message).cel = {id: "x" expression: "this.("};'
    before, after = request_of(broken), request_of(f"{broken} string a = 1;")

    result = breaking(*written(tmp_path, before=before, after=after))

    assert (result.returncode, result.stdout) == (2, "")
    assert "postbus.odd.v1.Ask: " in result.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["no-such-revision"], "no contracts in revision no-such-revision: "),
        (["/no/such/file", "/no/such/file"], "/no/such/file: No such file or directory"),
        ([__file__, __file__], f"cannot compare {__file__} with {__file__}: "),
        ([], "give a git revision, or two descriptor sets"),
    ],
)
def test_failed_comparison_is_one_line_and_exit_code_2(arguments: list[str], reason: str) -> None:
    result = breaking(*arguments)

    assert result.returncode == 2
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith(f"breaking: {reason}")
