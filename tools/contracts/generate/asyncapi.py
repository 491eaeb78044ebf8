"""gen/postbus/asyncapi.json: the WebSocket and the broker as an AsyncAPI 3.0 document."""

from typing import Any

from postbus_runtime.options import Access
from tools.contracts.generate.asyncapi_broker import BrokerMessages
from tools.contracts.generate.asyncapi_document import AsyncApiDocument
from tools.contracts.generate.asyncapi_websocket import WebSocketFrames
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.json_values import select_variant

__all__ = ["asyncapi"]


def asyncapi(contracts: Contracts) -> dict[str, Any]:
    """Return the document, with the calls and events of clients over both transports."""
    document = AsyncApiDocument(contracts)
    websocket, broker = WebSocketFrames(document), BrokerMessages(document)
    websocket.add_common()
    for method in contracts.methods:
        if contracts.method_options[method.full_name].access is not Access.INTERNAL:
            websocket.add_call(method)
        broker.add_rpc(method)
    for message in contracts.messages:
        options = contracts.event_options.get(message.full_name)
        if options is None:
            continue
        broker.add_event(message)
        if options.access is not Access.INTERNAL:
            websocket.add_delivery(message)
    readable: dict[str, Any] = select_variant(document.whole(), python=False)
    return readable
