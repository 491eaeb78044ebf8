"""gen/postbus/asyncapi.json: the WebSocket and the broker as an AsyncAPI 3.0 document."""

from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from postbus_runtime.contract import ContractError
from postbus_runtime.options import Access
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.json_values import select_variant
from tools.contracts.generate.schemas import Schema, Schemas

__all__ = ["asyncapi"]

_CALLERS: Final = {
    Access.PUBLIC: "anyone",
    Access.USER: "users with an access token",
    Access.INTERNAL: "services on the bus only",
}
_WEBSOCKET: Final = "websocket"
_REALTIME: Final = "postbus.realtime.v1"
_BUS: Final = "postbus.bus.v1"
_REPLIES: Final = {
    "authenticate": ("authenticated", "error"),
    "subscribe": ("subscribed", "error"),
    "unsubscribe": ("unsubscribed", "error"),
    "cancel": ("error",),
}
_INFO: Final = """\
Over the WebSocket, clients call the same methods as over REST, and receive events. The messages on
the broker are for services: binary protobuf, which this document shows as the equivalent JSON. The
`.proto` files are at `/contracts`."""
_SOCKET: Final = """\
Frames are [ProtoJSON](https://protobuf.dev/programming-guides/json) in text messages. The server
sends its canonical form, as in the schemas. Clients may also send `null` for a member that is not
set, the names of the `.proto`, the numbers of enum values, and numbers as strings. The first frame
of a client must be `authenticate`: any other frame closes the connection. The server closes with
1003 after a binary message, 1009 after a message that is too large, 1013 if events may have been
missed, 4401 for a missing or expired token or an ended session, and 4429 for a client that sends
too much or reads too slowly; `frames.proto` lists all codes."""


def asyncapi(contracts: Contracts) -> dict[str, Any]:
    """Return the document."""
    document = _Document(contracts)
    document.add_websocket()
    for method in contracts.methods:
        document.add_method(method)
    for message in contracts.messages:
        if message.full_name in contracts.event_options:
            document.add_event(message)
    readable: dict[str, Any] = select_variant(document.whole(), python=False)
    return readable


