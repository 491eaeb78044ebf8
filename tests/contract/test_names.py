"""Generated names: distinct by the rules of names.py, or an error with file, line and reason."""

import random
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from openapi_spec_validator import validate

from gateway.routing import ContractRoutes
from postbus_runtime.contract import ContractError
from postbus_runtime.http_rules import bindings
from tests.contract.generated_package import (
    GeneratedPackage,
    compile_contracts,
    filled,
    new_root,
)
from tools.contracts.generate.contract_checks import check_contracts
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.names import Names
from tools.contracts.generate.openapi import openapi
from tools.contracts.generate.third_party import lay_out
from tools.paths import DEV

Compile = Callable[..., Contracts]


@pytest.fixture(scope="module", autouse=True)
def third_party() -> None:
    """Lay out the imports, unless `just gen` has."""
    if not (DEV / "third_party").exists():
        lay_out(DEV / "third_party")


@pytest.fixture
def compiled(tmp_path: Path) -> Compile:
    """Return a function that compiles .proto texts by package, below a root of their own."""

    def run(odd: str, **others: str) -> Contracts:
        packages = {"odd.v1": odd} | {
            name.replace("_v", ".v"): text for name, text in others.items()
        }
        contracts = compile_contracts(tmp_path, new_root(), packages)
        assert contracts is not None
        return contracts

    return run


def rpc(name: str, rule: str, request: str = "Ask", response: str = "Answer") -> str:
    return (
        f"rpc {name}({request}) returns ({response}) {{ option (google.api.http) = {{{rule}}};"
        " option (postbus.options.v1.method) = {access: ACCESS_PUBLIC}; }\n"
    )


def service(*methods: str, name: str = "OddService") -> str:
    return f"service {name} {{\n{''.join(methods)}}}\n"


def post(path: str, name: str = "Do", **types: str) -> str:
    return rpc(name, f'post: "{path}" body: "*"', **types)


ASK = "message Ask { string a = 1; string b = 2; } message Answer { string a = 1; }\n"


def checked_document(contracts: Contracts) -> dict[str, Any]:
    check_contracts(contracts)
    document = openapi(contracts)
    validate(document)
    return document


def test_versions_side_by_side_have_components_tags_and_operations_of_their_own(
    compiled: Compile,
) -> None:
    def version(thing: str, path: str) -> str:
        return (
            service(post(path, request="Ask", response="Answer"))
            + f"message Ask {{ Thing t = 1; }} message Answer {{ Thing t = 1; }}"
            f" message Thing {{ {thing} }}"
        )

    contracts = compiled(
        version("string a = 1;", "/v1/odd"), odd_v2=version("int32 b = 2;", "/v2/odd")
    )
    document = checked_document(contracts)

    schemas = document["components"]["schemas"]
    assert schemas["Thing"]["properties"].keys() == {"a"}
    assert schemas["OddV2Thing"]["properties"].keys() == {"b"}
    assert schemas["OddV2ThingInput"]["properties"].keys() == {"b"}
    assert [tag["name"] for tag in document["tags"]] == ["OddService", "OddV2OddService"]
    assert operation_ids(document) == ["Do", "OddV2OddService_Do"]


def test_a_new_version_renames_nothing_of_the_older_ones(compiled: Compile) -> None:
    first = service(post("/v1/odd")) + ASK
    contracts = compiled(
        first,
        odd_v2=first.replace("/v1", "/v2"),
        odd_v1beta1=first.replace("/v1", "/v1beta1"),
        odd_v10=first.replace("/v1", "/v10"),
    )
    names = Names(contracts)

    asks = {
        each.file.package.split(".")[-1]: names.component(each, request=True)
        for each in contracts.messages
        if each.name == "Ask"
    }
    assert asks == {
        "v1beta1": "Ask",
        "v1": "OddV1Ask",
        "v2": "OddV2Ask",
        "v10": "OddV10Ask",
    }


def test_messages_of_several_packages_have_the_package_in_front(compiled: Compile) -> None:
    other = service(post("/v1/other"), name="OtherService")
    contracts = compiled(service(post("/v1/odd")) + ASK, other_v1=other + ASK)
    document = checked_document(contracts)

    names = {"Problem", "OddAsk", "OddAnswer", "OtherAsk", "OtherAnswer"}
    assert document["components"]["schemas"].keys() == names
    assert operation_ids(document) == ["OddService_Do", "OtherService_Do"]


