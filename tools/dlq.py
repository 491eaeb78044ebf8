"""`just dlq`: dead letters, delayed events, and queues without a consumer."""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage
from google.protobuf.json_format import MessageToDict

from shared.bus.amqp import topology
from shared.errors import ServiceError
from shared.wire import parse
from tools.accounts.rights import OPERATOR
from tools.broker_queues import (
    durable_queues,
    messages_of,
    open_connection,
    open_retry_exchange,
    return_to_consumer,
    state_of,
)
from tools.delayed_events import delay_queues, list_delayed, release
from tools.paths import SECRETS
from tools.secrets import Secrets
from tools.servers import servers
from tools.servers.addresses import service_url

__all__ = ["add_arguments", "dlq", "run"]

_MAX_BODY: Final = 1000
"""Bytes of a malformed event that are shown."""
_SUFFIX: Final = ".dead"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="count dead letters and delayed events (the default)")
    show = actions.add_parser("show", help="print the dead letters of a queue, oldest first")
    replay = actions.add_parser("replay", help="return dead letters to their consumer")
    drop = actions.add_parser("drop", help="delete dead letters")
    release = actions.add_parser("release", help="end the delays of events")
    release.add_argument(
        "queue", metavar="QUEUE", nargs="?", help="the queue of a consumer; all if none is given"
    )
    remove = actions.add_parser("remove", help="delete the queue that a former consumer has left")
    for action in (show, replay, drop, remove):
        action.add_argument(
            "queue", metavar="QUEUE", help="the name of a queue, as `just dlq` lists it"
        )
    show.add_argument("-n", "--limit", type=int, default=20, help="number of letters (default: 20)")
    for action in (replay, drop):
        action.add_argument("ids", nargs="*", metavar="ID", help="event ids; all if none is given")
    for action in (drop, remove):
        action.add_argument("-y", "--yes", action="store_true", help="do not ask for confirmation")


def dlq(options: argparse.Namespace) -> int:
    """Run the command at the running broker; start one if none runs. Return the exit code."""
    with servers("dlq") as addresses:
        secrets = Secrets.load_or_create(SECRETS)
        url = service_url(addresses.amqp_url, "rabbitmq", OPERATOR, secrets)
        return asyncio.run(run(url, addresses.amqp_management_url, options))


async def run(url: str, management_url: str, options: argparse.Namespace) -> int:
    """Run the command at the broker with these URLs; return the exit code."""
    async with await open_connection(url) as connection:
        if options.action in {None, "list", "release"}:
            try:
                queues = await durable_queues(management_url, url)
            except httpx.HTTPError as error:
                print(f"dlq: the management API of RabbitMQ is unavailable: {error}")
                return 1
            if options.action == "release":
                return await release(connection, delay_queues(queues), options.queue)
            return await _list(connection, queues)
        if options.action == "remove":
            return await _remove(connection, options.queue, yes=options.yes)
        if not options.queue.endswith(_SUFFIX) or not await state_of(connection, options.queue):
            print(f"dlq: there is no queue {options.queue}: see `just dlq`")
            return 1
        if options.action == "show":
            return await _show(connection, options.queue, options.limit)
        if options.action == "replay":
            return await _replay(connection, options.queue, options.ids)
        return await _drop(connection, options.queue, options.ids, yes=options.yes)


async def _list(connection: AbstractConnection, queues: Sequence[str]) -> int:
    found, delays = False, delay_queues(queues)
    for name in queues:
        messages, consumers = await state_of(connection, name) or (0, 1)
        if name.endswith(_SUFFIX):
            if messages:
                async with _letters(connection, name) as letters:
                    oldest = f"{_reason(letters[0])}, {_time(letters[0])}" if letters else ""
                print(f"{messages:8}  {name}  (oldest: {oldest})")
                found = True
        elif name not in delays and not consumers:
            print(f"{messages:8}  {name}  has no consumer")
            found = True
    if not (await list_delayed(connection, delays) or found):
        print("dlq: no dead letters, no delayed events, and every queue has a consumer")
    return 0


async def _show(connection: AbstractConnection, queue: str, limit: int) -> int:
    async with _letters(connection, queue) as letters:
        for letter in letters[:limit]:
            print(json.dumps(_document(letter), indent=2, ensure_ascii=False))
    return 0


