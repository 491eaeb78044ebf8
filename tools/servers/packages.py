"""Debian packages unpacked under .dev; nothing is installed in the system.

apt, with lists and a cache under .dev, resolves and fetches the dependencies that the system
lacks; dpkg-deb unpacks them. Neither needs root.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from tools.paths import DEV
from tools.servers.errors import ServersUnavailableError

UNPACKED = DEV / "packages" / "debian"
_DONE = UNPACKED / ".postbus-packages"
_SYSTEM_ONLY = ("libc6_", "libc-bin_")  # a second C library does not work with the system's loader


def provide(names: Collection[str]) -> None:
    """Fetch the packages and unpack them under UNPACKED."""
    missing = sorted(set(names) - _unpacked())
    if not missing:
        return
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise ServersUnavailableError(_how_to_get(missing, "there is no apt on this system"))
    print(f"servers: fetching {', '.join(missing)} (only for this clone, under .dev)", flush=True)
    UNPACKED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=UNPACKED.parent) as folder:
        for archive in _download(missing, Path(folder)):
            _run(["dpkg-deb", "--extract", str(archive), str(UNPACKED)], missing)
    _DONE.write_text("\n".join(sorted(_unpacked().union(missing))))


def library_path() -> str:
    """Return the folders of the unpacked shared libraries, for LD_LIBRARY_PATH."""
    return ":".join(map(str, library_folders()))


def library_folders() -> list[Path]:
    """Return the folders of the unpacked shared libraries; none if the system has them all."""
    return [*UNPACKED.glob("usr/lib/*-linux-*"), *UNPACKED.glob("lib/*-linux-*")]


def _unpacked() -> set[str]:
    with suppress(OSError):
        return set(_DONE.read_text().split())
    return set()


def _download(names: Sequence[str], folder: Path) -> list[Path]:
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    options = {
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "Debug::NoLocking": "1",  # the system's locks need root
        "APT::Sandbox::User": "",  # write downloads as the present user, also as root
        "Acquire::Languages": "none",
    }
    apt = ["apt-get", "-q", *(word for key in options for word in ("-o", f"{key}={options[key]}"))]
    _run([*apt, "update"], names)
    _run([*apt, "install", "--yes", "--no-install-recommends", "--download-only", *names], names)
    archives = (folder / "cache/archives").glob("*.deb")
    return [file for file in archives if not file.name.startswith(_SYSTEM_ONLY)]


def _run(command: Sequence[str], names: Sequence[str]) -> None:
    completed = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if completed.returncode:
        why = completed.stderr.strip() or f"{command[0]} failed"
        raise ServersUnavailableError(_how_to_get(names, why))


def _how_to_get(names: Sequence[str], why: str) -> str:
    return (
        f"Could not fetch {', '.join(names)}: {why}\n"
        f"Either install and start Docker, or install {'them' if len(names) > 1 else 'it'} with"
        " the system's package manager (on Debian and Ubuntu, as root:"
        f" apt-get install {' '.join(names)}); then run the same command again."
    )
