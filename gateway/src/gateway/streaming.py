"""Streams over REST: a line of JSON for each message (application/x-ndjson)."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import orjson
from starlette.responses import StreamingResponse

from gateway.problems import problem
from gateway.transcoding import Transcoder
from shared.errors import ServiceError

__all__ = ["stream_response"]


async def stream_response(
    payloads: AsyncGenerator[bytes, None], transcoder: Transcoder, trace_id: str
) -> StreamingResponse:
    """Return the response once the stream has begun; raises what ends it before.

    Each line is `{"result": ...}`. A failure in the middle can't change the status any more: the
    last line is then `{"error": ...}` with the problem. A client that leaves ends the call.
    """
    first = await anext(payloads, None)

    async def lines() -> AsyncGenerator[bytes, None]:
        async with aclosing(payloads):
            try:
                if first is not None:
                    yield _line(transcoder, first)
                async for payload in payloads:
                    yield _line(transcoder, payload)
            except ServiceError as error:
                yield b'{"error":' + bytes(problem(error, trace_id).body) + b"}\n"

    return StreamingResponse(lines(), transcoder.rule.status, media_type="application/x-ndjson")


def _line(transcoder: Transcoder, payload: bytes) -> bytes:
    line = transcoder.write(transcoder.response(payload))
    return b'{"result":' + (line or orjson.dumps({})) + b"}\n"
