"""Add and remove a service in the files that list services: pyproject.toml, compose.yaml."""

import re
from string import Template
from typing import Any

import tomlkit

_ENVIRONMENT = Template("""\
x-$name-environment: &$name-environment
  <<: *environment
  $variable

""")
_SERVICES = Template("""\
  migrate-$name:
    image: postbus-$name
    build: &build-$name { context: ., dockerfile: deploy/Dockerfile, args: { SERVICE: $name } }
    command: [migrate]
    restart: on-failure:3
    environment: *$name-environment
    depends_on:
      $server: { condition: service_healthy }

  $name:
    <<: *service
    image: postbus-$name
    build: *build-$name
    environment: *$name-environment
    depends_on:
      rabbitmq: { condition: service_healthy }
      migrate-$name: { condition: service_completed_successfully }

""")
_VARIABLES = {
    "postgres": "POSTBUS_POSTGRES_URL: postgresql://postbus:"
    "${POSTGRES_PASSWORD:?run ./just secrets}@postgres:5432/",
    "mongo": "POSTBUS_MONGO_URL: mongodb://mongo:27017/",
}
_QUERIES = {"postgres": "", "mongo": "?replicaSet=postbus"}


def add_to_pyproject(text: str, service: str) -> str:
    """Return the root's pyproject.toml with the service added for mypy and import-linter."""
    document: Any = tomlkit.parse(text)
    tool = document["tool"]
    tool["mypy"]["mypy_path"].insert(-1, f"{service}/src")
    tool["importlinter"]["root_packages"].append(service)
    layers = tool["importlinter"]["contracts"][0]["layers"]
    layers[0] = f"{layers[0]} | {service}"
    return tomlkit.dumps(document)


def remove_from_pyproject(text: str, service: str) -> str:
    """Return the file without the service."""
    document: Any = tomlkit.parse(text)
    tool = document["tool"]
    tool["mypy"]["mypy_path"].remove(f"{service}/src")
    tool["importlinter"]["root_packages"].remove(service)
    layers = tool["importlinter"]["contracts"][0]["layers"]
    layers[0] = " | ".join(each for each in layers[0].split(" | ") if each != service)
    return tomlkit.dumps(document)


def add_to_compose(text: str, service: str, server: str) -> str:
    """Return compose.yaml with the service and its migration before the gateway."""
    variable = f"{_VARIABLES[server]}{service}{_QUERIES[server]}"
    values = {"name": service, "server": server, "variable": variable}
    text = _insert(text, "services:\n", _ENVIRONMENT.substitute(values))
    return _insert(text, "  gateway:\n", _SERVICES.substitute(values))


def remove_from_compose(text: str, service: str) -> str:
    """Return the file without the service."""
    keys = rf"(x-{service}-environment:.*|  (migrate-)?{service}:)"
    for indent in ("", "  "):
        block = rf"(?m)^(?={indent}\S){keys}\n({indent} +.*\n|\n)*"
        text = re.sub(block, "", text)
    return text


def _insert(text: str, line: str, block: str) -> str:
    """Insert a block before the line; SystemExit unless the line occurs once."""
    if f"\n{text}".count(f"\n{line}") != 1:
        raise SystemExit(f"compose.yaml needs one line {line.rstrip()!r}: nothing is changed.")
    before, after = re.split(rf"(?m)^(?={re.escape(line)})", text)
    return before + block + after
