"""What no output can say, refused before anything is made of it."""

from typing import Final

from google.protobuf.message_factory import GetMessageClass
from protovalidate import CompilationError, Validator

from tools.contracts.generate.descriptors import Contracts, GeneratorError

__all__ = ["require_supported"]

_TAKEN: Final = {
    *("AsyncIterable", "AsyncIterator", "Deadline", "Dict", "Iterable", "List", "MetadataLike"),
    *("Optional", "ServiceBase", "TYPE_CHECKING", "Union", "dataclass", "datetime", "timedelta"),
}
"""Names that betterproto's modules import."""


def require_supported(contracts: Contracts) -> None:
    """Raise GeneratorError for what betterproto or protovalidate would stumble over."""
    for file in contracts.files:
        if contracts.syntax(file) != "proto3":
            raise GeneratorError(file, 'only syntax = "proto3" is supported')
        if not file.package.startswith(f"{contracts.root}."):
            raise GeneratorError(file, f"its package must begin with {contracts.root}.")
    for kind in contracts.messages:
        if kind.name in _TAKEN:
            raise GeneratorError(kind, "the generated module needs this name: choose another")
    for method in contracts.methods:
        for kind in (method.input_type, method.output_type):
            if kind.full_name.startswith("google.") and kind.full_name != "google.protobuf.Empty":
                raise GeneratorError(method, f"wrap {kind.full_name} in a message of your own")
    validator = Validator()  # it remembers messages by name: one for each contract
    for kind in contracts.messages:
        try:
            validator.collect_violations(GetMessageClass(kind)())
        except CompilationError as error:
            raise GeneratorError(kind, str(error).splitlines()[0]) from None
