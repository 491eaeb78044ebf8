"""The README for other languages describes the topology and the envelopes as they are."""

import asyncio
import re
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Final

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from postbus.bus.v1 import Event
from postbus.registry import EVENTS, METHODS
from shared.access_tokens import AUDIENCE, ISSUER, LEEWAY_SECONDS, TOKEN_TYPE
from shared.bus.amqp import topology
from shared.bus.amqp.control_receiver import control_queue
from shared.bus.amqp.declarations import Binding, Queue
from shared.bus.amqp.message_properties import PROTOBUF
from shared.bus.amqp.method_queues import MethodQueues
from shared.bus.message_bus import CREDIT, DELAYS
from shared.metadata import MAX_METADATA_BYTES
from shared.runtime.session_verifier import REMEMBERED_SECONDS
from shared.wire import message_class
from tests.buses import a_call, echo, opened_bus
from tests.messages import CALLS, CONTROL, REPLIES
from tests.messages import EVENTS as EVENTS_OF_TEST
from tools.accounts.rights import broker_rights
from tools.paths import ROOT

README: Final = (ROOT / "proto/postbus/bus/v1/README.md").read_text()
TEXT: Final = " ".join(README.split())
EXCHANGES: Final = {CALLS: "Request", REPLIES: "Reply", CONTROL: "Control", EVENTS_OF_TEST: "Event"}
PROPERTIES: Final = ("reply_to", "correlation_id", "expiration", "message_id", "type")
ENVELOPES: Final = ("Request", "Reply", "Error", "Control", "Event")


def table(heading: str) -> list[list[str]]:
    """Return the rows of the first table below a heading, without its head."""
    section = README.split(f"# {heading}\n", 1)[1].split("\n#", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[2:]]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def yes(value: bool) -> str:
    return "yes" if value else "no"


def row_of(queue: Queue, more: list[Binding]) -> list[str]:
    """Return the row of a queue as the README has it."""
    arguments = [f"`{name}={value}`" for name, value in queue.arguments.items()]
    bindings = [f"`{each.exchange}` `{each.key}`" for each in (*queue.bindings, *more)]
    if queue.own_exchange:
        bindings = [f"`{queue.name}` (durable, fanout)"]
    return [
        f"`{queue.name}`",
        yes(not (queue.exclusive or queue.transient)),
        yes(queue.auto_delete),
        yes(queue.exclusive),
        ", ".join(arguments) or "none",
        ", ".join(bindings),
    ]


def declared_queues() -> Iterator[tuple[Queue, list[Binding]]]:
    """Yield each kind of queue with its bindings to exchanges apart."""
    replies = "S.replies.RANDOM"
    yield (
        Queue(
            name=replies,
            arguments={},
            bindings=[Binding(replies, topology.exchange("replies", "S"), replies)],
            exclusive=True,
            auto_delete=True,
        ),
        [],
    )
    yield control_queue("S.control.RANDOM", "S", ["METHOD"]), []
    queues = MethodQueues("S", "S", ["METHOD"])
    yield queues.declarations()[0], queues.bindings(["METHOD"])
    consumer = topology.consumer_queue("S", "S.EVENT")
    yield consumer, [Binding(consumer.name, "postbus.events.OWNER", "EVENT")]
    yield topology.dead_letters("S", "S.EVENT"), []
    yield topology.delay_queue("S", 4711), []
    stream = topology.event_stream("S", "revocations")
    ending = [name for name, event in EVENTS.items() if event.ended_sessions]
    yield stream, topology.event_bindings(stream.name, ending)
    yield topology.all_events(), topology.all_bindings(["OWNER"])


def test_table_of_exchanges_has_those_that_a_service_declares() -> None:
    rows = [(codes(row[0])[0], row[1]) for row in table("Accounts and exchanges")]

    declared = [(each.name, each.type) for each in topology.service_exchanges("S")]
    assert sorted(rows) == sorted(declared)


def test_table_of_queues_has_their_names_flags_arguments_and_bindings() -> None:
    expected = [row_of(queue, more) for queue, more in declared_queues()]

    assert table("Queues") == [[cell.replace("4711000", "MS") for cell in row] for row in expected]


