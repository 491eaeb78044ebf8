"""An rpc at a path over HTTP: the steps that REST and the Connect protocol have in common.

A route of the contract is matched before FastAPI and creates only the objects that its request
needs: a route of FastAPI costs several times as much as the call itself.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import TypeVar

import structlog
from google.protobuf.message import Message
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from gateway.call_metadata import header_fields
from gateway.client_addresses import address_of, network_of
from gateway.disconnect import cancelled_by_disconnect
from gateway.malformed_replies import malformed_reply
from gateway.method_access import authorize
from gateway.request_headers import bearer_token, operation_id
from gateway.response_headers import Header
from gateway.responses import HttpResponse
from gateway.rpc_request import RpcRequest
from gateway.services import Services
from gateway.streaming import StreamResponse
from postbus import reasons
from postbus.registry import Method
from shared.bus import Call, CallResult, call_method
from shared.bus.call_errors import unavailable
from shared.errors import Outcome, ServiceError, internal
from shared.metadata import NO_METADATA
from shared.wire import message_class, parse_as

__all__ = ["Endpoint", "Response"]

T = TypeVar("T")
Response = HttpResponse | StreamResponse
_log = structlog.get_logger()


class Endpoint(ABC):
    """A method of the contract at one path, as a plain ASGI application."""

    def __init__(self, method: Method, path: str, verbs: Iterable[str], services: Services) -> None:
        self.method = method
        self._services = services
        self._cors = services.cors
        own = services.own_methods.get(method.name)
        self._send = own or partial(call_method, services.bus, method)
        self._response_class = message_class(method.response_name)
        self._metrics = {verb: services.metrics.of(path, verb) for verb in verbs}

    @abstractmethod
    async def _answer(self, request: RpcRequest) -> Response:
        """Return the response to a request; any exception becomes that of `_error_response`."""

    @abstractmethod
    def _error_response(self, failure: ServiceError, request: RpcRequest) -> HttpResponse:
        """Return the response to a failed request."""

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, parameters: Mapping[str, str]
    ) -> None:
        """Serve one request."""
        metrics = self._metrics[scope["method"]]
        began, status = time.perf_counter(), 0
        metrics.begun += 1
        response: Response
        try:
            request = RpcRequest(scope, receive, parameters)
            try:
                response = await self._answer(request)
            except ClientDisconnect:
                raise
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # every request gets a response
                response = self._error_response(self._failure(request, error), request)
            origin = request.headers.get(b"origin")
            if origin is not None:
                response.headers += self._cors.headers(origin)
            status = response.status
            if not response.respond(request.exchange):
                await response.send(receive, send)
        except ClientDisconnect:
            pass
        finally:
            metrics.end(status, time.perf_counter() - began)

    def _failure(self, request: RpcRequest, error: BaseException) -> ServiceError:
        """Return the error to send for an exception; log it if it is unexpected or about security.

        The outcome is NO_EFFECT if the method was not called.
        """
        name, trace_id = self.method.name, request.trace_id
        match error:
            case ServiceError():
                failure = error
                self._services.security_log.record_refusal(
                    error, method=name, address=address_of(request.scope), trace_id=trace_id
                )
            case asyncio.CancelledError():  # by the server, after its time to shut down
                failure = unavailable(
                    reasons.SERVER_STOPPED, "The gateway is shutting down.", Outcome.UNKNOWN
                )
            case _:
                _log.error("request.failed", method=name, trace_id=trace_id, exc_info=error)
                failure = internal()
        if not request.called:
            failure.outcome = Outcome.try_value(Outcome.NO_EFFECT)
        return failure

    async def _admit(self, request: RpcRequest) -> list[Header]:
        """Authorize a request, count it, and read its idempotency key and metadata.

        Return the header fields of its rates. A request with an invalid token counts for its
        address.
        """
        services, method = self._services, self.method
        request.token = token = bearer_token(request.headers)
        request.address = address = address_of(request.scope)
        try:
            caller = authorize(method, token, services.verifier)
        except ServiceError:
            await services.rates.admit(address, method=method)
            raise
        if caller is not None:
            request.caller_id = caller.user_id
        rate_headers = await services.rates.admit(address, request.caller_id, method)
        request.operation_id = operation_id(request.headers)
        if services.metadata.names:
            request.metadata = services.metadata.read(request.scope["headers"])
        return rate_headers

    async def _read_large(self, request: RpcRequest, seconds: float, read: Callable[[], T]) -> T:
        """Return the result of `read`, which takes long and so runs in the thread."""
        client = request.caller_id or network_of(request.address)
        with cancelled_by_disconnect(request.receive, request.exchange):
            return await self._services.large_inputs.read(client, seconds, read)

    def _new_call(
        self, request: RpcRequest, payload: bytes, seconds: float, *, has_client_timeout: bool
    ) -> Call:
        """Return the call of an admitted request; its budget is `seconds` from its arrival."""
        return Call.new(
            payload,
            budget=seconds - (time.monotonic() - request.arrived),
            access_token=request.token,
            traceparent=request.traceparent,
            operation_id=request.operation_id,
            caller_revision=self._services.revisions.highest(request.caller_id),
            client_address=request.address,
            metadata=request.metadata,
            has_client_timeout=has_client_timeout,
        )

    async def _result(self, request: RpcRequest, call: Call) -> CallResult:
        """Return the result of a call, or raise its error; a disconnect cancels the call."""
        request.called = True
        with cancelled_by_disconnect(request.receive, request.exchange):
            result = await self._send(call)
        self._services.revisions.record(request.caller_id, result.caller_revision)
        return result

    async def _stream(
        self,
        request: RpcRequest,
        call: Call,
        *,
        encode: Callable[[bytes], Awaitable[bytes]],
        end: Callable[[ServiceError | None], bytes],
    ) -> StreamResponse:
        """Return the response with the replies of a call once the first reply is received.

        Its headers are those of the handler. Raises the call's error if there is no reply. See
        `StreamResponse` for `encode` and `end`.
        """
        request.called = True
        response = StreamResponse(
            self._services.bus.stream(self.method.name, call),
            encode=encode,
            failure=partial(self._failure, request),
            end=end,
        )
        await response.begin(request.receive)
        response.headers += header_fields(call.headers or NO_METADATA)
        return response

    def _reply(self, payload: bytes) -> Message:
        """Return the response message in a reply; INTERNAL if the worker sent a malformed one."""
        try:
            return parse_as(self._response_class, payload)
        except ServiceError:
            raise malformed_reply(self.method, self._services.log) from None
