"""AMQP frames: any bytes, in any pieces, give messages or a ProtocolError."""

import asyncio
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.bus.amqp import frame_writer
from shared.bus.amqp.broker_errors import RefusedError
from shared.bus.amqp.frame_format import ProtocolError
from shared.bus.amqp.frame_reader import FrameReader
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.message_properties import Header, properties
from shared.bus.amqp.received_messages import Confirmed, Delivered, Message, Returned

FRAME_MAX = 4096


def method(channel: int, arguments: bytes) -> bytes:
    return struct.pack(">BHI", 1, channel, len(arguments)) + arguments + b"\xce"


def short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def delivery(channel: int, tag: int, key: bytes, correlation_id: str, body: bytes) -> bytes:
    """Return the frames of a message from the broker: basic.deliver, its header and its body."""
    arguments = b"\0\x3c\0\x3c" + short(b"consumer") + struct.pack(">QB", tag, 0)
    sent = frame_writer.publish(
        channel,
        "",
        "",
        properties("text/plain", correlation_id=correlation_id, reply_to="back"),
        body,
        FRAME_MAX,
    )
    begin = struct.unpack_from(">I", sent, 3)[0] + 8  # after basic.publish
    return method(channel, arguments + short(b"exchange") + short(key)) + sent[begin:]


def content_header(size: int) -> bytes:
    payload = b"\0\x3c\0\0" + struct.pack(">Q", size) + b"\0\0"
    return struct.pack(">BHI", 2, 1, len(payload)) + payload + b"\xce"


def body_frame(body: bytes) -> bytes:
    return struct.pack(">BHI", 3, 1, len(body)) + body + b"\xce"


def returned(channel: int, correlation_id: str) -> bytes:
    sent = delivery(channel, 1, b"", correlation_id, b"")
    arguments = b"\0\x3c\0\x32\x01\x38" + short(b"NO_ROUTE") + short(b"exchange") + short(b"key")
    begin = struct.unpack_from(">I", sent, 3)[0] + 8
    return method(channel, arguments) + sent[begin:]


def foreign() -> bytes:
    """Return a frame that aiormq handles: queue.declare-ok."""
    return method(1, b"\0\x32\0\x0b" + short(b"queue") + b"\0" * 8)


