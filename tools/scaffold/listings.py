"""Add and remove a service in the files that list services: pyproject.toml, compose.yaml."""

import re
from dataclasses import dataclass
from string import Template
from typing import Any

import tomlkit

from tools.accounts.passwords import owner_of, password_name

_ENVIRONMENT = Template("""\
x-$name-environment: &$name-environment
  <<: *environment
  POSTBUS_AMQP_URL: amqp://$name:$${RABBITMQ_${upper}_PASSWORD:?run ./just secrets}@rabbitmq:5672/
  $variable: $scheme://$name:$${$password:?run ./just secrets}@$address

""")
_SERVICES = Template("""\
  migrate-$name:
    <<: *service
    image: postbus-$name
    build: &build-$name { context: ., dockerfile: deploy/Dockerfile, args: { SERVICE: $name } }
    command: [migrate]
    restart: on-failure:3
    networks: [$name-data]
    environment: $migration
    depends_on:
      accounts: { condition: service_completed_successfully }

  $name:
    <<: *service
    image: postbus-$name
    build: *build-$name
    networks: [$name-bus, $name-data]
    environment: *$name-environment
    depends_on:
      migrate-$name: { condition: service_completed_successfully }

""")
_OWNER = Template("""
      <<: *$name-environment
      $variable: $scheme://${name}_owner:$${$owner_password:?run ./just secrets}@$address""")
_ACCOUNTS = "x-accounts-environment: &accounts-environment\n"


@dataclass(frozen=True, slots=True)
class _Server:
    """A database server in compose.yaml: the variable and the URL of its clients."""

    variable: str
    scheme: str
    address: str


_SERVERS = {
    "postgres": _Server("POSTBUS_POSTGRES_URL", "postgresql", "postgres:5432/{name}"),
    "mongo": _Server("POSTBUS_MONGO_URL", "mongodb", "mongo:27017/{name}?replicaSet=postbus"),
}


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
    """Return compose.yaml with the service, its migration, accounts and networks."""
    about, owner_password = _SERVERS[server], password_name(server, owner_of(service)).upper()
    values = {
        "name": service,
        "upper": service.upper(),
        "variable": about.variable,
        "scheme": about.scheme,
        "address": about.address.format(name=service),
        "password": password_name(server, service).upper(),
        "owner_password": owner_password,
    }
    owner = _OWNER.substitute(values) if server == "postgres" else f"*{service}-environment"
    text = _insert(text, "services:\n", _ENVIRONMENT.substitute(values))
    text = _insert(text, "  gateway:\n", _SERVICES.substitute(values, migration=owner))
    text = text.replace("environment: \n", "environment:\n")
    names = [password_name("rabbitmq", service).upper(), values["password"]]
    names += [owner_password] if server == "postgres" else []
    lines = "".join(f"  {name}: ${{{name}:?run ./just secrets}}\n" for name in names)
    text = text.replace(_ACCOUNTS, _ACCOUNTS + lines)
    for host, network in (("rabbitmq", "bus"), (server, "data")):
        own = rf"(?ms)^(  {host}:\n.*?^    networks: \[[^\]]*)\]"
        text = re.sub(own, rf"\1, {service}-{network}]", text, count=1)
        text = f"{text.rstrip()}\n  {service}-{network}: {{ internal: true }}\n"
    return text


def remove_from_compose(text: str, service: str) -> str:
    """Return the file without the service."""
    keys = rf"(x-{service}-environment:.*|  (migrate-)?{service}:)"
    for indent in ("", "  "):
        block = rf"(?m)^(?={indent}\S){keys}\n({indent} +.*\n|\n)*"
        text = re.sub(block, "", text)
    upper = service.upper()
    passwords = rf"(RABBITMQ|POSTGRES|MONGO)_{upper}(_OWNER)?_PASSWORD"
    text = re.sub(rf"(?m)^  ({passwords}|{service}-(bus|data)): .*\n", "", text)
    return re.sub(rf", {service}-(bus|data)\b", "", text)


def _insert(text: str, line: str, block: str) -> str:
    """Insert a block before the line; SystemExit unless the line occurs once."""
    if f"\n{text}".count(f"\n{line}") != 1:
        raise SystemExit(f"compose.yaml needs one line {line.rstrip()!r}: nothing is changed.")
    before, after = re.split(rf"(?m)^(?={re.escape(line)})", text)
    return before + block + after
