"""Compare the annotations of a handler with the types of its method or event."""

import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, get_args

__all__ = ["type_fault"]


def type_fault(
    function: Callable[..., Any], *, request: type, response: type | None, streams: bool = False
) -> str:
    """Return the fault of a handler's parameters or of its response type; "" if there is none.

    `response` is None for a consumer of events; with `streams` it is the type of each response.
    Types that are not annotated, or known to type checkers only, are accepted.
    """
    signature = inspect.signature(function)
    try:
        bound = signature.bind(None, None)
    except TypeError:
        return "must take a request and a context"
    first = signature.parameters[next(iter(bound.arguments))]
    taken = _resolved(function, first.annotation)
    if first.kind is not first.VAR_POSITIONAL and not _accepts(taken, request):
        return f"takes {_name(taken)} instead of {request.__name__}"
    returned = _resolved(function, signature.return_annotation)
    if streams:
        returned = next(iter(get_args(returned)), Any)
    if not _returns(returned, type(None) if response is None else response):
        return f"returns {_name(returned)} instead of {response.__name__ if response else None}"
    return ""


def _resolved(function: Callable[..., Any], annotation: Any) -> Any:
    """Return the type of an annotation; Any if it is missing, or cannot be evaluated."""
    if annotation is inspect.Parameter.empty:
        return Any
    if annotation is None:
        return type(None)
    if not isinstance(annotation, str):
        return annotation
    plain = inspect.unwrap(getattr(function, "__func__", function))
    try:
        return _resolved(function, eval(annotation, getattr(plain, "__globals__", {})))  # noqa: S307  # of the program itself
    except Exception:  # noqa: BLE001  # a name that only type checkers import
        return Any


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union; for another type, the type itself."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return get_args(annotation) if union else (annotation,)


def _is_class(annotation: Any) -> bool:
    """Return whether an annotation is a class to compare: neither Any nor a protocol."""
    protocol = getattr(annotation, "_is_protocol", False)
    return isinstance(annotation, type) and annotation is not Any and not protocol


def _accepts(annotation: Any, kind: type) -> bool:
    return any(not _is_class(each) or issubclass(kind, each) for each in _members(annotation))


def _returns(annotation: Any, kind: type) -> bool:
    return all(not _is_class(each) or issubclass(each, kind) for each in _members(annotation))


def _name(annotation: Any) -> str:
    return getattr(annotation, "__name__", str(annotation))
