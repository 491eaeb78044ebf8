"""`just gen` refuses options and rules that have no effect, or contradict another rule."""

import re
from pathlib import Path

import pytest
from starlette.routing import Route

from gateway.app import build_app
from postbus_runtime.contract import ContractError
from shared.access_tokens import TokenVerifier
from shared.bus import request_verification
from shared.bus.memory import MemoryBus
from tests.contract.odd import HEAD, PLACE, build, compile_text, fault_of, new_project
from tests.tokens import TokenMaker
from tools.contracts.generate import option_checks
from tools.contracts.generate.http_checks import OWN_FOLDERS, OWN_PATHS
from tools.contracts.generate.message_classes import message_classes, with_runtime_classes
from tools.contracts.generate.rule_checks import require_consistent_rules
from tools.contracts.generate.schemas import Schemas
from tools.contracts.generate.third_party import lay_out


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_project(tmp_path_factory.mktemp("project"))


def method(options: str, http: str = "", *, rpc: str = "Do(Ask) returns (Answer)") -> str:
    """Return a contract with one method, which has these options."""
    rule = f"option (google.api.http) = {{{http}}};" if http else ""
    return f"""
    service OddService {{ rpc {rpc} {{
      {rule} option (postbus.options.v1.method) = {{{options}}};
    }} }}
    message Ask {{ string id = 1; Part part = 2; }}
    message Part {{ string id = 1; string name = 2; }}
    message Answer {{ string id = 1; }}
    message Nothing {{}}
    """


PUBLIC = "access: ACCESS_PUBLIC"
POST = 'post: "/v1/odd" body: "*"'
TO_NOTHING = "Do(Ask) returns (Nothing)"
STREAM = "Do(Ask) returns (stream Nothing)"

REFUSED_METHODS = [
    (method(""), "state its access"),
    (method(f"{PUBLIC} default_timeout_ms: 60001"), "default_timeout_ms is above 60000: 60001"),
    (method(f"{PUBLIC} default_timeout_ms: 4294967295"), "default_timeout_ms is above 60000"),
    (method(f'{PUBLIC} rate_limit: "20/week"'), "rate_limit is not like"),
    (method('access: ACCESS_INTERNAL rate_limit: "20/day"'), "rate_limit has no effect with"),
    (method("access: ACCESS_INTERNAL", POST), "google.api.http has no effect with ACCESS_INTERNAL"),
    (method(f"{PUBLIC} http_status: 201"), "http_status has no effect without google.api.http"),
    *(
        (method(f"{PUBLIC} http_status: {status}", POST), "http_status must be one of 200, 201")
        for status in (1, 100, 199, 205, 206, 226, 299, 301, 404, 500, 999, 4294967295)
    ),
    (method(f"{PUBLIC} http_status: 204", POST), "http_status 204 needs a response without fields"),
    (method(f"{PUBLIC} http_status: 204", POST, rpc=STREAM), "http_status 204 excludes a stream"),
    (method(PUBLIC, 'body: "*"'), "google.api.http has no verb and path"),
    (method(PUBLIC, f'{POST} selector: "x"'), "selector of google.api.http has no effect"),
    (
        method(PUBLIC, f"{POST} additional_bindings {{body: 'part'}}"),
        "an additional binding has no verb and path",
    ),
    (
        method(
            PUBLIC,
            f"{POST} additional_bindings {{get: '/v1/a' additional_bindings {{get: '/v1/b'}}}}",
        ),
        "additional_bindings must not contain further ones",
    ),
    (method(PUBLIC, 'post: "/v1/{id}" body: "id"'), "both path and body set id"),
    *(
        (method(PUBLIC, f'{verb}: "{path}"'), "which the gateway serves itself")
        for verb in ("get", "post", "delete")
        for path in (
            *("/openapi.json", "/asyncapi.json", "/docs", "/docs/more", "/contracts"),
            *("/contracts/{id}", "/ws", "/metrics", "/healthz", "/readyz", "/{id}"),
            *("/.well-known/security.txt", "/.well-known/{id}", "/{id}/security.txt"),
            *("/postbus.odd.v1.OddService/Do", "/{id}/Do", "/postbus.odd.v1.OddService/{id}"),
        )
    ),
]


