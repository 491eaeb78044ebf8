"""The output of `just gen`, and its errors for unsupported contracts."""

import json
import random
import re
import subprocess
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.json_format import ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_tools import protoc
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from protovalidate import EvaluationError, Validator

from postbus.registry import EVENTS, MESSAGES, METHODS, Access
from postbus_runtime.contract import ContractError
from shared.wire import message_class
from tools.contracts.generate.__main__ import main
from tools.contracts.generate.contract_checks import check_contracts
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.examples import Examples
from tools.contracts.generate.openapi import openapi
from tools.contracts.generate.reasons import reasons_source
from tools.contracts.generate.regular_expressions import escaped, is_portable, literal
from tools.contracts.generate.rest_models import rest_models_source

ROOT = Path(__file__).parents[2]
THIRD_PARTY = ROOT / ".dev/third_party"

Compile = Callable[[str], Contracts]


@pytest.fixture(scope="module", autouse=True)
def generated() -> None:
    """Run the check for drift, which also lays out the third-party files."""
    assert main(["--check"]) == 0, "gen/ is not up to date: run just gen"


@pytest.fixture
def compile_proto(tmp_path: Path) -> Compile:
    """Return a function that compiles a .proto text, which may import our contracts."""

    def run(body: str) -> Contracts:
        source = tmp_path / "postbus/odd/v1/odd.proto"
        source.parent.mkdir(parents=True)
        source.write_text(f"{HEAD}\n{body}")
        target = tmp_path / "odd.binpb"
        well_known = files("grpc_tools").joinpath("_proto")
        includes = [f"-I{path}" for path in (tmp_path, ROOT / "proto", THIRD_PARTY, well_known)]
        options = ["--include_imports", "--include_source_info", f"-o{target}"]
        assert protoc.main(["protoc", *includes, *options, str(source)]) == 0
        return Contracts(target.read_bytes())

    return run


HEAD = """
syntax = "proto3";
package postbus.odd.v1;
import "google/api/annotations.proto";
import "google/api/field_behavior.proto";
import "google/protobuf/any.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/api.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
import "google/protobuf/field_mask.proto";
import "google/protobuf/duration.proto";
import "google/type/money.proto";
import "buf/validate/validate.proto";
import "postbus/options/v1/options.proto";
"""


def service(rpc: str) -> str:
    return f"service OddService {{ {rpc} }}"


GET = """
rpc Get(Request) returns (Response) {
  option (google.api.http) = {get: "/v1/odd"};
  option (postbus.options.v1.method) = {access: ACCESS_PUBLIC};
}
"""


POST = GET.replace("Get(", "Post(").replace('get: "/v1/odd"', 'post: "/v1/odd" body: "*"')


def test_openapi_document_is_valid() -> None:
    document = json.loads(files("postbus").joinpath("openapi.json").read_text())

    validate(document)
    assert document["openapi"] == "3.1.0"


def test_comments_of_the_contract_are_the_documentation() -> None:
    document = json.loads(files("postbus").joinpath("openapi.json").read_text())

    operation = document["paths"]["/v1/auth/signup"]["post"]
    assert operation["summary"] == "Creates an account."
    assert "USERNAME_TAKEN" in operation["description"]
    assert operation["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/SignUpRequest"
    }
    username = document["components"]["schemas"]["SignUpRequest"]["properties"]["username"]
    assert username["description"].startswith("3 to 40 ASCII letters")
    assert username["pattern"] == "^[A-Za-z][A-Za-z0-9_-]{2,39}$"


KINDS = [message_class(name).DESCRIPTOR for name in MESSAGES]


@pytest.mark.parametrize("name", ["openapi.json", "asyncapi.json"])
def test_documents_have_the_json_names_of_fields(name: str) -> None:
    text = files("postbus").joinpath(name).read_text()

    assert "`nextPageToken` of the previous page" in text
    assert "1000 likes with `likedBy`" in text
    spelled = {
        field.name for kind in KINDS for field in kind.fields if field.name != field.json_name
    }
    assert set(re.findall(r"`([a-z0-9]+_[a-z0-9_]+)`", text)) & spelled <= {"page_size"}


def test_registry_has_the_options_of_a_method() -> None:
    method = METHODS["postbus.posts.v1.PostsService.CreatePost"]

    assert (method.worker, method.access, method.timeout) == ("posts", Access.USER, 5.0)
    assert method.request is MESSAGES["postbus.posts.v1.CreatePostRequest"]
    assert method.handler == "postbus.posts.v1.PostsServiceBase.create_post"
    [rule] = method.http
    assert (rule.verb, rule.path, rule.status) == ("POST", "/v1/posts", 201)


