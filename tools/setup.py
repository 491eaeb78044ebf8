"""Create the virtual environments: one for development, one for each service.

Run as `python3 -m tools.setup` by any Python from 3.11 on, before anything is installed; it uses
only the standard library, and does nothing if everything is up to date.
"""

import fcntl
import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools.paths import DEV, ROOT, SERVICES
from tools.uv import uv


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """One virtual environment: locked requirements, and packages of this repository."""

    folder: Path
    packages: tuple[str, ...]

    @property
    def name(self) -> str:
        return str((self.folder / ".venv").relative_to(ROOT))

    @property
    def _stamp(self) -> Path:
        return self.folder / ".venv" / ".postbus-stamp"

    @property
    def _lock(self) -> Path:
        return self.folder / "requirements.txt"

    def fingerprint(self) -> str:
        """Return a hash of all inputs of the environment."""
        inputs = [self._lock, *(ROOT / package / "pyproject.toml" for package in self.packages)]
        digest = hashlib.sha256(f"{self.folder} {sys.version}".encode())
        for file in (Path(__file__), *inputs):
            digest.update(file.read_bytes())
        return digest.hexdigest()

    def up_to_date(self) -> bool:
        """Return whether the environment was created from the present inputs."""
        return self._stamp.exists() and self._stamp.read_text() == self.fingerprint()

    def make(self) -> None:
        """Create or update the environment; an interrupted attempt is repeated next time."""
        print(f"setup: {self.name}", flush=True)
        self._stamp.unlink(missing_ok=True)
        folder = str(self.folder / ".venv")
        _run([uv(), "venv", "--no-project", "--allow-existing", "--python", sys.executable, folder])
        pip = [uv(), "pip"]
        here = ["--python", folder]
        _run([*pip, "sync", *here, "--require-hashes", str(self._lock)])
        editable = [word for package in self.packages for word in ("--editable", package)]
        _run([*pip, "install", *here, "--no-deps", *editable])
        self._stamp.write_text(self.fingerprint())


def environments() -> list[Environment]:
    """Return all environments: the root's with every package, a service's with its imports only."""
    services = [
        Environment(folder=ROOT / service, packages=("gen", "shared", service))
        for service in SERVICES
    ]
    return [Environment(folder=ROOT, packages=("gen", "shared", *SERVICES)), *services]


def main() -> None:
    """Create or update environments. A lock lets one process at a time do so."""
    if all(environment.up_to_date() for environment in environments()):
        return
    DEV.mkdir(exist_ok=True)
    with (DEV / "setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outdated = [each for each in environments() if not each.up_to_date()]
        with ThreadPoolExecutor() as threads:
            list(threads.map(Environment.make, outdated))


def _run(command: list[str]) -> None:
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if completed.returncode:
        raise SystemExit(f"setup failed: {' '.join(command[:3])}\n{completed.stderr.strip()}")


if __name__ == "__main__":
    main()
