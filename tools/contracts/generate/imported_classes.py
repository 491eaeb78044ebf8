"""gen/postbus/imported: betterproto's classes of the third-party messages that contracts use."""

import re
import shutil
from pathlib import Path
from typing import Final

from tools.contracts.generate.descriptors import Contracts

__all__ = ["copy_imported", "with_moved_imports"]

_FOLDER: Final = "imported"
_WELL_KNOWN: Final = "google.protobuf"


def copy_imported(contracts: Contracts, source: Path, target: Path) -> None:
    """Copy the modules of the third-party packages from betterproto's output into `target`."""
    for package in _packages(contracts):
        folder = target / _FOLDER / package.replace(".", "/")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / package.replace(".", "/") / "__init__.py", folder)
    for folder in (target / _FOLDER).rglob("*"):
        if folder.is_dir():
            (folder / "__init__.py").touch()
    if (target / _FOLDER).exists():
        (target / _FOLDER / "__init__.py").touch()


def _packages(contracts: Contracts) -> set[str]:
    """Return the packages of the third-party messages, and those that their files import."""
    files = {file.name: file for file in contracts.parsed_files}
    found: set[str] = set()
    waiting = {kind.file.package for kind in contracts.imported.values()}
    while waiting - found:
        found |= waiting
        imports = [
            name for file in files.values() if file.package in waiting for name in file.dependency
        ]
        waiting = {files[name].package for name in imports} - {_WELL_KNOWN}
    return found


def with_moved_imports(source: str, depth: int) -> str:
    """Return the source of an own module, which imports other packages from their new place.

    `depth` is the number of names in the package of the module: betterproto imports packages beside
    the root by one dot more.
    """
    outside = re.compile(rf"^from {r'[.]' * (depth + 1)}(?=[^.])(\S*)", re.MULTILINE)
    return outside.sub(lambda found: _moved(depth, found[1]), source)


def _moved(depth: int, package: str) -> str:
    return f"from {'.' * depth}{_FOLDER}" + (f".{package}" if package else "")