def test_registry_has_the_version_paths_of_a_method() -> None:
    changed, listed = (
        METHODS[f"postbus.posts.v1.PostsService.{name}"] for name in ("UpdatePost", "ListPosts")
    )

    assert (changed.version, changed.expected_version) == (("post", "version"), "expected_version")
    assert (listed.version, listed.expected_version) == ((), "")


def test_registry_has_every_event() -> None:
    ours = ("postbus.posts.", "postbus.users.")

    assert {name: event.subject for name, event in EVENTS.items() if name.startswith(ours)} == {
        "postbus.posts.v1.CommentCreated": "comment_id",
        "postbus.posts.v1.CommentDeleted": "comment_id",
        "postbus.posts.v1.CommentUpdated": "comment_id",
        "postbus.posts.v1.NotificationCreated": "user_id",
        "postbus.posts.v1.PostCreated": "post_id",
        "postbus.posts.v1.PostDeleted": "post_id",
        "postbus.posts.v1.PostErasureContinued": "post_id",
        "postbus.posts.v1.PostLiked": "post_id",
        "postbus.posts.v1.PostPublished": "post_id",
        "postbus.posts.v1.PostUnliked": "post_id",
        "postbus.posts.v1.PostUnpublished": "post_id",
        "postbus.posts.v1.PostUpdated": "post_id",
        "postbus.posts.v1.UserContentErasureContinued": "user_id",
        "postbus.users.v1.FollowChanged": "follow_id",
        "postbus.users.v1.SessionsRevoked": "user_id",
        "postbus.users.v1.UserDeleted": "user_id",
        "postbus.users.v1.UserErasureContinued": "user_id",
        "postbus.users.v1.UserProfileUpdated": "user_id",
        "postbus.users.v1.UserRegistered": "user_id",
    }


@pytest.mark.parametrize(
    ("name", "access", "recipient"),
    [
        ("posts.v1.PostCreated", Access.PUBLIC, ""),
        ("posts.v1.NotificationCreated", Access.USER, "user_id"),
        ("users.v1.SessionsRevoked", Access.INTERNAL, ""),
    ],
)
def test_registry_has_access_and_recipient_of_an_event(
    name: str, access: Access, recipient: str
) -> None:
    event = EVENTS[f"postbus.{name}"]

    assert (event.access, event.recipient) == (access, recipient)


@pytest.mark.parametrize(
    ("verb", "path", "sent", "received", "statuses"),
    [
        ("get", "/v1/posts", {"If-None-Match"}, {"ETag"}, {"200", "304", "406"}),
        (
            "get",
            "/v1/posts/{id}",
            {"If-Match", "If-None-Match"},
            {"ETag"},
            {"200", "304", "404", "406", "412"},
        ),
        (
            "post",
            "/v1/posts",
            {"Idempotency-Key", "If-None-Match"},
            {"ETag", "Idempotency-Replayed", "Location"},
            {"201", "406", "408", "409", "412", "413", "415"},
        ),
        (
            "patch",
            "/v1/posts/{id}",
            {"If-Match", "If-None-Match", "Idempotency-Key"},
            {"ETag", "Idempotency-Replayed"},
            {"200", "403", "404", "406", "408", "409", "412", "413", "415"},
        ),
        (
            "delete",
            "/v1/posts/{id}",
            {"If-Match", "If-None-Match", "Idempotency-Key"},
            {"Idempotency-Replayed"},
            {"204", "403", "404", "409", "412"},
        ),
        (
            "put",
            "/v1/posts/{id}/like",
            {"Idempotency-Key"},
            {"ETag", "Idempotency-Replayed"},
            {"200", "404", "406", "409"},
        ),
    ],
)
def test_openapi_has_the_headers_of_conditional_and_repeated_requests(
    verb: str, path: str, sent: set[str], received: set[str], statuses: set[str]
) -> None:
    document = json.loads(files("postbus").joinpath("openapi.json").read_text())
    operation = document["paths"][path][verb]
    responses = operation["responses"]
    success = next(response for status, response in responses.items() if status[0] == "2")

    headers = {each["name"] for each in operation["parameters"] if each["in"] == "header"}

    assert headers == sent
    assert success["headers"].keys() == received | {"Trace-Id"}
    always = {"400", "401", "422", "429", "503", "504", "default"}
    assert responses.keys() == statuses | always
    limited = document["components"]["responses"]["TooManyRequests"]["headers"]
    assert {"Retry-After", "RateLimit", "RateLimit-Policy"} <= limited.keys()


