"""`just gen`: valid documents are written, and nothing is done if nothing has changed."""

import json
from importlib.resources import files
from pathlib import Path

import pytest

from tools.contracts import gen
from tools.contracts.generate.__main__ import replace
from tools.contracts.generate.document_validators import invalid_documents

VALID = files("postbus").joinpath("openapi.json").read_text()
TWICE = VALID.replace('"operationId": "GetPost"', '"operationId": "ListPosts"')


def package(folder: Path, openapi: str, code: str = "") -> Path:
    folder.mkdir()
    (folder / "openapi.json").write_text(openapi)
    (folder / "rest.py").write_text(code)
    return folder


def test_package_with_an_invalid_document_is_not_written(tmp_path: Path) -> None:
    target = package(tmp_path / "target", VALID)
    fresh = package(tmp_path / "fresh", TWICE, "changed = 1")

    [error] = replace(fresh, target)

    assert "Operation ID 'ListPosts'" in error
    assert ((target / "openapi.json").read_text(), (target / "rest.py").read_text()) == (VALID, "")


def test_package_with_valid_or_unchanged_documents_is_written(tmp_path: Path) -> None:
    target = package(tmp_path / "target", TWICE)

    assert replace(package(tmp_path / "code", TWICE, "changed = 1"), target) == []
    assert (target / "rest.py").read_text() == "changed = 1"
    assert replace(package(tmp_path / "valid", VALID), target) == []
    assert (target / "openapi.json").read_text() == VALID


@pytest.mark.parametrize("name", ["openapi.json", "asyncapi.json"])
def test_errors_of_a_document_are_bounded_and_have_their_place(tmp_path: Path, name: str) -> None:
    document = json.loads(files("postbus").joinpath(name).read_text())
    part = "operations" if name == "asyncapi.json" else "paths"
    (tmp_path / name).write_text(json.dumps(document | {part: {f"/x{i}": 1 for i in range(9)}}))

    errors = list(invalid_documents(tmp_path, (name,)))

    assert 1 <= len(errors) <= 5
    assert all(error.startswith(f"{name}: ") for error in errors)


@pytest.mark.parametrize(
    "changed",
    [
        "proto/postbus/odd/v1/odd.proto",
        "proto/postbus/new.proto",
        "tools/contracts/generate/names.py",
        "gen/postbus/openapi.json",
        "gen/postbus_runtime/names.py",
        "requirements.txt",
        "buf.yaml",
    ],
)
def test_changed_input_or_output_is_not_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    monkeypatch.setattr(gen, "ROOT", tmp_path)
    monkeypatch.setattr(gen, "_STAMP", tmp_path / "stamp")
    for name in ("proto/postbus/odd/v1/odd.proto", "gen/postbus/openapi.json", "buf.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    before = gen.up_to_date()
    gen.remember()
    unchanged = gen.up_to_date()
    (tmp_path / changed).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / changed).write_text("changed")

    assert (before, unchanged, gen.up_to_date()) == (False, True, False)
