"""compose.yaml gives each service its accounts, networks and limits; versions are exact."""

import re
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # it has no annotations

from tools.accounts.passwords import password_names
from tools.paths import ROOT, SERVICES
from tools.scaffold.listings import add_to_compose, remove_from_compose
from tools.services import databases

TEXT = (ROOT / "compose.yaml").read_text()
CONTAINERS: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]
DATABASES = {"postgres", "mongo"}
FROM = re.compile(r"^(?:ARG PYTHON=|FROM )(?!\$)(\S+)", re.MULTILINE)


def reached(container: str) -> set[str]:
    """Return the containers that share a network with this one."""
    networks = set(CONTAINERS[container]["networks"])
    return {name for name, about in CONTAINERS.items() if networks & set(about["networks"])} - {
        container
    }


def test_service_reaches_the_broker_and_its_database_only() -> None:
    for service in SERVICES:
        migration = {f"migrate-{service}"} & CONTAINERS.keys()
        assert reached(service) == {"rabbitmq", *databases(service), *migration}


def test_migration_reaches_its_database_only() -> None:
    for service in filter(databases, SERVICES):
        assert reached(f"migrate-{service}") == {service, *databases(service)}


def test_container_has_limits_and_no_privileges() -> None:
    for name, about in CONTAINERS.items():
        assert {"mem_limit", "cpus", "pids_limit"} <= about.keys(), name
        if name not in {"rabbitmq", *DATABASES}:
            assert about["cap_drop"] == ["ALL"], name
            assert about["read_only"] is True, name
            assert about["security_opt"] == ["no-new-privileges:true"], name


def test_service_has_its_own_accounts_and_no_administrator() -> None:
    for service in SERVICES:
        environment = CONTAINERS[service]["environment"]
        urls = {name: url for name, url in environment.items() if name.endswith("_URL")}
        assert len(urls) == 1 + len(databases(service))
        for url in urls.values():
            assert re.search(rf"://{service}:\$\{{[A-Z]+_{service.upper()}_PASSWORD:", url), url


def test_every_account_gets_its_password() -> None:
    environment = CONTAINERS["accounts"]["environment"]

    assert {name.upper() for name in password_names()} == {
        name for name in environment if name.endswith("_PASSWORD")
    }


def test_images_have_exact_versions() -> None:
    named = {about["image"] for about in CONTAINERS.values() if "build" not in about}
    for file in (ROOT / "deploy").glob("*Dockerfile"):
        named |= set(FROM.findall(file.read_text()))

    assert len(named) == 4
    for image in named:
        tag = image.partition("@")[0].partition(":")[2]
        assert re.match(r"\d+\.\d+(\.\d+)?(-|$)", tag), image


def test_actions_have_exact_versions() -> None:
    used = [
        use
        for file in (ROOT / ".github" / "workflows").glob("*.yml")
        for use in re.findall(r"uses: (\S+)", file.read_text())
    ]

    assert used
    for use in used:
        assert re.search(r"@(v\d+\.\d+\.\d+|[0-9a-f]{40})$", use), use


@pytest.mark.parametrize("server", sorted(DATABASES))
def test_generated_service_gets_accounts_and_networks_and_leaves_no_trace(server: str) -> None:
    added = add_to_compose(TEXT, "polls", server)
    containers: dict[str, dict[str, Any]] = yaml.safe_load(added)["services"]

    assert containers["polls"]["networks"] == ["polls-bus", "polls-data"]
    assert containers["rabbitmq"]["networks"][-1] == "polls-bus"
    assert containers[server]["networks"][-1] == "polls-data"
    assert "RABBITMQ_POLLS_PASSWORD" in containers["accounts"]["environment"]
    assert remove_from_compose(added, "polls") == TEXT
