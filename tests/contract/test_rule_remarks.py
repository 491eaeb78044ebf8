"""A rule that a schema does not express is named in the description of its field."""

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass
from jsonschema import Draft202012Validator
from protovalidate import Validator

from shared.protojson import write_message
from tests.contract.odd import HEAD, build, compile_text, new_project
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.json_values import select_variant
from tools.contracts.generate.schemas import Schemas

TIME = "google.protobuf.Timestamp"
DURATION = "google.protobuf.Duration"
MASK = "google.protobuf.FieldMask"
ANY = "google.protobuf.Any"
WIDE = ("int64", "uint64", "sint64", "fixed64", "sfixed64")
NARROW = ("int32", "uint32", "sint32", "fixed32", "sfixed32")

Vector = tuple[str, str, Any]
"""Type of a field, its rules, and a value that breaks them."""

VECTORS: list[Vector] = [
    *(("string", f".string.{name} = true", "\x01 x") for name in (
        "hostname", "ip", "ipv4", "ipv6", "uri", "uri_ref", "address", "uuid", "tuuid", "ulid",
        "email", "ip_with_prefixlen", "ipv4_with_prefixlen", "ipv6_with_prefixlen", "ip_prefix",
        "ipv4_prefix", "ipv6_prefix", "host_and_port", "protobuf_fqn", "protobuf_dot_fqn",
    )),
    ("string", ".string.well_known_regex = KNOWN_REGEX_HTTP_HEADER_NAME", "a b"),
    ("string", ".string.min_bytes = 3", "ab"),
    ("string", ".string.max_bytes = 3", "ääa"),
    ("string", ".string.len_bytes = 3", "ab"),
    ("string", ".string.not_contains = 'b'", "abc"),
    ("string", ".string.pattern = '(?i)^a$'", "b"),
    ("string", ".string.pattern = '^a$'", "b"),
    ("string", ".string.prefix = 'a'", "b"),
    ("string", ".string.min_len = 2", "b"),
    ("string", ".string = {not_in: ['a', 'b']}", "b"),
    ("bytes", ".bytes.min_len = 2", "AA=="),
    ("bytes", ".bytes.max_len = 4", "AAAAAAA="),
    ("bytes", ".bytes.len = 4", "AAAAAAA="),
    ("bytes", ".bytes.const = 'ab'", "AA=="),
    ("bytes", ".bytes.prefix = 'ab'", "AAAA"),
    ("bytes", ".bytes.suffix = 'ab'", "AAAA"),
    ("bytes", ".bytes.contains = 'ab'", "AAAA"),
    ("bytes", ".bytes.pattern = '^b'", "YQ=="),
    ("bytes", ".bytes = {in: ['a']}", "AAAA"),
    ("bytes", ".bytes = {not_in: ['a']}", "YQ=="),
    ("bytes", ".bytes.ip = true", "AAAA"),
    *((kind, f".{kind}.{rule}", value) for kind in WIDE for rule, value in (
        ("gt = 5", "5"), ("gte = 5", "4"), ("lt = 5", "5"), ("lte = 5", "6"), ("const = 5", "6"),
    )),
    *((kind, f".{kind} = {{{rule}}}", value) for kind in WIDE for rule, value in (
        ("gt: 5 lt: 8", "5"), ("gte: 5 lte: 8", "9"), ("gt: 8 lt: 5", "6"),
        ("gte: 8 lte: 5", "6"), ("in: [1, 2]", "3"), ("not_in: [1, 2]", "2"),
    )),
    *((kind, f".{kind} = {{{rule}}}", value) for kind in NARROW for rule, value in (
        ("gt: 5 lt: 8", 5), ("gte: 5 lte: 8", 9), ("gt: 8 lt: 5", 6),
        ("gte: 8 lt: 5", 6), ("in: [1, 2]", 3), ("not_in: [1, 2]", 2),
    )),
    *((kind, f".{kind} = {{{rule}}}", value) for kind in ("float", "double") for rule, value in (
        ("gt: 5 lt: 8", 5), ("gte: 5 lte: 8", 9), ("gt: 8 lt: 5", 6), ("gte: 8 lte: 5", "NaN"),
        ("in: [1, 2]", 3), ("not_in: [1, 2]", 2), ("finite: true", "NaN"), ("const: 1", 2),
        ("finite: true", "Infinity"), ("lte: 1", "Infinity"), ("gte: 1", "-Infinity"),
    )),
    ("bool", ".bool.const = true", False),
    ("Color", ".enum = {defined_only: true}", 7),
    ("Color", ".enum = {not_in: [1]}", "COLOR_RED"),
    ("Color", ".enum = {in: [0]}", "COLOR_RED"),
    (TIME, ".timestamp.lt = {seconds: 5}", "2000-01-01T00:00:00Z"),
    (TIME, ".timestamp = {gt: {seconds: 5} lt: {seconds: 8}}", "2000-01-01T00:00:00Z"),
    (TIME, ".timestamp = {gte: {seconds: 9} lte: {seconds: 8}}", "1970-01-01T00:00:08.5Z"),
    (TIME, ".timestamp.lt_now = true", "9999-01-01T00:00:00Z"),
    (TIME, ".timestamp.gt_now = true", "2000-01-01T00:00:00Z"),
    (TIME, ".timestamp.within = {seconds: 5}", "2000-01-01T00:00:00Z"),
    (TIME, ".timestamp.const = {seconds: 5}", "2000-01-01T00:00:00Z"),
    (DURATION, ".duration.lt = {seconds: 5}", "5s"),
    (DURATION, ".duration = {gte: {seconds: 5} lte: {seconds: 8}}", "9s"),
    (DURATION, ".duration = {in: [{seconds: 5}, {seconds: 8}]}", "9s"),
    (DURATION, ".duration = {not_in: [{seconds: 5}]}", "5s"),
    (MASK, ".field_mask = {in: ['a']}", "b"),
    (MASK, ".field_mask = {not_in: ['a']}", "a"),
    (MASK, ".field_mask.const = {paths: ['a']}", "b"),
    ("repeated string", ".repeated.min_items = 2", ["a"]),
    ("repeated string", ".repeated.unique = true", ["a", "a"]),
    ("repeated string", ".repeated.items.string.max_bytes = 1", ["ä"]),
    ("repeated string", ".repeated.items.cel = {id: 'x.y' expression: \"this != 'a'\"}", ["a"]),
    (f"repeated {TIME}", ".repeated.items.timestamp.lt_now = true", ["9999-01-01T00:00:00Z"]),
    ("map<string, int64>", ".map.values.int64.gt = 5", {"a": "5"}),
    ("map<string, string>", ".map.keys.string.max_bytes = 1", {"ä": ""}),
    ("map<int64, string>", ".map.keys.int64.gt = 5", {"5": ""}),
    ("map<int32, string>", ".map.keys.int32.gt = 5", {"5": ""}),
    ("map<string, string>", ".map.min_pairs = 2", {"a": ""}),
    ("string", ".cel = {id: 'no_a' message: 'no a' expression: \"this != 'a'\"}", "a"),
    ("string", ".cel = {id: 'no_b' expression: \"this == 'b' ? 'no b' : ''\"}", "b"),
    ("string", ".cel_expression = \"this != 'a'\"", "a"),
    ("string", ".required = true", ""),
    ("int64", ".required = true", "0"),
]  # fmt: skip


