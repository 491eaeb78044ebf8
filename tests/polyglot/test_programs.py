"""A program of each language in the place of `posts`: worker, consumer of events, and client."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx
import pytest

from tests.conftest import new_mongo_database, new_postgres_database, new_vhost
from tests.people import eventually, sign_up
from tests.polyglot.programs import LANGUAGES, Language, build, environment_of
from tests.system import System, run_system
from tests.tokens import TokenMaker

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]  # the first build takes minutes

CALLS = 50
SECONDS = 40  # processes start slowly on a machine with other work


@pytest.fixture(scope="module")
async def without_posts(
    run_id: str, tokens: TokenMaker, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[System]:
    """The system without `posts`, on servers of its own."""
    name = f"{run_id}_programs"
    async with (
        new_vhost(name) as amqp_url,
        new_postgres_database(name) as postgres_url,
        new_mongo_database(name) as mongo_url,
    ):
        servers = {"AMQP": amqp_url, "POSTGRES": postgres_url, "MONGO": mongo_url}
        environment = {f"POSTBUS_{server}_URL": url for server, url in servers.items()}
        async with run_system(environment, tokens, tmp_path_factory.mktemp("logs")) as running:
            await running.stop("posts", SECONDS)
            yield running


@pytest.fixture(scope="module", params=LANGUAGES, ids=lambda language: language.name)
def language(request: pytest.FixtureRequest) -> Language:
    found: Language = request.param
    return found


@pytest.fixture(scope="module")
def folder(language: Language) -> Path:
    """Build the program; return its folder."""
    return build(language)


@asynccontextmanager
async def program(
    language: Language, folder: Path, *arguments: str
) -> AsyncIterator[asyncio.StreamReader]:
    """Run the program; yield its output."""
    process = await asyncio.create_subprocess_exec(
        *(*language.run, *arguments),
        cwd=folder,
        env=environment_of(language),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@asynccontextmanager
async def our_worker(system: System) -> AsyncIterator[None]:
    """Run the worker of this repository."""
    await system.start("posts")
    try:
        yield
    finally:
        await system.stop("posts", SECONDS)


async def line(output: asyncio.StreamReader) -> str:
    async with asyncio.timeout(SECONDS):
        return (await output.readline()).decode().strip()


async def statuses(client: httpx.AsyncClient, path: str) -> list[int]:
    """Return the statuses of requests at the same time, whose calls travel in batches."""
    responses = await asyncio.gather(*(client.get(path) for _ in range(CALLS)))
    return [response.status_code for response in responses]


async def test_program_serves_a_method_consumes_an_event_and_calls(
    language: Language, folder: Path, without_posts: System
) -> None:
    account = without_posts.accounts("posts")["POSTBUS_AMQP_URL"]
    async with (
        program(language, folder, "serve", account) as output,
        httpx.AsyncClient(base_url=without_posts.url, timeout=10) as client,
    ):
        assert await line(output) == "READY"
        await without_posts.until_ready(SECONDS)  # by its answer to the health check
        alice = await sign_up(client, f"{language.name}{token_hex(6)}")

        async def consumed() -> bool:
            return (await client.get(f"/v1/posts/{alice.id}")).status_code == 200

        await eventually(consumed, SECONDS)
        assert await statuses(client, f"/v1/posts/{alice.id}") == [200] * CALLS
        arguments = ("call", account, without_posts.url, alice.id)
        async with program(language, folder, *arguments) as output_of_client:
            results: dict[str, Any] = json.loads(await line(output_of_client))

    assert results == {
        "rest": [f"From {language.title}", alice.username],
        "connect": [f"From {language.title}", alice.username],
        "missing": "not_found",
        "amqp": alice.username,
        "invalid": "INVALID_FIELDS",
        "unserved": "NO_ROUTE",
    }


async def test_program_and_our_worker_share_the_queue_of_a_method(
    language: Language, folder: Path, without_posts: System
) -> None:
    account = without_posts.accounts("posts")["POSTBUS_AMQP_URL"]
    async with (
        program(language, folder, "serve", account) as output,
        httpx.AsyncClient(base_url=without_posts.url, timeout=10) as client,
    ):
        assert await line(output) == "READY"
        await without_posts.until_ready(SECONDS)
        alice = await sign_up(client, f"{language.name}{token_hex(6)}")
        found = set[int]()

        async def both_have_answered() -> bool:
            found.update(await statuses(client, f"/v1/posts/{alice.id}"))
            return found == {200, 404}

        async with our_worker(without_posts):  # which does not know the post: 404
            await eventually(both_have_answered, SECONDS)
            metrics = (await client.get("/metrics")).text
            warnings = (await client.get("/readyz")).json()["warnings"]

    assert ("call.second_reply" in metrics, warnings) == (False, {})
