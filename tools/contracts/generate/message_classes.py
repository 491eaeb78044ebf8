"""gen/postbus/**/__init__.py: betterproto's classes, based on the classes of `postbus_runtime`."""

import ast
import re
from typing import TypeGuard

__all__ = ["with_runtime_classes"]

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
_DOCSTRING = re.compile(r'""".*?"""', re.DOTALL)


def with_runtime_classes(source: str) -> str:
    """Return betterproto's module `source` with other base classes, and without gRPC servers."""
    # a comment may have backslashes, which begin escapes in a docstring
    source = _DOCSTRING.sub(lambda found: found[0].replace("\\", "\\\\"), source)
    source = _without_grpc(source)
    for base, (replacement, statement) in _BASES.items():
        if base in source:
            source = source.replace(base, replacement)
            source = source.replace(_IMPORT, _IMPORT + statement, 1)
    return source


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
