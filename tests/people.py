"""Users of the running system, for tests."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection

__all__ = ["PASSWORD", "Person", "ask", "sign_up"]

PASSWORD = "correct horse battery"  # noqa: S105  # of accounts that live for one test run


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Someone who has signed up and logged in."""

    id: str
    username: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        """What a request of this person carries."""
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
    """Send a frame; return the next that comes."""
    await socket.send(json.dumps(frame))
    async with asyncio.timeout(5):
        answer: dict[str, Any] = json.loads(await socket.recv())
    return answer
