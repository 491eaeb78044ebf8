"""Processes of two versions side by side, and clients that use them without a break."""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count
from typing import Any, Final, Literal

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.people import Person, ask, eventually
from tests.system import START_SECONDS, System
from tools.dev.arguments import GATEWAY
from tools.paths import SERVICES

__all__ = ["Fleet", "Traffic", "Version", "authenticated"]

Version = Literal["old", "new"]
_STOP_SECONDS: Final = 30.0
_PAUSE: Final = 0.05
"""Leaves the processor to the processes that start."""
_CREATED: Final = "postbus.posts.v1.PostCreated"
_CREATE: Final = "postbus.posts.v1.PostsService.CreatePost"


class Fleet:
    """The processes of a system: of each service the old version, the new one, or both."""

    def __init__(self, system: System, settings: Mapping[str, Mapping[str, str]]) -> None:
        self.system = system
        self._settings = settings
        self._starts = Counter(SERVICES)
        self.running: dict[str, set[Version]] = {service: {"old"} for service in SERVICES}

    def url(self, version: Version) -> str:
        """Return the URL of a gateway."""
        return self.system.url_of(_name(GATEWAY, version))

    @property
    def gateways(self) -> dict[Version, str]:
        """The URLs of the running gateways."""
        return {version: self.url(version) for version in sorted(self.running[GATEWAY])}

    def serves(self, service: str, version: Version) -> bool:
        """Return whether a process of this version runs."""
        return version in self.running[service]

    async def migrate(self, service: str, *version: str) -> None:
        """Run the migrations of the new version."""
        settings: dict[str, Any] = {**self._settings[service]}
        migration = await self.system.run(service, "migrate", *version, **settings)
        assert await migration.wait() == 0, f"the migration of {service} failed"

    async def start(self, service: str, version: Version) -> None:
        """Start a process, and wait until it serves."""
        name = _name(service, version)
        self._starts[name] += 1
        settings = self._settings[service] if version == "new" else {}
        await self.system.start(name, **settings)
        if service == GATEWAY:
            await self.system.until_ready(START_SECONDS, url=self.url(version))
        else:
            await eventually(lambda: self._serves(name), START_SECONDS)
        self.running[service].add(version)

    async def _serves(self, name: str) -> bool:
        return self.system.log(name).count("worker.ready") == self._starts[name]

    async def stop(self, service: str, version: Version) -> None:
        """Stop a process by SIGTERM."""
        code = await self.system.stop(_name(service, version), _STOP_SECONDS)
        assert code in {0, -signal.SIGTERM}, f"{service} ({version}) ended with {code}"
        self.running[service].remove(version)

    def logs(self) -> str:
        """Return the logs of all processes that have run."""
        return "\n".join(self.system.log(name) for name in sorted(self._starts))


def _name(service: str, version: Version) -> str:
    return service if version == "old" else f"{service}-new"


@asynccontextmanager
async def authenticated(url: str, token: str, *types: str) -> AsyncIterator[ClientConnection]:
    """Open the WebSocket of a gateway with a subscription to `types`."""
    async with connect(f"{url.replace('http', 'ws')}/ws", max_size=None) as socket:
        answers = [await ask(socket, {"id": "0", "authenticate": {"accessToken": token}})]
        if types:
            answers.append(await ask(socket, {"id": "events", "subscribe": {"types": types}}))
        assert not [each for each in answers if "error" in each], answers
        yield socket


