"""Contracts for single tests, compiled from the text of one file."""

import subprocess
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

from postbus_runtime.contract import ContractError
from tools.contracts.generate.contract_checks import check_contracts
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.third_party import lay_out
from tools.paths import ROOT, VENV

__all__ = ["HEAD", "PLACE", "build", "compile_text", "fault_of", "new_project"]

HEAD = """
syntax = "proto3";
package postbus.odd.v1;
import "buf/validate/validate.proto";
import "google/api/annotations.proto";
import "google/api/field_behavior.proto";
import "google/protobuf/any.proto";
import "google/protobuf/empty.proto";
import "google/protobuf/timestamp.proto";
import "postbus/options/v1/options.proto";
"""
PLACE = r"proto/postbus/odd/v1/odd\.proto:\d+: "


def new_project(folder: Path) -> Path:
    """Return a project with the third-party files and our options, but without contracts."""
    lay_out(folder / ".dev/third_party")
    options = folder / "proto/postbus/options/v1/options.proto"
    options.parent.mkdir(parents=True)
    options.write_text((ROOT / "proto/postbus/options/v1/options.proto").read_text())
    for name in ("buf.yaml",):
        (folder / name).write_text((ROOT / name).read_text())
    return folder


def compile_text(project: Path, body: str, head: str = HEAD) -> Contracts:
    """Return the contracts of a project with one more file, which has this text."""
    source = project / "proto/postbus/odd/v1/odd.proto"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(f"{head}\n{body}")
    target = project / "odd.binpb"
    well_known = files("grpc_tools").joinpath("_proto")
    folders = (project / "proto", project / ".dev/third_party", well_known)
    options = ["--include_imports", "--include_source_info", f"-o{target}"]
    assert protoc.main(["protoc", *(f"-I{each}" for each in folders), *options, str(source)]) == 0
    return Contracts(target.read_bytes())


def build(project: Path) -> Contracts:
    """Return the contracts of a project as `just gen` reads them: compiled by buf."""
    target = project / "built.binpb"
    buf = VENV / "bin" / "buf"
    subprocess.run([buf, "build", "-o", target], cwd=project, check=True, capture_output=True)
    return Contracts(target.read_bytes())


def fault_of(contracts: Contracts) -> str:
    """Return the error of the checks, with file and line; empty if they accept the contracts."""
    try:
        check_contracts(contracts)
    except ContractError as error:
        return contracts.explain(error)
    return ""