@pytest.mark.parametrize(("body", "why"), REFUSED_METHODS)
def test_option_of_a_method_without_an_effect_is_an_error(
    project: Path, body: str, why: str
) -> None:
    fault = fault_of(compile_text(project, body))

    assert re.match(rf"{PLACE}postbus\.odd\.v1\.OddService\.Do: .*{re.escape(why)}", fault)


@pytest.mark.parametrize(
    "body",
    [
        method(f"{PUBLIC} default_timeout_ms: 60000"),
        *(method(f"{PUBLIC} http_status: {status}", POST) for status in (200, 201, 202, 203)),
        *(
            method(f"{PUBLIC} http_status: {status}", POST, rpc=TO_NOTHING)
            for status in (200, 202, 204)
        ),
        method(PUBLIC, POST, rpc="Do(google.protobuf.Empty) returns (google.protobuf.Empty)"),
        method(PUBLIC, f"{POST} additional_bindings {{get: '/v1/more'}}"),
        method(PUBLIC, 'put: "/v1/{part.id}" body: "part"'),
        method(PUBLIC, 'get: "/v1/docs"'),
        method(PUBLIC, 'get: "/.well-known/jwks.json"'),
        method(PUBLIC, 'get: "/{id}:go"'),
    ],
)
def test_option_with_an_effect_is_accepted(project: Path, body: str) -> None:
    assert fault_of(compile_text(project, body)) == ""


def test_paths_of_the_gateway_are_those_that_it_serves() -> None:
    verifier = TokenVerifier(TokenMaker().key_set)
    app = build_app(MemoryBus(), verifier, max_body_bytes=1, security_contact_uri="mailto:a@b")
    served = {route.path for route in app._inner.router.routes if isinstance(route, Route)}

    below = {path for path in served if path.startswith(OWN_FOLDERS)}
    assert served - below == set(OWN_PATHS)


def test_longest_budget_of_the_contract_is_that_of_the_workers() -> None:
    assert option_checks._MAX_TIMEOUT_MS == request_verification._MAX_BUDGET * 1000


def event(options: str) -> str:
    return f"""message Happened {{
      option (postbus.options.v1.event) = {{{options}}};
      string id = 1; int64 n = 2; repeated string ids = 3; bytes raw = 4; Part part = 5;
      optional string maybe = 6;
    }}
    message Part {{}}"""


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (method("access: 9"), "OddService.Do: access has no value 9"),
        (event('subject: "id" access: 9'), "Happened: access has no value 9"),
        (
            "enum Reason { REASON_NONE = 0;"
            " REASON_ODD = 1 [(postbus.options.v1.reason) = {code: ABORTED scope: 9}]; }",
            "Reason.REASON_ODD: scope has no value 9",
        ),
        (
            "enum Reason { REASON_NONE = 0;"
            " REASON_ODD = 1 [(postbus.options.v1.reason) = {code: 99}]; }",
            "Reason.REASON_ODD: code has no value 99",
        ),
    ],
)
def test_option_with_a_number_that_its_enum_lacks_is_an_error(
    project: Path, body: str, why: str
) -> None:
    fault = fault_of(compile_text(project, body))

    assert re.fullmatch(rf"{PLACE}postbus\.odd\.v1\.{re.escape(why)}", fault)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("", "subject is not a field of it: none"),
        ('subject: ""', "subject is not a field of it: none"),
        ("version: 2", "subject is not a field of it: none"),
        ("access: ACCESS_PUBLIC", "subject is not a field of it: none"),
        ('subject: "no"', "subject is not a field of it: no"),
        ('subject: "part.id"', "subject is not a field of it: part.id"),
        *(
            (f'subject: "{name}"', f"subject is not one string: {name}")
            for name in ("n", "ids", "raw", "part")
        ),
    ],
)
def test_event_without_a_subject_of_one_string_is_an_error(
    project: Path, options: str, why: str
) -> None:
    fault = fault_of(compile_text(project, event(options)))

    assert re.fullmatch(rf"{PLACE}postbus\.odd\.v1\.Happened: the event's {re.escape(why)}", fault)


