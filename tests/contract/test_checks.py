"""The checks of checks.py say what protovalidate says, or nothing."""

import importlib
import sys
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import protovalidate
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_tools import protoc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from postbus.checks import CHECKS
from tests.contract.kinds import examples, fill
from tools.generate.checks import checks_source
from tools.generate.contracts import Contracts
from tools.generate.patterns import whole

UUID = "018f3f6e-0000-7000-8000-000000000001"
STRINGS = {"at_least": "x", "import": "x", "needed": "x"}
NUMBERS = {"needed": 1}
HOLDERS = {"tags": ["a"], "needed": {"name": "x"}, "text": "x"}
KEPT: list[tuple[str, dict[str, Any]]] = [
    ("Strings", STRINGS | {"at_most": "äöü", "exactly": "\U0001d4b3b", "id": UUID.upper()}),
    ("Strings", STRINGS | {"given": "x", "data": b"1234", "four": b"1"}),
    ("Numbers", NUMBERS | {"page": 100, "above": 8, "below": -(2**63), "given": 2}),
    ("Holders", HOLDERS | {"many": [{"name": "x"}], "one": NUMBERS, "inner": HOLDERS}),
    ("Leaf", {"name": "x"}),
    *(
        ("Names", {"name": each, "color": 3, "colors": [0, 3]})
        for each in ("A", "Abcd", "A\U0001d4b3 .")
    ),
    ("Free", {"next": {"name": "x"}}),
]
BROKEN: list[tuple[str, dict[str, Any]]] = [
    *(("Strings", STRINGS | {name: ""}) for name in ("at_least", "import", "given")),
    ("Strings", STRINGS | {"at_most": "1234"}),
    ("Strings", STRINGS | {"exactly": "1"}),
    *(("Strings", STRINGS | {"id": each}) for each in (UUID + "\n", UUID[1:], " " + UUID)),
    ("Strings", STRINGS | {"data": b"12345"}),
    ("Strings", STRINGS | {"four": b"12345"}),
    *(("Numbers", NUMBERS | {"page": each}) for each in (-1, 101)),
    ("Numbers", NUMBERS | {"above": 7}),
    ("Numbers", NUMBERS | {"below": 7}),
    ("Numbers", NUMBERS | {"given": 0}),
    ("Numbers", {}),
    *(("Holders", HOLDERS | {"tags": each}) for each in ([], ["a"] * 3, ["a", "1234"])),
    ("Holders", HOLDERS | {"one": {}}),
    ("Holders", HOLDERS | {"many": [{"name": "x"}, {}]}),
    ("Holders", HOLDERS | {"text": "123"}),
    ("Holders", HOLDERS | {"inner": HOLDERS | {"tags": []}}),
    ("Holders", {"tags": ["a"], "needed": {"name": "x"}}),
    ("Holders", {"tags": ["a"], "text": ""}),
    *(("Names", {"name": each}) for each in ("", "a", "Abcde", "A\n", "A$", "\nA", "A\x1f")),
    ("Names", {"name": "A", "color": 1}),
    ("Names", {"name": "A", "colors": [0, 1]}),
]
KNOWN = {"Strings", "Numbers", "Holders", "Leaf", "Names", "Free"}

Checks = Mapping[Any, Callable[[Any], bool]]


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """Class and check of each message in rules.proto that has a check, by name."""
    folder = tmp_path_factory.mktemp("rules")
    with ZipFile(str(files("postbus") / "protos.zip")) as protos:
        protos.extractall(folder)
    source = folder / "rules/v1/rules.proto"
    source.parent.mkdir(parents=True)
    source.write_bytes(Path(__file__).with_name("rules.proto").read_bytes())
    out = folder / "rules/contracts.binpb"
    google = files("grpc_tools").joinpath("_proto")
    options = [f"-I{folder}", f"-I{google}", "--include_imports", f"-o{out}", str(source)]
    assert protoc.main(["protoc", *options]) == 0
    (folder / "rules/codec.py").write_text(
        f"from {__name__} import pool\nPOOL = pool({str(out)!r})"
    )
    contracts = Contracts(out.read_bytes(), "rules")
    (folder / "rules/checks.py").write_text(checks_source(contracts, "rules"))
    sys.path.insert(0, str(folder))
    found = importlib.import_module("rules.checks").CHECKS
    return {kind.DESCRIPTOR.name: (kind, check) for kind, check in found.items()}


def pool(path: str) -> DescriptorPool:
    made = DescriptorPool()
    for file in FileDescriptorSet.FromString(Path(path).read_bytes()).file:
        made.Add(file)
    return made


def test_messages_with_other_rules_have_no_check(checks: dict[str, tuple[Any, Any]]) -> None:
    assert set(checks) == KNOWN


@pytest.mark.parametrize(("name", "values"), KEPT)
def test_rules_are_kept(
    checks: dict[str, tuple[Any, Any]], name: str, values: dict[str, Any]
) -> None:
    kind, check = checks[name]
    message = fill(kind(), values)

    assert protovalidate.collect_violations(message) == []
    assert check(message)


@pytest.mark.parametrize(("name", "values"), BROKEN)
def test_rules_are_broken(
    checks: dict[str, tuple[Any, Any]], name: str, values: dict[str, Any]
) -> None:
    kind, check = checks[name]
    message = fill(kind(), values)

    assert protovalidate.collect_violations(message)
    assert not check(message)


@pytest.mark.parametrize("name", sorted(KNOWN))
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=100)
@given(data=st.data())
def test_check_says_what_protovalidate_says(
    checks: dict[str, tuple[Any, Any]], name: str, data: st.DataObject
) -> None:
    kind, check = checks[name]
    message = fill(kind(), data.draw(examples(kind.DESCRIPTOR)))

    assert check(message) == (not protovalidate.collect_violations(message))


@pytest.mark.parametrize("kind", CHECKS, ids=lambda kind: kind.DESCRIPTOR.full_name)
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=50)
@given(data=st.data())
def test_check_of_the_contract_says_what_protovalidate_says(kind: Any, data: st.DataObject) -> None:
    message = fill(kind(), data.draw(examples(kind.DESCRIPTOR)))

    assert CHECKS[kind](message) == (not protovalidate.collect_violations(message))


@pytest.mark.parametrize(
    "pattern",
    [
        "^[a-z]*[0-9]*$",  # tries every way to divide the text: RE2 does not
        "^[a]{2,1}$",
        "^[z-a]$",
        "^[a&&b]$",  # may come to mean another thing in Python
        "^[a]{0,1001}$",
        "[a]",
        "^a.b$",
        "^(?i)[a]$",
        "^[[:alpha:]]$",
        "^[\\d]$",
    ],
)
def test_pattern_that_python_may_read_otherwise_is_left_to_protovalidate(pattern: str) -> None:
    assert whole(pattern) is None
