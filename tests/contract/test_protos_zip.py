"""The archive of .proto files: complete, and equivalent to the descriptor set."""

from importlib.resources import as_file, files
from pathlib import Path
from zipfile import ZipFile

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_tools import protoc

from tools.contracts.generate.language_options import add_options, with_options

PUBLISHED = files("postbus").joinpath("contracts.binpb").read_bytes()


def file_set_class() -> type[FileDescriptorSet]:
    """Return a FileDescriptorSet class that knows the options of the contracts."""
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(PUBLISHED).file:
        pool.Add(file)
    name = "google.protobuf.FileDescriptorSet"
    return GetMessageClass(pool.FindMessageTypeByName(name))  # type: ignore[return-value]


def descriptors(data: bytes, set_class: type[FileDescriptorSet]) -> dict[str, object]:
    """Return the files of a set without the fields that buf adds."""
    parsed = set_class.FromString(data)
    parsed.DiscardUnknownFields()
    return {file.name: file for file in parsed.file}


def test_archive_alone_compiles_to_the_descriptor_set(tmp_path: Path) -> None:
    with as_file(files("postbus").joinpath("protos.zip")) as archive, ZipFile(archive) as opened:
        opened.extractall(tmp_path)
        names = opened.namelist()
    compiled = tmp_path / "compiled.binpb"

    # protoc would search for google/protobuf beside the program of this name.
    arguments = [f"{tmp_path}/none/protoc", f"-I{tmp_path}", "--include_imports", f"-o{compiled}"]
    assert protoc.main([*arguments, *names]) == 0

    set_class = file_set_class()
    ours = descriptors(compiled.read_bytes(), set_class)
    published = descriptors(PUBLISHED, set_class)
    assert ours.keys() == published.keys() == set(names)
    # protoc drops options with source retention from the file; buf keeps them.
    del ours["google/protobuf/descriptor.proto"], published["google/protobuf/descriptor.proto"]
    assert ours == published


def test_archive_has_the_comments_of_the_contracts() -> None:
    with as_file(files("postbus").joinpath("protos.zip")) as archive, ZipFile(archive) as opened:
        text = opened.read("postbus/posts/v1/posts.proto").decode()

    assert (
        "// Posts: create, read, list, change, publish and like them.\nservice PostsService {"
        in text
    )


PACKAGE = "package postbus.odd.v1;"
OWN = """option go_package = "example.com/odd;odd"; option java_package = "com.example";
option java_multiple_files = false; option csharp_namespace = "Odd";"""


@pytest.mark.parametrize(
    "text",
    [
        f"{PACKAGE}\n",
        f"{PACKAGE} // The package, without option go_package\n",
        f"/*\npackage wrong.v1;\n*/\n{PACKAGE} /* more\n*/\n",
        f"// option java_package is missing.\n{PACKAGE} message Other {{}}\n",
        f"{PACKAGE}\n{OWN}",
        f'{PACKAGE}\noption java_package = "com.example";\n',
    ],
)
def test_archive_has_the_options_of_the_descriptor_set(tmp_path: Path, text: str) -> None:
    source = tmp_path / "postbus/odd/v1/odd.proto"
    source.parent.mkdir(parents=True)

    def compiled(data: bytes) -> bytes:
        source.write_bytes(data)
        target = tmp_path / "odd.binpb"
        arguments = ["protoc", f"-I{tmp_path}", "--include_source_info", f"-o{target}"]
        assert protoc.main([*arguments, str(source)]) == 0
        return target.read_bytes()

    data = f'syntax = "proto3";\n{text}message Odd {{}}\n'.encode()
    descriptors = compiled(data)
    [file] = FileDescriptorSet.FromString(descriptors).file
    [published] = FileDescriptorSet.FromString(add_options(descriptors)).file
    [archived] = FileDescriptorSet.FromString(compiled(with_options(data, file))).file

    assert archived.options == published.options
    assert all(published.options.HasField(name) for name in ("go_package", "java_package"))