@pytest.mark.parametrize("name", ["Problem", "Int64", "Uint64"])
def test_message_named_as_a_component_of_every_document_gets_its_package(
    compiled: Compile, name: str
) -> None:
    contracts = compiled(
        service(post("/v1/odd"))
        + f"message Ask {{ int64 a = 1; }} message Answer {{ {name} p = 1; }}"
        f" message {name} {{ string hello = 1; }}"
    )
    schemas = checked_document(contracts)["components"]["schemas"]

    assert schemas[f"Odd{name}"]["properties"].keys() == {"hello"}
    assert "hello" not in schemas.get(name, {}).get("properties", {})


def test_message_with_the_suffix_of_inputs_is_not_the_input_of_another(compiled: Compile) -> None:
    members = "Thing a = 1; ThingInput b = 2;"
    contracts = compiled(
        service(post("/v1/odd")) + f"message Ask {{ {members} }} message Answer {{ {members} }}"
        "message Thing { string a = 1; } message ThingInput { int32 zzz = 1; }"
    )
    schemas = checked_document(contracts)["components"]["schemas"]

    answer = schemas["Answer"]["properties"]
    fields = {
        name: schemas[answer[name]["$ref"].rpartition("/")[2]]["properties"].keys()
        for name in ("a", "b")
    }
    assert fields == {"a": {"a"}, "b": {"zzz"}}


def test_operations_of_additional_bindings_do_not_take_the_name_of_another(
    compiled: Compile,
) -> None:
    twice = 'post: "/v1/a" body: "*" additional_bindings {post: "/v1/b" body: "*"}'
    contracts = compiled(
        service(rpc("Do", twice)) + service(post("/v1/c", name="Do_1"), name="Other") + ASK
    )

    assert operation_ids(checked_document(contracts)) == [
        "OddService_Do",
        "OddService_Do_1",
        "Other_Do_1",
    ]


@pytest.mark.parametrize(
    ("template", "path", "url", "values"),
    [
        ("/v1/{a=x/*}/{b=x/*}", "/v1/x/{x}/x/{b}", "/v1/x/7/x/2", {"x": "7", "b": "2"}),
        ("/v1/{a=*/*}", "/v1/{a}/{a_2}", "/v1/7/2", {"a": "7", "a_2": "2"}),
        ("/v1/{a=x/*/*}", "/v1/x/{x}/{a}", "/v1/x/7/2", {"x": "7", "a": "2"}),
        ("/v1/{a=b/*}/{b}", "/v1/b/{a}/{b}", "/v1/b/7/2", {"a": "7", "b": "2"}),
        ("/v1/{a=x/*/x/*}/{b=*/x/*}", "/v1/x/{x}/x/{a}/{b}/x/{b_2}", "/v1/x/1/x/2/3/x/4", None),
        ("/v1/{a=shelves/*}", "/v1/shelves/{shelves}", "/v1/shelves/7", {"shelves": "7"}),
    ],
)
def test_every_wildcard_of_a_path_has_a_name_of_its_own(
    compiled: Compile, template: str, path: str, url: str, values: dict[str, str] | None
) -> None:
    contracts = compiled(service(rpc("Do", f'get: "{template}"')) + ASK)
    checked_document(contracts)
    [[binding]] = bindings(contracts).values()
    routes = ContractRoutes({("GET", binding.path): "found"})
    found = routes.find("GET", url.encode())

    assert binding.path == path
    assert found is not None
    assert found[1] == values or list(found[1].values()) == ["1", "2", "3", "4"]


