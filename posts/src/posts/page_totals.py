"""Totals of lists."""

from collections.abc import Awaitable, Callable
from typing import ParamSpec, Protocol

__all__ = ["total_of"]

P = ParamSpec("P")


class _ListRequest(Protocol):
    include_total: bool


async def total_of(
    request: _ListRequest,
    count: Callable[P, Awaitable[int | None]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> int | None:
    """Return the result of `count` if the request includes the total, else None."""
    return await count(*args, **kwargs) if request.include_total else None
