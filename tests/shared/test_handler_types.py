"""A handler whose annotations differ from its method or event does not start."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import betterproto
import pytest

from postbus.bus.v1 import CheckRequest, HealthServiceBase, PingRequest, PingResponse
from postbus.users.v1 import UserDeleted
from shared.bus import EventPattern, MessagePattern
from shared.bus.decorators import event_type
from shared.bus.handler_matching import ContractMismatchError, consumed_events, served_methods
from shared.bus.handler_metrics import Statistics
from shared.bus.handler_types import type_fault
from shared.context import Context

if TYPE_CHECKING:
    Unknown = PingRequest


class Handlers:
    """Functions of every shape; those with `wrong` differ from PingRequest and PingResponse."""

    async def same(self, _request: PingRequest, _context: Context) -> PingResponse:
        return PingResponse()

    async def in_quotes(self, _request: "PingRequest", _context: "Context") -> "PingResponse":
        return PingResponse()

    async def without_annotations(self, _request, _context):  # type: ignore[no-untyped-def]  # the case
        return PingResponse()

    async def for_type_checkers_only(self, _request: "Unknown", _context: Context) -> PingResponse:
        return PingResponse()

    async def of_any(self, _request: Any, _context: Context) -> Any:
        return PingResponse()

    async def of_a_base(self, _request: betterproto.Message, _context: Context) -> PingResponse:
        return PingResponse()

    async def of_a_union(self, _request: PingRequest | str, _context: Context) -> PingResponse:
        return PingResponse()

    async def of_all(self, *_all: Any) -> PingResponse:
        return PingResponse()

    async def wrong_request(self, _request: PingResponse, _context: Context) -> PingResponse:
        return PingResponse()

    async def wrong_request_in_quotes(
        self, _request: "PingResponse", _context: Context
    ) -> PingResponse:
        return PingResponse()

    async def wrong_response(self, _request: PingRequest, _context: Context) -> PingRequest:
        return PingRequest()

    async def wrong_nothing(self, _request: PingRequest, _context: Context) -> None:
        return None

    async def wrong_perhaps(
        self, _request: PingRequest, _context: Context
    ) -> PingResponse | PingRequest:
        return PingRequest()

    async def wrong_builtin(self, _request: dict, _context: Context) -> PingResponse:  # type: ignore[type-arg]  # the case
        return PingResponse()

    async def wrong_parameters(self, _request: PingRequest) -> PingResponse:
        return PingResponse()

    async def wrong_parameters_needed(
        self, _request: PingRequest, _context: Context, _more: int
    ) -> PingResponse:
        return PingResponse()

    async def stream(
        self, _request: PingRequest, _context: Context
    ) -> AsyncGenerator[PingResponse, None]:
        yield PingResponse()

    async def stream_as_iterator(
        self, _request: PingRequest, _context: Context
    ) -> AsyncIterator["PingResponse"]:
        yield PingResponse()

    async def wrong_stream(
        self, _request: PingRequest, _context: Context
    ) -> AsyncIterator[PingRequest]:
        yield PingRequest()


@pytest.mark.parametrize("name", [name for name in vars(Handlers) if not name.startswith("__")])
def test_handler_has_a_fault_if_its_types_differ(name: str) -> None:
    function: Callable[..., Any] = getattr(Handlers(), name)

    fault = type_fault(
        function, request=PingRequest, response=PingResponse, streams="stream" in name
    )

    assert bool(fault) == name.startswith("wrong"), fault


def test_worker_with_a_handler_of_wrong_types_does_not_start() -> None:
    class Wrong:
        @MessagePattern(HealthServiceBase.check)  # type: ignore[arg-type]  # the case
        async def wrong(self, _request: CheckRequest, _context: Context) -> PingResponse:
            return PingResponse()

    with pytest.raises(ContractMismatchError, match="returns PingResponse instead of Check"):
        served_methods("posts", [Wrong()], Statistics({}, {}))


def test_worker_with_a_consumer_of_wrong_types_does_not_start() -> None:
    class Wrong:
        @EventPattern(UserDeleted)  # type: ignore[arg-type]  # the case
        async def wrong(self, _event: PingRequest, _context: Context) -> None:
            """Never called."""

    assert event_type(Wrong.wrong) is UserDeleted
    with pytest.raises(ContractMismatchError, match="takes PingRequest instead of UserDeleted"):
        consumed_events("posts", [Wrong()], Statistics({}, {}))
