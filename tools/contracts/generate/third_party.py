"""Lay out the third-party .proto files: of Google and Buf from Python packages, and vendored ones.

Contracts import google/api, google/rpc and google/type from `googleapis-common-protos`, and
buf/validate from `protovalidate`. Files of others stand below `third_party`, beside `proto`.
"""

import shutil
import sys
from importlib.resources import files
from pathlib import Path

from google.protobuf import descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from protovalidate._gen.buf.validate import validate_pb

from tools.contracts.generate.proto_text import proto_text

__all__ = ["lay_out"]

_GOOGLE = ("google.api", "google.rpc", "google.type")
_WELL_KNOWN = "google/protobuf/"
"""Files that every compiler has."""


def lay_out(target: Path, vendored: Path | None = None) -> None:
    """Replace `target` by a folder with the files of the packages and those below `vendored`.

    Raises SystemExit for a vendored file that a package or the project has too.
    """
    shutil.rmtree(target, ignore_errors=True)
    for package in _GOOGLE:
        for source in files(package).iterdir():
            if source.name.endswith(".proto"):
                _write(target / package.replace(".", "/") / source.name, source.read_text())
    _write(target / "buf/validate/validate.proto", _validate_text())
    for path in sorted(vendored.rglob("*.proto")) if vendored else ():
        name = path.relative_to(vendored).as_posix()  # type: ignore[arg-type]  # it has files
        _require_new(name, target)
        _write(target / name, path.read_text())


def _require_new(name: str, target: Path) -> None:
    if (target / name).exists() or name.startswith(_WELL_KNOWN):
        sys.exit(f"gen: third_party/{name}: a package of the project has this file: remove it")
    if name.startswith("postbus/"):
        sys.exit(f"gen: third_party/{name}: the project's own contracts belong in proto/postbus")


def _validate_text() -> str:
    data = validate_pb.desc().proto.to_binary()
    pool = DescriptorPool()
    for module in (descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(data)
    # the pool's own class parses the extensions that the file defines
    file_class = GetMessageClass(pool.FindMessageTypeByName("google.protobuf.FileDescriptorProto"))
    return proto_text(file_class.FromString(data))  # type: ignore[arg-type]  # same fields


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
