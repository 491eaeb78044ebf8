"""`just dlq`: events that a consumer could not deal with: list, show, replay, drop."""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aiormq.exceptions import ChannelNotFoundEntity
from google.protobuf.json_format import MessageToDict

from postbus.bus.v1 import Event
from postbus.registry import EVENTS
from shared.bus.amqp import topology
from shared.errors import ServiceError
from shared.wire import decode, parse
from tools.paths import SERVICES
from tools.servers import servers

__all__ = ["add_arguments", "dlq", "run"]

_MOST = 10_000
_SUFFIX = ".dead"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="count them (what dlq alone does)")
    show = actions.add_parser("show", help="print them, oldest first")
    replay = actions.add_parser("replay", help="give them back to their consumer")
    drop = actions.add_parser("drop", help="forget them")
    for action in (show, replay, drop):
        action.add_argument("queue", metavar="QUEUE", help="as `just dlq` lists it")
    show.add_argument("-n", "--limit", type=int, default=20, help="how many (20 if unsaid)")
    for action in (replay, drop):
        action.add_argument("ids", nargs="*", metavar="ID", help="only these; all if none is named")
    drop.add_argument("-y", "--yes", action="store_true", help="don't ask")


def dlq(options: argparse.Namespace) -> int:
    """The recipe: on the broker that runs, or on one started for it."""
    with servers("dlq") as addresses:
        return asyncio.run(run(addresses.amqp_url, options))


async def run(url: str, options: argparse.Namespace) -> int:
    """Do it at the broker with this URL; return the exit code."""
    async with await aio_pika.connect(url) as connection:
        if options.action in {None, "list"}:
            return await _list(connection)
        letters = options.queue.endswith(_SUFFIX)
        if not letters or await _count(connection, options.queue) is None:
            print(f"dlq: there is no queue {options.queue}: `just dlq` lists those with events")
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
        chosen = _chosen(letters, ids)
        channel = await connection.channel(on_return_raises=True)
        for letter in chosen:  # confirmed by the broker before it is taken away
            copy = aio_pika.Message(
                letter.body,
                content_type=letter.content_type,
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                message_id=letter.message_id,
                type=letter.type,
            )
            await channel.default_exchange.publish(copy, target)
            await letter.ack()
    print(f"dlq: {len(chosen)} back in {target}")
    return 0 if len(chosen) == len(ids) or not ids else 1


async def _drop(
    connection: aio_pika.abc.AbstractConnection, queue: str, ids: Sequence[str], *, yes: bool
) -> int:
    async with _letters(connection, queue) as letters:
        chosen = _chosen(letters, ids)
        question = f"Drop {len(chosen)} of {len(letters)} for good? [y/N] "
        if not yes and await asyncio.to_thread(input, question) != "y":
            return 1
        for letter in chosen:
            await letter.ack()
    print(f"dlq: {len(chosen)} dropped")
    return 0 if len(chosen) == len(ids) or not ids else 1


@asynccontextmanager
async def _letters(
    connection: aio_pika.abc.AbstractConnection, queue: str
) -> AsyncIterator[list[AbstractIncomingMessage]]:
    """Take messages in hand, oldest first; those that are not acknowledged then go back."""
    channel = await connection.channel()
    source = await channel.get_queue(queue, ensure=False)
    letters: list[AbstractIncomingMessage] = []
    while len(letters) < _MOST and (letter := await source.get(fail=False)) is not None:
        letters.append(letter)
    try:
        yield sorted(letters, key=_time)  # what went back before may be last in the queue
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


def _chosen(
    letters: Sequence[AbstractIncomingMessage], ids: Sequence[str]
) -> list[AbstractIncomingMessage]:
    found = {letter.message_id for letter in letters}
    for missing in (each for each in ids if each not in found):
        print(f"dlq: there is no event {missing}")
    return [letter for letter in letters if not ids or letter.message_id in ids]


def _document(letter: AbstractIncomingMessage) -> dict[str, Any]:
    about = {
        "reason": _reason(letter),
        "message": letter.headers.get(topology.MESSAGE, ""),
        "attempts": letter.headers.get(topology.ATTEMPT, 0),
        "deadSince": _time(letter),
    }
    try:
        event = decode(Event, letter.body)
    except ServiceError:
        return about | {"body": letter.body[:1000].hex()}
    about |= {"id": event.id, "type": event.type, "subject": event.subject}
    about |= {"time": event.time.isoformat(), "correlationId": event.correlation_id}
    try:
        return about | {"data": MessageToDict(parse(event.type, event.data))}
    except (KeyError, ServiceError):
        return about | {"data": event.data[:1000].hex()}


def _reason(letter: AbstractIncomingMessage) -> str:
    """Ours, or the broker's own: DELIVERY_LIMIT."""
    headers = letter.headers
    return str(headers.get(topology.REASON) or headers.get("x-first-death-reason", "")).upper()


def _time(letter: AbstractIncomingMessage) -> str:
    if time := letter.headers.get(topology.TIME):
        return str(time)
    deaths: Any = letter.headers.get("x-death") or [{}]
    return str(deaths[0].get("time", "")) if isinstance(deaths[0], dict) else ""
