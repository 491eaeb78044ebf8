"""Every process may run more than once."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import new_vhost
from tests.people import sign_up
from tests.system import System, free_port
from tools.dev.arguments import GATEWAY
from tools.dev.environment import process_name
from tools.dev.presence import gateway_of_dev
from tools.dev.readiness import wait_until_ready
from tools.paths import ROOT, SERVICES
from tools.servers.ports import is_free

Unique = Callable[[str], str]


@pytest.mark.timeout(180)
async def test_two_of_each_share_the_work_and_one_of_each_is_enough(
    system: System, client: httpx.AsyncClient, unique: Unique
) -> None:
    second = [process_name(service, 1) for service in SERVICES]
    await system.start(*second)
    url = system.url_of(process_name(GATEWAY, 1))
    await system.until_ready(60, url=url)
    alice = await sign_up(client, unique("alice"))

    async with httpx.AsyncClient(base_url=url, timeout=20) as other:
        post = await client.post("/v1/posts", json={"title": "one"}, headers=alice.headers)
        found = await other.get(f"/v1/posts/{post.json()['id']}")
        for worker in ("posts", "users"):
            assert await system.stop(worker, seconds=30) == 0
        responses = [
            await other.post("/v1/posts", json={"title": title}, headers=alice.headers)
            for title in ("two", "three")
        ]
    await system.start("posts", "users")
    for name in second:
        await system.stop(name, seconds=30)
    await system.until_ready(60)

    assert found.json() == post.json()
    assert [response.status_code for response in responses] == [201, 201]


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_just_dev_runs_several_of_each_on_consecutive_ports(
    run_id: str, tmp_path: Path, unique: Unique
) -> None:
    """The system uses the databases of `just dev`, and a virtual host of its own."""
    if gateway_of_dev():
        pytest.skip("just dev runs in this clone")
    port = next(port for port in iter(free_port, None) if is_free(port + 1))
    urls = [f"http://localhost:{each}" for each in (port, port + 1)]
    output = tmp_path / "output"

    async with new_vhost(f"{run_id}_dev") as vhost:
        with running_dev(vhost, port, output) as dev:
            assert [wait_until_ready(url, 100) for url in urls] == ["", ""], output.read_text()
            async with (
                httpx.AsyncClient(base_url=urls[0], timeout=20) as first,
                httpx.AsyncClient(base_url=urls[1], timeout=20) as second,
            ):
                alice = await sign_up(first, unique("alice"))
                me = await second.get("/v1/me", headers=alice.headers)

    assert me.status_code == 200
    assert dev.returncode == 0
    names = {line.split()[1] for line in output.read_text().splitlines() if " | " in line}
    assert {process_name(service, number) for service in SERVICES for number in (0, 1)} <= names


@contextmanager
def running_dev(amqp_url: str, port: int, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    numbers = [word for service in ("posts", "users", "gateways") for word in (f"--{service}", "2")]
    with output.open("wb") as written:
        dev = subprocess.Popen(
            [sys.executable, "-m", "tools", "dev", *numbers, "--port", str(port)],
            cwd=ROOT,
            env=os.environ | {"POSTBUS_AMQP_URL": amqp_url},
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    try:
        yield dev
    finally:
        dev.send_signal(signal.SIGINT)
        dev.wait(timeout=30)
