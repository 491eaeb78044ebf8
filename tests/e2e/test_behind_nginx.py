"""The gateway behind nginx with gzip, a common deployment."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from typing import Final

import httpx
import pytest
import websockets

from tests.people import sign_up
from tests.system import System, free_port
from tools.servers import ServersUnavailableError, packages

Unique = Callable[[str], str]

_CONFIGURATION: Final = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  gzip on;
  gzip_min_length 1;
  gzip_types application/json;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream gateway {{ server 127.0.0.1:{gateway}; keepalive 4; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://gateway;
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto https;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
    }}
  }}
}}
"""


@pytest.fixture(scope="module")
async def proxy(system: System, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """Return the URL of an nginx in front of the gateway, if necessary Debian's."""
    program, libraries = shutil.which("nginx"), ""
    if program is None:
        try:
            packages.provide(["nginx"])
        except ServersUnavailableError as error:
            pytest.skip(f"no nginx here: {error}")
        program = str(packages.UNPACKED / "usr/sbin/nginx")
        libraries = packages.library_path()
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    configuration = folder / "nginx.conf"
    values = {"folder": folder, "port": port, "gateway": system.port}
    configuration.write_text(_CONFIGURATION.format(**values))
    server = await asyncio.create_subprocess_exec(
        *(program, "-c", str(configuration), "-e", str(folder / "error.log")),
        env={"LD_LIBRARY_PATH": libraries},
    )
    try:
        await _until_listening(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        await server.wait()


async def _until_listening(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)  # until the process listens; it prints nothing then
            else:
                writer.close()
                return


@pytest.fixture
async def proxied(proxy: str) -> AsyncIterator[httpx.AsyncClient]:
    """Return a REST client of nginx that accepts gzip."""
    async with httpx.AsyncClient(base_url=proxy, timeout=10) as client:
        yield client


async def test_weak_tags_of_a_compressing_proxy_still_answer_304(
    proxied: httpx.AsyncClient, unique: Unique
) -> None:
    alice = await sign_up(proxied, unique("alice"))
    created = await proxied.post("/v1/posts", json={"title": "Zipped"}, headers=alice.headers)
    path = f"/v1/posts/{created.json()['id']}"

    first = await proxied.get(path)
    again = await proxied.get(path, headers={"If-None-Match": first.headers["ETag"]})

    assert first.headers["Content-Encoding"] == "gzip"
    assert first.headers["ETag"].startswith('W/"1-')
    assert again.status_code == 304


async def test_error_of_a_change_with_a_weak_tag_names_the_remedy(
    proxied: httpx.AsyncClient, unique: Unique
) -> None:
    alice = await sign_up(proxied, unique("alice"))
    created = await proxied.post("/v1/posts", json={"title": "Zipped"}, headers=alice.headers)
    path, change = f"/v1/posts/{created.json()['id']}", {"title": "Unzipped"}
    weak = (await proxied.get(path)).headers["ETag"]

    refused = await proxied.patch(path, json=change, headers={**alice.headers, "If-Match": weak})
    done = await proxied.patch(path, json=change, headers={**alice.headers, "If-Match": '"1"'})

    assert refused.status_code == 412
    assert "weak" in refused.json()["detail"]
    assert done.status_code == 200


async def test_websocket_works_through_the_proxy(
    proxy: str, proxied: httpx.AsyncClient, unique: Unique
) -> None:
    alice = await sign_up(proxied, unique("alice"))
    async with websockets.connect(f"{proxy.replace('http', 'ws', 1)}/ws") as socket:
        await socket.send(json.dumps({"id": "1", "authenticate": {"accessToken": alice.token}}))
        frame = json.loads(await socket.recv())
    assert frame["authenticated"]["userId"] == alice.id


async def test_requests_share_the_connections_of_the_proxy(proxied: httpx.AsyncClient) -> None:
    responses = await asyncio.gather(*(proxied.get("/v1/tags") for _ in range(100)))
    assert {response.status_code for response in responses} == {200}