FAULTY_RULES = [
    ("", ".cel = {id: 'z' expression: 'this > 5'}", "string", "rule 'z': .*no matching overload"),
    ("", ".cel = {id: 'z' expression: 'no('}", "string", "rule 'z': .*fails to compile"),
    ("", ".cel_expression = 'this > 5'", "string", ".*no matching overload"),
    (
        "repeated",
        ".repeated.items.cel = {id: 'q.r' expression: 'this == 1'}",
        "string",
        "rule 'q.r': .*no matching",
    ),
    ("", ".string = {min_len: 5 max_len: 2}", "string", ".*must be lower than value 2"),
    ("", ".string = {min_bytes: 5 max_bytes: 2}", "string", ".*must be lower than value 2"),
    ("", ".bytes = {min_len: 5 max_len: 2}", "bytes", ".*must be lower than value 2"),
    ("repeated", ".repeated = {min_items: 5 max_items: 2}", "string", ".*must be lower than"),
    ("", ".map = {min_pairs: 5 max_pairs: 2}", "map<string, string>", ".*must be lower than"),
    ("", ".int32 = {gt: 5 lt: 5}", "int32", ".*All values are rejected"),
    ("", ".int32.const = 1, (buf.validate.field).int32.gt = 5", "int32", ".*are not applied"),
    ("", ".string.min_len = 1", "int32", ".*is of type int32 but has"),
    ("", ".string.pattern = '(['", "string", ".*fails to compile"),
    ("", ".timestamp = {lt_now: true gt_now: true}", "google.protobuf.Timestamp", ".*cannot be"),
    ("", ".string = {prefix: 'abc' max_len: 2}", "string", ".*impossible"),
    ("", ".required = true, (buf.validate.field).ignore = IGNORE_ALWAYS", "string", ".*ignore="),
]


def test_each_faulty_rule_of_a_field_is_an_error_with_line_field_and_rule(project: Path) -> None:
    fields = "".join(
        f"{label} {kind} f{number} = {number} [(buf.validate.field){rule}];\n"
        for number, (label, rule, kind, _) in enumerate(FAULTY_RULES, 1)
    )

    errors = _rule_errors(project, f"message Odd {{\n{fields}}}")

    first = f"{HEAD}\nmessage Odd {{\n".count("\n")
    for number, (*_, why) in enumerate(FAULTY_RULES, 1):
        mine = [each for each in errors if f'"f{number}"' in each]
        assert mine, (number, errors)
        expected = rf"gen: proto/postbus/odd/v1/odd\.proto:{first + number}: {why}"
        assert all(re.match(expected, each) for each in mine[:1]), mine


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ('cel = {id: "x" expression: "this.nope > 5"}', "rule 'x': .*\"Odd\".*undefined field"),
        ('cel = {id: "x" expression: "this.n > \'a\'"}', "rule 'x': .*no matching overload"),
        ('oneof = {fields: ["a", "nope"]}', '.*"Odd".*references field "nope"'),
    ],
)
def test_faulty_rule_of_a_message_is_an_error_at_its_own_line(
    project: Path, rules: str, why: str
) -> None:
    body = f"""message Outer {{ Odd odd = 1; }}
message Odd {{
  option (buf.validate.message).{rules};
  string a = 1; int32 n = 2;
}}"""

    [error] = _rule_errors(project, body)

    line = f"{HEAD}\n".count("\n") + 3
    assert re.match(rf"gen: proto/postbus/odd/v1/odd\.proto:{line}: {why}", error)


def _rule_errors(project: Path, body: str) -> list[str]:
    compile_text(project, body)
    contracts = build(project)
    with pytest.raises(SystemExit) as raised:
        require_consistent_rules(contracts, project)
    return str(raised.value).splitlines()


