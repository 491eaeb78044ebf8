"""AMQP frames: whatever comes, in whatever pieces, gives messages or a ProtocolError."""

import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.bus.amqp import frames
from shared.bus.amqp.broker_connection import MessageChannel
from shared.bus.amqp.frames import Confirmed, Delivered, Parser, ProtocolError, Returned

FRAME_MAX = 4096


def method(channel: int, arguments: bytes) -> bytes:
    return struct.pack(">BHI", 1, channel, len(arguments)) + arguments + b"\xce"


def short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def delivery(channel: int, tag: int, key: bytes, correlation_id: str, body: bytes) -> bytes:
    """What the broker sends for a message: basic.deliver, its header and its body's frames."""
    arguments = b"\0\x3c\0\x3c" + short(b"consumer") + struct.pack(">QB", tag, 0)
    sent = frames.publish(
        channel,
        "",
        "",
        frames.properties("text/plain", correlation_id=correlation_id, reply_to="back"),
        body,
        FRAME_MAX,
    )
    begin = struct.unpack_from(">I", sent, 3)[0] + 8  # after basic.publish
    return method(channel, arguments + short(b"exchange") + short(key)) + sent[begin:]


def returned(channel: int, correlation_id: str) -> bytes:
    sent = delivery(channel, 1, b"", correlation_id, b"")
    arguments = b"\0\x3c\0\x32\x01\x38" + short(b"NO_ROUTE") + short(b"exchange") + short(b"key")
    begin = struct.unpack_from(">I", sent, 3)[0] + 8
    return method(channel, arguments) + sent[begin:]


def foreign() -> bytes:
    """A frame for aiormq: queue.declare-ok."""
    return method(1, b"\0\x32\0\x0b" + short(b"queue") + b"\0" * 8)


