"""The README: its code is the repository's, its commands run, its links resolve."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.people import sign_up
from tools.paths import ROOT

Unique = Callable[[str], str]
README = (ROOT / "README.md").read_text()
DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tests/*.md"))
    if path.name != "LICENSE"
)


def block(language: str) -> list[str]:
    [text] = re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)[:1]
    return [line.strip() for line in text.splitlines()]


@pytest.mark.parametrize(("language", "pattern"), [("proto", "*.proto"), ("python", "*.py")])
def test_code_in_the_readme_is_code_of_the_repository(language: str, pattern: str) -> None:
    folder = ROOT / ("proto/postbus/posts" if language == "proto" else "posts/src")
    wanted = "\n".join(block(language))
    sources = (
        "\n".join(map(str.strip, file.read_text().splitlines())) for file in folder.rglob(pattern)
    )

    assert any(wanted in source for source in sources)


async def test_request_of_the_readme_gets_its_answer(
    client: httpx.AsyncClient, unique: Unique
) -> None:
    command, output = block("console")
    found = re.fullmatch(r"\$ curl localhost:8000(\S+) -H .* --json '(.*)'", command)
    assert found is not None
    alice = await sign_up(client, unique("alice"))

    got = await client.post(found[1], json=json.loads(found[2]), headers=alice.headers)

    assert got.status_code == 201
    pattern = re.escape(output).replace("…", ".*").replace('"slug":"hello"', '"slug":"hello.*"')
    assert re.fullmatch(pattern, got.text)


def recipes() -> set[str]:
    listing = subprocess.run(
        [ROOT / ".venv/bin/just", "--summary"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(listing.stdout.split())


def test_documents_name_only_recipes_that_exist() -> None:
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    named = set(re.findall(r"(?:^|`)(?:\./)?just ([a-z][a-z-]*)", text, re.MULTILINE))

    assert named
    assert named <= recipes()


def links() -> Iterator[tuple[Path, str]]:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
            if "://" not in target:
                yield document, target


def test_links_of_the_documents_resolve() -> None:
    broken = [
        f"{document.name}: {target}"
        for document, target in links()
        if not (document.parent / target).exists()
    ]

    assert broken == []


def test_promises_name_tests_that_exist() -> None:
    table = (ROOT / "tests" / "README.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", table)

    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(named) == len(rows) - 2  # without the head
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (ROOT / file).exists() or f"def {test}(" not in (ROOT / file).read_text()
    ]
    assert missing == []
