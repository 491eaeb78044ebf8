"""Read and write the frames of the WebSocket (proto/postbus/realtime/v1) as ProtoJSON."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import orjson
from google.protobuf.message import Message

from gateway.method_access import public_method
from gateway.parameters import Document
from gateway.update_masks import resource_of, unknown_paths
from postbus import reasons
from postbus.registry import Method
from shared.errors import FieldViolation, ServiceError
from shared.output_only import remover
from shared.protojson import packed, parse_json, read_message, require_unique, write_message
from shared.wire import find_violations, invalid_fields, message_class, require_valid, to_upb

__all__ = [
    "EVENT_SUFFIX",
    "CallFrame",
    "ClientFrame",
    "error_frame",
    "event_prefix",
    "first_member_id",
    "frame_id",
    "member_frame",
    "parse_frame",
    "read_client_frame",
    "read_frame",
    "result_frame",
]

EVENT_SUFFIX: Final = b"}"
"""The end of a frame, after the JSON of a delivery; see `event_prefix`."""

_CLIENT_FRAME: Final = message_class("postbus.realtime.v1.ClientFrame")
_MAX_ID: Final = 64
"""Most characters of a frame's id, as in frames.proto."""
_IN_REQUEST: Final = "call.request."
_FIRST_MEMBER_ID: Final = re.compile(rb'\s*\{\s*"id"\s*:\s*"([\x20!#-\[\]-\x7e]{1,64})"')


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFrame:
    """A valid frame of a client."""

    id: str
    kind: str
    """The member of the oneof that is set, such as `call`."""
    content: Any
    """The message of this member, of upb's class; a Call without its `request`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFrame(ClientFrame):
    """A valid frame that calls a method."""

    method: Method
    request: Message
    """The valid request message of the method."""


def parse_frame(text: bytes) -> Any:
    """Return the JSON document of a frame; see `parse_json`."""
    with _paths_in_request():
        return parse_json(text)


def read_client_frame(document: Any, text: bytes) -> ClientFrame:
    """Return the frame in a document.

    `text` is the JSON from which `parse_frame` read the document; it is searched for duplicates.
    Raises INVALID_ARGUMENT with reason NOT_AN_OBJECT, INVALID_FIELDS or WRONG_REQUEST_TYPE;
    UNIMPLEMENTED with UNKNOWN_METHOD. The request of a call is converted only to the request type
    of its method; the paths of its violations are the same as over REST.
    """
    if not isinstance(document, dict):
        raise ServiceError(reasons.NOT_AN_OBJECT, "A frame is a JSON object.")
    with _paths_in_request():
        require_unique(text, document)
    call = document.get("call")
    if not isinstance(call, dict):
        return _read_envelope(document)
    envelope = {name: value for name, value in call.items() if name != "request"}
    frame = _read_envelope({**document, "call": envelope})
    method = public_method(frame.content.method)
    return CallFrame(
        id=frame.id,
        kind=frame.kind,
        content=frame.content,
        method=method,
        request=_read_request(method, call.get("request")),
    )


def _read_envelope(document: Document) -> ClientFrame:
    frame: Any = read_message(_CLIENT_FRAME, document)
    require_valid(frame)
    kind = frame.WhichOneof("frame")
    return ClientFrame(id=frame.id, kind=kind, content=getattr(frame, kind))


def _read_request(method: Method, document: Any) -> Message:
    """Return the request message in a google.protobuf.Any; the method implies its `@type`."""
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise ServiceError(reasons.NOT_AN_OBJECT, "A request is a JSON object.")
    if "@type" in document:
        document = dict(document)
        if str(document.pop("@type")).rpartition("/")[2] != method.request_name:
            raise ServiceError(
                reasons.WRONG_REQUEST_TYPE,
                f"{method.name} takes a {method.request_name}.",
            )
    resource = resource_of(method)
    if resource is not None:
        document = resource.without_read_only(document)
    request = read_message(message_class(method.request_name), document)
    remove_output_only = remover(request.DESCRIPTOR)
    if remove_output_only is not None:
        remove_output_only(request)
    found = unknown_paths(resource, request) if resource and resource.has_mask else []
    broken, more = find_violations(request)
    if found or broken:
        raise invalid_fields([*found, *broken], more=more)
    return request


@contextmanager
def _paths_in_request() -> Iterator[None]:
    """Make the paths of violations relative to the request of a call, as over REST."""
    try:
        yield
    except ServiceError as error:
        if not error.violations:
            raise
        violations = [
            FieldViolation(
                field=each.field.removeprefix(_IN_REQUEST), rule=each.rule, message=each.message
            )
            for each in error.violations
        ]
        raise invalid_fields(violations, more=error.more_violations) from None


def frame_id(document: Any) -> str:
    """Return the id of a frame that may be invalid, truncated; empty if it has none."""
    found = document.get("id") if isinstance(document, dict) else None
    return found[:_MAX_ID] if isinstance(found, str) else ""


def read_frame(message: bytes) -> tuple[str, ClientFrame | ServiceError]:
    """Return the id of a frame, and the frame or the error that refuses it."""
    id_ = ""
    try:
        document = parse_frame(message)
        id_ = frame_id(document)
        return id_, read_client_frame(document, message)
    except ServiceError as error:
        return id_, error


def first_member_id(text: bytes) -> str:
    """Return the id of a frame that is not parsed, if `id` is its first member; else empty."""
    found = _FIRST_MEMBER_ID.match(text)
    return found[1].decode() if found else ""


def member_frame(kind: str, message: Message, *, id_: str) -> bytes:
    """Return a frame with one member, such as `authenticated`."""
    return orjson.dumps({"id": id_, kind: write_message(message)})


def result_frame(response: Message, *, id_: str, replayed: bool) -> bytes:
    """Return the frame with the response of a call."""
    result = {"response": packed(response), "replayed": replayed}
    return orjson.dumps({"id": id_, "result": result})


def error_frame(error: ServiceError, *, id_: str, trace: str) -> bytes:
    """Return the frame of an error."""
    return orjson.dumps({"id": id_, "error": write_message(to_upb(error.to_message(trace)))})


def event_prefix(id_: str) -> bytes:
    """Return the beginning of a subscription's frames, up to the JSON of the delivery.

    So each delivery is written to JSON only once, for all subscriptions.
    """
    return b'{"id":' + orjson.dumps(id_) + b',"event":'