def test_expected_version_is_in_if_match_and_nowhere_else_over_rest() -> None:
    openapi_text = files("postbus").joinpath("openapi.json").read_text()
    asyncapi_text = files("postbus").joinpath("asyncapi.json").read_text()

    assert "expectedVersion" not in openapi_text
    assert "expectedVersion" not in files("postbus").joinpath("rest.py").read_text()
    assert "expectedVersion" in asyncapi_text


def test_third_party_file_printed_from_its_descriptor_is_equivalent(tmp_path: Path) -> None:
    from protovalidate._gen.buf.validate import validate_pb

    original = FileDescriptorSet()
    original.file.add().ParseFromString(validate_pb.desc().proto.to_binary())
    target = tmp_path / "validate.binpb"
    well_known = files("grpc_tools").joinpath("_proto")

    arguments = ["protoc", f"-I{THIRD_PARTY}", f"-I{well_known}", f"-o{target}"]
    assert protoc.main([*arguments, str(THIRD_PARTY / "buf/validate/validate.proto")]) == 0

    printed = FileDescriptorSet.FromString(target.read_bytes())
    for file in (original.file[0], printed.file[0]):
        _forget_derived(file)
    assert printed.file[0] == original.file[0]


def _forget_derived(message: object) -> None:
    """Clear json_name, which only some compilers set."""
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.name == "json_name":
            message.ClearField("json_name")  # type: ignore[attr-defined]
        elif field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                _forget_derived(each)


ODD = r"proto/postbus/odd/v1/odd\.proto:\d+: postbus\.odd\.v1\."


def error_of(contracts: Contracts, output: Callable[[Contracts], object]) -> str:
    with pytest.raises(ContractError) as raised:
        output(contracts)
    return contracts.explain(raised.value)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            service(GET) + "message Response {}"
            "message Request { map<string, string> anything = 1; }",
            r"OddService\.Get: anything can't be a query parameter",
        ),
        (
            service(GET) + "message Request { Request again = 1; } message Response {}",
            r"OddService\.Get: again contains itself",
        ),
        (
            service(POST) + "message Request { google.protobuf.Api api = 1; } message Response {}",
            r"Request\.api: google\.protobuf\.Api has no JSON form: use a message of your own",
        ),
        (
            service(POST) + "message Request { map<string, google.protobuf.Method> methods = 1; }"
            "message Response {}",
            r"Request\.MethodsEntry\.value: google\.protobuf\.Method has no JSON form",
        ),
        (
            service(POST) + "message Response {}"
            "message Request { bool sure = 1 [(google.api.field_behavior) = REQUIRED]; }",
            r"Request\.sure: REQUIRED, but no rule of buf.validate refuses it",
        ),
        (
            service(POST + POST.replace("Post(", "Other("))
            + "message Request {} message Response {}",
            r"OddService\.Other: POST /v1/odd is taken by postbus\.odd\.v1\.OddService\.Post",
        ),
        (
            service(GET.replace("/v1/odd", "/v1/{nonsense}"))
            + "message Request {} message Response {}",
            r"OddService\.Get: the path parameter nonsense is not a field",
        ),
        (
            service(GET.replace("/v1/odd", "/v1/{name=**}"))
            + "message Request { string name = 1; } message Response {}",
            r"OddService\.Get: the pattern '\*\*' of 'name' is not supported",
        ),
        *(
            (
                service(GET.replace("/v1/odd", f"/v1/{{{path}}}"))
                + "message Part { string id = 1; } message Response {} message Request {"
                " repeated Part parts = 1; map<string, string> labels = 2;"
                " google.protobuf.Timestamp time = 3; google.protobuf.Any any = 4; }",
                rf"OddService\.Get: the path parameter {path} is not a field of the request",
            )
            for path in ("parts.id", "labels.key", "time.seconds", "any.type_url")
        ),
        *(
            (
                service(GET.replace("/v1/odd", path))
                + "message Request { string name = 1; } message Response {}",
                r"OddService\.Get: the path '.*' has a segment that clients remove",
            )
            for path in ("/v1/../odd", "/v1/./odd", "/v1/{name=../*}", "/v1/odd/..")
        ),
        (
            service(GET.replace('get: "/v1/odd"', 'custom: {kind: "HEAD" path: "/v1/odd"}'))
            + "message Request {} message Response {}",
            r"OddService\.Get: custom HTTP methods are not supported",
        ),
    ],
)
def test_contract_that_rest_cannot_express_is_an_error_with_line_and_reason(
    compile_proto: Compile, body: str, why: str
) -> None:
    assert re.fullmatch(f"{ODD}{why}.*", error_of(compile_proto(body), openapi))


