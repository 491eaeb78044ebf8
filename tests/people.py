"""Users of the running system, for tests."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection

__all__ = ["PASSWORD", "Client", "Person", "ask", "eventually", "sign_up"]

PASSWORD = "correct horse battery"  # noqa: S105  # of accounts that live for one test run


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A user with an access token."""

    id: str
    username: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of this user's requests."""
        return {"Authorization": f"Bearer {self.token}"}


async def sign_up(client: httpx.AsyncClient, username: str) -> Person:
    """Sign up and log in over REST."""
    account = {"username": username, "email": f"{username}@example.com", "password": PASSWORD}
    created = await client.post("/v1/auth/signup", json=account)
    assert created.status_code == 201, created.text
    session = await client.post("/v1/auth/login", json={"login": username, "password": PASSWORD})
    assert session.status_code == 200, session.text
    token = session.json()["accessToken"]
    return Person(id=created.json()["id"], username=username, token=token)


async def ask(socket: ClientConnection, frame: dict[str, Any]) -> dict[str, Any]:
    """Send a frame; return the next one received."""
    await socket.send(json.dumps(frame))
    async with asyncio.timeout(5):
        received: dict[str, Any] = json.loads(await socket.recv())
    return received


class Client:
    """A REST client with the token of a user, or without a token."""

    def __init__(self, client: httpx.AsyncClient, person: Person | None = None) -> None:
        self._client = client
        self._headers = person.headers if person else {}

    async def send(
        self, verb: str, path: str, body: object = None, **headers: str
    ) -> httpx.Response:
        """Send a request; header names have underscores for hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self._client.request(verb, path, json=body, headers=self._headers | named)

    async def done(self, verb: str, path: str, body: object = None) -> dict[str, Any]:
        """Send a request that succeeds; return the body of the response."""
        response = await self.send(verb, path, body)
        assert response.is_success, f"{verb} {path}: {response.status_code} {response.text}"
        return dict(response.json()) if response.content else {}

    async def refused(self, verb: str, path: str, body: object = None) -> tuple[int, str]:
        """Send a request that fails; return status and reason."""
        response = await self.send(verb, path, body)
        assert response.is_error, f"{verb} {path}: {response.status_code} {response.text}"
        return response.status_code, response.json()["reason"]

    async def all(self, path: str, items: str, size: int = 100) -> list[dict[str, Any]]:
        """Return every item of a list, page by page."""
        found: list[dict[str, Any]] = []
        token, separator = "", "&" if "?" in path else "?"
        while True:
            page = await self.done("GET", f"{path}{separator}pageSize={size}&pageToken={token}")
            found += page[items]
            token = page["nextPageToken"]
            if not token:
                return found


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 10) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.02)
