"""A load of concurrent users that records each write with all its responses."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import httpx

from tests.people import Person

__all__ = ["NOTIFICATION_CREATED", "POST_CREATED", "History", "Load", "Socket", "Try", "Write"]

POST_CREATED: Final = "postbus.posts.v1.PostCreated"
NOTIFICATION_CREATED: Final = "postbus.posts.v1.NotificationCreated"
REPEAT_SECONDS: Final = 40.0
"""Time for which a write is repeated until it has a final response."""
ONCE: Final = 0.12
"""Share of the writes that are sent once, so that their outcome can be compared."""
ASKED_AGAIN: Final = 0.05
"""Share of the acknowledged writes that are sent again: the response must be the same."""
READ_BACK: Final = 0.3
"""Share of the acknowledged writes that are read at once by their user."""
_TRANSIENT: Final = (0, 409, 429, 499, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One response; status 0 if the connection broke first."""

    at: float
    seconds: float
    status: int
    reason: str = ""
    outcome: str = "UNKNOWN"
    retry_after: bool = True
    absent: bool = False
    """Whether it is the response to a read of something that may be absent."""


@dataclass(slots=True, kw_only=True)
class Write:
    """A write of a person: `target` is the text, post or user that it is about."""

    kind: str
    person: str
    target: str
    once: bool
    tries: list[Try] = field(default_factory=list)
    body: dict[str, Any] | None = None
    """The response, if the write was acknowledged."""
    repeated: dict[str, Any] | None = None
    """The response to the same request, sent once more."""
    unread: bool = False
    """Whether its user did not see the acknowledged write in a read that followed."""

    @property
    def acknowledged(self) -> bool:
        return self.body is not None

    @property
    def without_effect(self) -> bool:
        """Whether every response said that nothing was changed."""
        return not self.acknowledged and all(each.outcome == "NO_EFFECT" for each in self.tries)


@dataclass(slots=True, kw_only=True)
class Socket:
    """A WebSocket of a user that subscribed at `opened`, and the subjects of its events by type."""

    person: str
    opened: float
    closed: float | None = None
    """The time at which the gateway closed it, None if it was open at the end."""
    seen: dict[str, set[str]] = field(default_factory=dict)


@dataclass(slots=True)
class History:
    """All writes in the order of their begin, and the responses to reads."""

    writes: list[Write] = field(default_factory=list)
    reads: list[Try] = field(default_factory=list)
    delay: float = 0.0
    """Longest time in seconds by which this machine has delayed the load itself."""
    sockets: list[Socket] = field(default_factory=list)

    def tries(self) -> list[Try]:
        """Return every response."""
        return [*(each for write in self.writes for each in write.tries), *self.reads]


