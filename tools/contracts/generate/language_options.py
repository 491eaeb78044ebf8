"""Options of the published files for code generators of other languages.

They follow from the package, so no contract states them: `protoc-gen-go` refuses files without an
import path, and Java would put all messages of a file into one class.
"""

from typing import Final

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

__all__ = ["add_options", "with_options"]

_PACKAGE: Final = [FileDescriptorProto.PACKAGE_FIELD_NUMBER]
"""The path of the package's declaration in source info."""


def _missing(file: FileDescriptorProto) -> dict[str, str | bool]:
    """Return the options that a file does not state, by name."""
    found = _options(file.package).items()
    return {name: value for name, value in found if not file.options.HasField(name)}  # type: ignore[arg-type]  # of _options


def _options(package: str) -> dict[str, str | bool]:
    """Return the options by name: `postbus.posts.v1` is `postbus/posts/v1` in Go."""
    parts = package.split(".")
    return {
        "csharp_namespace": ".".join(part.title().replace("_", "") for part in parts),
        "go_package": f"{'/'.join(parts)};{''.join(parts[1:])}",
        "java_multiple_files": True,
        "java_package": package,
    }


def with_options(source: bytes, file: FileDescriptorProto) -> bytes:
    """Return the text of a .proto file with the options of its package, after the package.

    `file` is the descriptor of the text, with source info.
    """
    lines = [
        f'option {name} = "{value}";' if isinstance(value, str) else f"option {name} = true;"
        for name, value in _missing(file).items()
    ]
    if not lines:
        return source
    locations = file.source_code_info.location
    line, _, column = next(each.span for each in locations if list(each.path) == _PACKAGE)
    rows = source.split(b"\n")
    rows[line] = b"\n\n".join(
        (rows[line][:column], "\n".join(lines).encode() + rows[line][column:])
    )
    return b"\n".join(rows)


def add_options(data: bytes) -> bytes:
    """Return a FileDescriptorSet with the options of each package of the project."""
    descriptors = FileDescriptorSet.FromString(data)
    for file in descriptors.file:
        if file.name.startswith("postbus/"):
            for name, value in _missing(file).items():
                setattr(file.options, name, value)
    return descriptors.SerializeToString(deterministic=True)
