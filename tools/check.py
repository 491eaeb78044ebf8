"""`just check`: static checks of format, lint, types, imports, language, contracts and gen/."""

import os
import subprocess
import sys

from tools.paths import ROOT, SERVICES, VENV

_PACKAGES = (f"{package}/src" for package in ("shared", *SERVICES))
_SOURCES = ("gen/postbus_runtime", *_PACKAGES, "tools", "tests", "bench")
_CHECKS = {
    "drift of gen/": ("python", "-m", "tools.contracts.generate", "--check"),
    "format": ("ruff", "format", "--check", "--quiet"),
    "lint": ("ruff", "check", "--quiet"),
    "types": ("mypy", *_SOURCES),
    "imports": ("lint-imports", "--no-cache"),
    "language": ("python", "-m", "tools.language"),
    "contracts": ("buf", "lint"),
    "documents": ("python", "-m", "tools.contracts.generate.document_validators"),
    "proto format": ("buf", "format", "--diff", "--exit-code", "proto"),
}
_BASE = "main"


def check() -> int:
    """Run every check; return 1 if one failed. The output of a check is shown only if it fails."""
    checks = {**_CHECKS, **_breaking()}
    failed = [name for name, command in checks.items() if not _passes(name, command)]
    print(f"check: failed: {', '.join(failed)}" if failed else "check: ok")
    return 1 if failed else 0


def _breaking() -> dict[str, tuple[str, ...]]:
    """Return the check for breaking changes against main; none if main has no contracts."""
    for base in (f"origin/{_BASE}", _BASE):
        known = ["git", "rev-parse", "--verify", "--quiet", f"{base}:proto"]
        if subprocess.run(known, cwd=ROOT, capture_output=True, check=False).returncode == 0:
            return {"breaking changes": ("python", "-m", "tools.contracts.breaking", base)}
    return {}


def _passes(name: str, command: tuple[str, ...]) -> bool:
    path = f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}"
    completed = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(f"check: {name}: {'failed' if completed.returncode else 'ok'}", flush=True)
    if completed.returncode:
        print(completed.stdout, file=sys.stderr)
    return completed.returncode == 0