@pytest.mark.parametrize(
    ("field", "why"),
    [
        ("Kind a = 1 [(buf.validate.field).enum.const = 7];", "a rule names 7, which"),
        ("Kind a = 1 [(buf.validate.field).enum = {in: [1, 8]}];", "a rule names 8, which"),
        (
            "repeated Kind a = 1 [(buf.validate.field).repeated.items.enum.in = 7];",
            "a rule names 7, which",
        ),
        (
            "map<string, Kind> a = 1 [(buf.validate.field).map.values.enum.in = 7];",
            "a rule names 7, which",
        ),
        ("Kind a = 1 [(buf.validate.field).enum = {not_in: [0, 1]}];", "its rules exclude every"),
        ("Kind a = 1 [(buf.validate.field).enum = {in: 1 not_in: 1}];", "its rules exclude every"),
    ],
)
def test_rule_of_an_enum_that_names_no_value_is_an_error(
    project: Path, field: str, why: str
) -> None:
    text = f"message Odd {{\n{field} }} enum Kind {{ KIND_A = 0; KIND_B = 1; }}"

    fault = fault_of(compile_text(project, text))

    assert re.match(rf"{PLACE}postbus\.odd\.v1\.Odd\.a: {why}", fault)


NOT_FOR_EMPTY = [
    "this.words[0] != '' && 10 / this.n > 1",
    "10 / this.n > 1",
    "this.words[this.n - 1] == 'a'",
    "this.counts['a'] > 1",
    "timestamp(this.name) > timestamp('2020-01-01T00:00:00Z')",
    "int(this.name) > 5",
]
"""Expressions that cannot be applied to a message without values."""


@pytest.mark.parametrize("expression", NOT_FOR_EMPTY)
def test_rule_that_fails_only_on_the_empty_message_is_accepted(
    project: Path, expression: str
) -> None:
    body = f"""message Odd {{
      option (buf.validate.message).cel = {{id: "x" message: "m" expression: "{expression}"}};
      repeated string words = 1; int32 n = 2; map<string, int32> counts = 3;
      string name = 4 [(buf.validate.field).string.min_len = 1];
      Odd odd = 5 [(buf.validate.field).required = true];
      repeated string more = 6 [(buf.validate.field).repeated.items.cel = {{
        id: "y" message: "m" expression: "int(this) > 5"
      }}];
    }}"""
    compile_text(project, body)
    contracts = build(project)

    require_consistent_rules(contracts, project)
    assert fault_of(contracts) == ""
    schema = Schemas(contracts).message(
        contracts.pool.FindMessageTypeByName("postbus.odd.v1.Odd"), request=True
    )
    assert schema["required"] == ["name", "odd"]


def test_output_only_field_that_a_rule_requires_is_an_error(project: Path) -> None:
    contracts = compile_text(
        project,
        """message Odd {
          string id = 1 [
            (google.api.field_behavior) = OUTPUT_ONLY,
            (buf.validate.field).string.uuid = true
          ];
        }""",
    )
    message = contracts.pool.FindMessageTypeByName("postbus.odd.v1.Odd")

    with pytest.raises(ContractError, match=r"Odd\.id: OUTPUT_ONLY, so requests lack it"):
        Schemas(contracts).message(message, request=True)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("google/type/money.proto", "a package of the project has this file"),
        ("google/protobuf/any.proto", "a package of the project has this file"),
        ("postbus/odd/v1/odd.proto", "the project's own contracts belong in proto/postbus"),
    ],
)
def test_vendored_file_that_stands_elsewhere_is_an_error(
    tmp_path: Path, name: str, why: str
) -> None:
    source = tmp_path / "third_party" / name
    source.parent.mkdir(parents=True)
    source.write_text('syntax = "proto3";')

    with pytest.raises(SystemExit, match=re.escape(f"third_party/{name}: {why}")):
        lay_out(tmp_path / "all", tmp_path / "third_party")


VENDORED = {
    "old": 'syntax = "proto2"; package acme; message Old { required string a = 1; }',
    "new": 'syntax = "proto3"; package acme; import "acme/old.proto"; message New { Old o = 1; }',
}


@pytest.mark.parametrize(
    "use",
    [
        "message Odd { map<string, acme.Old> olds = 1; }",
        "message Odd { repeated acme.New new = 1; }",
        "service OddService { rpc Do(acme.Old) returns (acme.Old); }",
        "service OddService { rpc Do(Odd) returns (acme.New); } message Odd {}",
    ],
)
def test_third_party_message_that_is_not_proto3_is_an_error(project: Path, use: str) -> None:
    for name, text in VENDORED.items():
        vendored = project / f".dev/third_party/acme/{name}.proto"
        vendored.parent.mkdir(exist_ok=True)
        vendored.write_text(text)
    imports = "".join(f'import "acme/{name}.proto";' for name in VENDORED)

    contracts = compile_text(project, use, f"{HEAD}{imports}")

    line = f"{HEAD}\n".count("\n") + 1
    place = f"proto/postbus/odd/v1/odd.proto:{line}: "
    assert fault_of(contracts).startswith(place)
    assert "acme.Old is not proto3: use a message of your own" in fault_of(contracts)


