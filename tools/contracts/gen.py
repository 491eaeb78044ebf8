"""`just gen`: write gen/ from proto/, unless nothing has changed since the last complete run."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tools.paths import DEV, ROOT

__all__ = ["main", "remember", "up_to_date"]

_INPUTS: Final = (
    *("proto", "buf.yaml", "requirements.txt", "tools/contracts/generate", "tools/npm"),
    *("gen/postbus_runtime", "gen/postbus", ".dev/third_party"),
)
"""Files and folders that determine the output, and the output itself."""
_STAMP: Final = DEV / "gen.stamp"
"""The fingerprint after the last complete run."""


def up_to_date() -> bool:
    """Return whether inputs and output are the same as at the end of the last complete run."""
    return _STAMP.exists() and _STAMP.read_text() == _fingerprint()


def remember() -> None:
    """Record that the output belongs to the inputs, and is valid."""
    _STAMP.write_text(_fingerprint())


def _fingerprint() -> str:
    digest = hashlib.sha256()
    for file in _files():
        content = file.read_bytes()
        digest.update(f"{file.relative_to(ROOT)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _files() -> Iterator[Path]:
    for name in _INPUTS:
        path = ROOT / name
        found = [path] if path.is_file() else path.rglob("*")
        yield from sorted(
            each for each in found if each.is_file() and "__pycache__" not in each.parts
        )


def main() -> int:
    """Generate if necessary; return the exit status."""
    if up_to_date():
        print("gen: gen/ is up to date")
        return 0
    from tools.contracts.generate.__main__ import main as generate  # takes 2 s of CPU

    return generate([])


if __name__ == "__main__":
    sys.exit(main())
