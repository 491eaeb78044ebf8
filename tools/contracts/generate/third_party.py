"""Lay out the .proto files of Google and Buf from the Python packages that contain them."""

import shutil
from importlib.resources import files
from pathlib import Path

from google.protobuf import descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from protovalidate._gen.buf.validate import validate_pb

from tools.contracts.generate.proto_text import proto_text

__all__ = ["lay_out"]

_GOOGLE = ("annotations.proto", "field_behavior.proto", "http.proto")


def lay_out(target: Path) -> None:
    """Replace `target` by a folder with google/api and buf/validate."""
    shutil.rmtree(target, ignore_errors=True)
    for name in _GOOGLE:
        _write(target / "google/api" / name, files("google.api").joinpath(name).read_text())
    _write(target / "buf/validate/validate.proto", _validate_text())


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
