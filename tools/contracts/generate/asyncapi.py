"""gen/postbus/asyncapi.json: the WebSocket and the messages on the broker, AsyncAPI 3.0."""

from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.json_values import take_apart
from tools.contracts.generate.options import event_access, recipient
from tools.contracts.generate.schemas import Schema, Schemas

__all__ = ["asyncapi"]

_ACCESS: Final = {1: "anyone", 2: "users with an access token", 3: "services on the bus alone"}
_INTERNAL: Final = 3
_DEFAULT_TIMEOUT_MS: Final = 5000
_WEBSOCKET: Final = "websocket"
_REALTIME: Final = "postbus.realtime.v1"
_BUS: Final = "postbus.bus.v1"
_ANSWERS: Final = {
    "authenticate": ("authenticated", "error"),
    "subscribe": ("subscribed", "error"),
    "unsubscribe": ("unsubscribed", "error"),
    "cancel": ("error",),
}
_INFO: Final = """\
Over the WebSocket the same methods are called as over REST, and events arrive as they happen. The
messages on the broker are for services: binary protobuf, which this document shows as the JSON
that it stands for. The sources of all are at `/contracts`."""
_SOCKET: Final = """\
Frames are [ProtoJSON](https://protobuf.dev/programming-guides/json) in text messages. The server
sends its canonical form, which the schemas show. Clients may also send `null` for a member that is
not set, the names of the `.proto`, the numbers of enums, and numbers as strings. The first frame of
a client is `authenticate`: whatever else comes first closes the connection. The server closes with
1003 after a binary message, 1009 after one that is too large, 1013 where events may have been
missed, 4401 for a missing or expired token or a session that has ended, and 4429 for a client that
sends too much or reads too slowly; `frames.proto` has all codes."""


