"""The acknowledgements of a channel, in as few frames as possible."""

from shared.bus.amqp import frame_writer

__all__ = ["Acknowledgements"]


class Acknowledgements:
    """Encodes acknowledgements: mostly one frame for all messages of an event-loop tick.

    A frame can acknowledge all messages up to a delivery tag (60.80, multiple). Each channel
    numbers its deliveries from 1 (1.1).
    """

    __slots__ = ("_channel", "_settled", "_settled_up_to", "acked")

    def __init__(self, channel: int) -> None:
        self.acked: list[int] = []
        """The delivery tags of the messages that were acknowledged in this tick."""
        self._channel = channel
        self._settled_up_to = 0
        """All messages up to this delivery tag are settled."""
        self._settled: set[int] = set()
        """The delivery tags of the settled messages above it."""

    def reject(self, tag: int) -> None:
        """Take note that a message was rejected, which settles it too."""
        self._settled.add(tag)

    def frames(self) -> bytes:
        """Return the frames for the messages that were acknowledged in this tick."""
        acked, self.acked = self.acked, []
        end = self._settled_up_to
        if acked == [end + 1] and not self._settled:
            self._settled_up_to += 1
            return frame_writer.ack(self._channel, end + 1)
        self._settled.update(acked)
        while end + 1 in self._settled:
            end += 1
            self._settled.remove(end)
        self._settled_up_to = end
        out = [frame_writer.ack(self._channel, tag) for tag in acked if tag > end]
        # The largest tag may be a rejected one, and a second settlement of it would be an error.
        if covered := [tag for tag in acked if tag <= end]:
            out.append(frame_writer.ack(self._channel, max(covered), multiple=True))
        return b"".join(out)
