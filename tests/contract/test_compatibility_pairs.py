"""Each pair of compatibility_pairs.toml has its findings, and a row in docs/compatibility.md."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from postbus_runtime.contract import Contract
from tests.contract.compiled_contracts import compile_contracts, file_of
from tools.contracts.breaking import exit_code, from_buf
from tools.contracts.compatibility import Audience, Finding, Kind, compare
from tools.contracts.compatibility.option_decisions import DECISIONS
from tools.paths import ROOT

TABLE = tomllib.loads(Path(__file__).with_name("compatibility_pairs.toml").read_text())
DOCUMENT = ROOT / "docs/compatibility.md"
OPTIONS_FILE = "postbus/options/v1/options.proto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two contracts, the change between them, and all findings with their audiences."""

    section: str
    change: str
    option: str = ""
    kind: str = ""
    package: str = ""
    contract: str = TABLE["shop"]
    before: list[tuple[str, str]] = field(default_factory=list)
    edits: list[tuple[str, str]] = field(default_factory=list)
    found: dict[str, str] = field(default_factory=dict)
    code: bool = False

    @property
    def name(self) -> str:
        return f"{self.option} {self.change}".strip()


PAIRS = [Pair(**row) for row in TABLE["pairs"]]
PACKAGES = [pair.package or f"postbus.pair{index}.v1" for index, pair in enumerate(PAIRS)]

Sets = tuple[FileDescriptorSet, FileDescriptorSet, list[Finding]]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    """Compile all contracts, and compare them by buf, at once: each is in a package of its own."""
    before = tmp_path_factory.mktemp("before")
    after = tmp_path_factory.mktemp("after")
    olds = [replaced(pair.contract, pair.before) for pair in PAIRS]
    news = [replaced(old, pair.edits) for old, pair in zip(olds, PAIRS, strict=True)]
    old = compile_contracts(before, dict(zip(PACKAGES, olds, strict=True)))
    new = compile_contracts(after, dict(zip(PACKAGES, news, strict=True)))
    inputs = [f"{folder}/contracts.binpb#format=binpb" for folder in (before, after)]
    in_code = list(from_buf(*inputs))
    return FileDescriptorSet.FromString(old), FileDescriptorSet.FromString(new), in_code


def replaced(text: str, edits: list[tuple[str, str]]) -> str:
    for old, new in edits:
        assert text.count(old) == 1, f"occurs {text.count(old)} times: {old}"
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("index", range(len(PAIRS)), ids=[pair.name for pair in PAIRS])
def test_pair_has_its_findings_audiences_and_exit_code(index: int, sets: Sets) -> None:
    pair, package = PAIRS[index], PACKAGES[index]
    *both, in_code = sets
    file = file_of(package)

    own = compare(*(only(each, file) for each in both))
    of_buf = [each for each in in_code if each.where.startswith(f"proto/{file}:")]

    assert {
        ("notice: " if each.notice else "") + each.text.replace(f"{package}.", ""): names_of(each)
        for each in own
    } == pair.found
    assert bool(of_buf) == pair.code
    assert all(each.audiences == {Audience.CODE} for each in of_buf)
    assert exit_code([*own, *of_buf]) == (1 if breaks(pair) else 0)
    assert all(each.where.startswith(f"proto/{file}:") for each in own)
    kinds = {each.kind.name for each in own}
    assert pair.kind in kinds if pair.kind else not kinds
    unchanged = only(both[1], file)
    assert compare(unchanged, unchanged) == []


def only(contracts: FileDescriptorSet, name: str) -> bytes:
    """Return a descriptor set with the contract of one pair alone."""
    kept = [
        file
        for file in contracts.file
        if file.name in (name, OPTIONS_FILE) or not file.name.startswith("postbus/")
    ]
    return FileDescriptorSet(file=kept).SerializeToString()


def names_of(finding: Finding) -> str:
    return ", ".join(audience for audience in Audience if audience in finding.audiences)


def breaks(pair: Pair) -> list[str]:
    """Return the audiences that a pair breaks, in the order of Audience."""
    broken = [each for text, each in pair.found.items() if not text.startswith("notice: ")]
    return in_order([*broken, *([Audience.CODE] if pair.code else [])])


def in_order(audiences: list[str]) -> list[str]:
    names = ", ".join(audiences).split(", ")
    return [audience for audience in Audience if audience in names]


def test_each_kind_of_change_has_a_pair() -> None:
    without_text = {Kind.GENERATED_CODE.name}
    for_new_options = {Kind.OPTION_UNDECIDED.name}

    assert {pair.kind for pair in PAIRS if pair.kind} | without_text | for_new_options == {
        kind.name for kind in Kind
    }


def test_each_option_has_a_decision_and_a_pair_for_each_way_to_change() -> None:
    options = dict(own_options())
    pairs = {(pair.option, pair.change) for pair in PAIRS if pair.option}

    assert set(options) == set(DECISIONS)
    for name, is_flag in options.items():
        option = name.removeprefix("postbus.options.v1.")
        for change in ("removed", "added", *([] if is_flag else ["changed"])):
            assert (option, change) in pairs


def own_options() -> Iterator[tuple[str, bool]]:
    """Yield the full name of each option, and whether it can only be set or unset."""
    file = Contract.of_package("postbus").pool.FindFileByName(OPTIONS_FILE)
    for extension in file.extensions_by_name.values():
        fields = extension.message_type.fields if extension.message_type else [extension]
        for each in fields:
            yield each.full_name, each.type == each.TYPE_BOOL


def test_option_without_a_decision_breaks_every_audience(tmp_path: Path) -> None:
    options = (ROOT / "proto" / OPTIONS_FILE).read_text()
    new = options.replace("string rate_limit = 8;", "string rate_limit = 8; string moon = 99;")
    sets = []
    for name, phase in (("before", "new"), ("after", "full")):
        folder = tmp_path / name
        (folder / OPTIONS_FILE).parent.mkdir(parents=True)
        (folder / OPTIONS_FILE).write_text(new)
        contract = TABLE["shop"].replace("{access: ACCESS_PUBLIC}", f"{{moon: '{phase}'}}")
        sets.append(compile_contracts(folder, {"postbus.odd.v1": contract}))

    [finding] = compare(*sets)

    assert finding.text == (
        "postbus.odd.v1.Shop.Get: option changed, effect unknown: "
        "postbus.options.v1.MethodRules.moon: new -> full"
    )
    assert names_of(finding) == "REST client, WebSocket client, worker"
    assert not finding.notice


def test_document_has_the_row_of_each_pair() -> None:
    document = DOCUMENT.read_text()

    for section, pairs in groupby(PAIRS, key=lambda pair: pair.section):
        assert f"## {section}\n" in document
        assert "\n".join([*rows(pairs), ""]) in document


def rows(pairs: Iterator[Pair]) -> Iterator[str]:
    """Yield the table of a section: change, broken audiences, instruction."""
    yield "| change | breaks | instead |"
    yield "| --- | --- | --- |"
    for pair in pairs:
        change = f"`{pair.option}` {pair.change}" if pair.option else pair.change
        advice = Kind[pair.kind].advice if pair.kind else ""
        yield f"| {change} | {verdict(pair)} | {advice} |"


def verdict(pair: Pair) -> str:
    broken = breaks(pair)
    if broken:
        return "all" if len(broken) == len(Audience) else ", ".join(broken)
    notices = in_order(list(pair.found.values()))
    return f"nothing; notice for {', '.join(notices)}" if notices else "nothing"
