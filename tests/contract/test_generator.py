"""What `just gen` makes of contracts, ours and others."""

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc
from openapi_spec_validator import validate

from postbus.registry import EVENTS, MESSAGES, METHODS, Access
from tools.generate.__main__ import main
from tools.generate.contracts import Contracts, GeneratorError
from tools.generate.openapi import openapi
from tools.generate.registry import registry_source

ROOT = Path(__file__).parents[2]
THIRD_PARTY = ROOT / ".dev/third_party"

Compile = Callable[[str], Contracts]


@pytest.fixture(scope="module", autouse=True)
def generated() -> None:
    """Lays out the third-party files on the way."""
    assert main(["--check"]) == 0, "gen/ is not what proto/ says: run just gen"


@pytest.fixture
def compile_proto(tmp_path: Path) -> Compile:
    """Reads the contracts in a .proto text, which may import ours."""

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
import "google/protobuf/struct.proto";
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


def test_openapi_document_is_valid() -> None:
    document = json.loads(files("postbus").joinpath("openapi.json").read_text())

    validate(document)
    assert document["openapi"] == "3.1.0"


def test_comments_of_the_contract_are_the_documentation() -> None:
    document = json.loads(files("postbus").joinpath("openapi.json").read_text())

    operation = document["paths"]["/v1/auth/signup"]["post"]
    assert operation["summary"] == "Creates an account."
    assert "USERNAME_TAKEN" in operation["description"]
    username = operation["requestBody"]["content"]["application/json"]["schema"]["properties"][
        "username"
    ]
    assert username["description"].startswith("3 to 30 letters")
    assert username["pattern"] == "^[A-Za-z][A-Za-z0-9_]{2,29}$"


def test_registry_holds_what_the_contract_says_of_a_method() -> None:
    method = METHODS["postbus.posts.v1.PostsService.CreatePost"]

    assert (method.worker, method.access, method.timeout) == ("posts", Access.USER, 5.0)
    assert method.request is MESSAGES["postbus.posts.v1.CreatePostRequest"]
    assert method.handler == "postbus.posts.v1.PostsServiceBase.create_post"
    [rule] = method.http
    assert (rule.verb, rule.path, rule.status) == ("POST", "/v1/posts", 201)


def test_registry_holds_every_event() -> None:
    assert {event.name: event.subject for event in EVENTS.values()} == {
        "postbus.posts.v1.PostCreated": "post_id",
        "postbus.posts.v1.PostDeleted": "post_id",
        "postbus.posts.v1.PostUpdated": "post_id",
        "postbus.users.v1.UserRegistered": "user_id",
    }


def test_third_party_file_printed_from_its_descriptor_means_the_same(tmp_path: Path) -> None:
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
    """Drop json_name, which compilers fill in or leave out as they like."""
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.name == "json_name":
            message.ClearField("json_name")  # type: ignore[attr-defined]
        elif field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                _forget_derived(each)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            service(GET) + "message Request { oneof choice { string a = 1; string b = 2; } }"
            "message Response {}",
            r"Request\.a: oneofs are not supported",
        ),
        (
            service(GET) + "message Request {}"
            "message Response { google.protobuf.Struct anything = 1; }",
            r"Response\.anything: google\.protobuf\.Struct is not supported",
        ),
        (
            service(GET) + "message Response {}"
            "message Request { string id = 1 [(buf.validate.field).string.ipv4 = true]; }",
            r"Request\.id: the rule string\.ipv4 is not supported",
        ),
        (
            service(GET.replace("/v1/odd", "/v1/{nonsense}"))
            + "message Request {} message Response {}",
            r"OddService\.Get: the path parameter nonsense is not a field",
        ),
        (
            service(GET.replace("/v1/odd", "/v1/{name=things/*}"))
            + "message Request { string name = 1; } message Response {}",
            r"OddService\.Get: path templates with patterns",
        ),
    ],
)
def test_what_rest_cannot_say_is_an_error_with_file_and_reason(
    compile_proto: Compile, body: str, why: str
) -> None:
    contracts = compile_proto(body)

    with pytest.raises(GeneratorError, match=f"proto/postbus/odd/v1/odd.proto: .*(?:{why})"):
        openapi(contracts)


@pytest.mark.parametrize(
    ("rpc", "why"),
    [
        ("rpc Get(Request) returns (Response);", "say who may call it"),
        ("rpc Get(Request) returns (stream Response);", "streaming methods"),
    ],
)
def test_method_that_the_bus_cannot_serve_is_an_error(
    compile_proto: Compile, rpc: str, why: str
) -> None:
    contracts = compile_proto(service(rpc) + "message Request {} message Response {}")

    with pytest.raises(GeneratorError, match=rf"odd\.proto: .*OddService\.Get: {why}"):
        registry_source(contracts)


def test_event_whose_subject_is_no_field_is_an_error(compile_proto: Compile) -> None:
    contracts = compile_proto(
        'message Happened { option (postbus.options.v1.event) = {subject: "nonsense"}; }'
    )

    with pytest.raises(GeneratorError, match="subject is not a field of it: nonsense"):
        registry_source(contracts)
