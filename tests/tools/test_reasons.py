"""Every stable reason of an error is provoked by a test."""

import ast
import re
from collections.abc import Collection, Iterator

from postbus.reasons import REASONS
from tools.paths import ROOT, SERVICES

_REASON = re.compile(r"[A-Z][A-Z0-9]+(_[A-Z0-9]+)+")


def raised(packages: Collection[str] = ("shared", *SERVICES)) -> Iterator[str]:
    """Yield each constant in the form of a reason that a call of the sources passes on."""
    for package in packages:
        for file in (ROOT / package / "src").rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                for argument in node.args if isinstance(node, ast.Call) else ():
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        yield from filter(_REASON.fullmatch, [argument.value])


def test_every_reason_is_named_in_a_test() -> None:
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("*.py"))
    named = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", tests))
    reasons = set(raised())

    assert "POST_NOT_FOUND" in reasons
    assert sorted(reasons - named) == []


def test_every_reason_has_a_meaning_in_the_contracts() -> None:
    assert sorted(set(raised(("gateway", "posts", "shared", "users"))) - REASONS.keys()) == []
    others = {"CANCELLED", "EMAIL_TAKEN", "INTERNAL", "OVERLOADED", "USERNAME_TAKEN"}
    assert others <= REASONS.keys()  # of another form, or raised from a table
    assert all(REASONS.values())
