"""Addresses of the broker: one node, or several of a cluster."""

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from unittest.mock import Mock

import aiormq
import httpx
import pytest
import structlog
from pydantic import SecretStr, ValidationError
from yarl import URL

from shared.bus.amqp import connect, reconnection
from shared.bus.amqp.broker_addresses import BrokerAddressError, broker_addresses
from shared.runtime.settings import ServiceSettings
from tests.skipping_loop import run_without_waiting


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("amqp://u:p@rabbitmq", ["amqp://u:p@rabbitmq"]),
        ("amqp://u:p@rabbitmq:5672/", ["amqp://u:p@rabbitmq:5672/"]),
        ("amqp://u:p@a:1,b:2,c/v", ["amqp://u:p@a:1/v", "amqp://u:p@b:2/v", "amqp://u:p@c/v"]),
        (
            "amqps://u:p@a,b/%2Fv?cafile=/ca,b.pem",
            ["amqps://u:p@a/%2Fv?cafile=/ca,b.pem", "amqps://u:p@b/%2Fv?cafile=/ca,b.pem"],
        ),
        ("amqp://u:p@[::1]:5672,[::2]/v", ["amqp://u:p@[::1]:5672/v", "amqp://u:p@[::2]/v"]),
        ("amqp://u:p@a, b,a/v", ["amqp://u:p@a/v", "amqp://u:p@b/v"]),
        (" amqp://u:p@a/v \n", ["amqp://u:p@a/v"]),
    ],
)
def test_each_host_of_an_address_is_a_broker(address: str, expected: list[str]) -> None:
    assert broker_addresses(address) == [URL(each) for each in expected]


def test_password_may_contain_commas_and_at_signs() -> None:
    first, second = broker_addresses("amqp://u:p,q@r%40s%2C@a:1,b:2/v")

    assert [first.host, second.host] == ["a", "b"]
    assert {(each.user, each.password) for each in (first, second)} == {("u", "p,q@r@s,")}


@pytest.mark.parametrize(
    ("account", "user", "password"),
    [
        ("us%65r:p%40%3A%2F%25", "user", "p@:/%"),
        ("us@er:p@ss", "us@er", "p@ss"),
        ("user:p:q", "user", "p:q"),
        ("üser:密码", "üser", "密码"),
        ("%C3%BCser:%E5%AF%86", "üser", "密"),
        ("user:100%", "user", "100%"),
        ("guest:guest", "guest", "guest"),
    ],
)
def test_account_of_an_address_may_have_any_characters(
    account: str, user: str, password: str
) -> None:
    [broker] = broker_addresses(f"amqp://{account}@[::1]:5672/v")

    assert (broker.user, broker.password, broker.host) == (user, password, "::1")


@pytest.mark.parametrize(
    ("path", "vhost"),
    [("", "/"), ("/", "/"), ("//", "/"), ("/%2F", "/"), ("/%2f", "/"), ("/a%2Fb", "a/b")],
)
def test_virtual_host_is_that_of_the_path(path: str, vhost: str) -> None:
    [broker] = broker_addresses(f"amqp://u:p@a{path}")

    assert aiormq.Connection(broker, loop=Mock()).vhost == vhost


@pytest.mark.parametrize(
    ("account", "missing"),
    [
        ("", "no user and no password"),
        ("@", "no user and no password"),
        (":@", "no user and no password"),
        ("user@", "no password"),
        ("user:@", "no password"),
        (":secret@", "no user"),
    ],
)
def test_address_without_an_account_is_an_error_that_names_the_setting(
    account: str, missing: str
) -> None:
    """aiormq would log in as `guest`."""
    address = SecretStr(f"amqp://{account}a:5672,b:5672/vhost")

    with pytest.raises(ValidationError) as caught:
        ServiceSettings(amqp_url=address, verification_keys="{}")

    [error] = caught.value.errors()
    assert error["loc"] == ("amqp_url",)  # shown as POSTBUS_AMQP_URL
    assert (
        f"the address of the broker has {missing}; it must have the form amqp://user:"
        in (error["msg"])
    )
    assert "secret" not in error["msg"]