ODD: Final = r"proto/generated\d+/odd/v1/odd\.proto:\d+: generated\d+\.odd\.v1\."
DO: Final = service(post("/v1/odd")) + ASK


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            DO + "message Foo { message Bar { string a = 1; } } message FooBar { int32 z = 1; }",
            r"FooBar: its Python class FooBar is also that of .*Foo\.Bar \(proto/.*:\d+\)",
        ),
        (
            DO + "message HTTPThing { string a = 1; } message HttpThing { int32 b = 1; }",
            r"HttpThing: its Python class HttpThing is also that of .*HTTPThing",
        ),
        (
            DO + "message State {} enum state { A = 0; }",
            r"State: its Python class State is also that of .*state",
        ),
        (
            DO + "message OddServiceStub {}",
            r"OddService: its Python class OddServiceStub is also that of .*OddServiceStub",
        ),
        (
            DO + "message Odd { string URLPath = 1; string url_path = 2; }",
            r"Odd\.url_path: its Python attribute url_path is also that of .*Odd\.URLPath",
        ),
        (
            DO + "message Odd { map<string, int32> ab = 1; map<string, string> a_b = 2; }",
            r"Odd\.a_b: its map entry ab is also that of .*Odd\.ab",
        ),
        (
            DO + "enum Odd { ODD_A = 0; ODD_B = 1; X_ODD_B = 2; }",
            r"Odd: its member B is also that of the value 1",
        ),
        (
            service(post("/v1/a", name="GetURL"), post("/v1/b", name="GetUrl")) + ASK,
            r"OddService\.GetUrl: its Python method get_url is also that of .*GetURL",
        ),
        (
            service(post("/v1/a", name="Import"), post("/v1/b", name="Import_")) + ASK,
            r"OddService\.Import_: its Python method import_ is also that of .*Import",
        ),
        (
            DO + "message ADo {} message Ado {}",
            r"Ado: its component OddV1Ado is also that of .*ADo",
        ),
        (
            DO + "message Odd { string DESCRIPTOR = 1; }",
            r"Odd\.DESCRIPTOR: the generated code needs the attribute in google's classes",
        ),
        (
            DO + "message Odd { string betterproto = 1; }",
            r"Odd\.betterproto: the generated code needs the Python attribute betterproto",
        ),
        (DO + "message None {}", r"None: its Python class 'None' is no name in Python"),
        (DO + "message _1 {}", r"_1: its Python class '1' is no name in Python"),
        (DO + "message List {}", r"List: the generated code needs the Python class List"),
        (
            DO + "message GeneratedMessage {}",
            r"GeneratedMessage: the generated code needs the Python class GeneratedMessage",
        ),
        (
            service(post("/v1/odd", request="Timeout")) + ASK + "message Timeout {}",
            r"OddService\.Do: the generated code needs the Python argument timeout",
        ),
        (
            service(post("/v1/odd", name="Channel")) + ASK,
            r"OddService\.Channel: the generated code needs the Python method channel",
        ),
        (
            DO + "message odd { message Part {} Part part = 1; }",
            r"odd\.Part: the message around it must begin with a capital letter",
        ),
        (
            DO + "message Odd { oneof _a { string a = 1; string b = 2; } }",
            r"Odd\.a: no other field or oneof of the message may be named _a",
        ),
        (
            DO + "message Odd { optional string a = 1; string _a = 2; }",
            r"Odd\.a: no other field or oneof of the message may be named _a",
        ),
        (
            DO + "message odd { map<string, string> a = 1; }",
            r"odd: a message with a map must begin with a capital letter",
        ),
        (
            service(post("/v1/odd", request="HTTP.URL"))
            + ASK
            + "message HTTP { message URL { string a = 1; } }",
            r"OddService\.Do: betterproto cannot find .*HTTP\.URL",
        ),
        (
            service(rpc("Do", 'get: "/v1/{a}/{a}"')) + ASK,
            r"OddService\.Do: the path '/v1/\{a\}/\{a\}' sets a field twice",
        ),
        (
            service(rpc("Do", 'get: "/v1/odd"', request="Odd"))
            + ASK
            + 'message Odd { string x = 1 [json_name = "i.a"]; Ask i = 2; }',
            r"OddService\.Do: i\.a can't be a query parameter: it has a dot",
        ),
        (
            service(rpc("Do", 'get: "/v1/{x}"', request="Odd"))
            + ASK
            + 'message Odd { string x = 1 [json_name = "a/b"]; }',
            r"OddService\.Do: the JSON name 'a/b' can't be the name of a path parameter",
        ),
    ],
)
def test_name_that_cannot_be_unique_is_an_error_with_line_and_reason(
    compiled: Compile, body: str, why: str
) -> None:
    assert re.match(ODD + why, error_of(compiled(body)))


def test_swapped_json_names_are_an_error_with_line_and_reason(compiled: Compile) -> None:
    swapped = 'message Odd { string a = 1 [json_name = "b"]; string b = 2 [json_name = "a"]; }'

    with pytest.raises(SystemExit, match=r"proto/\S+/odd\.proto:\d+: duplicate json_name"):
        compiled(DO + swapped)