def test_package_of_third_party_classes_is_taken(tmp_path: Path) -> None:
    project = new_project(tmp_path)

    contracts = compile_text(
        project, "message Odd {}", HEAD.replace("postbus.odd.v1", "postbus.imported.v1")
    )

    assert "postbus.imported has the classes of third-party messages" in fault_of(contracts)


def test_backslashes_in_a_comment_are_no_escapes_in_the_docstring() -> None:
    source = with_runtime_classes('"""Takes \\x, \\N, \\u and A\\B."""\n')

    names: dict[str, str] = {}
    exec(compile(source, "odd", "exec"), names)  # noqa: S102  # a docstring

    assert names["__doc__"] == "Takes \\x, \\N, \\u and A\\B."


@pytest.mark.parametrize("end", ["\u2028", "\x0b", "\x0c", "\x85", "\u2029", "\x1c"])
def test_character_in_a_comment_that_some_programs_take_for_the_end_of_a_line_is_kept(
    project: Path, end: str
) -> None:
    text = f"""
    // A service.
    service OddService {{
      // One{end}line.
      rpc First(Odd) returns (Odd);
      // One{end}line.
      rpc Second(Odd) returns (stream Odd);
    }}
    message Odd {{ string id = 1; }}"""

    source = message_classes(compile_text(project, text))["postbus/odd/v1/__init__.py"]

    compile(source, "odd", "exec")
    assert "__mapping__" not in source


@pytest.mark.parametrize("comment", ["", "// Nothing yet.\n"])
def test_service_without_rpcs_is_a_class(project: Path, comment: str) -> None:
    text = f"{comment}service First {{}}\nservice Last {{}}\nmessage Odd {{ string id = 1; }}"

    source = message_classes(compile_text(project, text))["postbus/odd/v1/__init__.py"]

    compile(source, "odd", "exec")
    assert source.count("class FirstBase") == source.count("class LastBase") == 1


def test_quotes_in_a_comment_do_not_end_the_docstring(project: Path) -> None:
    comments = ['a """ b', '"""', '""""""', '"a" """', 'at the end """""', '\\"""', '"', 'x \\"']
    text = "".join(
        f"// {comment}{more}\nmessage Odd{index}{len(more)} {{\n"
        f"// {comment}{more}\nstring id = 1; }}\n"
        for index, comment in enumerate(comments)
        for more in ("", "\n// Another line.")
    )

    source = message_classes(compile_text(project, text))["postbus/odd/v1/__init__.py"]

    compile(source, "odd", "exec")


@pytest.mark.parametrize("name", ["$ref", "__proto__", "hasOwnProperty"])
def test_json_name_that_tools_cannot_use_is_refused(project: Path, name: str) -> None:
    text = f'message Odd {{\nstring id = 1 [json_name = "{name}"]; }}'

    fault = fault_of(compile_text(project, text))

    assert re.match(PLACE, fault)
    assert name in fault


@pytest.mark.parametrize("name", ["[x]", "[]"])
def test_json_name_of_an_extension_which_buf_accepts_is_refused(project: Path, name: str) -> None:
    source = project / "proto/postbus/odd/v1/odd.proto"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(f'{HEAD}\nmessage Odd {{\nstring id = 1 [json_name = "{name}"]; }}')

    fault = fault_of(build(project))

    assert re.match(PLACE, fault)
    assert f"the JSON name {name} is that of an extension" in fault


@pytest.mark.parametrize(
    "name", ["$id", "constructor", "x-y", "a b", "[x", "x]", "1", "toString", "type", "%20"]
)
def test_unusual_json_name_is_accepted(project: Path, name: str) -> None:
    text = f'message Odd {{ string id = 1 [json_name = "{name}"]; }}'

    assert fault_of(compile_text(project, text)) == ""
