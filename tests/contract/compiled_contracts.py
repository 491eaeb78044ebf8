"""Descriptor sets of contracts that are written in tests."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

from tools.contracts.generate.third_party import lay_out
from tools.paths import DEV, ROOT

_HEAD = """syntax = "proto3";
package {package};
import "buf/validate/validate.proto";
import "google/api/annotations.proto";
import "google/api/field_behavior.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
import "postbus/options/v1/options.proto";
"""


def compile_contracts(folder: Path, contracts: Mapping[str, str]) -> bytes:
    """Return the descriptor set that protoc makes of contracts, by package.

    The file of the package `postbus.odd.v1` is `postbus/odd/v1/odd.proto` in `folder`.
    """
    if not (DEV / "third_party").exists():
        lay_out(DEV / "third_party")
    sources = [_write(folder, package, text) for package, text in contracts.items()]
    well_known = files("grpc_tools").joinpath("_proto")
    includes = [f"-I{path}" for path in (folder, ROOT / "proto", DEV / "third_party", well_known)]
    target = folder / "contracts.binpb"
    options = ["--include_imports", "--include_source_info", f"-o{target}"]
    assert protoc.main(["protoc", *includes, *options, *map(str, sources)]) == 0, contracts
    return target.read_bytes()


def file_of(package: str) -> str:
    """Return the name of the file of a package: `postbus/odd/v1/odd.proto`."""
    return f"{package.replace('.', '/')}/{package.split('.')[-2]}.proto"


def _write(folder: Path, package: str, text: str) -> Path:
    source = folder / file_of(package)
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(_HEAD.replace("{package}", package) + text)
    return source