@pytest.mark.parametrize(
    "address",
    [
        "",
        "rabbitmq:5672",
        "http://u:secret@rabbitmq/",
        "amqp:///vhost",
        "amqp://u:secret@/vhost",
        "amqp://u:secret@a:5672,/vhost",
        "amqp://u:secret@a:5672,:5673/vhost",
        "amqp://u:secret@a:port/vhost",
        "amqp://u:secret@a:70000,b/vhost",
        "amqp://u:secret@a:0/vhost",
        "amqp://u:secret@[::1/vhost",
        "amqp://u:secret",
        "amqp://u:secret/vhost",
        "amqp://u:secret/2@a/vhost",
        "amqp://u:secret?2@a/vhost",
        "amqp://u:secret#2@a/vhost",
        "amqp://u:1234/secret@a/vhost",
        "amqp://u:1234#secret@a/vhost",
    ],
)
def test_malformed_address_is_an_error_with_the_form_and_without_the_password(
    address: str,
) -> None:
    with pytest.raises(BrokerAddressError, match="amqp://user:password@host:port") as caught:
        broker_addresses(address)

    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_malformed_address_in_the_settings_is_refused_at_the_start() -> None:
    with pytest.raises(ValidationError, match="invalid host or port 'b:x'") as caught:
        ServiceSettings(amqp_url=SecretStr("amqp://u:secret@a,b:x/"), verification_keys="{}")

    assert "secret" not in str(caught.value)


async def test_next_node_is_tried_as_soon_as_one_fails(
    vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = httpx.URL(vhost)
    hosts = f"127.0.0.1:1,127.0.0.1:2,{broker.host}:{broker.port}"
    url = vhost.replace(f"{broker.host}:{broker.port}", hosts)
    in_order = SimpleNamespace(sample=lambda urls, count: urls[:count], uniform=lambda _, end: end)
    monkeypatch.setattr(reconnection, "random", in_order)
    monkeypatch.setattr(reconnection, "_FIRST_DELAY", 60.0)

    async with connect(SecretStr(url), "test") as bus, asyncio.timeout(5):
        await bus.wait_ready()


def test_nodes_are_tried_in_random_order_with_one_delay_for_all() -> None:
    ports = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]

    async def attempts(count: int) -> list[tuple[str, float]]:
        with structlog.testing.capture_logs() as lines:
            async with connect(SecretStr(f"amqp://guest:guest@{','.join(ports)}/"), "test"):
                while len(lines) < count:  # noqa: ASYNC110  # polls
                    await asyncio.sleep(0.05)
        return [(line["broker"], line["retry_in"]) for line in lines[:count]]

    found = run_without_waiting(attempts(24))
    rounds = [found[start : start + 3] for start in range(0, 24, 3)]

    assert [{delay for _, delay in each} for each in rounds[:3]] == [{0.1}, {0.2}, {0.4}]
    assert all(sorted(broker for broker, _ in each) == ports for each in rounds)
    assert len({tuple(broker for broker, _ in each) for each in rounds}) > 1


async def test_worker_of_a_cluster_waits_until_the_queues_of_a_lost_node_are_deleted(
    vhost: str, unique: Callable[[str], str]
) -> None:
    async def answer(_route: str, body: bytes, _service: str) -> bytes:
        return body

    async def away(url: str, *, worker: bool) -> float:
        async with connect(SecretStr(url), "test") as bus, asyncio.timeout(10):
            await bus.wait_ready()
            if worker:
                await bus.serve(unique("test.queue."), ["postbus.test.v1.Route"], answer)
            session = bus._session
            assert session is not None
            session.mark_lost()
            began = time.monotonic()
            while bus._session is session:  # noqa: ASYNC110  # polls
                await asyncio.sleep(0)
            await bus.wait_ready()
            return time.monotonic() - began

    broker = httpx.URL(vhost)
    host = f"{broker.host}:{broker.port}"
    cluster = vhost.replace(host, f"{host},localhost:{broker.port}")

    assert await away(cluster, worker=True) >= 0.95
    assert await away(cluster, worker=False) < 0.95
    assert await away(vhost, worker=True) < 0.95
