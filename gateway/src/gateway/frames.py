"""Frames of the WebSocket (proto/postbus/realtime/v1) as proto3 JSON, read and written."""

from dataclasses import dataclass
from typing import Any, Final

import orjson
from google.protobuf.message import Message

from gateway.calls import public_method
from gateway.transcoding import Document, parse_document, to_json
from postbus.registry import Method
from shared.errors import Code, ServiceError
from shared.wire import message_class, require_valid, to_upb

__all__ = [
    "EVENT_SUFFIX",
    "ClientFrame",
    "answer_frame",
    "any_document",
    "error_frame",
    "event_prefix",
    "frame_id",
    "read_client_frame",
    "result_frame",
]

EVENT_SUFFIX: Final = b"}"
"""Comes after the JSON of a delivery; see `event_prefix`."""

_CLIENT_FRAME: Final = message_class("postbus.realtime.v1.ClientFrame")
_ANY: Final = "type.googleapis.com/"
_MAX_ID: Final = 64
_MAX_VIOLATIONS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFrame:
    """A valid frame of a client."""

    id: str
    kind: str
    """The member of the oneof that is set, such as `call`."""
    content: Any
    """The message of this member, as google's class; a Call without its `request`."""
    method: Method | None = None
    """Of a call: the method that is called."""
    request: Message | None = None
    """Of a call: the valid request message of the method."""


def read_client_frame(document: Any) -> ClientFrame:
    """Return the frame that a document describes; a ServiceError if it describes none.

    INVALID_ARGUMENT with reason NOT_AN_OBJECT, MALFORMED_JSON, INVALID_FIELDS or
    WRONG_REQUEST_TYPE; UNIMPLEMENTED with UNKNOWN_METHOD. The request of a call is converted as the
    request type of its method and as no other.
    """
    if not isinstance(document, dict):
        raise ServiceError(Code.INVALID_ARGUMENT, "NOT_AN_OBJECT", "A frame is a JSON object.")
    call = document.get("call")
    if not isinstance(call, dict):
        return _read_envelope(document)
    envelope = {name: value for name, value in call.items() if name != "request"}
    frame = _read_envelope({**document, "call": envelope})
    method = public_method(frame.content.method)
    return ClientFrame(
        id=frame.id,
        kind=frame.kind,
        content=frame.content,
        method=method,
        request=_read_request(method, call.get("request")),
    )


def _read_envelope(document: Document) -> ClientFrame:
    frame: Any = parse_document(_CLIENT_FRAME, document)
    require_valid(frame)
    kind = frame.WhichOneof("frame")
    return ClientFrame(id=frame.id, kind=kind, content=getattr(frame, kind))


def _read_request(method: Method, document: Any) -> Message:
    """Read google.protobuf.Any, whose `@type` may be left out: the method states it."""
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise ServiceError(Code.INVALID_ARGUMENT, "NOT_AN_OBJECT", "A request is a JSON object.")
    if "@type" in document:
        document = dict(document)
        if document.pop("@type") != _ANY + method.request_name:
            raise ServiceError(
                Code.INVALID_ARGUMENT,
                "WRONG_REQUEST_TYPE",
                f"{method.name} takes a {method.request_name}.",
            )
    request = parse_document(message_class(method.request_name), document)
    require_valid(request)
    return request


def frame_id(document: Any) -> str:
    """Return the id of a frame that may be invalid, to answer it by; empty if it has none."""
    found = document.get("id") if isinstance(document, dict) else None
    return found[:_MAX_ID] if isinstance(found, str) else ""


def any_document(message: Message) -> Document:
    """Return google.protobuf.Any with this message in it, as proto3 JSON."""
    return {"@type": _ANY + message.DESCRIPTOR.full_name, **to_json(message)}


def answer_frame(kind: str, message: Message, *, id_: str) -> bytes:
    """Return a frame such as `authenticated`."""
    return orjson.dumps({"id": id_, kind: to_json(message)})


def result_frame(response: Message, *, id_: str, replayed: bool) -> bytes:
    """Return the frame with the response of a call."""
    result = {"response": any_document(response), "replayed": replayed}
    return orjson.dumps({"id": id_, "result": result})


def error_frame(error: ServiceError, *, id_: str, trace: str) -> bytes:
    """Return the frame of an error, with at most 20 violations."""
    message = error.to_message(trace)
    del message.violations[_MAX_VIOLATIONS:]
    return orjson.dumps({"id": id_, "error": to_json(to_upb(message))})


def event_prefix(id_: str) -> bytes:
    """Return what comes before the JSON of a delivery in the frame for this subscription.

    So a delivery is written to JSON once, for all its receivers.
    """
    return b'{"id":' + orjson.dumps(id_) + b',"event":'
