"""gen/postbus/**/__init__.py: betterproto's classes, based on the classes of `postbus_runtime`."""

import ast
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any, Final, TypeGuard

import black
from betterproto.lib.google.protobuf.compiler import CodeGeneratorRequest
from betterproto.plugin.models import monkey_patch_oneof_index
from betterproto.plugin.parser import generate_code
from google.protobuf.compiler import plugin_pb2

from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.imported_classes import imported_protos, with_moved_packages

__all__ = ["message_classes", "with_optional_times", "with_runtime_classes"]

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
_DOCSTRING: Final = re.compile(r'""".*?"""', re.DOTALL)
_TIME: Final = re.compile(
    r"^(    \w+): (datetime|timedelta) = betterproto\.message_field\((\d+)\)", re.MULTILINE
)
"""A Timestamp or Duration that is neither `optional` nor a member of a oneof."""


def message_classes(contracts: Contracts, further: Collection[str] = ()) -> dict[str, str]:
    """Return the source of each module by its path, such as `postbus/posts/v1/__init__.py`.

    Those of the package roots `further` are included, and below `postbus/imported` those of the
    third-party packages that contracts use.

    betterproto runs in this process and does not format: the caller formats the package.
    """
    own = [*contracts.own_protos, *contracts.protos_below(further)]
    generated = [*imported_protos(contracts), *own]
    request = plugin_pb2.CodeGeneratorRequest(
        file_to_generate=[file.name for file in generated],
        proto_file=[*contracts.google_protos, *generated],
    )
    for file in request.proto_file[: len(contracts.google_protos)]:
        file.ClearField("source_code_info")  # long comments, which take a second to decode
    _make_docstrings(request)
    monkey_patch_oneof_index()  # type: ignore[no-untyped-call]  # as the plugin does
    with _without_formatter(), redirect_stderr(StringIO()):  # stderr gets the names of the files
        response = generate_code(CodeGeneratorRequest().parse(request.SerializeToString()))
    sources = {file.name: with_runtime_classes(file.content) for file in response.file}
    return with_moved_packages(sources, contracts.root, further)


@contextmanager
def _without_formatter() -> Iterator[None]:
    """Keep betterproto from calling black, which takes most of its time."""
    formatter = black.format_str
    black.format_str = _unformatted
    try:
        yield
    finally:
        black.format_str = formatter


def _unformatted(src_contents: str, **_options: Any) -> str:
    return src_contents


def _make_docstrings(request: plugin_pb2.CodeGeneratorRequest) -> None:
    """Replace the quotes in comments that would end a docstring: betterproto copies comments."""
    for file in request.proto_file:
        for location in file.source_code_info.location:
            if '"""' in location.leading_comments:
                location.leading_comments = location.leading_comments.replace('"""', "'''")


def with_runtime_classes(source: str) -> str:
    """Return betterproto's module `source` with other base classes, and without gRPC servers."""
    # a comment may have backslashes, which begin escapes in a docstring
    source = _DOCSTRING.sub(lambda found: found[0].replace("\\", "\\\\"), source)
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
    lines = StringIO(source, newline=None).readlines()  # as Python counts lines
    services = [node for node in ast.parse(source).body if _is_service(node)]
    for service in reversed(services):
        methods = [node for node in service.body if _serves_grpc(node)]
        for method in reversed(methods):
            del lines[method.lineno - 1 : method.end_lineno]
        if len(methods) == len(service.body):  # a service without rpcs and without a comment
            lines.insert(service.lineno, "    pass\n")
    return "".join(lines)


def _is_service(node: ast.stmt) -> TypeGuard[ast.ClassDef]:
    return isinstance(node, ast.ClassDef) and "ServiceBase" in map(ast.unparse, node.bases)


def _serves_grpc(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("__")
