"""Requests of the next version, and the answers that the running versions may give."""

import asyncio
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from tests.e2e.rolling import Fleet, Version, authenticated
from tests.people import Person, ask, eventually, sign_up

__all__ = ["Checks"]

Unique = Callable[[str], str]
Rows = dict[tuple[Version, Version], str]
INVALID: Final = "422 INVALID_FIELDS"
NOTIFIED: Final = "postbus.posts.v1.NotificationCreated"
POKE: Final = "postbus.users.v1.UsersService.PokeUser"
POKES: Final[dict[Version, str | int]] = {"old": 5, "new": "NOTIFICATION_KIND_POKE"}
"""The kind of the notification, as each version of the gateway writes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A request that the next version answers in another way.

    `answers` has the answer by the versions of the gateway and of `posts`.
    """

    name: str
    verb: str = "POST"
    path: str = "/v1/posts"
    body: dict[str, str] | None = None
    answers: Rows
    shown: str = ""
    """A member of the response, whose value is a part of the answer."""


def by_both(old: str, between: tuple[str, str], new: str) -> Rows:
    """Return the answers; `between`: of an old, and of a new gateway, beside the other worker."""
    old_gateway, new_gateway = between
    return {
        ("old", "old"): old,
        ("old", "new"): old_gateway,
        ("new", "old"): new_gateway,
        ("new", "new"): new,
    }


CHANGES: Final = (
    Change(
        name="new field",
        body={"title": "A post", "subtitle": "its subtitle"},
        shown="subtitle",
        answers=by_both(INVALID, (INVALID, "201 "), "201 its subtitle"),
    ),
    Change(
        name="default of a new field",
        body={"title": "A post"},
        shown="subtitle",
        answers=by_both("201 ", ("201 ", "201 "), "201 untitled"),
    ),
    Change(
        name="new value of an enum",
        verb="GET",
        path="/v1/posts?order=POST_ORDER_TITLE",
        answers=by_both(INVALID, (INVALID, INVALID), "200"),
    ),
    Change(
        name="stricter rule",
        body={"title": "A post", "summary": "s" * 450},
        answers=by_both("201", (INVALID, INVALID), INVALID),
    ),
    Change(
        name="looser rule",
        body={"title": "t" * 250},
        answers=by_both(INVALID, (INVALID, INVALID), "201"),
    ),
)


