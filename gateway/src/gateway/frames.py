"""Frames of the WebSocket as proto3 JSON."""

from typing import Any

import orjson

from gateway.transcoding import Document, parse_document
from postbus.registry import METHODS
from shared.errors import Code, ServiceError
from shared.wire import message_class, require_valid

__all__ = ["frame_id", "read_client_frame", "server_frame"]

_CLIENT_FRAME = "postbus.realtime.v1.ClientFrame"
_ANY = "type.googleapis.com/"


def read_client_frame(document: Any) -> Any:
    """Return the frame that a document describes; INVALID_ARGUMENT if it describes none."""
    if not isinstance(document, dict):
        raise ServiceError(Code.INVALID_ARGUMENT, "NOT_AN_OBJECT", "A frame is a JSON object.")
    _complete_call(document.get("call"))
    frame = parse_document(message_class(_CLIENT_FRAME), document)
    require_valid(frame)
    return frame


def _complete_call(call: Any) -> None:
    """Add the `@type` that a client may leave out: the method says it."""
    if not isinstance(call, dict) or not isinstance(method := call.get("method"), str):
        return
    known = METHODS.get(method)
    request = call.setdefault("request", {})
    if known is not None and isinstance(request, dict):
        request.setdefault("@type", _ANY + known.request_name)


def frame_id(document: Any) -> str:
    """Return the id of a frame that may be invalid, to answer it by; empty if it has none."""
    found = document.get("id") if isinstance(document, dict) else None
    return found[:64] if isinstance(found, str) else ""


def server_frame(frame: str, document: Document, *, id_: str) -> str:
    """Return the text of a server's frame, such as `result`."""
    return orjson.dumps({"id": id_, frame: document}).decode()