@pytest.mark.parametrize(
    ("package", "why"),
    [
        ("rest.v1", "the generated code needs the folder rest"),
        ("reasons.v1", "the generated code needs the folder reasons"),
        ("import.v1", "its folder 'import' is no name in Python"),
        ("odd_v1", r"its module alias generated\d+_odd_v1 is also that of generated\d+\.odd"),
        ("Odd2.v1", r"the package generated\d+\.Odd2\.v1 is not in lower case"),
    ],
)
def test_package_without_a_folder_of_its_own_is_an_error_with_line_and_reason(
    tmp_path: Path, package: str, why: str
) -> None:
    texts = {"odd.v1": DO, package: "message Other {}"}
    contracts = compile_contracts(tmp_path, new_root(), texts)

    assert contracts is not None
    assert re.match(rf"proto/generated\d+/\S+\.proto:2: {why}", error_of(contracts))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Message", "MessageModel"),
        ("Field", "FieldModel"),
        ("Time", "TimeModel"),
        ("MISSING", "Missing"),
        ("StrictBool", "StrictBoolModel"),
        ("Foo_Bar", "FooBar"),
        ("thing", "Thing"),
    ],
)
def test_request_named_as_an_import_of_the_rest_models_has_its_own_model(
    compiled: Compile, tmp_path: Path, name: str, kind: str
) -> None:
    contracts = compiled(
        service(post("/v1/odd"))
        + f"message Ask {{ {name} part = 1; }} message Answer {{}} message {name} {{"
        " string text = 1 [(buf.validate.field).string.max_len = 1]; bool yes = 2;"
        " google.protobuf.Timestamp time = 3; oneof one { string a = 4; string b = 5; } }"
    )
    check_contracts(contracts)
    package = GeneratedPackage(tmp_path, contracts)
    model = package.rest.REQUESTS[f"{contracts.root}.odd.v1.Ask"]

    assert package.rest.REQUESTS[f"{contracts.root}.odd.v1.{name}"].__name__ == kind
    model.model_validate({"part": {"text": "x", "yes": True, "time": "2020-01-01T00:00:00Z"}})
    for refused in ({"text": "xx"}, {"no": 1}, {"a": "", "b": ""}, {"yes": 1}):
        with pytest.raises(ValueError, match="part"):
            model.model_validate({"part": refused})


@pytest.mark.parametrize("name", ["HTTPService", "odd_service", "OddService"])
def test_handler_of_a_method_is_that_of_the_generated_base_class(
    compiled: Compile, tmp_path: Path, name: str
) -> None:
    contracts = compiled(service(post("/v1/odd", name="Import"), name=name) + ASK)
    check_contracts(contracts)
    package = GeneratedPackage(tmp_path, contracts)
    [method] = package.registry.METHODS.values()

    module, _, handler = method.handler.removeprefix(f"{contracts.root}.odd.").partition(".")
    owner, _, attribute = handler.partition(".")
    function = getattr(getattr(package.module(f"odd.{module}"), owner), attribute)
    assert function.__qualname__ == handler


def refusal(contracts: Contracts) -> str:
    """Return the error of contracts that are not supported, else nothing."""
    try:
        check_contracts(contracts)
    except ContractError as error:
        return contracts.explain(error)
    return ""


def operation_ids(document: Mapping[str, Any]) -> list[str]:
    return [each["operationId"] for path in document["paths"].values() for each in path.values()]


def error_of(contracts: Contracts) -> str:
    with pytest.raises(ContractError) as raised:
        check_contracts(contracts)
    return contracts.explain(raised.value)


TYPES: Final = (
    *("Foo", "Foo_Bar", "Thing", "ThingInput", "HTTPThing", "Problem", "Int64", "Message", "Field"),
    *("Time", "Str", "DESCRIPTOR", "State", "Ask2", "Empty", "Odd", "OddThing", "OddV2Thing"),
)
NESTED: Final = ("Bar", "Input", "URL", "DESCRIPTOR")
FIELDS: Final = (
    *("a", "b", "x", "url_path", "class", "foo_bar", "None", "parse", "self", "datetime"),
    *("from_json", "fooBar2", "model_config", "request", "m", "timeout", "int", "oneofs"),
)
METHODS: Final = ("Do", "GetURL", "Do_1", "Import", "List", "Print", "Self", "Update")
SERVICES: Final = ("OddService", "HTTPService", "Service", "odd")
TEMPLATES: Final = ("{a=x/*}/{b=x/*}", "{a=*/*}", "{a}/{b}", "{b}", "{a=b/*}/{b}", "x", "{a=*}")
COLLIDING: Final = {
    TYPES: ("FooBar", "HttpThing", "None", "List", "thing", "GeneratedMessage", "OddServiceBase"),
    FIELDS: ("URLPath", "UrlPath", "betterproto", "DESCRIPTOR", "Clear", "HasField"),
    METHODS: ("GetUrl", "do_1", "Channel", "Timeout", "Import_"),
    SERVICES: ("HttpService", "odd_", "Odd"),
    TEMPLATES: ("{a}/{a}", "{a=**}"),
}
"""Names that may collide with those above, or that cannot be used."""