class Load:
    """Users that read and write through several gateways until `stop` is set."""

    def __init__(
        self,
        urls: Sequence[str],
        people: Sequence[Person],
        post_ids: Sequence[str],
        unique: Callable[[str], str],
        dice: random.Random,
    ) -> None:
        self.history = History()
        self.stop = asyncio.Event()
        self._clients = [httpx.AsyncClient(base_url=url, timeout=10) for url in urls]
        self._people = people
        self._post_ids = post_ids
        self._unique = unique
        self._dice = dice

    async def run(self, pause: float) -> None:
        """Run one loop per person, with `pause` seconds between its requests on average."""
        delays = asyncio.create_task(self._measure_delays())
        try:
            await asyncio.gather(*(self._act(person, pause) for person in self._people))
        finally:
            delays.cancel()
            await asyncio.gather(*(client.aclose() for client in self._clients))

    async def _measure_delays(self) -> None:
        while True:
            due = time.monotonic() + 0.1
            await asyncio.sleep(0.1)
            self.history.delay = max(self.history.delay, time.monotonic() - due)

    async def _act(self, person: Person, pause: float) -> None:
        own: list[str] = []
        while not self.stop.is_set():
            await asyncio.sleep(2 * pause * self._dice.random())
            if self._dice.random() < 0.6:
                await self._read(person)
            elif own and self._dice.random() < 0.1:
                await self._write(person, "delete", own.pop())
            else:
                kind, target = self._choice(person)
                body = await self._write(person, kind, target)
                if kind == "post" and body:
                    own.append(body["id"])

    def _choice(self, person: Person) -> tuple[str, str]:
        kind = self._dice.choice(
            ("post", "comment", "like", "unlike", "follow", "unfollow", "profile")
        )
        if kind in ("follow", "unfollow"):
            other = [each.username for each in self._people if each is not person]
            return kind, self._dice.choice(other)
        if kind in ("like", "unlike"):
            return kind, self._dice.choice(self._post_ids)
        return kind, self._unique(kind)

    def _request(self, kind: str, target: str) -> tuple[str, str, dict[str, Any] | None]:
        match kind:
            case "post":
                return "POST", "/v1/posts", {"title": target, "tags": ["chaos"]}
            case "comment":
                return "POST", f"/v1/posts/{self._post_ids[0]}/comments", {"body": target}
            case "like" | "unlike":
                verb = "PUT" if kind == "like" else "DELETE"
                return verb, f"/v1/posts/{target}/like", None
            case "follow" | "unfollow":
                verb = "PUT" if kind == "follow" else "DELETE"
                return verb, f"/v1/users/{target}/follow", None
            case "profile":
                return "PATCH", "/v1/me", {"bio": target}
            case _:
                return "DELETE", f"/v1/posts/{target}", None

    async def _read(self, person: Person) -> None:
        path = self._dice.choice(("/v1/posts", "/v1/feed", "/v1/me", "/v1/notifications"))
        response, _ = await self._send(person, "GET", path, None, {})
        self.history.reads.append(response)

    async def _write(self, person: Person, kind: str, target: str) -> dict[str, Any] | None:
        write = Write(kind=kind, person=person.id, target=target, once=self._dice.random() < ONCE)
        self.history.writes.append(write)
        request = self._request(kind, target)
        key = {"Idempotency-Key": self._unique("key")}
        end = time.monotonic() + REPEAT_SECONDS
        while True:
            response, body = await self._send(person, *request, key)
            write.tries.append(response)
            if 200 <= response.status < 300:
                write.body = body
                break
            if write.once or response.status not in _TRANSIENT or time.monotonic() > end:
                return None
            await asyncio.sleep(0.1 + 0.4 * self._dice.random())
        if self._dice.random() < ASKED_AGAIN:
            response, again = await self._send(person, *request, key)
            if 200 <= response.status < 300:
                write.repeated = again
        if self._dice.random() < READ_BACK:
            write.unread = not await self._sees(person, write)
        return write.body

    async def _sees(self, person: Person, write: Write) -> bool:
        """Return whether a user sees an own write; the users change nothing else."""
        match write.kind:
            case "post" | "delete":
                id_ = (write.body or {}).get("id", write.target)
                response, _ = await self._send(person, "GET", f"/v1/posts/{id_}", None, {})
                self.history.reads.append(replace(response, absent=response.status == 404))
                return response.status != (404 if write.kind == "post" else 200)
            case "profile":
                response, me = await self._send(person, "GET", "/v1/me", None, {})
                self.history.reads.append(response)
                return response.status != 200 or me["bio"] == write.target
            case _:
                return True

    async def _send(
        self,
        person: Person,
        verb: str,
        path: str,
        body: dict[str, Any] | None,
        headers: dict[str, str],
    ) -> tuple[Try, dict[str, Any]]:
        client, began = self._dice.choice(self._clients), time.monotonic()
        try:
            response = await client.request(
                verb, path, json=body, headers={**person.headers, **headers}
            )
        except httpx.HTTPError:
            return Try(at=began, seconds=time.monotonic() - began, status=0), {}
        try:
            content: dict[str, Any] = response.json() if response.content else {}
        except ValueError:
            content = {}
        failed = response.is_error
        recorded = Try(
            at=began,
            seconds=time.monotonic() - began,
            status=response.status_code,
            reason=content.get("reason", "") if failed else "",
            outcome=content.get("outcome", "UNKNOWN") if failed else "DONE",
            retry_after="retry-after" in response.headers,
        )
        return recorded, content
