"""Programs in other languages, each in a folder of its own, built with generated types."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tools.node import node_environment, node_modules
from tools.paths import DEV, ROOT

__all__ = ["LANGUAGES", "Language", "build"]

DESCRIPTORS: Final = ROOT / "gen/postbus/contracts.binpb"
SOURCES: Final = Path(__file__).parent
_PATHS: Final = ("postbus", "buf", "google/api", "google/rpc")
"""The packages of the contracts that no runtime has."""

Command = Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """A language: the programs that it needs, and the commands that build and run its program."""

    name: str
    title: str
    """As in the titles of the posts of its program."""
    needs: Sequence[str]
    install: str
    """How to install the toolchain, for developers."""
    build: Sequence[Command]
    run: Command
    environment: Mapping[str, str] = field(default_factory=dict)


LANGUAGES: Final = (
    Language(
        name="go",
        title="Go",
        needs=["go"],
        install="Go 1.26 or later (go.dev)",
        build=[["go", "build", "-o", "program", "."]],
        run=["./program"],
    ),
    Language(
        name="typescript",
        title="TypeScript",
        needs=[],
        install="",
        build=[["tsc"]],
        run=["node", "build/main.js"],
    ),
)


def build(language: Language) -> Path:
    """Build the program of a language in .dev; return its folder. Skip without its toolchain.

    What a toolchain has built there before, it does not build again.
    """
    missing = [name for name in language.needs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {language.title} toolchain: install {language.install}")
    folder = DEV / "polyglot" / language.name
    shutil.copytree(SOURCES / language.name, folder, dirs_exist_ok=True)
    environment = environment_of(language)
    if (folder / "package.json").exists():
        (folder / "node_modules").unlink(missing_ok=True)
        (folder / "node_modules").symlink_to(node_modules())
    if (folder / "buf.gen.yaml").exists():
        paths = [part for path in _PATHS for part in ("--path", path)]
        _run(["buf", "generate", str(DESCRIPTORS), *paths], folder, environment)
    for command in language.build:
        _run(command, folder, environment)
    return folder


def environment_of(language: Language) -> dict[str, str]:
    """Return the environment in which the program of a language is built and runs."""
    modules = node_modules()
    folders = [str(Path(sys.executable).parent), str(modules / ".bin"), node_environment()["PATH"]]
    return {
        **os.environ,
        **node_environment(),
        "PATH": os.pathsep.join(folders),
        **language.environment,
    }


def _run(command: Command, folder: Path, environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"[-5000:]
