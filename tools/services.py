"""Facts about the services, from their pyproject.toml: databases, and the services they call."""

import tomllib
from typing import Any

from tools.paths import ROOT, SERVICES

_EVERY = "*"


def databases(service: str) -> list[str]:
    """Return the database servers of a service, by the extras of `shared` in its dependencies."""
    dependencies = _pyproject(service)["project"]["dependencies"]
    [shared] = [need for need in dependencies if need.startswith("postbus-shared")]
    return [server for server in ("mongo", "postgres") if server in shared]


def call_graph() -> dict[str, list[str]]:
    """Return the services that each service calls: `calls` of [tool.postbus]; `*` is every one."""
    return {service: _callees(service) for service in SERVICES}


def _callees(service: str) -> list[str]:
    calls: list[str] = _pyproject(service).get("tool", {}).get("postbus", {}).get("calls", [])
    if _EVERY in calls:
        return [other for other in SERVICES if other != service]
    if unknown := set(calls) - set(SERVICES):
        raise SystemExit(
            f"{service}/pyproject.toml: [tool.postbus] calls has no service {min(unknown)}"
        )
    return calls


def _pyproject(service: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / service / "pyproject.toml").read_text())
