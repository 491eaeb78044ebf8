"""Every stable reason of an error is raised from its constant, and provoked by a test."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from postbus.reasons import REASONS
from tools.paths import ROOT, SERVICES

SOURCES = ("shared", *SERVICES)
AMBIGUOUS = {"CANCELLED", "INTERNAL"}
"""Reasons whose names have other meanings in the sources."""


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for package in SOURCES:
        for file in (ROOT / package / "src").rglob("*.py"):
            yield file, ast.parse(file.read_text())


def test_every_reason_is_used_and_named_in_a_test() -> None:
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("*.py"))
    named = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", tests))
    used = {
        node.attr
        for _, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "reasons"
    }

    assert sorted(used ^ REASONS.keys()) == []
    assert sorted(used - named) == []


def test_sources_name_reasons_by_their_constants() -> None:
    literals = [
        f"{file.relative_to(ROOT)}:{node.lineno} {node.value}"
        for file, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in REASONS.keys() - AMBIGUOUS
    ]

    assert literals == []


def test_every_reason_has_a_meaning() -> None:
    assert [name for name, reason in REASONS.items() if not reason.meaning] == []