class RandomContract:
    """Packages with names that collide by the conversions of the outputs, from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311  # a test's choice
        packages = ("odd.v1", "odd.v2", "other.v1", "other_v1", "odd.part.v1")
        chosen = self._random.sample(packages, self._random.choice((1, 1, 2, 3)))
        self.packages = {package: "".join(self._package(package)) for package in chosen}

    def _package(self, package: str) -> Iterator[str]:
        types = self._choose(TYPES, 4)
        for name in types:
            yield f"message {name} {{ {self._fields(types)} {self._nested()} }}\n"
        yield f"message Ask {{ string a = 1; string b = 2; {types[0]} type = 3; }}\n"
        yield f"message Answer {{ {types[-1]} type = 1; {types[0]} other = 2; }}\n"
        for name in self._choose(SERVICES, 2):
            methods = self._choose(METHODS, 3)
            yield service(*(self._method(f"{package}/{name}", each) for each in methods), name=name)

    def _choose(self, pool: tuple[str, ...], most: int) -> list[str]:
        """Return up to `most` names; one in forty is a colliding one."""
        names = self._random.sample(pool, self._random.randint(1, most))
        colliding = self._random.choice(COLLIDING[pool])
        return [colliding if self._random.random() < 0.025 else names[0], *names[1:]]

    def _fields(self, types: list[str]) -> str:
        names = self._choose(FIELDS, 3)
        kinds = ("string", "int64", "repeated string", "map<string, string>", *types)
        return " ".join(
            f"{self._random.choice(kinds)} {name} = {number};"
            for number, name in enumerate(names, 1)
        )

    def _nested(self) -> str:
        if self._random.random() < 0.5:
            return ""
        return f"message {self._random.choice(NESTED)} {{ string a = 1; }}"

    def _method(self, front: str, name: str) -> str:
        path = f"/{front}/{name}"
        rest = self._choose(TEMPLATES, 1)[0]
        return rpc(name, f'post: "{path}/{rest}" body: "type"')


@pytest.mark.parametrize(
    ("chosen", "imported"),
    [
        (range(40), 3),
        pytest.param(range(40, 500), 40, marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ],
    ids=["few", "many"],
)
def test_random_contract_has_distinct_names_or_an_error_with_line(
    tmp_path: Path, chosen: range, imported: int
) -> None:
    accepted = refused = 0
    for seed in chosen:
        contracts = compile_contracts(tmp_path, new_root(), RandomContract(seed).packages)
        if contracts is None:  # protoc refuses it
            continue
        if error := refusal(contracts):
            assert re.match(r"proto/generated\d+/\S+:\d+: ", error), seed
            refused += 1
            continue
        accepted += 1
        assert_distinct(contracts)
        if accepted <= imported:
            assert_round_trips(GeneratedPackage(tmp_path, contracts), contracts)
    assert accepted > len(chosen) // 10
    assert refused > len(chosen) // 10


def assert_distinct(contracts: Contracts) -> None:
    document, names = openapi(contracts), Names(contracts)
    validate(document)
    schemas, ids = document["components"]["schemas"], operation_ids(document)
    owners = {name: each for each in contracts.messages for name in names.components(each)}
    for name in schemas.keys() - {"Problem", "Int64"}:
        fields = {each.json_name for each in owners[name].fields}
        assert schemas[name]["properties"].keys() == fields
    assert len({name.lower() for name in schemas}) == len(schemas)
    assert len(set(ids)) == len(ids) == sum(map(len, bindings(contracts).values()))


def assert_round_trips(package: GeneratedPackage, contracts: Contracts) -> None:
    classes = [package.registry.MESSAGES[each.full_name] for each in contracts.messages]
    assert len(set(classes)) == len(classes)
    for kind in classes:
        codec = package.codecs[kind]
        message, again = filled(codec.upb()), codec.upb()
        codec.write(codec.read(message), again)
        assert again == message
    assert package.rest.REQUESTS.keys() >= {each.input_type.full_name for each in contracts.methods}
    for name, model in package.rest.REQUESTS.items():
        fields = {each.json_name for each in contracts.pool.FindMessageTypeByName(name).fields}
        assert {each.alias or key for key, each in model.model_fields.items()} == fields