class Reader:
    """A parser of two channels, and all that it told."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, object]] = []
        self.others = b""
        self.parser = Parser(self._keep, lambda _: None)
        self.parser.frame_max = FRAME_MAX
        for channel in (1, 2):
            self.parser.channels[channel] = self._keeper(channel)

    def _keep(self, data: bytes) -> None:
        self.others += data

    def _keeper(self, channel: int) -> Callable[[frames.Message], None]:
        def keep(message: frames.Message) -> None:
            match message:
                case Delivered():
                    told: object = (message.routing_key, message.correlation_id, message.body)
                case Returned():
                    told = message.correlation_id
                case Confirmed():
                    told = (message.tag, message.multiple, message.refused)
            self.messages.append((channel, told))

        return keep


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size
    yield data[at:]


BODIES = st.binary(max_size=3 * FRAME_MAX)
PIECES = st.lists(st.integers(1, 3000), max_size=30)


@given(bodies=st.lists(BODIES, max_size=6), pieces=PIECES)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_messages_come_whole_however_the_bytes_are_cut(
    bodies: list[bytes], pieces: list[int]
) -> None:
    data = b"".join(
        delivery(1 + i % 2, i, b"a.key", str(i), body) + foreign() + returned(1, f"r{i}")
        for i, body in enumerate(bodies)
    )
    reader = Reader()

    for piece in cut(data, pieces):
        reader.parser.feed(piece)

    expected: list[tuple[int, object]] = []
    for i, body in enumerate(bodies):
        expected += [(1 + i % 2, ("a.key", str(i), body)), (1, f"r{i}")]
    assert reader.messages == expected
    assert reader.others == foreign() * len(bodies)


def test_messages_of_two_channels_may_be_interleaved() -> None:
    def split(data: bytes) -> list[bytes]:
        parts, at = [], 0
        while at < len(data):
            size = struct.unpack_from(">I", data, at + 3)[0] + 8
            parts.append(data[at : at + size])
            at += size
        return parts

    one = split(delivery(1, 1, b"k", "1", b"x" * 9000))
    two = split(delivery(2, 1, b"k", "2", b"y" * 9000))
    reader = Reader()

    for first, second in zip(one, two, strict=True):
        reader.parser.feed(first + second)

    bodies = [(channel, told[2]) for channel, told in reader.messages if isinstance(told, tuple)]
    assert bodies == [(1, b"x" * 9000), (2, b"y" * 9000)]


@given(data=st.binary(max_size=300))
def test_any_bytes_give_messages_or_a_protocol_error(data: bytes) -> None:
    reader = Reader()
    try:
        reader.parser.feed(data)
    except ProtocolError:
        return
    assert len(reader.others) <= len(data)


@given(place=st.integers(0, 10_000), value=st.integers(0, 255), pieces=PIECES)
@settings(deadline=None)
def test_damaged_bytes_give_messages_or_a_protocol_error(
    place: int, value: int, pieces: list[int]
) -> None:
    whole = delivery(1, 1, b"a.key", "1", b"x" * 100) + foreign() + returned(2, "2")
    data = bytearray(whole * 2)
    data[place % len(data)] = value
    reader = Reader()
    try:
        for piece in cut(bytes(data), pieces):
            reader.parser.feed(piece)
    except ProtocolError:
        return


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">BHI", 1, 1, FRAME_MAX + 1) + b"x",  # a frame longer than agreed
        method(1, b"\0\x3c\0\x3c")[:-1] + b"\0",  # no frame-end
        struct.pack(">BHI", 3, 1, 1) + b"x\xce",  # a body without a method
        method(1, b"\0\x3c\0\x3c") + method(1, b"\0\x3c\0\x3c"),  # a method inside a message
        method(1, b"\0\x3c\0\x50\0"),  # a confirm that is cut short
    ],
)
def test_what_is_not_amqp_is_an_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Reader().parser.feed(data)


def test_closed_channel_leaves_nothing_behind() -> None:
    reader = Reader()
    reader.parser.feed(delivery(1, 1, b"k", "1", b"x" * 9000)[:5000])

    reader.parser.unregister(1)
    reader.parser.channels[1] = reader._keeper(1)
    reader.parser._rest = b""
    reader.parser.feed(delivery(1, 1, b"k", "2", b"new"))

    assert reader.messages == [(1, ("k", "2", b"new"))]


class Wire:
    """What a MessageChannel sends through, instead of a Transport."""

    frame_max = FRAME_MAX

    def __init__(self) -> None:
        self.last: list[Callable[[], bytes]] = []

    def register(self, _channel: int, _handler: object) -> None: ...

    def send(self, _data: bytes) -> None: ...

    def send_last(self, frames: Callable[[], bytes]) -> None:
        self.last.append(frames)

    def tick(self) -> list[tuple[int, bool]]:
        """Return the acknowledgements of this tick: delivery tag, and whether of all up to it."""
        data = b"".join(frames() for frames in self.last)
        self.last.clear()
        acks = [data[at : at + 21] for at in range(0, len(data), 21)]
        return [(struct.unpack_from(">Q", ack, 11)[0], bool(ack[19])) for ack in acks]


class Numbered:
    number = 1


@given(
    order=st.permutations(range(1, 13)),
    ticks=st.lists(st.integers(1, 5), max_size=12),
    rejected=st.sets(st.integers(1, 12), max_size=6),
)
def test_each_message_is_acknowledged_once_in_whatever_order(
    order: list[int], ticks: list[int], rejected: set[int]
) -> None:
    wire = Wire()
    channel = MessageChannel(None, Numbered(), wire)  # type: ignore[arg-type]  # all that it needs of them
    unknown, done = set(order), set[int]()
    waiting = iter(order)

    for count in [*ticks, len(order)]:
        for tag in (tag for tag, _ in zip(waiting, range(count), strict=False)):
            if tag in rejected:
                channel.reject(tag, requeue=False)
                unknown.remove(tag)
            else:
                channel.ack(tag)
            done.add(tag)
        for tag, multiple in wire.tick():
            assert tag in unknown  # the broker closes the channel otherwise
            unknown -= {each for each in unknown if each == tag or (multiple and each < tag)}
        assert unknown == set(order) - done
