"""The broker in the AsyncAPI document: calls and events as binary protobuf."""

from typing import Final

from google.protobuf.descriptor import Descriptor, MethodDescriptor

from tools.contracts.generate.asyncapi_document import AsyncApiDocument
from tools.contracts.generate.schemas import Schema

__all__ = ["BrokerMessages"]

_BUS: Final = "postbus.bus.v1"
_CONTENT_TYPE: Final = "application/x-protobuf"


class BrokerMessages:
    """Adds the messages on the broker to a document."""

    def __init__(self, document: AsyncApiDocument) -> None:
        self._document = document
        self._schemas = document.schemas
        self._channels = document.channels
        self._operations = document.operations

    def add_rpc(self, method: MethodDescriptor) -> None:
        """Add the request and the reply of a method."""
        name, replies = method.full_name, f"{method.full_name}.reply"
        self._add_channel(name, f"postbus.calls.{_service(name)}", self._document.about(method))
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
        self._document.add_message(
            name,
            f"{name}.request",
            self._document.comment(method.input_type),
            request,
            content_type=_CONTENT_TYPE,
        )
        reply = self._envelope("Reply", "payload", method.output_type, request=False)
        self._document.add_message(
            replies,
            replies,
            self._document.comment(method.output_type),
            reply,
            content_type=_CONTENT_TYPE,
        )
        self._operations[name] = {
            "action": "receive",
            "channel": {"$ref": f"#/channels/{name}"},
            "tags": [{"name": self._schemas.names.tag(method.containing_service)}],
            "reply": {
                "address": {"location": "$message.header#/replyTo"},
                "channel": {"$ref": f"#/channels/{replies}"},
            },
        }

    def add_event(self, message: Descriptor) -> None:
        """Add an event."""
        name, about = message.full_name, self._document.comment(message)
        self._add_channel(name, f"postbus.events.{_service(name)}", about)
        self._document.add_message(
            name,
            f"{name}.event",
            about,
            self._envelope("Event", "data", message, request=False),
            content_type=_CONTENT_TYPE,
        )
        self._operations[name] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{name}"},
            "tags": [{"name": "Events on the broker"}],
        }

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

    def _envelope(self, kind: str, field: str, message: Descriptor, *, request: bool) -> Schema:
        """Return the schema of an envelope, with its payload in place of the bytes."""
        schema = self._schemas.message(self._document.own[f"{_BUS}.{kind}"], request=False)
        schema["properties"][field] = self._schemas.reference(message, request=request) | {
            "description": f"Bytes: a {message.full_name}.",
            "x-protobuf-message": message.full_name,
        }
        schema.pop("required", None)
        return schema | {"x-protobuf-message": f"{_BUS}.{kind}"}


def _service(name: str) -> str:
    """Return the service that owns a method or an event: the second part of its package."""
    return "{worker}" if name.startswith(f"{_BUS}.") else name.split(".")[1]