@pytest.mark.parametrize(
    ("rpc", "why"),
    [
        ("rpc Get(Request) returns (Response);", "state its access"),
        ("rpc Get(stream Request) returns (Response);", "a stream of requests is not"),
        (
            "rpc Get(Request) returns (Response) { option (postbus.options.v1.method) ="
            ' {access: ACCESS_USER callers: "posts"}; }',
            "a method with callers has access: ACCESS_INTERNAL",
        ),
    ],
)
def test_method_that_the_bus_cannot_serve_is_an_error(
    compile_proto: Compile, rpc: str, why: str
) -> None:
    contracts = compile_proto(service(rpc) + "message Request {} message Response {}")

    assert re.match(rf"{ODD}OddService\.Get: {why}", error_of(contracts, check_contracts))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            service("rpc Get(google.protobuf.Any) returns (google.protobuf.Any);"),
            r"OddService\.Get: wrap google\.protobuf\.Any in a message of your own",
        ),
        ("message Optional {}", r"Optional: the generated code needs the Python class Optional"),
        (
            'message Odd { string a = 1 [(buf.validate.field).string.pattern = "(["]; }',
            r"Odd: failed to compile program string\.pattern: missing \]",
        ),
        (
            'message Odd { option (buf.validate.message).cel = {id: "x" expression: "no("}; }',
            r"Odd: failed to compile expression x: .*",
        ),
    ],
)
def test_contract_that_breaks_generated_code_is_an_error(
    compile_proto: Compile, body: str, why: str
) -> None:
    assert re.match(f"{ODD}{why}", error_of(compile_proto(body), check_contracts))


@pytest.mark.parametrize(
    ("head", "why"),
    [
        ('syntax = "proto2"; package postbus.odd.v1;', 'only syntax = "proto3" is supported'),
        ('syntax = "proto3"; package odd.v1;', "its package must begin with postbus."),
        ('syntax = "proto3";', "its package must begin with postbus."),
    ],
)
def test_file_outside_the_root_package_is_an_error(tmp_path: Path, head: str, why: str) -> None:
    source = tmp_path / "postbus/odd.proto"
    source.parent.mkdir()
    source.write_text(f"{head} message Odd {{}}")
    target = tmp_path / "odd.binpb"
    assert protoc.main(["protoc", f"-I{tmp_path}", f"-o{target}", str(source)]) == 0

    error = error_of(Contracts(target.read_bytes()), check_contracts)

    assert error == f"proto/postbus/odd.proto: {why}"


def test_subject_that_is_not_a_field_is_an_error(compile_proto: Compile) -> None:
    contracts = compile_proto(
        'message Happened { option (postbus.options.v1.event) = {subject: "nonsense"}; }'
    )

    with pytest.raises(ContractError, match="subject is not a field of it: nonsense"):
        check_contracts(contracts)


VERSIONED = """
message Part { string name = 1; repeated int64 versions = 2; int64 version = 3; }
message Request { int32 small = 1; string text = 2; repeated int64 many = 3; int64 fits = 4; }
message Response {
  Part part = 1; repeated Part parts = 2; google.protobuf.Timestamp time = 3;
}
"""


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ('version: "nonsense"', "the version of the response is not a field: nonsense"),
        ('version: "part"', "the version of the response is not an integer: part"),
        ('version: "part.name"', r"the version of the response is not an integer: part\.name"),
        ('version: "part.versions"', r"the version of the response is not a field: part\.versions"),
        ('version: "parts.version"', r"the version of the response is not a field: parts\.version"),
        ('version: "time.seconds"', r"the version of the response is not a field: time\.seconds"),
        ('version: "part.name.x"', r"the version of the response is not a field: part\.name\.x"),
        ('expected_version: "no"', "expected_version is not an int64 of the request: no"),
        ('expected_version: "small"', "expected_version is not an int64 of the request: small"),
        ('expected_version: "text"', "expected_version is not an int64 of the request: text"),
        ('expected_version: "many"', "expected_version is not an int64 of the request: many"),
    ],
)
def test_version_that_is_not_an_integer_is_an_error_with_line_and_reason(
    compile_proto: Compile, rule: str, why: str
) -> None:
    rpc = GET.replace("ACCESS_PUBLIC", f"ACCESS_PUBLIC {rule}")

    error = error_of(compile_proto(service(rpc) + VERSIONED), check_contracts)

    assert re.fullmatch(rf"{ODD}OddService\.Get: {why}", error)


