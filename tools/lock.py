"""`just lock`: pins every dependency, with hashes, in files that record no download addresses.

Run as `python3 -m tools.lock [--upgrade]`. The root's requirements.txt decides all versions; the
file of a service holds the subset that the service needs.
"""

import subprocess
import sys
from collections.abc import Sequence

from tools.paths import ROOT, SERVICES
from tools.uv import uv

_COMPILE = (
    "pip",
    "compile",
    "--quiet",
    "--universal",
    "--python-version=3.11",
    "--generate-hashes",
    "--no-emit-index-url",
    "--no-header",
    "--no-annotate",
    "--no-emit-package=postbus",
    "--no-emit-package=postbus-shared",
)


def main(arguments: Sequence[str]) -> None:
    """Write all lock files; `--upgrade` takes the newest versions that the pyprojects allow."""
    projects = [f"{service}/pyproject.toml" for service in SERVICES]
    _compile("pyproject.toml", "--group=dev", *projects, "-o", "requirements.txt", *arguments)
    for service in SERVICES:
        lock_service(service, *arguments)
    accounts = "tools/accounts/requirements"
    _compile(f"{accounts}.in", "-c", "requirements.txt", "-o", f"{accounts}.txt", *arguments)
    for source in (
        "deploy/build.in",
        "tools/just.in",
        "tools/servers/mongodb.in",
        "tools/supply_chain/requirements.in",
    ):
        _compile(source, "-o", source.replace(".in", ".txt"), *arguments)


def lock_service(service: str, *arguments: str) -> None:
    """Write the lock file of a service with the versions of the root's lock file."""
    lock = f"{service}/requirements.txt"
    _compile(f"{service}/pyproject.toml", "-c", "requirements.txt", "-o", lock, *arguments)


def _compile(*arguments: str) -> None:
    print(f"lock: {arguments[arguments.index('-o') + 1]}", flush=True)
    subprocess.run([uv(), *_COMPILE, *arguments], cwd=ROOT, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