@dataclass(slots=True)
class Checks:
    """Requests of the next version, with the answers that the running versions may give."""

    fleet: Fleet
    client: httpx.AsyncClient
    alice: Person
    unique: Unique
    kept: dict[str, Any] = field(default_factory=dict)
    """A post that the next version made, with a value in its new field."""
    waiting: list[Person] = field(default_factory=list)
    """Users whose pokes wait in the queue of a consumer that does not run."""
    consumed: bool = False
    """Whether the queue of the new event exists."""

    async def run(self) -> None:
        """Compare all answers."""
        self.consumed |= self.fleet.serves("posts", "new")
        for change in CHANGES:
            await self._check(change)
        await self._check_new_rpc()
        await self._check_new_event()
        await self._check_kept_field()

    async def _check(self, change: Change) -> None:
        for version, url in self.fleet.gateways.items():
            allowed = {change.answers[version, each] for each in self.fleet.running["posts"]}
            answer = await self.client.request(
                change.verb, f"{url}{change.path}", json=change.body, headers=self.alice.headers
            )
            assert _summary(answer, change.shown) in allowed, (change.name, version, answer.text)

    async def _check_new_rpc(self) -> None:
        """NO_ROUTE until the first new worker runs, and again once the last one has stopped."""
        served = self.fleet.serves("users", "new")
        call = {"id": "1", "call": {"method": POKE, "request": {"username": self.alice.username}}}
        for version, url in self.fleet.gateways.items():
            over_rest, over_socket = "404 UNKNOWN_PATH", "UNKNOWN_METHOD"
            if version == "new":
                over_rest, over_socket = ("200", "") if served else ("503 NO_ROUTE", "NO_ROUTE")
            for _ in range(4):  # more than the running workers, which get calls in turn
                answer = await self._poke(url, self.alice)
                assert _summary(answer) == over_rest
            async with authenticated(url, self.alice.token) as socket:
                frame = await ask(socket, call)
                assert frame.get("error", {}).get("reason", "") == over_socket, frame

    async def _check_new_event(self) -> None:
        """Once a new consumer runs, pokes are notified; an old gateway shows a number as kind."""
        if not (self.fleet.serves("gateway", "new") and self.fleet.serves("users", "new")):
            return
        if self.fleet.serves("posts", "new"):
            for each in self.waiting:
                await self._until_notified(each)
            self.waiting.clear()
            await self._check_delivery()
        else:
            poked = await self.poke_a_user()
            self.waiting += [poked] if self.consumed else []

    async def poke_a_user(self) -> Person:
        """Poke a new user, and return the user."""
        poked = await sign_up(self.client, self.unique("poked"))
        (await self._poke(self.fleet.url("new"), poked)).raise_for_status()
        return poked

    async def _check_delivery(self) -> None:
        poked = await sign_up(self.client, self.unique("poked"))
        async with AsyncExitStack() as stack:
            sockets = {
                version: await stack.enter_async_context(authenticated(url, poked.token, NOTIFIED))
                for version, url in self.fleet.gateways.items()
            }
            (await self._poke(self.fleet.url("new"), poked)).raise_for_status()
            for version, socket in sockets.items():
                async with asyncio.timeout(15):
                    event = json.loads(await socket.recv())["event"]
                assert event["data"]["notification"]["kind"] == POKES[version]
        for version, url in self.fleet.gateways.items():
            assert await self._kinds(url, poked) == {POKES[version]}

    async def _until_notified(self, poked: Person) -> None:
        version, url = next(iter(self.fleet.gateways.items()))

        async def notified() -> bool:
            return await self._kinds(url, poked) == {POKES[version]}

        await eventually(notified, 20)

    async def _kinds(self, url: str, person: Person) -> set[str | int]:
        answer = await self.client.get(f"{url}/v1/notifications", headers=person.headers)
        found = answer.raise_for_status().json()["notifications"]
        return {each["kind"] for each in found}

    async def _poke(self, url: str, poked: Person) -> httpx.Response:
        path = f"{url}/v1/pokes/{poked.username}"
        return await self.client.post(path, headers=self.alice.headers)

    async def _check_kept_field(self) -> None:
        """A worker that does not know a field keeps its stored value, and its stored replies."""
        running = self.fleet.running
        if not self.fleet.serves("gateway", "new"):
            if self.kept:
                await self._change_kept(next(iter(self.fleet.gateways.values())))
            return
        url = self.fleet.url("new")
        if not self.kept and running["posts"] == {"new"}:
            self.kept = (await self._create_kept(url)).json()
        if not self.kept:
            return
        again = await self._create_kept(url)
        assert (again.json()["id"], again.json()["subtitle"]) == (self.kept["id"], "kept")
        assert "Idempotency-Replayed" in again.headers
        await self._change_kept(url)
        if running["posts"] == {"new"}:
            found = await self.client.get(f"{url}/v1/posts/{self.kept['id']}")
            assert found.json()["subtitle"] == "kept"

    async def _create_kept(self, url: str) -> httpx.Response:
        answer = await self.client.post(
            f"{url}/v1/posts",
            json={"title": "Kept", "subtitle": "kept"},
            headers=self.alice.headers | {"Idempotency-Key": f"kept-{self.alice.id}"},
        )
        assert answer.status_code == 201, answer.text
        return answer

    async def _change_kept(self, url: str) -> None:
        changed = await self.client.patch(
            f"{url}/v1/posts/{self.kept['id']}",
            json={"body": self.unique("body")},
            headers=self.alice.headers,
        )
        assert changed.status_code == 200, changed.text


def _summary(answer: httpx.Response, shown: str = "") -> str:
    body = answer.json()
    if answer.is_error:
        return f"{answer.status_code} {body['reason']}"
    return f"{answer.status_code} {body.get(shown, '')}" if shown else str(answer.status_code)