def test_expected_version_in_the_path_is_an_error(compile_proto: Compile) -> None:
    rpc = GET.replace("/v1/odd", "/v1/odd/{fits}").replace(
        "ACCESS_PUBLIC", 'ACCESS_PUBLIC expected_version: "fits"'
    )

    error = error_of(compile_proto(service(rpc) + VERSIONED), openapi)

    assert error.endswith("expected_version comes from If-Match, not from path or body")


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ("access: ACCESS_USER", "the event's recipient is not a string of it: none"),
        ('access: ACCESS_USER recipient: "no"', "the event's recipient is not a string of it: no"),
        ('access: ACCESS_USER recipient: "n"', "the event's recipient is not a string of it: n"),
        (
            'access: ACCESS_USER recipient: "ids"',
            "the event's recipient is not a string of it: ids",
        ),
        (
            'access: ACCESS_PUBLIC recipient: "id"',
            "an event with a recipient has access: ACCESS_USER",
        ),
        ('recipient: "id"', "an event with a recipient has access: ACCESS_USER"),
    ],
)
def test_event_without_a_valid_recipient_is_an_error(
    compile_proto: Compile, rules: str, why: str
) -> None:
    contracts = compile_proto(
        f"""message Happened {{
          option (postbus.options.v1.event) = {{subject: "id" {rules}}};
          string id = 1; int64 n = 2; repeated string ids = 3;
        }}"""
    )

    assert re.fullmatch(rf"{ODD}Happened: {why}", error_of(contracts, check_contracts))


def test_registry_has_the_event_that_ends_sessions() -> None:
    assert {
        name: event.ended_sessions for name, event in EVENTS.items() if event.ended_sessions
    } == {"postbus.users.v1.SessionsRevoked": "session_ids"}


@pytest.mark.parametrize("field", ["no", "id", "numbers"])
def test_ended_sessions_that_are_not_repeated_strings_are_an_error(
    compile_proto: Compile, field: str
) -> None:
    contracts = compile_proto(
        f"""message Happened {{
          option (postbus.options.v1.event) = {{subject: "id" ended_sessions: "{field}"}};
          string id = 1; repeated int64 numbers = 2;
        }}"""
    )

    why = f"ended_sessions is not a repeated string of the event: {field}"
    assert re.fullmatch(rf"{ODD}Happened: {why}", error_of(contracts, check_contracts))


def test_event_schema_version_is_1_unless_stated(compile_proto: Compile) -> None:
    contracts = compile_proto(
        """
        message Old {
          option (postbus.options.v1.event) = {subject: "id"};
          string id = 1;
        }
        message Raised {
          option (postbus.options.v1.event) = {subject: "id" version: 3};
          string id = 1;
        }
        """
    )

    versions = {name: event.version for name, event in contracts.event_options.items()}

    assert (versions["postbus.odd.v1.Old"], versions["postbus.odd.v1.Raised"]) == (1, 3)


