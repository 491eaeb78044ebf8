"""The format of the AMQP 0-9-1 frames that carry messages: numbers, flags and layouts.

Numbers in comments are sections of the specification, parts I (1, 2, 4) and XML (class.method).
A message is a method frame, a content header frame and any number of body frames (4.2.6). With a
body in one frame, sizes in bytes:

      1      2       4    payload                                   1
    +---+---------+------+---------------------------------------+----+
    | 1 | channel | size | class 2, method 2, arguments          | CE |  deliver, publish, return
    +---+---------+------+---------------------------------------+----+
    | 2 | channel | size | class 2, weight 2, body size 8,       | CE |  content header
    |   |         |      | property flags 2, property list       |    |
    +---+---------+------+---------------------------------------+----+
    | 3 | channel | size | body                                  | CE |  body
    +---+---------+------+---------------------------------------+----+
"""

import struct
from typing import Final

END: Final = b"\xce"  # 4.2.3: frame-end
END_BYTE: Final = 0xCE
METHOD, HEADER, BODY = 1, 2, 3  # 4.2.3: frame types
BASIC: Final = 60
CHANNEL_CLOSE: Final = b"\0\x14\0\x28"
CONNECTION_CLOSE: Final = b"\0\x0a\0\x32"
BLOCKED, UNBLOCKED = b"\0\x0a\0\x3c", b"\0\x0a\0\x3d"  # connection.blocked, a RabbitMQ extension
PUBLISH, RETURN, DELIVER, ACK, REJECT, NACK = 40, 50, 60, 80, 90, 120
BASIC_CLASS: Final = b"\0\x3c"
CONFIRMS: Final = frozenset((ACK, NACK))
MESSAGE_METHODS: Final = frozenset((DELIVER, RETURN, ACK, NACK))

FRAME: Final = struct.Struct(">BHI")  # type, channel, size
METHOD_FRAME: Final = struct.Struct(">BHIHH")  # the same, class and method
HEADER_FRAME: Final = struct.Struct(">BHIHHQ")  # the same, class, weight and body size
ACK_FRAME: Final = struct.Struct(">BHIHHQBB")  # the same, delivery tag, multiple or requeue, end
TAG: Final = struct.Struct(">Q")
OVERHEAD: Final = 8


class ProtocolError(Exception):
    """The bytes from the broker are not valid AMQP 0-9-1."""
