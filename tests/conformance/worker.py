"""The worker of the Connect conformance suite: python -m tests.conformance.worker.

It does what connectrpc/conformance/v1/service.proto describes, with the classes that are generated
from the suite's contract.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import betterproto
from betterproto.lib.google.protobuf import Any as AnyMessage
from connectrpc.conformance.v1 import (
    ConformancePayload,
    ConformancePayloadRequestInfo,
    ConformanceServiceBase,
    Header,
    IdempotentUnaryRequest,
    IdempotentUnaryResponse,
    ServerStreamRequest,
    ServerStreamResponse,
    UnaryRequest,
    UnaryResponse,
    UnaryResponseDefinition,
    UnimplementedRequest,
    UnimplementedResponse,
)

from postbus.bus.v1 import ErrorDetail
from postbus_runtime.reasons import Reason
from shared.bus import MessageBus, MessagePattern
from shared.context import Context
from shared.errors import Code, ServiceError
from shared.metadata import OutgoingMetadata
from shared.runtime.settings import ServiceSettings, load
from shared.runtime.worker import Application, run_worker
from shared.wire import encode

_PACKAGE: Final = "connectrpc.conformance.v1"


class ConformanceHandlers:
    """The methods of the suite's service that do not stream from the client."""

    @MessagePattern(ConformanceServiceBase.unary)
    async def unary(self, request: UnaryRequest, context: Context) -> UnaryResponse:
        return UnaryResponse(payload=await _unary(request, context))

    @MessagePattern(ConformanceServiceBase.idempotent_unary)
    async def idempotent_unary(
        self, request: IdempotentUnaryRequest, context: Context
    ) -> IdempotentUnaryResponse:
        return IdempotentUnaryResponse(payload=await _unary(request, context))

    @MessagePattern(ConformanceServiceBase.server_stream)
    async def server_stream(
        self, request: ServerStreamRequest, context: Context
    ) -> AsyncGenerator[ServerStreamResponse, None]:
        definition, info = request.response_definition, _info(request, context)
        _add(context.headers, definition.response_headers)
        _add(context.trailers, definition.response_trailers)
        for index, data in enumerate(definition.response_data):
            await asyncio.sleep(definition.response_delay_ms / 1000)
            payload = ConformancePayload(data=data)
            if not index:
                payload.request_info = info
            yield ServerStreamResponse(payload=payload)
        if betterproto.serialized_on_wire(definition.error):
            raise _error(definition.error, None if definition.response_data else info)

    @MessagePattern(ConformanceServiceBase.unimplemented)
    async def unimplemented(
        self, _request: UnimplementedRequest, _context: Context
    ) -> UnimplementedResponse:
        raise ServiceError(Reason("", Code.UNIMPLEMENTED), "This method is not implemented.")


async def _unary(request: Any, context: Context) -> ConformancePayload:
    definition: UnaryResponseDefinition = request.response_definition
    info = _info(request, context)
    _add(context.headers, definition.response_headers)
    _add(context.trailers, definition.response_trailers)
    await asyncio.sleep(definition.response_delay_ms / 1000)
    match betterproto.which_one_of(definition, "response"):
        case "error", error:
            raise _error(error, info)
        case _, data:
            return ConformancePayload(data=data or b"", request_info=info)


def _info(request: betterproto.Message, context: Context) -> ConformancePayloadRequestInfo:
    """Return the header fields, timeout and request, for the suite's comparison."""
    return ConformancePayloadRequestInfo(
        request_headers=[
            Header(name=name, value=list(values)) for name, values in context.metadata.items()
        ],
        timeout_ms=int(context.remaining * 1000) if context.has_client_timeout else None,
        requests=[_packed(request)],
    )


def _packed(message: betterproto.Message) -> AnyMessage:
    name = f"{_PACKAGE}.{type(message).__name__}"
    return AnyMessage(type_url=f"type.googleapis.com/{name}", value=encode(message))


def _add(metadata: OutgoingMetadata, headers: Sequence[Header]) -> None:
    for header in headers:
        metadata.add(header.name, *header.value)


def _error(error: Any, info: ConformancePayloadRequestInfo | None) -> ServiceError:
    """Return an error with the details of the definition, then the request info."""
    details = [
        ErrorDetail(type=each.type_url.rpartition("/")[2], value=each.value)
        for each in error.details
    ]
    if info is not None:
        name = f"{_PACKAGE}.ConformancePayload.RequestInfo"
        details.append(ErrorDetail(type=name, value=encode(info)))
    return ServiceError(Reason("", error.code), error.message or "", details=details)


@asynccontextmanager
async def _application(_bus: MessageBus) -> AsyncIterator[Application]:
    yield Application(handlers=[ConformanceHandlers()], probes={})


if __name__ == "__main__":
    run_worker("conformance", load(ServiceSettings), _application)