def test_examples_have_one_member_of_a_oneof_and_end_in_recursive_messages(
    compile_proto: Compile,
) -> None:
    contracts = compile_proto(
        """
        message Node {
          Node next = 1;
          repeated Node children = 2;
          google.protobuf.Any any = 3;
          oneof kind { string word = 4; string text = 5; }
          map<string, int64> counts = 6;
          int64 size = 7;
        }
        message Request {
          oneof kind {
            string word = 1 [(buf.validate.field).string.example = "one"];
            string text = 2 [(buf.validate.field).string.example = "two"];
          }
          Node node = 3;
          string secret = 4 [
            (google.api.field_behavior) = REQUIRED,
            (buf.validate.field).string.pattern = "^x+$"
          ];
        }
        message Response { Node node = 1; }
        """
    )
    request, response, node = (
        next(each for each in contracts.messages if each.name == name)
        for name in ("Request", "Response", "Node")
    )

    examples = Examples(contracts)

    assert examples.of_request(request, frozenset({"secret"})) == {"word": "one"}
    assert examples.of_request(request, frozenset()) is None, "no text is known for the pattern"
    assert examples.of_request(node, frozenset()) == {"word": "one"}
    assert examples.of_response(response) == {
        "node": {
            "children": [],
            "any": {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1.500s"},
            "word": "one",
            "counts": {},
            "size": "1",
        }
    }


ODD_METHOD = """
service OddService {
  rpc Do(Ask) returns (Answer) {
    option (google.api.http) = {post: "/v1/odd" body: "*"};
    option (postbus.options.v1.method) = {access: ACCESS_PUBLIC};
  }
}
"""


def checked_body(document: dict[str, Any], *keys: str) -> tuple[Draft202012Validator, Any]:
    """Return the validator of a body, found below an operation by keys, and its example."""
    found = document["paths"]["/v1/odd"]["post"]
    for key in keys:
        found = found[key]
    media = found["content"]["application/json"]
    schema = {**media["schema"], "components": document["components"]}
    return Draft202012Validator(schema), media.get("example")


def test_example_of_a_response_has_all_its_required_members(compile_proto: Compile) -> None:
    contracts = compile_proto(
        """
        message Ask {}
        message Answer {
          repeated Answer children = 1;
          repeated google.protobuf.Any anys = 2;
          repeated google.protobuf.Value values = 3;
          map<string, Answer> by_name = 4;
          google.protobuf.NullValue nothing = 5;
          optional google.protobuf.NullValue perhaps = 6;
          repeated google.protobuf.NullValue nothings = 7;
        }
        """
        + ODD_METHOD
    )
    document = openapi(contracts)
    validate(document)

    validator, example = checked_body(document, "responses", "200")

    validator.validate(example)
    assert example["nothings"] == [None]


@pytest.mark.parametrize(
    ("rules", "example"),
    [
        ("double = {gt: 0.5 lt: 0.6}", {"size": 0.55}),
        ("double.gt = 5", {"size": 6}),
        ("double = {gte: 1 not_in: [1]}", {"size": 2}),
        ("double = {gt: 5 not_in: [6]}", None),
        ("double.const = 7", {"size": 7}),
        ("double = {in: [8, 9]}", {"size": 8}),
        ('cel = {id: "x" message: "m" expression: "this > 7.0"}', None),
    ],
)
def test_example_of_a_request_keeps_every_rule_or_is_left_out(
    compile_proto: Compile, rules: str, example: Any
) -> None:
    text = f"message Ask {{ double size = 1 [(buf.validate.field).{rules}]; }} message Answer {{}}"
    document = openapi(compile_proto(text + ODD_METHOD))

    assert checked_body(document, "requestBody")[1] == example


def test_example_of_a_request_has_the_first_member_of_a_required_oneof(
    compile_proto: Compile,
) -> None:
    contracts = compile_proto(
        """
        message Ask {
          oneof one { option (buf.validate.oneof).required = true; int32 a = 1; bool b = 2; }
        }
        message Answer {}
        """
        + ODD_METHOD
    )

    assert checked_body(openapi(contracts), "requestBody")[1] == {"a": 1}


@pytest.mark.parametrize(
    "body",
    [
        "",
        "message Odd { string id = 1; }",
        service(
            "rpc Do(Odd) returns (Odd) { option (postbus.options.v1.method) = {access: "
            "ACCESS_PUBLIC}; }"
        )
        + "message Odd { string id = 1; }",
    ],
)
def test_contract_without_routes_and_reasons_is_generated(
    compile_proto: Compile, body: str
) -> None:
    contracts = compile_proto(body)
    check_contracts(contracts)
    names: dict[str, Any] = {}

    for source in (rest_models_source(contracts), reasons_source(contracts)):
        exec(compile(source, "odd", "exec"), names)  # noqa: S102  # generated here

    assert (names["REQUESTS"], names["REASONS"]) == ({}, {})
    validate(openapi(contracts))


RULES = "(buf.validate.field)"
ZERO = f"{RULES}.ignore = IGNORE_IF_ZERO_VALUE"
NEEDED = f"{RULES}.required = true"


@pytest.mark.parametrize(
    ("field", "accepted", "refused"),
    [
        (f'string a = 1 [{RULES}.string.pattern = "b|^c", {ZERO}];', ["", "xb", "cx"], ["a"]),
        (f'string a = 1 [{RULES}.string.pattern = "a\\\\$", {ZERO}];', ["", "ba$"], ["a"]),
        (f'string a = 1 [{RULES}.string.pattern = "^\\\\S+$"];', ["a\u00a0b\v"], ["a b", ""]),
        (f'string a = 1 [{RULES}.string.pattern = "^[\\\\sx]$"];', ["x", "\f"], ["\v", "\u2028"]),
        (f'string a = 1 [{RULES}.string.pattern = "^.$"];', ["\r", "\u2028", "é"], ["\n"]),
        (f"double a = 1 [{RULES}.double.gt = -inf];", [1.5, "Infinity"], ["-Infinity", "NaN"]),
        (f"double a = 1 [{RULES}.double.gte = -inf];", [1.5, "-Infinity"], ["NaN"]),
        (f"double a = 1 [{RULES}.double.lt = inf];", [1.5, "-Infinity"], ["Infinity", "NaN"]),
        (f"float a = 1 [{RULES}.float = {{finite: true lte: inf}}];", [0.1], ["Infinity", "NaN"]),
        ("oneof one { string b = 2; int32 a = 1; }", [1], []),
        ("google.protobuf.Duration a = 1;", ["315576000000s", "-315576000000s", "0s"], []),
    ],
)
def test_schema_of_a_request_accepts_exactly_what_the_rules_accept(
    compile_proto: Compile, field: str, accepted: list[Any], refused: list[Any]
) -> None:
    contracts = compile_proto(f"message Ask {{ {field} }} message Answer {{}} {ODD_METHOD}")
    document = openapi(contracts)
    validate(document)
    schema, _ = checked_body(document, "requestBody")
    ask = GetMessageClass(contracts.pool.FindMessageTypeByName("postbus.odd.v1.Ask"))

    for value in (*accepted, *refused):
        broken = Validator().collect_violations(ParseDict({"a": value}, ask()))
        assert schema.is_valid({"a": value}) == (not broken) == (value in accepted), value
    json.dumps(document, allow_nan=False)


def test_member_of_a_oneof_in_the_path_excludes_the_others_from_the_body(
    compile_proto: Compile,
) -> None:
    required = "option (buf.validate.oneof).required = true;"
    contracts = compile_proto(
        f"message Ask {{ oneof one {{ {required} string id = 1; string name = 2; }}"
        f" oneof two {{ {required} string key = 3; }} string text = 4; }} message Answer {{}}"
        + ODD_METHOD.replace("/v1/odd", "/v1/odd/{id}/{key}")
    )
    document = openapi(contracts)
    validate(document)
    schema = document["components"]["schemas"]["DoBody"]

    assert schema["not"] == {"anyOf": [{"required": ["name"]}]}
    assert "oneOf" not in schema


def test_double_that_is_not_finite_is_a_string_in_an_example(compile_proto: Compile) -> None:
    text = f"message Ask {{}} message Answer {{ double a = 1 [{RULES}.double.example = -inf]; }}"
    document = openapi(compile_proto(text + ODD_METHOD))

    validator, example = checked_body(document, "responses", "200")

    assert example == {"a": "-Infinity"}
    validator.validate(example)


REQUIRED = f"[{RULES}.required = true]"


@pytest.mark.parametrize(
    ("fields", "example"),
    [
        (f"google.protobuf.Int64Value a = 1 [{RULES}.required = true, {RULES}.int64.gt = 5];", "6"),
        (f"google.protobuf.StringValue a = 1 [{RULES}.string.const = 'b', {NEEDED}];", "b"),
        (f"google.protobuf.BytesValue a = 1 [{RULES}.bytes.const = 'b', {NEEDED}];", "Yg=="),
        (f"google.protobuf.FieldMask a = 1 [{RULES}.field_mask.in = 'b_c', {NEEDED}];", "bC"),
        (f"google.protobuf.FieldMask a = 1 {REQUIRED};", "name"),
        (f"google.protobuf.Value a = 1 {REQUIRED};", "text"),
        (
            f"google.protobuf.Any a = 1 {REQUIRED};",
            {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1.500s"},
        ),
        (
            f"google.protobuf.Duration a = 1 [{RULES}.duration.const = {{seconds: 9}}, {NEEDED}];",
            "9s",
        ),
        (f"google.type.Money a = 1 {REQUIRED};", {}),
        (f"Kind a = 1 [{RULES}.enum.const = 2];", "KIND_C"),
        (f"Expression a = 1 {REQUIRED};", {"leaf": "x"}),
        (f"Endless a = 1 {REQUIRED};", None),
    ],
)
def test_example_of_a_required_field_has_its_form_and_keeps_its_rules(
    compile_proto: Compile, fields: str, example: Any
) -> None:
    contracts = compile_proto(
        f"""
        enum Kind {{ KIND_A = 0; KIND_B = 1; KIND_C = 2; }}
        message Ask {{ {fields} }}
        message Answer {{}}
        message Expression {{
          oneof kind {{
            option (buf.validate.oneof).required = true;
            Expression not = 1;
            string leaf = 2 [{RULES}.string.example = "x"];
          }}
        }}
        message Endless {{ Endless again = 1 {REQUIRED}; }}
        {ODD_METHOD}"""
    )
    document = openapi(contracts)

    validator, found = checked_body(document, "requestBody")

    assert found == (None if example is None else {"a": example})
    if found is not None:
        validator.validate(found)


def test_response_has_an_example_of_every_message_with_a_form_of_its_own(
    compile_proto: Compile,
) -> None:
    kinds = ("Any", "FieldMask", "ListValue", "StringValue", "Int64Value", "BoolValue", "Value")
    fields = "".join(f"google.protobuf.{kind} f{i} = {i};" for i, kind in enumerate(kinds, 1))
    contracts = compile_proto(
        f"message Ask {{}} message Answer {{ {fields} google.type.Money money = 9; }} {ODD_METHOD}"
    )
    document = openapi(contracts)

    validator, example = checked_body(document, "responses", "200")

    validator.validate(example)
    assert example.keys() == {*(f"f{i}" for i in range(1, 8)), "money"}
    assert (example["f4"], example["f5"], example["f6"]) == ("", "1", False)


@pytest.mark.parametrize(
    "pattern",
    [
        *("(?i)a", r"\pL", r"[\p{L}]", "[[:alpha:]]", r"a\-b", r"\_", r"\x{1F600}", r"\a"),
        *("[]a]", "[^]a]", "a{", "a}", "a{,3}", "a]", r"\Aa\z", r"\Q.\E", "(?P<n>a)", r"\123"),
        *(r"[\w-.]", r"[\S]", r"\B", "^*", r"\b?", "(?:^+)", "a**", "a{2}{3}"),
    ],
)
def test_pattern_that_ecma_262_lacks_is_not_portable(pattern: str) -> None:
    assert not is_portable(pattern)


PARTS = (
    *("a", "b", "-", "é", "😀", ".", r"\d", r"\w", r"\s", r"\S", r"\W", r"\b", r"\B", "^", "$"),
    *("[a-c]", "[^a]", r"[\s-]", r"[^\s]", r"[\w.]", r"[\]\-x]", "[.]", "(", ")", "(?:", "|", "*"),
    *("+", "?", "{2}", "{1,2}", "{0,}", r"\x41", r"\n", r"\v", r"\.", "\n", "\u2028", r"\\s"),
)
TEXTS = (
    *("", "a", "b", "ab", "a b", "a\u00a0b", "\n", "\r", "\u2028", "\v", "a\n", "é", "😀", "A"),
    *("-", "aa", "a1", "_", "\ufeff", ".", "x]", "\\s", "\f\t"),
)


MATCH = """
message Match {
  option (buf.validate.message).cel = {
    id: "match" message: "m" expression: "this.text.matches(this.pattern)"
  };
  string text = 1;
  string pattern = 2;
}
"""


def test_random_portable_pattern_matches_the_same_texts_in_ecma_262(
    compile_proto: Compile,
) -> None:
    match = GetMessageClass(compile_proto(MATCH).messages[0])
    validator = Validator()
    choose = random.Random(7)  # noqa: S311  # a test's choice
    texts = ("".join(choose.choices(PARTS, k=choose.randint(1, 6))) for _ in range(2000))
    found = {text: matches(validator, match, text) for text in texts if is_portable(text)}
    expected = {text: each for text, each in found.items() if each is not None}
    script = """
    const [patterns, texts] = process.argv.slice(1).map((each) => JSON.parse(each));
    const found = patterns.map((each) => texts.map((text) => new RegExp(each, "u").test(text)));
    console.log(JSON.stringify(found));
    """
    arguments = [json.dumps([escaped(text) for text in expected]), json.dumps(TEXTS)]
    result = subprocess.run(
        ["node", "-e", script, *arguments],  # noqa: S607  # on the path
        capture_output=True,
        text=True,
        check=True,
    )

    assert len(expected) > 400
    in_ecma = dict(zip(expected, json.loads(result.stdout), strict=True))
    assert {text: each for text, each in in_ecma.items() if each != expected[text]} == {}


def matches(validator: Validator, match: Any, pattern: str) -> list[bool] | None:
    """Return whether each of the texts matches, as rules do; None if RE2 refuses the pattern."""
    try:
        broken = [validator.collect_violations(match(pattern=pattern, text=text)) for text in TEXTS]
    except EvaluationError:
        return None
    return [not each for each in broken]


def test_patterns_in_documents_are_those_of_ecma_262(tmp_path: Path) -> None:
    portable = ["^[a-z]+(?:-[a-z]+)*$", r"\d{2,}-\w{3}", r"[\-a]", r"[^\]x]", "[[a]", r"\x20\/"]
    texts = ["post-", "a b", "#&~@,", "/v1", "(c)", "^$.*+?[]{}|\\", "\n", "é", "😀"]
    patterns = tmp_path / "patterns.json"
    patterns.write_text(json.dumps([[f"^{escaped(literal(text))}$", text] for text in texts]))
    assert all(map(is_portable, portable))

    script = """
    const [patterns, portable] = process.argv.slice(1).map((each) => JSON.parse(each));
    for (const each of portable) new RegExp(each, "u");
    console.log(patterns.filter(([pattern, text]) => !new RegExp(pattern, "u").test(text)));
    """
    result = subprocess.run(
        ["node", "-e", script, patterns.read_text(), json.dumps(portable)],  # noqa: S607  # on the path
        capture_output=True,
        text=True,
        check=True,
    )

    assert result.stdout.strip() == "[]"
