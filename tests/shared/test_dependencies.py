"""Each package declares exactly the distributions that it imports."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import packages_distributions
from string import Template
from typing import Any

import pytest

from tools.paths import ROOT, SERVICES
from tools.scaffold.service_names import Names

SOURCES = {"gen": "gen/postbus", **{name: f"{name}/src" for name in ("shared", *SERVICES)}}
OWN = {"postbus": "postbus", "postbus_runtime": "postbus", "shared": "postbus-shared"}
"""Import packages of this repository that the others depend on, with their distributions."""
FILES_ONLY = {"gateway": {"asyncapi-viewer", "fastapi-swagger"}}
"""Distributions whose files are served, not imported."""
TEMPLATES = ROOT / "tools" / "scaffold" / "templates"
INSTALLED = packages_distributions()


def canonical(name: str) -> str:
    """Return the name of a distribution as PEP 503 spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(project: Mapping[str, Any]) -> set[str]:
    extras = project.get("optional-dependencies", {}).values()
    lists = [project["dependencies"], *extras]
    return {canonical(found[0]) for each in lists for line in each if (found := name_in(line))}


def name_in(requirement: str) -> re.Match[str] | None:
    return re.match(r"[\w.-]+", requirement)


def imported(text: str) -> Iterator[str]:
    """Yield the top-level package of each absolute import."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (each.name.split(".")[0] for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def providers(texts: Iterable[str], package: str) -> dict[str, set[str]]:
    """Return the distributions that provide each import of a package, except its own."""
    names = {each for text in texts for each in imported(text)}
    own = {name for name, distribution in OWN.items() if distribution == OWN.get(package)}
    names -= {*sys.stdlib_module_names, package, *own}
    return {
        each: {OWN[each]} if each in OWN else {canonical(name) for name in INSTALLED[each]}
        for each in names
    }


@pytest.mark.parametrize("package", SOURCES)
def test_dependencies_are_the_imports(package: str) -> None:
    sources = (ROOT / SOURCES[package]).rglob("*.py")
    name = "postbus" if package == "gen" else package
    found = providers((each.read_text() for each in sources), name)

    require_equal((ROOT / package / "pyproject.toml").read_text(), found, FILES_ONLY.get(package))


@pytest.mark.parametrize("database", ["mongo", "postgres"])
def test_dependencies_of_a_new_service_are_its_imports(database: str) -> None:
    names = Names(service="polls", thing="poll", database=database).placeholders()
    written = {
        path: Template(file.read_text()).substitute(names)
        for folder in ("every", database)
        for file in (TEMPLATES / folder).rglob("*.tmpl")
        if (path := str(file.relative_to(TEMPLATES / folder))).startswith("NAME/")
    }
    sources = [text for path, text in written.items() if path.endswith(".py.tmpl")]

    require_equal(written["NAME/pyproject.toml.tmpl"], providers(sources, "polls"))


def require_equal(
    pyproject: str, found: Mapping[str, set[str]], files_only: set[str] | None = None
) -> None:
    """Fail unless each import has a declared distribution, and each of these an import."""
    wanted = declared(tomllib.loads(pyproject)["project"])
    used = set().union(*found.values()) | (files_only or set())

    assert {each: names for each, names in found.items() if not names & wanted} == {}
    assert wanted - used == set()