def test_permissions_are_those_of_the_accounts() -> None:
    block = re.search(r"^```\n(configure .*?)```", README, re.MULTILINE | re.DOTALL)
    assert block is not None
    shown = dict(line.split() for line in block[1].splitlines())

    assert shown == broker_rights({"S": ["CALLEE"], "CALLER": ["S"]})["S"].permissions()


@pytest.mark.parametrize("name", ENVELOPES)
def test_table_of_an_envelope_has_each_field_with_its_number(name: str) -> None:
    fields = message_class(f"postbus.bus.v1.{name}").DESCRIPTOR.fields

    rows = [(codes(row[0])[0], int(row[1])) for row in table(name)]
    assert rows == sorted(((each.name, each.number) for each in fields), key=itemgetter(1))


async def test_table_of_messages_has_the_properties_of_each(
    vhost: str, unique: Callable[[str], str]
) -> None:
    route, event = unique("postbus.test.v1.Route"), unique("postbus.test.v1.Event")
    found: dict[str, set[str]] = {}
    all_found = asyncio.Event()

    async def take(message: AbstractIncomingMessage) -> None:
        found[EXCHANGES[str(message.exchange)]] = {
            name for name in PROPERTIES if getattr(message, name) is not None
        }
        assert (message.user_id, message.content_type) == ("test", PROTOBUF)
        if len(found) == len(EXCHANGES):
            all_found.set()

    async with opened_bus(vhost) as bus, await aio_pika.connect(vhost) as connection:
        channel = await connection.channel()
        queue, session = await channel.declare_queue(exclusive=True), bus._session
        assert session is not None
        keys = (route, session.rpc.reply_queue.name, route, event)
        for exchange, key in zip(EXCHANGES, keys, strict=True):
            await queue.bind(exchange, key)
        server = await bus.serve(unique("test.own"), [route], echo)
        await queue.consume(take, no_ack=True)
        await bus.call(route, a_call())
        session.rpc._cancel(route, "1")
        await bus.publish(Event(id="1", type=event))
        async with asyncio.timeout(5):
            await all_found.wait()
        await server.cancel()

    found["Event"].discard("correlation_id")  # by which its sender finds a returned event
    rows = {codes(row[0])[0]: {*codes(row[2])} & {*PROPERTIES} for row in table("Messages")}
    assert found == {name: rows[name] for name in EXCHANGES.values()}


def test_table_of_batches_and_answers_to_probes_has_each_field() -> None:
    expected = [
        (f"{name}.{field.name}", field.number)
        for name in ("Batch", "ProbeAnswer")
        for field in message_class(f"postbus.bus.v1.{name}").DESCRIPTOR.fields
    ]

    rows = [(codes(row[0])[0], int(row[1])) for row in table("Batch and ProbeAnswer")]
    assert rows == expected


def test_table_of_health_methods_has_those_of_every_worker() -> None:
    rows = [codes(row[0])[0] for row in table("Health and monitoring")]

    assert sorted(rows) == sorted(
        f"{each}.S" for each in METHODS if each.startswith("postbus.bus.")
    )
    callers = {METHODS[name.removesuffix(".S")].callers for name in rows}
    assert callers == {frozenset({"gateway", "operator"})}


@pytest.mark.parametrize(
    "part",
    [
        f"`x-stream-offset: {REMEMBERED_SECONDS:.0f}s`",
        f"at most {CREDIT} Replies may be in flight",
        f"After every {CREDIT // 2} Replies",
        f"wait for {', '.join(f'{each:g}' for each in DELAYS[:-1])} and {DELAYS[-1]:g} seconds",
        f"at most {MAX_METADATA_BYTES // 1024} KiB",
        f"`iss` is `{ISSUER}`, `aud` is `{AUDIENCE}`",
        f"`typ` `{TOKEN_TYPE}`",
        f"allow {LEEWAY_SECONDS} seconds",
        f"`{topology.ATTEMPT}`, `{topology.REASON}`, `{topology.ERROR_MESSAGE}`,"
        f" `{topology.CONSUMER}` (the queue) and `{topology.DEAD_AT}`",
    ],
)
def test_values_in_the_text_are_those_of_the_code(part: str) -> None:
    assert part in TEXT.replace("all names and values together, and 8 bytes for each value, ", "")