async def _replay(connection: AbstractConnection, queue: str, ids: Sequence[str]) -> int:
    target = queue.removesuffix(_SUFFIX)
    async with _letters(connection, queue) as letters:
        selected = _select(letters, ids)
        retry = await open_retry_exchange(connection, target)
        for letter in selected:
            await return_to_consumer(retry, letter, target)
    print(f"dlq: {len(selected)} returned to {target}")
    return 0 if len(selected) == len(ids) or not ids else 1


async def _drop(
    connection: AbstractConnection, queue: str, ids: Sequence[str], *, yes: bool
) -> int:
    async with _letters(connection, queue) as letters:
        selected = _select(letters, ids)
        question = f"Drop {len(selected)} of {len(letters)} permanently? [y/N] "
        if not yes and await asyncio.to_thread(input, question) != "y":
            return 1
        for letter in selected:
            await letter.ack()
    print(f"dlq: {len(selected)} dropped")
    return 0 if len(selected) == len(ids) or not ids else 1


async def _remove(connection: AbstractConnection, queue: str, *, yes: bool) -> int:
    """Delete the queue of a consumer that no version runs any more, with its dead letters."""
    dead = f"{queue}{_SUFFIX}"
    state, letters = await state_of(connection, queue), await state_of(connection, dead)
    if state is None or letters is None:
        print(f"dlq: there is no consumer's queue {queue}: see `just dlq`")
        return 1
    if state[1]:
        print(f"dlq: {queue} has a consumer")
        return 1
    question = f"Delete {queue} with {state[0]} events and {letters[0]} dead letters? [y/N] "
    if not yes and await asyncio.to_thread(input, question) != "y":
        return 1
    channel = await connection.channel()
    for name in (queue, dead):
        await channel.queue_delete(name)
    print(f"dlq: {queue} is deleted")
    return 0


@asynccontextmanager
async def _letters(
    connection: AbstractConnection, queue: str
) -> AsyncIterator[list[AbstractIncomingMessage]]:
    """Fetch the messages of a queue, oldest first; see `messages_of`."""
    async with messages_of(connection, queue) as letters:
        yield sorted(letters, key=_time)  # requeued messages may be last in the queue


def _select(
    letters: Sequence[AbstractIncomingMessage], ids: Sequence[str]
) -> list[AbstractIncomingMessage]:
    found = {letter.message_id for letter in letters}
    for missing in (each for each in ids if each not in found):
        print(f"dlq: there is no event {missing}")
    return [letter for letter in letters if not ids or letter.message_id in ids]


def _document(letter: AbstractIncomingMessage) -> dict[str, Any]:
    document = {
        "reason": _reason(letter),
        "message": letter.headers.get(topology.ERROR_MESSAGE, ""),
        "attempts": letter.headers.get(topology.ATTEMPT, 0),
        "deadSince": _time(letter),
    }
    try:
        event: Any = parse("postbus.bus.v1.Event", letter.body)
    except ServiceError:
        return document | {"body": letter.body[:_MAX_BODY].hex()}
    document |= {"id": event.id, "type": event.type, "subject": event.subject}
    document |= {"time": _json_time(event.time), "correlationId": event.correlation_id}
    try:
        return document | {"data": MessageToDict(parse(event.type, event.data))}
    except (KeyError, ServiceError, ValueError):  # ValueError: a time outside the years 1 to 9999
        return document | {"data": event.data[:_MAX_BODY].hex()}


def _json_time(time: Any) -> str:
    try:
        return str(time.ToJsonString())
    except ValueError:
        return "unknown"


def _reason(letter: AbstractIncomingMessage) -> str:
    """Return the reason that the consumer gave, or that of the broker: DELIVERY_LIMIT."""
    headers = letter.headers
    return str(headers.get(topology.REASON) or headers.get("x-first-death-reason", "")).upper()


def _time(letter: AbstractIncomingMessage) -> str:
    if time := letter.headers.get(topology.DEAD_AT):
        return str(time)
    deaths: Any = letter.headers.get("x-death") or [{}]
    return str(deaths[0].get("time", "")) if isinstance(deaths[0], dict) else ""