def asyncapi(contracts: Contracts) -> dict[str, Any]:
    """Return the document."""
    document = _Document(contracts)
    document.add_websocket()
    for method in contracts.methods:
        document.add_method(method)
    for message in contracts.messages:
        if contracts.is_event(message):
            document.add_event(message)
    readable: dict[str, Any] = take_apart(document.whole(), python=False)
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
        """The frames that stand for themselves; calls and events are added one by one."""
        self._channels[_WEBSOCKET] = {
            "address": "/ws",
            "description": _SOCKET,
            "servers": [{"$ref": "#/servers/gateway"}],
            "messages": {},
            "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
        }
        for kind, asked, special in (
            ("ClientFrame", True, "call"),
            ("ServerFrame", False, "result event"),
        ):
            for field in self._own[f"{_REALTIME}.{kind}"].fields:
                if field.containing_oneof and field.name not in special.split():
                    schema = self._schemas.field(field, asked=asked, required=True)
                    self._add_frame(field.name, field, schema, asked=asked)
        for asked_frame, answers in _ANSWERS.items():
            self._operate(f"{_WEBSOCKET}.{asked_frame}", "receive", [asked_frame], answers)

    def _add_frame(
        self, name: str, field: FieldDescriptor, schema: Schema, *, asked: bool, about: str = ""
    ) -> None:
        """A frame: its id and the one member of the oneof that `field` is."""
        id_ = field.containing_type.fields_by_name["id"]  # type: ignore[union-attr]  # of a frame
        payload: Schema = {
            "type": "object",
            "properties": {
                "id": self._schemas.field(id_, asked=asked, required=True),
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
        self, name: str, action: str, messages: list[str], answers: tuple[str, ...] = ()
    ) -> None:
        operation: Schema = {
            "action": action,
            "channel": {"$ref": f"#/channels/{_WEBSOCKET}"},
            "messages": _references(_WEBSOCKET, messages),
        }
        if answers:
            operation["reply"] = {
                "channel": {"$ref": f"#/channels/{_WEBSOCKET}"},
                "messages": _references(_WEBSOCKET, answers),
            }
        self._operations[name] = operation

    def add_method(self, method: MethodDescriptor) -> None:
        """A call over the bus and, if outsiders may make it, over the WebSocket."""
        access = self._contracts.option(method, "postbus.options.v1.method").access
        if access != _INTERNAL:
            self._add_call(method)
        self._add_rpc(method)

    def _add_call(self, method: MethodDescriptor) -> None:
        name = method.full_name
        call = self._own[f"{_REALTIME}.Call"]
        schema = self._schemas.message(call, asked=True, without=frozenset({"request"}))
        schema["properties"] |= {
            "method": {"const": name},
            "request": self._schemas.reference(method.input_type, asked=True),
        }
        frame = self._own[f"{_REALTIME}.ClientFrame"].fields_by_name["call"]
        about = self._about(method)
        self._add_frame(f"call.{name}", frame, schema, asked=True, about=about)
        result = self._schemas.message(self._own[f"{_REALTIME}.Result"], asked=False)
        result["properties"]["response"] = self._typed(method.output_type)
        frame = self._own[f"{_REALTIME}.ServerFrame"].fields_by_name["result"]
        self._add_frame(f"result.{name}", frame, result, asked=False)
        answers = (f"result.{name}", *(["completed"] if method.server_streaming else []), "error")
        self._operate(f"{_WEBSOCKET}.{name}", "receive", [f"call.{name}"], answers)

    def _typed(self, message: Descriptor) -> Schema:
        """What google.protobuf.Any holds, in JSON."""
        marked = {"@type": {"const": f"type.googleapis.com/{message.full_name}"}}
        if not message.fields and message.full_name.startswith("google.protobuf."):
            return {"type": "object", "properties": {**marked, "value": {"type": "object"}}}
        reference = self._schemas.reference(message)
        return {"allOf": [reference, {"properties": marked, "required": ["@type"]}]}

    def _add_rpc(self, method: MethodDescriptor) -> None:
        name, replies = method.full_name, f"{method.full_name}.reply"
        self._add_channel(name, "postbus.calls", self._about(method))
        if name.startswith(f"{_BUS}."):  # each worker serves it for itself
            self._channels[name]["address"] = f"{name}.{{worker}}"
            self._channels[name]["parameters"] = {"worker": {"description": "Which worker."}}
        self._channels[replies] = {
            "address": None,
            "servers": [{"$ref": "#/servers/broker"}],
            "messages": {},
        }
        request = self._envelope("Request", "payload", method.input_type, asked=True)
        self._add_message(name, f"{name}.request", self._comment(method.input_type), request)
        reply = self._envelope("Reply", "payload", method.output_type, asked=False)
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

    def _envelope(self, kind: str, field: str, message: Descriptor, *, asked: bool) -> Schema:
        """The envelope, with the message that its bytes hold in their place."""
        schema = self._schemas.message(self._own[f"{_BUS}.{kind}"], asked=False)
        schema["properties"][field] = self._schemas.reference(message, asked=asked) | {
            "description": f"Bytes: a {message.full_name}.",
            "x-protobuf-message": message.full_name,
        }
        schema.pop("required", None)
        return schema | {"x-protobuf-message": f"{_BUS}.{kind}"}

    def add_event(self, message: Descriptor) -> None:
        """An event on the bus and, if outsiders may hear of it, as it arrives at the WebSocket."""
        name, about = message.full_name, self._comment(message)
        self._add_channel(name, "postbus.events", about)
        self._add_message(
            name, f"{name}.event", about, self._envelope("Event", "data", message, asked=False)
        )
        self._operations[name] = {"action": "send", "channel": {"$ref": f"#/channels/{name}"}}
        if event_access(self._contracts, message) != "INTERNAL":
            self._add_delivery(message)

    def _add_delivery(self, message: Descriptor) -> None:
        name, about = message.full_name, self._comment(message)
        if user := message.fields_by_name.get(recipient(self._contracts, message)):
            about += f"\n\nOnly the user that `{user.json_name}` names gets it."
        delivery = self._schemas.message(self._own[f"{_REALTIME}.Delivery"], asked=False)
        delivery["properties"]["data"] = self._typed(message)
        frame = self._own[f"{_REALTIME}.ServerFrame"].fields_by_name["event"]
        self._add_frame(f"event.{name}", frame, delivery, asked=False, about=about)
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
        """The comment; who may call, and how long a call may take."""
        rules = self._contracts.option(method, "postbus.options.v1.method")
        seconds = (rules.default_timeout_ms or _DEFAULT_TIMEOUT_MS) / 1000
        comment = self._contracts.comment(method.full_name)
        return (
            f"{comment}\n\nFor {_ACCESS[rules.access]}. Waits {seconds:g} s if not told otherwise."
        )

    def _comment(self, owner: Descriptor | FieldDescriptor) -> str:
        return self._contracts.comment(owner.full_name)


def _references(channel: str, messages: list[str] | tuple[str, ...]) -> list[Schema]:
    return [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in messages]
