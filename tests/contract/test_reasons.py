"""Reasons of errors in contracts: `just gen` refuses incomplete ones, and makes constants."""

import re
from pathlib import Path
from typing import Any

import pytest

from postbus_runtime.reasons import HTTP_STATUSES, Scope
from tests.contract.odd import HEAD, PLACE, compile_text, fault_of, new_project
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.reasons import reasons_of, reasons_source

BUS = 'import "postbus/bus/v1/shared.proto";'


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with a reason of each scope in the package postbus.bus.v1."""
    project = new_project(tmp_path_factory.mktemp("project"))
    source = project / "proto/postbus/bus/v1/shared.proto"
    source.parent.mkdir(parents=True)
    source.write_text(f"""{HEAD.replace("postbus.odd.v1", "postbus.bus.v1")}
    enum Reason {{
      REASON_UNSPECIFIED = 0;
      {value("STALE", 1, "code: FAILED_PRECONDITION")}
      {value("BUSY", 2, "code: UNAVAILABLE scope: SCOPE_CALL")}
      {value("LOST", 3, "code: NOT_FOUND scope: SCOPE_HTTP")}
      {value("SLOW", 4, "code: RESOURCE_EXHAUSTED scope: SCOPE_WEBSOCKET")}
      {value("FAKE", 5, "code: ABORTED scope: SCOPE_BUS")}
    }}""")
    return project


def value(name: str, number: int, rules: str) -> str:
    """Return a value of an enum with a comment and rules."""
    options = f" [(postbus.options.v1.reason) = {{{rules}}}]" if rules else ""
    return f"\n// Meaning of {name}.\nREASON_{name} = {number}{options};\n"


def contract(values: str, named: str = "") -> str:
    """Return a contract with the values of an enum `Reason`, and an rpc that names some."""
    return f"""{BUS}
    enum Reason {{ REASON_UNSPECIFIED = 0;

      {values} }}
    service OddService {{ rpc Do(Ask) returns (Ask) {{
      option (postbus.options.v1.method) = {{access: ACCESS_PUBLIC {named}}};
    }} }}
    message Ask {{ string id = 1; }}
    """


FULL = value("FULL", 1, "code: ABORTED")

REFUSED = [
    (value("FULL", 1, ""), "Reason.REASON_FULL: state its code"),
    (value("FULL", 1, "http_status: 400"), "Reason.REASON_FULL: state its code"),
    (value("FULL", 1, "code: OK"), "Reason.REASON_FULL: state its code"),
    *(
        (
            value("FULL", 1, f"code: ABORTED http_status: {status}"),
            f"Reason.REASON_FULL: http_status is not from 400 to 599: {status}",
        )
        for status in (200, 600)
    ),
    (
        value("FULL", 1, "code: ABORTED scope: SCOPE_CALL"),
        "Reason.REASON_FULL: only reasons of postbus.bus.v1 have a scope",
    ),
    (value("2FAST", 1, "code: ABORTED"), "Reason.REASON_2FAST: 2FAST cannot be a constant"),
    *(
        (
            value(name, 1, "code: ABORTED"),
            f"Reason.REASON_{name}: {name} cannot be a constant",
        )
        for name in ("REASONS", "None", "class", "Mapping", "Scope")
    ),
    (
        value("BUSY", 1, "code: UNAVAILABLE"),
        "Reason.REASON_BUSY: BUSY is also a reason of postbus.bus",
    ),
]


@pytest.mark.parametrize(("values", "why"), REFUSED)
def test_incomplete_reason_is_an_error_with_its_line(project: Path, values: str, why: str) -> None:
    source = compile_text(project, contract(values))

    assert re.match(rf"{PLACE}postbus\.odd\.v1\.{re.escape(why)}", fault_of(source))
    line = int(fault_of(source).split(":")[1])
    assert (
        "REASON_" in (project / "proto/postbus/odd/v1/odd.proto").read_text().split("\n")[line - 1]
    )


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ('reasons: "FULLER"', "reasons: no enum Reason has REASON_FULLER"),
        ('reasons: "REASON_FULL"', "reasons: no enum Reason has REASON_REASON_FULL"),
        ('reasons: "UNSPECIFIED"', "reasons: no enum Reason has REASON_UNSPECIFIED"),
        ('reasons: ["FULL", "BUSY"]', "reasons: remove BUSY, which every method has"),
        ('reasons: "LOST"', "reasons: no method has LOST, only the gateway"),
        ('reasons: "SLOW"', "reasons: no method has SLOW, only the gateway"),
        ('reasons: "FAKE"', "reasons: no method has FAKE, only the gateway"),
        ('reasons: ["FULL", "FULL"]', "reasons: FULL occurs more than once"),
    ],
)
def test_rpc_names_only_reasons_that_it_can_have(project: Path, named: str, why: str) -> None:
    fault = fault_of(compile_text(project, contract(FULL, named)))

    assert re.match(rf"{PLACE}postbus\.odd\.v1\.OddService\.Do: {re.escape(why)}", fault)


def test_rules_of_a_value_of_another_enum_are_an_error(project: Path) -> None:
    inner = f"message Box {{ enum Reason {{ REASON_UNSPECIFIED = 0; {FULL} }} }}"
    other = "enum Cause { CAUSE_A = 0 [(postbus.options.v1.reason).code = ABORTED]; }"

    for text, name in ((inner, r"Box\.Reason\.REASON_FULL"), (other, r"Cause\.CAUSE_A")):
        fault = fault_of(compile_text(project, text))
        why = "only the values of an enum Reason of a package are reasons"
        assert re.match(rf"{PLACE}postbus\.odd\.v1\.{name}: {why}", fault)


def test_constant_has_name_code_status_scope_and_meaning(project: Path) -> None:
    gone = value("GONE", 2, "code: NOT_FOUND http_status: 410")
    contracts = compile_text(project, contract(FULL + gone, 'reasons: ["FULL", "STALE"]'))

    assert fault_of(contracts) == ""
    module = executed(contracts)
    assert {
        name: (each, each.code, each.http_status, each.scope, each.meaning)
        for name, each in module["REASONS"].items()
    } == {
        "BUSY": ("BUSY", 14, 503, Scope.CALL, "Meaning of BUSY."),
        "FAKE": ("FAKE", 10, 409, Scope.BUS, "Meaning of FAKE."),
        "FULL": ("FULL", 10, 409, Scope.NAMED, "Meaning of FULL."),
        "GONE": ("GONE", 5, 410, Scope.NAMED, "Meaning of GONE."),
        "LOST": ("LOST", 5, 404, Scope.HTTP, "Meaning of LOST."),
        "SLOW": ("SLOW", 8, 429, Scope.WEBSOCKET, "Meaning of SLOW."),
        "STALE": ("STALE", 9, 412, Scope.NAMED, "Meaning of STALE."),
    }
    assert module["FULL"] is module["REASONS"]["FULL"]


def test_two_versions_of_a_package_may_share_a_reason(project: Path) -> None:
    second = project / "proto/postbus/odd/v2/odd.proto"
    second.parent.mkdir(parents=True)
    head = HEAD.replace("postbus.odd.v1", "postbus.odd.v2")
    second.write_text(f"{head} enum Reason {{ REASON_UNSPECIFIED = 0; {FULL} }}")
    both = f'import "postbus/odd/v2/odd.proto"; {contract(FULL)}'

    contracts = compile_text(project, both)

    assert fault_of(contracts) == ""
    assert list(reasons_of(contracts)).count("FULL") == 1
    second.write_text(second.read_text().replace("code: ABORTED", "code: INTERNAL"))
    fault = fault_of(compile_text(project, both))
    assert "Reason.REASON_FULL: another version of the package has it with other rules" in fault


def test_every_code_of_google_rpc_has_a_status(project: Path) -> None:
    codes = compile_text(project, contract(FULL)).pool.FindEnumTypeByName("google.rpc.Code")

    assert {each.number for each in codes.values} - {0} == HTTP_STATUSES.keys()


def executed(contracts: Contracts) -> dict[str, Any]:
    """Return the names of the generated module."""
    module: dict[str, Any] = {}
    exec(reasons_source(contracts), module)  # noqa: S102  # generated from the text above
    return module
