"""The WebSocket in the AsyncAPI document: the frames of the client and of the server."""

from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from postbus_runtime.reasons import Scope
from tools.contracts.generate.asyncapi_document import AsyncApiDocument
from tools.contracts.generate.schemas import Schema

__all__ = ["WebSocketFrames"]

_WEBSOCKET: Final = "websocket"
_TAG: Final = "WebSocket"
_REALTIME: Final = "postbus.realtime.v1"
_REPLIES: Final = {
    "authenticate": ("authenticated", "error"),
    "subscribe": ("subscribed", "error"),
    "unsubscribe": ("unsubscribed", "error"),
    "cancel": ("error",),
}
_SOCKET: Final = """\
Frames are [ProtoJSON](https://protobuf.dev/programming-guides/json) in text messages. The server
sends its canonical form, as in the schemas. Clients may also send `null` for a member that is not
set, the names of the `.proto`, the numbers of enum values, and numbers as strings. Read-only
members of a resource in a request are ignored, so that it can be sent as it was read. The first
frame of a client must be `authenticate`: any other frame closes the connection. The server closes
with 1003 after a binary message, 1009 after a message that is too large, 1013 if events may have
been missed, 4401 for a missing or expired token or an ended session, and 4429 for a client that
sends too much or reads too slowly; `frames.proto` lists all codes."""


class WebSocketFrames:
    """Adds the frames to a document."""

    def __init__(self, document: AsyncApiDocument) -> None:
        self._document = document
        self._schemas = document.schemas
        self._channels = document.channels
        self._operations = document.operations

    def add_common(self) -> None:
        """Add the frames that are the same for all methods and events."""
        self._channels[_WEBSOCKET] = {
            "address": "/ws",
            "description": _SOCKET,
            "servers": [{"$ref": "#/servers/gateway"}],
            "messages": {},
            "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
        }
        for kind, request, special in (
            ("ClientFrame", True, "call"),
            ("ServerFrame", False, "result event"),
        ):
            for field in self._document.own[f"{_REALTIME}.{kind}"].fields:
                if field.containing_oneof and field.name not in special.split():
                    schema = self._schemas.field(field, request=request, required=True)
                    about = self._about_errors(field) if field.name == "error" else ""
                    self._add_frame(field.name, field, schema, request=request, about=about)
        for frame, replies in _REPLIES.items():
            self._operate(f"{_WEBSOCKET}.{frame}", "receive", [frame], replies)

    def _about_errors(self, field: FieldDescriptor) -> str:
        """Return the comment of the error frame with the reasons that do not depend on a method."""
        scopes = (Scope.CALL, Scope.WEBSOCKET)
        reasons = (self._document.common_reasons(scope) for scope in scopes)
        return "\n\n".join([self._document.comment(field), *reasons])

    def add_call(self, method: MethodDescriptor) -> None:
        """Add the frames of a call and of its result."""
        name = method.full_name
        call = self._document.own[f"{_REALTIME}.Call"]
        schema = self._schemas.message(call, request=True, without=frozenset({"request"}))
        schema["properties"] |= {
            "method": {"const": name},
            "request": self._schemas.reference(method.input_type, request=True),
        }
        frame = self._document.own[f"{_REALTIME}.ClientFrame"].fields_by_name["call"]
        about = self._document.about(method)
        self._add_frame(f"call.{name}", frame, schema, request=True, about=about)
        result = self._schemas.message(self._document.own[f"{_REALTIME}.Result"], request=False)
        result["properties"]["response"] = self._typed(method.output_type)
        frame = self._document.own[f"{_REALTIME}.ServerFrame"].fields_by_name["result"]
        self._add_frame(f"result.{name}", frame, result, request=False)
        replies = (f"result.{name}", *(["completed"] if method.server_streaming else []), "error")
        self._operate(f"{_WEBSOCKET}.{name}", "receive", [f"call.{name}"], replies)

    def add_delivery(self, message: Descriptor) -> None:
        """Add the frame of an event."""
        name, about = message.full_name, self._document.comment(message)
        recipient = self._document.contracts.event_options[name].recipient
        if user := message.fields_by_name.get(recipient):
            about += f"\n\nOnly the user with the id `{user.json_name}` receives it."
        delivery = self._schemas.message(self._document.own[f"{_REALTIME}.Delivery"], request=False)
        delivery["properties"]["data"] = self._typed(message)
        frame = self._document.own[f"{_REALTIME}.ServerFrame"].fields_by_name["event"]
        self._add_frame(f"event.{name}", frame, delivery, request=False, about=about)
        self._operate(f"{_WEBSOCKET}.{name}", "send", [f"event.{name}"])

    def _add_frame(
        self, name: str, field: FieldDescriptor, schema: Schema, *, request: bool, about: str = ""
    ) -> None:
        """Add a frame: its id, and `field`, the member of its oneof."""
        id_ = field.containing_type.fields_by_name["id"]  # type: ignore[union-attr]  # of a frame
        payload: Schema = {
            "type": "object",
            "properties": {
                "id": self._schemas.field(id_, request=request, required=True),
                field.json_name: schema,
            },
            "required": ["id", field.json_name],
        }
        self._document.add_message(
            _WEBSOCKET, name, about or self._document.comment(field), payload
        )

    def _operate(
        self, name: str, action: str, messages: list[str], replies: tuple[str, ...] = ()
    ) -> None:
        operation: Schema = {
            "action": action,
            "tags": [{"name": _TAG}],
            "channel": {"$ref": f"#/channels/{_WEBSOCKET}"},
            "messages": _references(_WEBSOCKET, messages),
        }
        if replies:
            operation["reply"] = {
                "channel": {"$ref": f"#/channels/{_WEBSOCKET}"},
                "messages": _references(_WEBSOCKET, replies),
            }
        self._operations[name] = operation

    def _typed(self, message: Descriptor) -> Schema:
        """Return the schema of a message in a google.protobuf.Any."""
        marked = {"@type": {"const": f"type.googleapis.com/{message.full_name}"}}
        if not message.fields and message.full_name.startswith("google.protobuf."):
            return {"type": "object", "properties": {**marked, "value": {"type": "object"}}}
        reference = self._schemas.reference(message)
        return {"allOf": [reference, {"properties": marked, "required": ["@type"]}]}


def _references(channel: str, messages: list[str] | tuple[str, ...]) -> list[Schema]:
    return [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in messages]