class _Socket:
    """A client of one gateway: it calls, and receives the events of new posts."""

    def __init__(self, socket: ClientConnection) -> None:
        self.expected: set[str] = set()
        self.seen: set[str] = set()
        self._socket = socket
        self._ids = count(1)
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}

    async def read(self) -> None:
        """Receive until the connection is closed."""
        with suppress(ConnectionClosed):
            async for text in self._socket:
                frame = json.loads(text)
                if "event" in frame:
                    self.seen.add(frame["event"]["subject"])
                else:
                    self._answers.pop(frame["id"]).set_result(frame)

    async def call(self, method: str, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a call."""
        id_ = str(next(self._ids))
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[id_] = answer
        call = {"method": method, "request": request}
        await self._socket.send(json.dumps({"id": id_, "call": call}))
        async with asyncio.timeout(10):
            return await answer

    async def complete(self) -> bool:
        """Return whether every event has arrived."""
        return self.expected <= self.seen


class Traffic:
    """Requests of this version, over REST and WebSocket, of an author and a reader.

    They are spread over the gateways in rotation, as behind a load balancer. `failures` lists every
    answer that a client would notice.
    """

    def __init__(self, author: Person, reader: Person, unique: Callable[[str], str]) -> None:
        self.failures: list[str] = []
        self.notified = 0
        """Actions of the reader of which the author is notified."""
        self.display_name = ""
        self.step = "before"
        self._author, self._reader, self._unique = author, reader, unique
        self._turns = count()
        self._urls: list[str] = []
        self._requests: Counter[str] = Counter()
        self._sockets: dict[str, _Socket] = {}
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._stacks: dict[str, AsyncExitStack] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send requests until the end of the block; then take all gateways out of the rotation."""
        stop = asyncio.Event()
        async with httpx.AsyncClient(timeout=15) as client:
            tasks = [asyncio.create_task(self._repeat(client, stop)) for _ in range(2)]
            try:
                yield
            finally:
                stop.set()
                await asyncio.gather(*tasks)
                for url in list(self._sockets):
                    await self.leave(url)

    async def join(self, url: str) -> None:
        """Take a gateway into the rotation."""
        stack = self._stacks[url] = AsyncExitStack()
        opened = await stack.enter_async_context(authenticated(url, self._author.token, _CREATED))
        socket = self._sockets[url] = _Socket(opened)
        self._readers[url] = asyncio.create_task(socket.read())
        self._urls.append(url)

    async def leave(self, url: str) -> None:
        """Take a gateway out of the rotation, once it has answered and delivered everything."""
        self._urls.remove(url)

        async def idle() -> bool:
            return not self._requests[url]

        await eventually(idle, 20)
        socket = self._sockets.pop(url)
        try:
            await eventually(socket.complete, 10)
        except TimeoutError:
            missing = len(socket.expected - socket.seen)
            self.failures.append(f"{self.step}: {missing} events were not delivered")
        await self._stacks.pop(url).aclose()
        await self._readers.pop(url)

    async def _repeat(self, client: httpx.AsyncClient, stop: asyncio.Event) -> None:
        while not stop.is_set():
            with suppress(_UnexpectedAnswerError):
                await self._turn(client)
            await asyncio.sleep(_PAUSE)

    async def _turn(self, client: httpx.AsyncClient) -> None:
        """Create a post with comments and likes, and read them as a client."""
        author, reader = self._author, self._reader
        post = await self._create_twice(client)
        path = f"/v1/posts/{post['id']}"
        tag = (await self._send(client, reader, "GET", path)).headers["ETag"]
        change = {"title": self._unique("changed")}
        await self._send(client, author, "PATCH", path, change, {"If-Match": tag})
        await self._send(
            client, reader, "POST", f"{path}/comments", {"body": "A comment"}, code=201
        )
        self.notified += 1
        await self._send(client, reader, "PUT", f"{path}/like")
        self.notified += 1
        name = self._unique("Name ")
        await self._send(client, author, "PATCH", "/v1/me", {"displayName": name})
        self.display_name = name
        await self._read_pages(client)
        for page in ("/v1/feed", "/v1/notifications", "/v1/me", "/v1/tags"):
            await self._send(client, author, "GET", page)
        await self._create_over_socket()

    async def _create_twice(self, client: httpx.AsyncClient) -> dict[str, Any]:
        """Send one operation to two gateways; the second answer is the stored one of the first."""
        sockets = list(self._sockets.values())
        body, key = {"title": self._unique("Post "), "summary": "s"}, self._unique("key")
        answers = [
            await self._send(
                client, self._author, "POST", "/v1/posts", body, {"Idempotency-Key": key}, code=201
            )
            for _ in range(2)
        ]
        first, again = (dict(answer.json()) for answer in answers)
        if first["id"] != again["id"] or "Idempotency-Replayed" not in answers[1].headers:
            self._fail(f"an operation was executed twice: {first['id']} and {again['id']}")
        for socket in sockets:
            socket.expected.add(first["id"])
        return first

    async def _read_pages(self, client: httpx.AsyncClient) -> None:
        """Read two pages of a list, from two gateways."""
        pages = f"/v1/posts?author={self._author.username}&pageSize=1&pageToken="
        first = (await self._send(client, self._reader, "GET", pages)).json()
        if first["nextPageToken"]:
            token = first["nextPageToken"]
            await self._send(client, self._reader, "GET", f"{pages}{token}")

    async def _create_over_socket(self) -> None:
        url = self._next_url()
        sockets = list(self._sockets.values())
        self._requests[url] += 1
        try:
            answer = await self._sockets[url].call(_CREATE, {"title": self._unique("Post ")})
        except (ConnectionClosed, TimeoutError) as error:
            self._fail(f"over the WebSocket: {error!r}")
        finally:
            self._requests[url] -= 1
        if "result" not in answer:
            self._fail(f"over the WebSocket: {answer}")
        for socket in sockets:
            socket.expected.add(answer["result"]["response"]["post"]["id"])

    async def _send(
        self,
        client: httpx.AsyncClient,
        person: Person,
        verb: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        *,
        code: int = 200,
    ) -> httpx.Response:
        url = self._next_url()
        self._requests[url] += 1
        try:
            answer = await client.request(
                verb, f"{url}{path}", json=body, headers={**person.headers, **(headers or {})}
            )
        except httpx.TransportError as error:
            self._fail(f"{verb} {path}: {error!r}")
        finally:
            self._requests[url] -= 1
        if answer.status_code != code:
            self._fail(f"{verb} {path}: {answer.status_code} {answer.text[:300]}")
        return answer

    def _next_url(self) -> str:
        return self._urls[next(self._turns) % len(self._urls)]

    def _fail(self, text: str) -> Any:
        self.failures.append(f"{self.step}: {text}")
        raise _UnexpectedAnswerError


class _UnexpectedAnswerError(Exception):
    """An answer that a client of this version does not expect; it ends a turn."""
