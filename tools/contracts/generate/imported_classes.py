"""gen/postbus/imported: betterproto's classes of the third-party messages that contracts use."""

import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Final

from google.protobuf.descriptor_pb2 import FileDescriptorProto

from tools.contracts.generate.descriptors import Contracts

__all__ = ["imported_protos", "with_moved_packages"]

_FOLDER: Final = "imported"
_WELL_KNOWN: Final = "google.protobuf"


def imported_protos(contracts: Contracts) -> list[FileDescriptorProto]:
    """Return the third-party files that the contracts import, directly or through other files."""
    files = {file.name: file for file in contracts.protos}
    found: set[str] = set()
    waiting = {kind.file.package for kind in contracts.imported.values()}
    while waiting - found:
        found |= waiting
        imports = [
            name for file in files.values() if file.package in waiting for name in file.dependency
        ]
        waiting = {files[name].package for name in imports} - {_WELL_KNOWN}
    return [file for file in files.values() if file.package in found]


def with_moved_packages(
    sources: Mapping[str, str], root: str, further: Collection[str]
) -> dict[str, str]:
    """Return betterproto's modules by path, with the third-party packages below `root`/imported.

    The own packages are those below `root` and `further`.
    """
    own = {name for name in sources if PurePosixPath(name).parts[0] in {root, *further}}
    moved = {f"{root}/{_FOLDER}/{name}": sources[name] for name in sources.keys() - own}
    return {name: _with_moved_imports(name, sources[name]) for name in own} | (
        moved if len(moved) > 1 else {}  # the module of the root alone
    )


def _with_moved_imports(name: str, source: str) -> str:
    """Return the source of an own module, which imports other packages from their new place.

    betterproto imports packages beside the root by one dot more than the module's package has
    names.
    """
    depth = len(PurePosixPath(name).parent.parts)
    outside = re.compile(rf"^from {r'[.]' * (depth + 1)}(?=[^.])(\S*)", re.MULTILINE)
    return outside.sub(lambda found: _moved(depth, found[1]), source)


def _moved(depth: int, package: str) -> str:
    return f"from {'.' * depth}{_FOLDER}" + (f".{package}" if package else "")