@pytest.fixture(scope="module")
def contracts(tmp_path_factory: pytest.TempPathFactory) -> Contracts:
    project = new_project(tmp_path_factory.mktemp("rules"))
    messages = "".join(
        f"message M{i} {{ {kind} f = 1 [(buf.validate.field){rules}]; }}\n"
        for i, (kind, rules, _) in enumerate(VECTORS)
    )
    whole = """
    enum Color { COLOR_UNSPECIFIED = 0; COLOR_RED = 1; }
    message Whole {
      option (buf.validate.message).cel = {
        id: "a_or_b" message: "m" expression: "this.a != this.b"
      };
      option (buf.validate.message).cel_expression = "this.a != 'never'";
      option (buf.validate.message).oneof = {fields: ["a", "next_one"] required: true};
      string a = 1; string b = 2; string next_one = 3;
    }"""
    _compile(project, messages + whole)
    return build(project)


def _compile(project: Path, body: str) -> None:
    imports = 'import "google/protobuf/duration.proto"; import "google/protobuf/field_mask.proto";'
    compile_text(project, body, f"{HEAD}{imports}")


@pytest.mark.parametrize("index", range(len(VECTORS)), ids=lambda i: f"{VECTORS[i][1]} {i}")
def test_rule_that_a_schema_does_not_express_is_in_the_description(
    contracts: Contracts, index: int
) -> None:
    message: Any = contracts.pool.FindMessageTypeByName(f"postbus.odd.v1.M{index}")
    document = {"f": VECTORS[index][2]}
    schemas = Schemas(contracts)
    schema = select_variant(schemas.message(message, request=True), python=False)
    components = select_variant(schemas.components, python=False)

    parsed = json_format.ParseDict(document, GetMessageClass(message)())
    broken = {each.proto.rule_id for each in Validator().collect_violations(parsed)}
    accepts = Draft202012Validator({**schema, "components": {"schemas": components}})

    assert broken
    described = schema["properties"]["f"].get("description", "")
    if accepts.is_valid(document):
        assert all(f"`{rule}`" in described for rule in broken), (broken, described)
    else:
        assert VECTORS[index][1].startswith((".enum", ".required")) or "Further" not in described


def test_rule_of_a_whole_message_is_in_its_description(contracts: Contracts) -> None:
    message: Any = contracts.pool.FindMessageTypeByName("postbus.odd.v1.Whole")

    schema = Schemas(contracts).message(message, request=True)

    assert schema["description"] == (
        "Further rules: `a_or_b`: m; `this.a != 'never'`; `message.oneof`: one of `a`, `nextOne`"
        " must be set, and no other."
    )
    assert "description" not in json.dumps(schema["properties"])


@pytest.mark.parametrize("bound", [0.1, 0.3, 1e-10, 16777217.0, 3.4028235e38, -0.1, 7.0])
def test_bound_of_a_float_includes_the_text_that_a_response_has(
    tmp_path: Path, bound: float
) -> None:
    project = new_project(tmp_path)
    compile_text(
        project,
        f"message Odd {{ float f = 1 [(buf.validate.field).float = {{gte: {bound} lte: {bound}}}"
        "]; }",
    )
    message: Any = build(project).pool.FindMessageTypeByName("postbus.odd.v1.Odd")
    kind = GetMessageClass(message)

    schema = select_variant(Schemas(build(project)).message(message, request=True), python=False)

    shown = write_message(kind(f=bound))
    assert not Validator().collect_violations(kind(f=bound))
    assert Draft202012Validator(schema).is_valid(shown), (shown, schema)
