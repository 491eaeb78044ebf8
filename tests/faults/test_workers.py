"""A worker that is stopped or killed: callers are told at once, and all comes back by itself."""

import time

import httpx
import pytest

from tests.system import System


async def test_stopped_worker_is_a_503_at_once_and_comes_back(
    system: System, client: httpx.AsyncClient
) -> None:
    assert await system.stop("posts") == 0
    began = time.monotonic()

    answer = await client.get("/v1/posts")
    seconds = time.monotonic() - began
    status, readiness = await system.readiness()
    await system.start("posts")
    await system.until_ready()

    assert (answer.status_code, answer.json()["reason"]) == (503, "NO_ROUTE")
    assert answer.headers["retry-after"] == "1"
    assert seconds < 1
    assert (status, readiness["parts"]["posts"]) == (503, False)
    assert readiness["parts"]["users"] is True
    assert (await client.get("/v1/posts")).status_code == 200


@pytest.mark.parametrize(("worker", "path"), [("users", "/v1/users/x"), ("posts", "/v1/posts")])
async def test_killed_worker_is_a_503_at_once_and_comes_back(
    system: System, client: httpx.AsyncClient, worker: str, path: str
) -> None:
    await system.kill(worker)
    began = time.monotonic()

    # A call that the broker hands on before it sees the connection end gets no answer.
    while (answer := await client.get(path, headers={"Request-Timeout": "0.1"})).status_code == 504:
        pass
    seconds = time.monotonic() - began
    await system.start(worker)
    await system.until_ready()

    assert (answer.status_code, answer.json()["reason"]) == (503, "NO_ROUTE")
    assert seconds < 1
    assert (await client.get(path)).status_code in {200, 404}
