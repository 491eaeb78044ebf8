"""Options of the published files for code generators of other languages.

They follow from the package, so no contract states them: `protoc-gen-go` refuses files without an
import path, and Java would put all messages of a file into one class.
"""

import re
from typing import Final

from google.protobuf.descriptor_pb2 import FileDescriptorSet

__all__ = ["add_options", "with_options"]

_PACKAGE: Final = re.compile(rb"^package ([a-z0-9_.]+);$", re.MULTILINE)


def _options(package: str) -> dict[str, str | bool]:
    """Return the options by name: `postbus.posts.v1` is `postbus/posts/v1` in Go."""
    parts = package.split(".")
    return {
        "csharp_namespace": ".".join(part.title().replace("_", "") for part in parts),
        "go_package": f"{'/'.join(parts)};{''.join(parts[1:])}",
        "java_multiple_files": True,
        "java_package": package,
    }


def with_options(source: bytes) -> bytes:
    """Return the text of a .proto file with the options of its package."""
    package = _PACKAGE.search(source)
    if package is None:
        return source
    lines = [
        f'option {name} = "{value}";' if isinstance(value, str) else f"option {name} = true;"
        for name, value in _options(package[1].decode()).items()
        if f"option {name}".encode() not in source
    ]
    options = "\n".join(lines).encode()
    return source[: package.end()] + b"\n\n" + options + source[package.end() :]


def add_options(data: bytes) -> bytes:
    """Return a FileDescriptorSet with the options of each package of the project."""
    descriptors = FileDescriptorSet.FromString(data)
    for file in descriptors.file:
        if file.name.startswith("postbus/"):
            for name, value in _options(file.package).items():
                if not file.options.HasField(name):  # type: ignore[arg-type]  # of _options
                    setattr(file.options, name, value)
    return descriptors.SerializeToString(deterministic=True)
