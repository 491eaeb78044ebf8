"""The contracts as sources for any protoc: our files with comments, and their imports."""

from collections.abc import Iterable, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from google.protobuf.descriptor_pb2 import FileDescriptorProto

from tools.contracts.generate.language_options import with_options

__all__ = ["protos_zip"]

_REGULAR_FILE = 0o100644 << 16


def protos_zip(protos: Iterable[FileDescriptorProto], project: Path) -> bytes:
    """Return a reproducible archive of these files of a project, which have source info."""
    roots: Sequence[Traversable] = (
        project / "proto",
        project / ".dev/third_party",
        files("grpc_tools").joinpath("_proto"),  # google/protobuf
    )
    target = BytesIO()
    with ZipFile(
        target, "w", ZIP_STORED
    ) as archive:  # the output of deflate depends on the version of zlib
        for file in sorted(protos, key=lambda file: file.name):
            entry = ZipInfo(file.name)  # with a fixed date in 1980
            entry.create_system = 3
            entry.external_attr = _REGULAR_FILE
            source = _source(file.name, roots)
            own = file.name.startswith("postbus/")
            archive.writestr(entry, with_options(source, file) if own else source)
    return target.getvalue()


def _source(name: str, roots: Sequence[Traversable]) -> bytes:
    return next(root.joinpath(name) for root in roots if root.joinpath(name).is_file()).read_bytes()
