"""A request for an rpc of the contract."""

from collections.abc import Mapping

from starlette.types import Receive, Scope

from gateway.http1.exchange import EXCHANGE, Exchange
from gateway.request_headers import headers_of
from shared.metadata import NO_METADATA
from shared.trace import child_traceparent, new_traceparent

__all__ = ["RpcRequest"]


class RpcRequest:
    """A request, with the values that several steps of its endpoint need."""

    __slots__ = (
        "address",
        "arrived",
        "called",
        "caller_id",
        "exchange",
        "headers",
        "metadata",
        "operation_id",
        "parameters",
        "receive",
        "scope",
        "token",
        "trace_id",
        "traceparent",
    )

    def __init__(self, scope: Scope, receive: Receive, parameters: Mapping[str, str]) -> None:
        self.called = False
        """Whether the call of the method may have been sent."""
        self.scope = scope
        self.receive = receive
        self.parameters = parameters
        self.headers = headers = headers_of(scope["headers"])
        parent = headers.get(b"traceparent")
        self.traceparent = (
            child_traceparent(parent.decode("latin-1")) if parent else new_traceparent()
        )
        self.trace_id = self.traceparent[3:35]
        self.arrived = 0.0
        """When the whole request has arrived, by `time.monotonic()`."""
        extensions = scope.get("extensions")
        self.exchange: Exchange | None = extensions.get(EXCHANGE) if extensions else None
        """The exchange of `gateway.http1`; None with another server."""
        self.token = self.address = self.caller_id = self.operation_id = ""
        self.metadata = NO_METADATA
