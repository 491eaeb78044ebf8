"""`buf breaking` against the contracts of a git revision: `python -m tools.breaking REVISION`."""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

from tools.paths import DEV, ROOT

_BUF = Path(sys.executable).with_name("buf")


def main(revision: str) -> int:
    """Print what breaks clients of `revision`; return buf's exit code."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        _extract(revision, base)
        shutil.copytree(DEV / "third_party", base / ".dev" / "third_party")
        subprocess.run([_BUF, "build", "proto", "-o", base / "base.binpb"], cwd=base, check=True)
        against = ["--against", str(base / "base.binpb"), "--exclude-imports"]
        compare = [str(_BUF), "breaking", "proto", *against]
        return subprocess.run(compare, cwd=ROOT, check=False).returncode


def _extract(revision: str, target: Path) -> None:
    archive = subprocess.run(
        ["git", "archive", revision, "proto", "buf.yaml"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(target, filter="data")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
