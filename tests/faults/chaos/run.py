"""Inject faults under load, one run after the other, and compare everything at the end."""

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import jwt

from shared.tasks import end
from tests.conftest import Place as Servers
from tests.conftest import new_vhost
from tests.faults.chaos.checker import Findings, check
from tests.faults.chaos.history import History, Load
from tests.faults.chaos.matrix import NotPossibleError, Place
from tests.faults.chaos.rows import ROWS
from tests.faults.chaos.servers import started_servers
from tests.faults.chaos.state import read_state, settle
from tests.faults.chaos.watcher import watch
from tests.people import Person, sign_up
from tests.proxy import Proxy
from tests.system import run_system
from tests.tokens import TokenMaker

__all__ = ["Outcome", "Result", "chaotic_system", "compare", "inject_under_load"]

PEOPLE: Final = 12
PAUSE: Final = 0.6
"""Seconds between two requests of a person, on average."""
_BACK_SECONDS: Final = 60.0
_TOKEN_LIFETIME: Final = timedelta(hours=6)
_SERVERS: Final = ("rabbitmq", "postgresql", "mongodb")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The responses to clients during one fault, or during several at the same time."""

    names: tuple[str, ...]
    not_possible: str = ""
    error: str = ""
    """The reason for which the fault could not be injected or ended."""
    back: float = math.inf
    """Seconds from the end of the fault to good responses of all four kinds."""
    responses: int = 0
    """Responses to requests that began during the fault and until the system was back."""
    failed: Counter[str] = field(default_factory=Counter)
    """Those with an error, by status and reason."""
    p99: float = 0.0
    """99th percentile of their times in seconds."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The results of all faults, and the findings of the checker."""

    results: list[Result] = field(default_factory=list)
    omitted: list[tuple[str, ...]] = field(default_factory=list)
    """Runs for which no time was left."""
    quiet_p99: float = 0.0
    """99th percentile of the times in seconds before the first fault."""
    writes: int = 0
    requests: int = 0
    settled: float = 0.0
    """Seconds until no event was on its way."""
    left: list[str] = field(default_factory=list)
    """What was still on its way after a minute."""
    findings: Findings | None = None
    """What the comparison found; None if there was none."""


@asynccontextmanager
async def chaotic_system(
    servers: Servers, run_id: str, tokens: TokenMaker, logs: Path, management_url: str
) -> AsyncIterator[Place]:
    """Run two processes of each service behind proxies, in a virtual host of their own."""
    proxies, environment = {}, {}
    async with AsyncExitStack() as stack:
        vhost = f"{run_id}_chaos"
        url = await stack.enter_async_context(new_vhost(vhost))
        own = replace(servers, amqp_url=url).as_environment()
        for name, (variable, address) in zip(_SERVERS, own.items(), strict=True):
            target = httpx.URL(address)
            proxies[name] = Proxy(target.host, target.port or 0)
            await proxies[name].start()
            stack.push_async_callback(proxies[name].stop)
            environment[variable] = str(target.copy_with(port=proxies[name].port))
        system = await stack.enter_async_context(run_system(environment, tokens, logs))
        await system.start("posts-2", "users-2", "gateway-2")
        await system.until_ready(40)
        await system.until_ready(40, url=system.url_of("gateway-2"))
        databases = [httpx.URL(each) for each in (servers.postgres_url, servers.mongo_url)]
        names = zip(databases, ("users", "posts"), strict=True)
        postgres, mongo = (str(url.copy_with(path=f"{url.path}_{name}")) for url, name in names)
        yield Place(
            system=system,
            proxies=proxies,
            servers=started_servers(dict(zip(_SERVERS, own.values(), strict=True))),
            management_url=management_url,
            vhost=vhost,
            amqp_url=url,
            postgres_url=postgres,
            mongo_url=mongo,
            tokens=tokens,
            dice=random.Random(),  # noqa: S311
        )


