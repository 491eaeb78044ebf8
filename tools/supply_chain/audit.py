"""`just sbom` and `just audit`: what the images contain, under which licences, with known faults.

The programs are locked in requirements.txt beside this file and run in an environment of their own.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tools.paths import DEV, ROOT, SERVICES, python_of
from tools.uv import uv

__all__ = ["advisories", "audit", "refused_licences", "sbom"]

_LOCK: Final = Path(__file__).with_name("requirements.txt")
_HOME: Final = DEV / "supply-chain"
_OUTPUT: Final = ROOT / "dist" / "sbom"
_ALLOWED: Final = re.compile(
    r"0BSD|Apache|BSD|HPND|ISC|MIT|MPL|Mozilla Public|PSF|Python Software Foundation|Public Domain"
    r"|Unlicense|Zlib|CC0|LGPL|Lesser General Public"
)
_BY_HAND: Final = {"protobuf": "BSD-3-Clause"}
"""Licences of packages whose metadata name none in a form that CycloneDX knows."""
_UNREACHABLE: Final = re.compile(r"ConnectionError|ProxyError|Timeout|Max retries|HTTPError")


def sbom() -> int:
    """Write a software bill of materials (CycloneDX) for each service to dist/sbom."""
    _OUTPUT.mkdir(parents=True, exist_ok=True)
    for service in SERVICES:
        file = _OUTPUT / f"{service}.json"
        program = _program("cyclonedx-py")
        project = ["--pyproject", str(ROOT / service / "pyproject.toml")]
        command = [program, "environment", *project, "-o", str(file), str(python_of(service))]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        print(f"sbom: {file.relative_to(ROOT)}")
    return 0


def audit() -> int:
    """Check licences and known vulnerabilities of all services; return 1 if one is refused."""
    sbom()
    failed = False
    for service in SERVICES:
        document = json.loads((_OUTPUT / f"{service}.json").read_text())
        for refused in refused_licences(document):
            print(f"audit: {service}: licence not allowed: {refused}")
            failed = True
        failed = not _has_no_advisory(service) or failed
    print(f"audit: {'failed' if failed else 'ok'}")
    return int(failed)


def refused_licences(document: dict[str, Any]) -> Iterator[str]:
    """Yield each component of a CycloneDX document of which no licence is permitted or known."""
    for component in document.get("components", ()):
        licences = [_name(each) for each in component.get("licenses", ())]
        licences += [_BY_HAND[component["name"]]] if component["name"] in _BY_HAND else []
        if not any(_ALLOWED.search(licence) for licence in licences):
            yield f"{component['name']} {component.get('version', '')}: {licences or 'unknown'}"


def _name(choice: dict[str, Any]) -> str:
    licence = choice.get("license", {})
    return str(choice.get("expression") or licence.get("id") or licence.get("name") or "")


def _has_no_advisory(service: str) -> bool:
    """Return whether no advisory names a locked package; print the packages without an answer."""
    lock = str(ROOT / service / "requirements.txt")
    options = ["--require-hashes", "--disable-pip", "--progress-spinner=off", "--format=json"]
    command = [_program("pip-audit"), *options, "-r", lock]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(completed.stdout)["dependencies"]
    except ValueError:
        if not _UNREACHABLE.search(completed.stderr):
            raise SystemExit(f"audit: pip-audit failed:\n{completed.stderr}") from None
        print(f"audit: {service}: advisories: skipped: their database cannot be reached")
        return True
    found, unknown = advisories(packages)
    if unknown:
        print(
            f"audit: {service}: advisories: skipped: their database does not answer for"
            f" {len(unknown)} of {len(packages)} packages, such as {unknown[0]}"
        )
    for line in found:
        print(f"audit: {service}: {line}")
    return not found


def advisories(packages: Sequence[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Return the advisories in pip-audit's report, and the packages that were not checked."""
    found = [
        f"{package['name']} {package['version']}: {each['id']}"
        f" (fixed in {', '.join(each['fix_versions']) or 'no version'})"
        for package in packages
        for each in package.get("vulns", ())
    ]
    return found, [package["name"] for package in packages if "skip_reason" in package]


def _program(name: str) -> str:
    """Return the path of a locked program; install all of them first if necessary."""
    wanted = hashlib.sha256(_LOCK.read_bytes() + sys.version.encode()).hexdigest()
    stamp = _HOME / "stamp"
    if not stamp.exists() or stamp.read_text() != wanted:
        python = ["--python", str(_HOME)]
        new = ["venv", "--quiet", "--no-project", "--allow-existing", "--python", sys.executable]
        subprocess.run([uv(), *new, str(_HOME)], check=True)
        sync = ["pip", "sync", "--quiet", *python, "--require-hashes", str(_LOCK)]
        subprocess.run([uv(), *sync], check=True)
        stamp.write_text(wanted)
    return str(_HOME / "bin" / name)