class TwoChannels:
    """A reader of the frames of two channels, and its output."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, object]] = []
        self.other_frames = b""
        self.reader = FrameReader(self._keep, lambda _: None, lambda _: None)
        self.reader.frame_max = FRAME_MAX
        for channel in (1, 2):
            self.reader.channels[channel] = self._keeper(channel)

    def _keep(self, data: bytes) -> None:
        self.other_frames += data

    def _keeper(self, channel: int) -> Callable[[Message], None]:
        def keep(message: Message) -> None:
            match message:
                case Delivered():
                    recorded: object = (message.routing_key, message.correlation_id, message.body)
                case Returned():
                    recorded = message.correlation_id
                case Confirmed():
                    recorded = (message.tag, message.multiple, message.refused)
            self.messages.append((channel, recorded))

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
def test_messages_are_complete_in_any_division_of_the_bytes(
    bodies: list[bytes], pieces: list[int]
) -> None:
    data = b"".join(
        delivery(1 + i % 2, i, b"a.key", str(i), body) + foreign() + returned(1, f"r{i}")
        for i, body in enumerate(bodies)
    )
    output = TwoChannels()

    for piece in cut(data, pieces):
        output.reader.read(piece)

    expected: list[tuple[int, object]] = []
    for i, body in enumerate(bodies):
        expected += [(1 + i % 2, ("a.key", str(i), body)), (1, f"r{i}")]
    assert output.messages == expected
    assert output.other_frames == foreign() * len(bodies)


def test_frames_of_two_channels_may_be_interleaved() -> None:
    def split(data: bytes) -> list[bytes]:
        parts, at = [], 0
        while at < len(data):
            size = struct.unpack_from(">I", data, at + 3)[0] + 8
            parts.append(data[at : at + size])
            at += size
        return parts

    one = split(delivery(1, 1, b"k", "1", b"x" * 9000))
    two = split(delivery(2, 1, b"k", "2", b"y" * 9000))
    output = TwoChannels()

    for first, second in zip(one, two, strict=True):
        output.reader.read(first + second)

    bodies = [
        (channel, recorded[2])
        for channel, recorded in output.messages
        if isinstance(recorded, tuple)
    ]
    assert bodies == [(1, b"x" * 9000), (2, b"y" * 9000)]


@given(data=st.binary(max_size=300))
def test_any_bytes_give_messages_or_a_protocol_error(data: bytes) -> None:
    output = TwoChannels()
    try:
        output.reader.read(data)
    except ProtocolError:
        return
    assert len(output.other_frames) <= len(data)


@given(place=st.integers(0, 10_000), value=st.integers(0, 255), pieces=PIECES)
@settings(deadline=None)
def test_damaged_bytes_give_messages_or_a_protocol_error(
    place: int, value: int, pieces: list[int]
) -> None:
    whole = delivery(1, 1, b"a.key", "1", b"x" * 100) + foreign() + returned(2, "2")
    data = bytearray(whole * 2)
    data[place % len(data)] = value
    output = TwoChannels()
    try:
        for piece in cut(bytes(data), pieces):
            output.reader.read(piece)
    except ProtocolError:
        return


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">BHI", 1, 1, FRAME_MAX + 1) + b"x",  # a frame longer than negotiated
        method(1, b"\0\x3c\0\x3c")[:-1] + b"\0",  # no frame-end
        struct.pack(">BHI", 3, 1, 1) + b"x\xce",  # a body without a method
        method(1, b"\0\x3c\0\x3c") + method(1, b"\0\x3c\0\x3c"),  # a method inside a message
        method(1, b"\0\x3c\0\x50\0"),  # a truncated confirm
        method(1, b"\0\x3c\0\x3c\5") + content_header(0),  # a truncated delivery
        delivery(1, 1, b"k", "", b"")[:-1] + b"\xce" + body_frame(b"x"),  # a body without a message
        method(1, b"\0\x3c\0\x3c\0") + content_header(1) + body_frame(b"xy"),  # a longer body
        method(1, b"\0\x3c\0\x3c\0") + content_header(9) * 2,  # two headers
    ],
)
def test_bytes_that_are_not_amqp_are_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        TwoChannels().reader.read(data)


def test_unregistered_channel_keeps_no_partial_message() -> None:
    output = TwoChannels()
    output.reader.read(delivery(1, 1, b"k", "1", b"x" * 9000)[:5000])

    output.reader.unregister(1)
    output.reader.channels[1] = output._keeper(1)
    output.reader._rest = b""
    output.reader.read(delivery(1, 1, b"k", "2", b"new"))

    assert output.messages == [(1, ("k", "2", b"new"))]


class Wire:
    """Records the acknowledgements of a MessageChannel, in place of a Transport."""

    def __init__(self) -> None:
        self.last: list[Callable[[], bytes]] = []

    def register(self, _channel: int, _handler: object, _frame_max: int) -> None: ...

    def send(self, _data: bytes) -> None: ...

    def send_last(self, frames: Callable[[], bytes]) -> None:
        self.last.append(frames)

    def tick(self) -> list[tuple[int, bool]]:
        """Return the acknowledgements of this tick: delivery tag, multiple."""
        data = b"".join(frames() for frames in self.last)
        self.last.clear()
        acks = [data[at : at + 21] for at in range(0, len(data), 21)]
        return [(struct.unpack_from(">Q", ack, 11)[0], bool(ack[19])) for ack in acks]


class Numbered:
    number = 1
    max_content_size = FRAME_MAX - 8


@given(
    order=st.permutations(range(1, 13)),
    ticks=st.lists(st.integers(1, 5), max_size=12),
    rejected=st.sets(st.integers(1, 12), max_size=6),
)
def test_each_message_is_acknowledged_once_in_any_order(
    order: list[int], ticks: list[int], rejected: set[int]
) -> None:
    wire = Wire()
    channel = MessageChannel(None, Numbered(), wire, "")  # type: ignore[arg-type]  # the parts that it uses
    unsettled, done = set(order), set[int]()
    waiting = iter(order)

    for count in [*ticks, len(order)]:
        for tag in (tag for tag, _ in zip(waiting, range(count), strict=False)):
            if tag in rejected:
                channel.reject(tag, requeue=False)
                unsettled.remove(tag)
            else:
                channel.ack(tag)
            done.add(tag)
        for tag, multiple in wire.tick():
            assert tag in unsettled  # the broker closes the channel otherwise
            unsettled -= {each for each in unsettled if each == tag or (multiple and each < tag)}
        assert unsettled == set(order) - done


async def test_one_confirm_settles_all_messages_up_to_its_tag() -> None:
    channel = MessageChannel(None, Numbered(), Wire(), "")  # type: ignore[arg-type]  # the parts that it uses
    sent = [
        asyncio.create_task(channel.publish_confirmed("", "k", {"content_type": ""}, b""))
        for _ in range(4)
    ]
    await asyncio.sleep(0)

    channel._receive(Confirmed(3, multiple=True, refused=False))
    await asyncio.gather(*sent[:3])
    assert not sent[3].done()

    channel._receive(Confirmed(4, multiple=False, refused=True))
    with pytest.raises(RefusedError):
        await sent[3]


@pytest.mark.parametrize(("size", "kept"), [(2**24, 2**24), (2**24 + 1, 0)])
def test_body_of_more_than_16_mib_is_skipped(size: int, kept: int) -> None:
    found = list[Message]()
    reader = FrameReader(lambda _: None, lambda _: None, lambda _: None)
    reader.channels[1] = found.append
    sent = frame_writer.publish(1, "", "", properties("text/plain"), bytes(size), 2**17)
    begin = struct.unpack_from(">I", sent, 3)[0] + 8  # after basic.publish

    reader.read(method(1, b"\0\x3c\0\x3c" + short(b"c") + b"\0" * 9 + short(b"") + short(b"k")))
    reader.read(sent[begin:])

    [message] = found
    assert isinstance(message, Delivered)
    assert (len(message.body), message.oversized) == (kept, kept == 0)


@pytest.mark.parametrize("text", ["x" * 256, "é" * 128])
def test_text_of_more_than_255_bytes_is_no_short_string(text: str) -> None:
    header = Header("text/plain", "back", "test")

    assert header("x" * 255) == properties(
        "text/plain", correlation_id="x" * 255, reply_to="back", user_id="test"
    )
    for encode in (header, lambda each: properties("text/plain", reply_to=each)):
        with pytest.raises(ValueError, match="at most 255 bytes"):
            encode(text)


@pytest.mark.parametrize(
    "headers", [b"\xff", b"\0\0\0\x09\1aSxxxx", b"\0\0\0\7" + b"\1aF\0\0\0\7" * 2_000]
)
def test_malformed_headers_are_empty(headers: bytes) -> None:
    assert Delivered(1, "k", "", "", headers, b"").headers == {}
