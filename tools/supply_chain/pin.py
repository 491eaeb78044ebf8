"""`just pin`: write the digests of images and the commits of actions beside their versions.

A tag can be moved to other content; a digest cannot. What cannot be reached stays as it is.
"""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Final

from tools.paths import ROOT

__all__ = ["Registries", "pin"]

_SECONDS: Final = 10
_IMAGE: Final = re.compile(r"(image: |ARG PYTHON=)([\w.-]+):([\w.-]+)(@sha256:[0-9a-f]{64})?$")
_ACTION: Final = re.compile(r"(uses: )([\w./-]+)@(?:[0-9a-f]{40} # )?(v[\d.]+)$")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json"
)
"""Media types of an index of all platforms, whose digest fits every machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registries:
    """The addresses that answer for tags."""

    tokens: str = "https://auth.docker.io"
    images: str = "https://registry-1.docker.io"
    actions: str = "https://api.github.com"

    def image(self, name: str, tag: str) -> str:
        """Return the digest of an official image (OCI Distribution Specification 1.1)."""
        scope = f"scope=repository:library/{name}:pull"
        token = _json(f"{self.tokens}/token?service=registry.docker.io&{scope}")["token"]
        headers = {"Authorization": f"Bearer {token}", "Accept": _TYPES}
        url = f"{self.images}/v2/library/{name}/manifests/{tag}"
        request = urllib.request.Request(url, headers=headers, method="HEAD")  # noqa: S310  # https
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:  # noqa: S310  # https
            return _checked(_DIGEST, response.headers.get("Docker-Content-Digest", ""))

    def action(self, name: str, tag: str) -> str:
        """Return the commit of a tag; an annotated tag is an object that names it."""
        found = _json(f"{self.actions}/repos/{name}/git/ref/tags/{tag}")["object"]
        if found["type"] == "tag":
            found = _json(f"{self.actions}/repos/{name}/git/tags/{found['sha']}")["object"]
        return _checked(_COMMIT, found["sha"])


def pin(registries: Registries = Registries(), root: Path = ROOT) -> int:  # frozen
    """Pin all images and actions; return 1 if some could not be resolved."""
    known: dict[str, str] = {}
    missing: dict[str, str] = {}
    for file in _files(root):
        lines = file.read_text().splitlines(keepends=True)
        pinned = [_pinned(line, registries, known, missing) for line in lines]
        if pinned != lines:
            file.write_text("".join(pinned))
            print(f"pin: {file.relative_to(root)}")
    for name, cause in missing.items():
        print(f"pin: not resolved, unchanged: {name}: {cause}")
    return int(bool(missing))


def _files(root: Path) -> Iterator[Path]:
    yield root / "compose.yaml"
    yield from sorted((root / "deploy").glob("*Dockerfile"))
    yield from sorted((root / ".github" / "workflows").glob("*.yml"))


def _pinned(
    line: str, registries: Registries, known: dict[str, str], missing: dict[str, str]
) -> str:
    text = line.rstrip("\n")
    image, action = _IMAGE.search(text), _ACTION.search(text)
    found = image or action
    if found is None or (image and image[2].startswith("postbus-")):
        return line
    full = f"{found[2]}:{found[3]}"
    if full not in known and full not in missing:
        try:
            resolve = registries.image if image else registries.action
            known[full] = resolve(found[2], found[3])
        except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
            missing[full] = str(error) or type(error).__name__
    if full in missing:
        return line
    exact = (
        f"{found[2]}:{found[3]}@{known[full]}"
        if image
        else f"{found[2]}@{known[full]} # {found[3]}"
    )
    return f"{text[: found.start()]}{found[1]}{exact}\n"


def _json(url: str) -> dict[str, dict[str, str]]:
    with urllib.request.urlopen(url, timeout=_SECONDS) as response:  # noqa: S310  # https
        return dict(json.loads(response.read()))


def _checked(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(f"no digest: {text[:80]!r}")
    return text
