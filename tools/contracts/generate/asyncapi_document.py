"""The parts of the AsyncAPI document that the WebSocket and the broker share."""

from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from postbus_runtime.contract import ContractError
from postbus_runtime.options import Access
from postbus_runtime.reasons import Scope
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.reasons import reasons_of
from tools.contracts.generate.schemas import Schema, Schemas

__all__ = ["AsyncApiDocument"]

_CALLERS: Final = {
    Access.PUBLIC: "anyone",
    Access.USER: "users with an access token",
    Access.INTERNAL: "services on the bus only",
}
_SCOPES: Final = {
    Scope.CALL: "Reasons of the errors of every method",
    Scope.WEBSOCKET: "Reasons of the errors of frames and connections",
}
_INFO: Final = """\
Over the WebSocket, clients call the same methods as over REST, and receive events. The messages on
the broker are for services: binary protobuf, which this document shows as the equivalent JSON. The
`.proto` files are at `/contracts`."""


class AsyncApiDocument:
    """The channels, operations, messages and schemas that were added."""

    def __init__(self, contracts: Contracts) -> None:
        self.contracts = contracts
        self.schemas = Schemas(contracts)
        self.channels: dict[str, Schema] = {}
        self.operations: dict[str, Schema] = {}
        self.own = {message.full_name: message for message in contracts.messages}
        """The messages of the contract, by full name."""
        self._messages: dict[str, Schema] = {}

    def whole(self) -> dict[str, Any]:
        """Return the document."""
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
            "channels": self.channels,
            "operations": self.operations,
            "components": {
                "schemas": dict(sorted(self.schemas.components.items())),
                "messages": dict(sorted(self._messages.items())),
            },
        }

    def add_message(
        self, channel: str, full: str, about: str, payload: Schema, *, content_type: str = ""
    ) -> None:
        """Add a message to a channel; the first paragraph of `about` is its summary."""
        summary, _, rest = about.partition("\n\n")
        self._messages[full] = {"name": full, "title": full, "summary": summary} | (
            {"description": rest} if rest else {}
        )
        if content_type:
            self._messages[full]["contentType"] = content_type
        self._messages[full]["payload"] = payload
        self.channels[channel]["messages"][full] = {"$ref": f"#/components/messages/{full}"}

    def about(self, method: MethodDescriptor) -> str:
        """Return the comment, with the allowed callers, the default timeout and the reasons."""
        options = self.contracts.method_options[method.full_name]
        if options.access is None:
            raise ContractError(method, "it states no access")
        comment, seconds = self.contracts.comment(method.full_name), options.timeout_ms / 1000
        about = f"{comment}\n\nFor {_CALLERS[options.access]}. Default timeout: {seconds:g} s."
        return f"{about}\n\n{_listed('Reasons of its errors', options.reasons)}".rstrip()

    def common_reasons(self, scope: Scope) -> str:
        """Return the reasons of errors with a scope, as a text."""
        found = [each for each in reasons_of(self.contracts).values() if each.scope is scope]
        return _listed(_SCOPES[scope], found)

    def comment(self, owner: Descriptor | FieldDescriptor) -> str:
        """Return the comment of a message or field."""
        return self.contracts.comment(owner.full_name)


def _listed(title: str, names: Sequence[str]) -> str:
    """Return the names of reasons as a text; "" without names."""
    return f"{title}: {', '.join(f'`{name}`' for name in names)}." if names else ""
