"""Frames of the WebSocket as ProtoJSON."""

from typing import Any, Final

import orjson
from google.protobuf.message import Message

from gateway.calls import public_method
from gateway.masks import resource_of, unknown_paths
from gateway.transcoding import Document
from postbus.registry import Method
from shared.errors import Code, FieldViolation, ServiceError
from shared.protojson import read_message, require_unique
from shared.wire import examine, invalid_fields, message_class, require_valid

__all__ = ["event_frame", "frame_id", "read_client_frame", "server_frame"]

_CLIENT_FRAME: Final = "postbus.realtime.v1.ClientFrame"
_IN_REQUEST: Final = "call.request."


def read_client_frame(document: Any, text: bytes | None = None) -> Any:
    """Return the frame that a document describes.

    The request of a `call` is read as the message that its method takes, so that its violations
    have the same paths as over REST; it is then in the frame as an Any. `text` is what the document
    was parsed from by `parse_json`: it is searched for duplicates. Raises INVALID_ARGUMENT, and
    UNIMPLEMENTED for a method that there is not.
    """
    if not isinstance(document, dict):
        raise ServiceError(Code.INVALID_ARGUMENT, "NOT_AN_OBJECT", "A frame is a JSON object.")
    if text is not None:
        _require_unique(text, document)
    document, call = dict(document), document.get("call")
    request = None
    if isinstance(call, dict):
        document["call"] = {name: each for name, each in call.items() if name != "request"}
        request = call.get("request")
    frame: Any = read_message(message_class(_CLIENT_FRAME), document)
    require_valid(frame)
    if frame.WhichOneof("frame") == "call":
        method = public_method(frame.call.method)
        frame.call.request.Pack(_request(method, request))
    return frame


def _request(method: Method, document: Any) -> Message:
    """Return the request of a call; its `@type` may be left out, for the method says it."""
    document = {} if document is None else document
    if not isinstance(document, dict):
        raise ServiceError(Code.INVALID_ARGUMENT, "NOT_AN_OBJECT", "A request is a JSON object.")
    if "@type" in document:
        document = dict(document)
        if str(document.pop("@type")).rpartition("/")[2] != method.request_name:
            raise ServiceError(
                Code.INVALID_ARGUMENT,
                "WRONG_REQUEST_TYPE",
                f"{method.name} takes a {method.request_name}.",
            )
    message: Any = read_message(message_class(method.request_name), document)
    found = []
    resource = resource_of(method)
    if resource is not None and resource.has_mask:
        found = unknown_paths(resource, message)
    broken, more = examine(message)
    if found or broken:
        raise invalid_fields([*found, *broken], more=more)
    request: Message = message
    return request


def _require_unique(text: bytes, document: Any) -> None:
    """Refuse duplicates; paths in the request of a call are relative to it, as all others are."""
    try:
        require_unique(text, document)
    except ServiceError as error:
        violations = [
            FieldViolation(
                field=each.field.removeprefix(_IN_REQUEST), rule=each.rule, message=each.message
            )
            for each in error.violations
        ]
        raise invalid_fields(violations, more=error.more_violations) from None


def frame_id(document: Any) -> str:
    """Return the id of a frame that may be invalid, to answer it by; empty if it has none."""
    found = document.get("id") if isinstance(document, dict) else None
    return found[:64] if isinstance(found, str) else ""


def server_frame(frame: str, document: Document, *, id_: str) -> str:
    """Return the text of a server's frame, such as `result`."""
    return orjson.dumps({"id": id_, frame: document}).decode()


def event_frame(delivery: orjson.Fragment, *, id_: str) -> str:
    """Return the text of the frame of an event that was converted once for all its receivers."""
    return orjson.dumps({"id": id_, "event": delivery}).decode()
