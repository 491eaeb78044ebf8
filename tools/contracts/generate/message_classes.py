"""gen/postbus/**/__init__.py: betterproto's classes, based on the classes of `postbus_runtime`."""

import ast
import re
from typing import Final, TypeGuard

__all__ = ["with_optional_times", "with_runtime_classes"]

_BASES = {
    "(betterproto.Message)": (
        "(GeneratedMessage)",
        "from postbus_runtime.messages import GeneratedMessage\n",
    ),
    "(betterproto.ServiceStub)": (
        "(ServiceStub)",
        "from postbus_runtime.stubs import ServiceStub\n",
    ),
}
"""Base classes of betterproto, with those that replace them and their imports."""
_IMPORT = "import betterproto\n"
_TIME: Final = re.compile(
    r"^(    \w+): (datetime|timedelta) = betterproto\.message_field\((\d+)\)", re.MULTILINE
)
"""A Timestamp or Duration that is neither `optional` nor a member of a oneof."""


def with_runtime_classes(source: str) -> str:
    """Return betterproto's module `source` with other base classes, and without gRPC servers."""
    source = with_optional_times(_without_grpc(source))
    for base, (replacement, statement) in _BASES.items():
        if base in source:
            source = source.replace(base, replacement)
            source = source.replace(_IMPORT, _IMPORT + statement, 1)
    return source


def with_optional_times(source: str) -> str:
    """Return a module in which an unset Timestamp or Duration is None.

    To betterproto it is the epoch or zero, which are values: messages have presence in proto3.
    """
    return _TIME.sub(r"\1: \2 | None = betterproto.message_field(\3, optional=True)", source)


def _without_grpc(source: str) -> str:
    """Return a module whose service classes only declare the methods: the bus serves them."""
    lines = source.splitlines(keepends=True)
    services = [node for node in ast.parse(source).body if _is_service(node)]
    methods = [node for service in services for node in service.body if _serves_grpc(node)]
    for method in reversed(methods):
        del lines[method.lineno - 1 : method.end_lineno]
    return "".join(lines)


def _is_service(node: ast.stmt) -> TypeGuard[ast.ClassDef]:
    return isinstance(node, ast.ClassDef) and "ServiceBase" in map(ast.unparse, node.bases)


def _serves_grpc(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("__")
