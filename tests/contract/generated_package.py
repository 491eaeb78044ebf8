"""Packages generated from .proto texts in the test's process, without buf."""

import importlib
import itertools
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from grpc_tools import protoc

from postbus_runtime.conversions import Codec
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.message_classes import message_classes
from tools.contracts.generate.package_modules import write_package_modules
from tools.contracts.generate.rest_models import rest_models_source
from tools.paths import ROOT

__all__ = ["GeneratedPackage", "compile_contracts", "filled", "new_root"]

_IMPORTS = """\
import "buf/validate/validate.proto";
import "google/api/annotations.proto";
import "google/protobuf/timestamp.proto";
import "postbus/options/v1/options.proto";
"""
_numbers = itertools.count(1)


def new_root() -> str:
    """Return the name of a root package that no other test has."""
    return f"generated{next(_numbers)}"


def compile_contracts(folder: Path, root: str, packages: Mapping[str, str]) -> Contracts | None:
    """Compile a text for each package below `root`, such as `odd.v1`; None if protoc refuses it."""
    sources = []
    for package, body in packages.items():
        source = folder / root / package.replace(".", "/") / "odd.proto"
        source.parent.mkdir(parents=True)
        source.write_text(f'syntax = "proto3";\npackage {root}.{package};\n{_IMPORTS}{body}')
        sources.append(str(source))
    target = folder / f"{root}.binpb"
    well_known = files("grpc_tools").joinpath("_proto")
    third_party = ROOT / ".dev/third_party"
    includes = [f"-I{path}" for path in (folder, ROOT / "proto", third_party, well_known)]
    options = ["--include_imports", "--include_source_info", f"-o{target}"]
    if protoc.main(["protoc", *includes, *options, *sources]) != 0:
        return None
    return Contracts(target.read_bytes(), root)


class GeneratedPackage:
    """The package of contracts, written to a folder and imported."""

    def __init__(self, folder: Path, contracts: Contracts) -> None:
        for name, source in message_classes(contracts).items():
            module = folder / "site" / name
            module.parent.mkdir(parents=True, exist_ok=True)
            module.write_text(source)
        package = folder / "site" / contracts.root
        (package / "rest.py").write_text(rest_models_source(contracts))
        (package / "contracts.binpb").write_bytes((folder / f"{contracts.root}.binpb").read_bytes())
        write_package_modules(package)
        sys.path.insert(0, str(folder / "site"))
        self.rest, self.registry, codec = (
            importlib.import_module(f"{contracts.root}.{name}")
            for name in ("rest", "registry", "codec")
        )
        self.codecs: Mapping[type, Codec] = codec.CODECS
        sys.path.remove(str(folder / "site"))

    def module(self, package: str) -> ModuleType:
        """Return an imported module of the package."""
        return importlib.import_module(f"{self.rest.__name__.partition('.')[0]}.{package}")


def filled(message: Any, depth: int = 2) -> Any:
    """Set every field of a google message, down to a depth, and return the message."""
    for number, field in enumerate(message.DESCRIPTOR.fields, 1):
        target = getattr(message, field.name)
        if field.message_type and field.message_type.GetOptions().map_entry:
            continue
        if field.message_type is None:
            value = f"{number}" if field.type == FieldDescriptor.TYPE_STRING else number
            target.append(value) if field.is_repeated else setattr(message, field.name, value)
        elif depth and not field.is_repeated:
            target.SetInParent()
            filled(target, depth - 1)
    return message
