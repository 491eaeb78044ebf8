"""`just dlq`: list, show, replay and drop dead letters."""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aiormq.exceptions import ChannelNotFoundEntity
from google.protobuf.json_format import MessageToDict

from postbus.bus.v1 import Event
from postbus.registry import EVENTS
from shared.bus.amqp import topology
from shared.errors import ServiceError
from shared.wire import decode, parse
from tools.accounts.rights import OPERATOR
from tools.paths import SECRETS, SERVICES
from tools.secrets import Secrets
from tools.servers import servers
from tools.servers.addresses import service_url

__all__ = ["add_arguments", "dlq", "run"]

_MAX_LETTERS: Final = 10_000
"""Dead letters of a queue that one command reads."""
_MAX_BODY: Final = 1000
"""Bytes of a malformed event that are shown."""
_SUFFIX: Final = ".dead"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="count the dead letters (the default)")
    show = actions.add_parser("show", help="print the dead letters of a queue, oldest first")
    replay = actions.add_parser("replay", help="return dead letters to their consumer")
    drop = actions.add_parser("drop", help="delete dead letters")
    for action in (show, replay, drop):
        action.add_argument(
            "queue", metavar="QUEUE", help="the name of a queue, as `just dlq` lists it"
        )
    show.add_argument("-n", "--limit", type=int, default=20, help="number of letters (default: 20)")
    for action in (replay, drop):
        action.add_argument("ids", nargs="*", metavar="ID", help="event ids; all if none is given")
    drop.add_argument("-y", "--yes", action="store_true", help="do not ask for confirmation")


def dlq(options: argparse.Namespace) -> int:
    """Run the command at the running broker; start one if none runs. Return the exit code."""
    with servers("dlq") as addresses:
        secrets = Secrets.load_or_create(SECRETS)
        url = service_url(addresses.amqp_url, "rabbitmq", OPERATOR, secrets)
        return asyncio.run(run(url, options))


async def run(url: str, options: argparse.Namespace) -> int:
    """Run the command at the broker with this URL; return the exit code."""
    async with await aio_pika.connect(url) as connection:
        if options.action in {None, "list"}:
            return await _list(connection)
        letters = options.queue.endswith(_SUFFIX)
        if not letters or await _count(connection, options.queue) is None:
            print(f"dlq: there is no queue {options.queue}: see `just dlq`")
            return 1
        if options.action == "show":
            return await _show(connection, options.queue, options.limit)
        if options.action == "replay":
            return await _replay(connection, options.queue, options.ids)
        return await _drop(connection, options.queue, options.ids, yes=options.yes)


async def _list(connection: aio_pika.abc.AbstractConnection) -> int:
    found = False
    for name in sorted(f"{service}.{event}.dead" for service in SERVICES for event in EVENTS):
        if count := await _count(connection, name):
            async with _letters(connection, name) as letters:
                print(f"{count:8}  {name}  (oldest: {_reason(letters[0])}, {_time(letters[0])})")
            found = True
    if not found:
        print("dlq: no dead letters")
    return 0


async def _show(connection: aio_pika.abc.AbstractConnection, queue: str, limit: int) -> int:
    async with _letters(connection, queue) as letters:
        for letter in letters[:limit]:
            print(json.dumps(_document(letter), indent=2, ensure_ascii=False))
    return 0


async def _replay(
    connection: aio_pika.abc.AbstractConnection, queue: str, ids: Sequence[str]
) -> int:
    target = queue.removesuffix(_SUFFIX)
    async with _letters(connection, queue) as letters:
        selected = _select(letters, ids)
        channel = await connection.channel(on_return_raises=True)
        service = target.partition(".")[0]
        retry = await channel.get_exchange(topology.exchange("retry", service), ensure=False)
        for letter in selected:  # acknowledged only once the broker has confirmed the copy
            copy = aio_pika.Message(
                letter.body,
                content_type=letter.content_type,
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                message_id=letter.message_id,
                type=letter.type,
                user_id=service,  # the consumer accepts retries of its own service
            )
            await retry.publish(copy, target)
            await letter.ack()
    print(f"dlq: {len(selected)} returned to {target}")
    return 0 if len(selected) == len(ids) or not ids else 1


async def _drop(
    connection: aio_pika.abc.AbstractConnection, queue: str, ids: Sequence[str], *, yes: bool
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


@asynccontextmanager
async def _letters(
    connection: aio_pika.abc.AbstractConnection, queue: str
) -> AsyncIterator[list[AbstractIncomingMessage]]:
    """Fetch the messages of a queue, oldest first.

    Messages that are not acknowledged in the block are requeued.
    """
    channel = await connection.channel()
    source = await channel.get_queue(queue, ensure=False)
    letters: list[AbstractIncomingMessage] = []
    while len(letters) < _MAX_LETTERS and (letter := await source.get(fail=False)) is not None:
        letters.append(letter)
    try:
        yield sorted(letters, key=_time)  # requeued messages may be last in the queue
    finally:
        await channel.close()


async def _count(connection: aio_pika.abc.AbstractConnection, queue: str) -> int | None:
    channel: AbstractChannel = await connection.channel()
    try:
        declared = await channel.declare_queue(queue, passive=True)
    except ChannelNotFoundEntity:
        return None
    await channel.close()
    return declared.declaration_result.message_count or 0


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
        event = decode(Event, letter.body)
    except ServiceError:
        return document | {"body": letter.body[:_MAX_BODY].hex()}
    document |= {"id": event.id, "type": event.type, "subject": event.subject}
    document |= {"time": event.time.isoformat(), "correlationId": event.correlation_id}
    try:
        return document | {"data": MessageToDict(parse(event.type, event.data))}
    except (KeyError, ServiceError):
        return document | {"data": event.data[:_MAX_BODY].hex()}


def _reason(letter: AbstractIncomingMessage) -> str:
    """Return the reason that the consumer gave, or that of the broker: DELIVERY_LIMIT."""
    headers = letter.headers
    return str(headers.get(topology.REASON) or headers.get("x-first-death-reason", "")).upper()


def _time(letter: AbstractIncomingMessage) -> str:
    if time := letter.headers.get(topology.DEAD_AT):
        return str(time)
    deaths: Any = letter.headers.get("x-death") or [{}]
    return str(deaths[0].get("time", "")) if isinstance(deaths[0], dict) else ""