class _Document:
    def __init__(self, contracts: Contracts) -> None:
        self._contracts = contracts
        self._schemas = Schemas(contracts)
        self._messages: dict[str, Schema] = {}
        self._channels: dict[str, Schema] = {}
        self._operations: dict[str, Schema] = {}
        self._own = {message.full_name: message for message in contracts.messages}

    def whole(self) -> dict[str, Any]:
        return {
            "asyncapi": "3.0.0",
            "info": {
                "title": "Postbus",
                "version": "1",
                "description": _INFO,
                "license": {"name": "MIT"},
            },
            "defaultContentType": "application/json",
            "servers": {
                "gateway": {"host": "localhost:8000", "protocol": "ws"},
                "broker": {
                    "host": "localhost:5672",
                    "protocol": "amqp",
                    "protocolVersion": "0.9.1",
                },
            },
            "channels": self._channels,
            "operations": self._operations,
            "components": {
                "schemas": dict(sorted(self._schemas.components.items())),
                "messages": dict(sorted(self._messages.items())),
            },
        }

    def add_websocket(self) -> None:
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
            for field in self._own[f"{_REALTIME}.{kind}"].fields:
                if field.containing_oneof and field.name not in special.split():
                    schema = self._schemas.field(field, request=request, required=True)
                    self._add_frame(field.name, field, schema, request=request)
        for frame, replies in _REPLIES.items():
            self._operate(f"{_WEBSOCKET}.{frame}", "receive", [frame], replies)

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
        self._add_message(_WEBSOCKET, name, about or self._comment(field), payload)

    def _add_message(self, channel: str, full: str, about: str, payload: Schema) -> None:
        summary, _, rest = about.partition("\n\n")
        self._messages[full] = {"name": full, "title": full, "summary": summary} | (
            {"description": rest} if rest else {}
        )
        if channel != _WEBSOCKET:
            self._messages[full]["contentType"] = "application/x-protobuf"
        self._messages[full]["payload"] = payload
        self._channels[channel]["messages"][full] = {"$ref": f"#/components/messages/{full}"}

    def _operate(
        self, name: str, action: str, messages: list[str], replies: tuple[str, ...] = ()
    ) -> None:
        operation: Schema = {
            "action": action,
            "channel": {"$ref": f"#/channels/{_WEBSOCKET}"},
            "messages": _references(_WEBSOCKET, messages),
        }
        if replies:
            operation["reply"] = {
                "channel": {"$ref": f"#/channels/{_WEBSOCKET}"},
                "messages": _references(_WEBSOCKET, replies),
            }
        self._operations[name] = operation

    def add_method(self, method: MethodDescriptor) -> None:
        """Add a call over the bus and, if clients may make it, over the WebSocket."""
        if self._contracts.method_options[method.full_name].access is not Access.INTERNAL:
            self._add_call(method)
        self._add_rpc(method)

    def _add_call(self, method: MethodDescriptor) -> None:
        name = method.full_name
        call = self._own[f"{_REALTIME}.Call"]
        schema = self._schemas.message(call, request=True, without=frozenset({"request"}))
        schema["properties"] |= {
            "method": {"const": name},
            "request": self._schemas.reference(method.input_type, request=True),
        }
        frame = self._own[f"{_REALTIME}.ClientFrame"].fields_by_name["call"]
        about = self._about(method)
        self._add_frame(f"call.{name}", frame, schema, request=True, about=about)
        result = self._schemas.message(self._own[f"{_REALTIME}.Result"], request=False)
        result["properties"]["response"] = self._typed(method.output_type)
        frame = self._own[f"{_REALTIME}.ServerFrame"].fields_by_name["result"]
        self._add_frame(f"result.{name}", frame, result, request=False)
        replies = (f"result.{name}", *(["completed"] if method.server_streaming else []), "error")
        self._operate(f"{_WEBSOCKET}.{name}", "receive", [f"call.{name}"], replies)

    def _typed(self, message: Descriptor) -> Schema:
        """Return the schema of a message in a google.protobuf.Any."""
        marked = {"@type": {"const": f"type.googleapis.com/{message.full_name}"}}
        if not message.fields and message.full_name.startswith("google.protobuf."):
            return {"type": "object", "properties": {**marked, "value": {"type": "object"}}}
        reference = self._schemas.reference(message)
        return {"allOf": [reference, {"properties": marked, "required": ["@type"]}]}

    def _add_rpc(self, method: MethodDescriptor) -> None:
        name, replies = method.full_name, f"{method.full_name}.reply"
        self._add_channel(name, f"postbus.calls.{self._service(name)}", self._about(method))
        if name.startswith(f"{_BUS}."):  # each worker has its own route
            self._channels[name]["address"] = f"{name}.{{worker}}"
            self._channels[name]["parameters"] = {
                "worker": {"description": "The name of the worker."}
            }
        self._channels[replies] = {
            "address": None,
            "servers": [{"$ref": "#/servers/broker"}],
            "messages": {},
        }
        request = self._envelope("Request", "payload", method.input_type, request=True)
        self._add_message(name, f"{name}.request", self._comment(method.input_type), request)
        reply = self._envelope("Reply", "payload", method.output_type, request=False)
        self._add_message(replies, replies, self._comment(method.output_type), reply)
        self._operations[name] = {
            "action": "receive",
            "channel": {"$ref": f"#/channels/{name}"},
            "tags": [{"name": method.containing_service.name}],
            "reply": {
                "address": {"location": "$message.header#/replyTo"},
                "channel": {"$ref": f"#/channels/{replies}"},
            },
        }

    def _service(self, name: str) -> str:
        """Return the service that owns a method or an event: the second part of its package."""
        return "{worker}" if name.startswith(f"{_BUS}.") else name.split(".")[1]

    def _envelope(self, kind: str, field: str, message: Descriptor, *, request: bool) -> Schema:
        """Return the schema of an envelope, with its payload in place of the bytes."""
        schema = self._schemas.message(self._own[f"{_BUS}.{kind}"], request=False)
        schema["properties"][field] = self._schemas.reference(message, request=request) | {
            "description": f"Bytes: a {message.full_name}.",
            "x-protobuf-message": message.full_name,
        }
        schema.pop("required", None)
        return schema | {"x-protobuf-message": f"{_BUS}.{kind}"}

    def add_event(self, message: Descriptor) -> None:
        """Add an event on the bus and, if clients may receive it, over the WebSocket."""
        name, about = message.full_name, self._comment(message)
        self._add_channel(name, f"postbus.events.{self._service(name)}", about)
        self._add_message(
            name, f"{name}.event", about, self._envelope("Event", "data", message, request=False)
        )
        self._operations[name] = {"action": "send", "channel": {"$ref": f"#/channels/{name}"}}
        if self._contracts.event_options[name].access is not Access.INTERNAL:
            self._add_delivery(message)

    def _add_delivery(self, message: Descriptor) -> None:
        name, about = message.full_name, self._comment(message)
        recipient = self._contracts.event_options[name].recipient
        if user := message.fields_by_name.get(recipient):
            about += f"\n\nOnly the user with the id `{user.json_name}` receives it."
        delivery = self._schemas.message(self._own[f"{_REALTIME}.Delivery"], request=False)
        delivery["properties"]["data"] = self._typed(message)
        frame = self._own[f"{_REALTIME}.ServerFrame"].fields_by_name["event"]
        self._add_frame(f"event.{name}", frame, delivery, request=False, about=about)
        self._operate(f"{_WEBSOCKET}.{name}", "send", [f"event.{name}"])

    def _add_channel(self, name: str, exchange: str, about: str) -> None:
        self._channels[name] = {
            "address": name,
            "description": about,
            "servers": [{"$ref": "#/servers/broker"}],
            "messages": {},
            "bindings": {
                "amqp": {
                    "is": "routingKey",
                    "exchange": {"name": exchange, "type": "topic", "durable": True},
                    "bindingVersion": "0.3.0",
                }
            },
        }

    def _about(self, method: MethodDescriptor) -> str:
        """Return the comment, with the allowed callers and the default timeout."""
        options = self._contracts.method_options[method.full_name]
        if options.access is None:
            raise ContractError(method, "it states no access")
        comment, seconds = self._contracts.comment(method.full_name), options.timeout_ms / 1000
        return f"{comment}\n\nFor {_CALLERS[options.access]}. Default timeout: {seconds:g} s."

    def _comment(self, owner: Descriptor | FieldDescriptor) -> str:
        return self._contracts.comment(owner.full_name)


def _references(channel: str, messages: list[str] | tuple[str, ...]) -> list[Schema]:
    return [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in messages]
