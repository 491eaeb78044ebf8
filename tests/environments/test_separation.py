"""Each service's environment contains only the packages of the service."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LIST_PACKAGES = """
import importlib.metadata, json
print(json.dumps([package.name.lower() for package in importlib.metadata.distributions()]))
"""


def installed(service: str) -> set[str]:
    python = ROOT / service / ".venv/bin/python"
    completed = subprocess.run([python, "-c", LIST_PACKAGES], capture_output=True, check=True)
    return set(json.loads(completed.stdout))


@pytest.mark.parametrize(
    ("service", "present", "absent"),
    [
        ("posts", {"odmantic", "pymongo"}, {"sqlmodel", "sqlalchemy", "asyncpg", "fastapi"}),
        ("users", {"sqlmodel", "asyncpg"}, {"odmantic", "pymongo", "motor", "fastapi"}),
        ("gateway", {"fastapi"}, {"sqlmodel", "sqlalchemy", "asyncpg", "odmantic", "pymongo"}),
    ],
)
def test_environment_has_only_the_packages_of_its_service(
    service: str, present: set[str], absent: set[str]
) -> None:
    packages = installed(service)

    assert present <= packages
    assert not absent & packages