async def inject_under_load(
    place: Place,
    unique: Callable[[str], str],
    runs: Sequence[tuple[str, ...]],
    *,
    seconds: float = math.inf,
    outcome: Outcome,
) -> History:
    """Inject the rows of each run at the same time, one run after the other; return the history.

    Add the results to `outcome`, also if the call is interrupted. No run begins after `seconds`.
    Return when all effects of the load have happened, or a minute after the last fault.
    """
    urls = [place.system.url_of(name) for name in ("gateway", "gateway-2")]
    begin = time.monotonic()
    async with httpx.AsyncClient(base_url=urls[0], timeout=10) as client:
        people = [await _person(client, place, unique("chaos")) for _ in range(PEOPLE)]
        posts = [await _post(client, people[0], unique("base")) for _ in range(3)]
        choices = random.Random(place.dice.random())  # noqa: S311  # leaves the rows' dice alone
        load = Load(urls, people, posts, unique, choices)
        tasks = [
            asyncio.create_task(watch(f"{url.replace('http', 'ws')}/ws", person, load.history))
            for url, person in zip(urls, people, strict=False)
        ]
        tasks.append(asyncio.create_task(load.run(PAUSE)))
        try:
            await asyncio.sleep(3)
            outcome.quiet_p99 = _p99([each.seconds for each in load.history.tries()])
            for number, names in enumerate(runs):
                if time.monotonic() > begin + seconds:
                    outcome.omitted += runs[number:]
                    break
                probe = _Probe(client, people[0], posts[0], unique)
                result = await _inject(place, names, load.history, probe)
                outcome.results.append(result)
                _print(f"{number + 1} of {len(runs)}: {_described(result)}")
                await asyncio.sleep(1)
            load.stop.set()
            await tasks[-1]
            outcome.settled, outcome.left = await settle(place)
        finally:
            await end(*tasks)
    outcome.writes, outcome.requests = len(load.history.writes), len(load.history.tries())
    return load.history


async def compare(place: Place, history: History, left: Sequence[str]) -> Findings:
    """Compare a history with databases, queues and processes; repair what `just repair` can.

    `left` is what was still on its way after a minute.
    """
    state = await read_state(place)
    state.unsettled += left
    return check(history, state)


async def _person(client: httpx.AsyncClient, place: Place, name: str) -> Person:
    """Sign up; return the user with a token that is valid until the end of the run."""
    person = await sign_up(client, name)
    session = jwt.decode(person.token, options={"verify_signature": False})["sid"]
    token = place.tokens.token(person.id, lifetime=_TOKEN_LIFETIME, sid=session)
    return replace(person, token=token)


async def _post(client: httpx.AsyncClient, person: Person, title: str) -> str:
    response = await client.post("/v1/posts", json={"title": title}, headers=person.headers)
    return str(response.raise_for_status().json()["id"])


async def _inject(
    place: Place, names: tuple[str, ...], history: History, probe: "_Probe"
) -> Result:
    begin, reason, error = time.monotonic(), "", ""
    try:
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(ROWS[name].inject(place))
    except* NotPossibleError as errors:
        reason = str(errors.exceptions[0])
    except* Exception as errors:  # noqa: BLE001  # the next faults run
        error = repr(errors.exceptions[0])
    if reason:
        return Result(names=names, not_possible=reason)
    back = await probe.seconds_until_good()
    tries = [each for each in history.tries() if each.at >= begin]
    failed = Counter(
        f"{each.status} {each.reason}".strip() if each.status else "connection refused"
        for each in tries
        if not 200 <= each.status < 400 and not each.absent
    )
    return Result(
        names=names,
        error=error,
        back=back,
        responses=len(tries),
        failed=failed,
        p99=_p99([each.seconds for each in tries]),
    )


class _Probe:
    """A read and a write of each service, repeated until all succeed."""

    def __init__(
        self, client: httpx.AsyncClient, person: Person, post: str, unique: Callable[[str], str]
    ) -> None:
        self._client = client
        self._headers = person.headers | {"Request-Timeout": "1"}
        self._post = post
        self._unique = unique

    async def seconds_until_good(self) -> float:
        """Return the seconds until every request succeeds; infinite after a minute."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(_BACK_SECONDS), asyncio.TaskGroup() as group:
                for verb, path, body in (
                    ("GET", "/v1/me", None),
                    ("PATCH", "/v1/me", {"displayName": self._unique("name")}),
                    ("GET", f"/v1/posts/{self._post}", None),
                    ("PATCH", f"/v1/posts/{self._post}", {"summary": self._unique("text")}),
                ):
                    group.create_task(self._good(verb, path, body))
        except TimeoutError:
            return math.inf
        return time.monotonic() - began

    async def _good(self, verb: str, path: str, body: dict[str, Any] | None) -> None:
        while True:
            headers = self._headers | {"Idempotency-Key": self._unique("probe")}
            try:
                response = await self._client.request(verb, path, json=body, headers=headers)
                if response.is_success:
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.05)


def _p99(seconds: Sequence[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99)] if seconds else 0.0


def _described(result: Result) -> str:
    title = " and ".join(ROWS[name].title for name in result.names)
    if result.not_possible:
        return f"{title}: not possible here: {result.not_possible}"
    errors = f"{result.failed.total()} of {result.responses}: {dict(result.failed.most_common(4))}"
    return f"{title}: {result.error} back after {result.back:.1f} s; errors: {errors}"


def _print(text: str) -> None:
    print(f"chaos: {text}", flush=True)
