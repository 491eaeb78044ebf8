"""Programs in other languages, each in a folder of its own, built with generated types."""

import hashlib
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

__all__ = ["GO", "LANGUAGES", "Language", "build", "environment_of"]

DESCRIPTORS: Final = ROOT / "gen/postbus/contracts.binpb"
SOURCES: Final = Path(__file__).parent
PROTOS: Final = ROOT / "gen/postbus/protos.zip"
Command = Sequence[str]

GENERATE: Final[Command] = [
    *("buf", "generate", str(DESCRIPTORS)),
    *("--path", "postbus", "--path", "buf", "--path", "google/api"),
]
"""Generates the types that no runtime has, as the program's buf.gen.yaml says."""


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


GO: Final = Language(
    name="go",
    title="Go",
    needs=["go"],
    install="Go 1.26 or later (go.dev)",
    build=[GENERATE, ["go", "build", "-o", "program", "."]],
    run=["./program"],
)
LANGUAGES: Final = (
    GO,
    Language(
        name="java",
        title="Java",
        needs=["java", "javac", "mvn"],
        install="a JDK 17 or later, and Maven (apt install openjdk-17-jdk-headless maven)",
        build=[
            ["python", "-m", "zipfile", "-e", str(PROTOS), "protos"],
            ["mvn", "-q", "-B", "compile", "dependency:copy-dependencies"],
        ],
        run=["java", "-cp", "target/classes:target/dependency/*", "program.Main"],
    ),
    Language(
        name="typescript",
        title="TypeScript",
        needs=[],
        install="",
        build=[GENERATE, ["tsc"]],
        run=["node", "build/main.js"],
    ),
    Language(
        name="rust",
        title="Rust",
        needs=["cargo"],
        install="Rust 1.89 or later (rustup.rs)",
        build=[["cargo", "build", "--quiet"]],
        run=["target/debug/program"],
        environment={"DESCRIPTORS": str(DESCRIPTORS)},
    ),
)


def build(language: Language) -> Path:
    """Build the program of a language in .dev, once for each change; return its folder.

    Skips the test if the toolchain is missing.
    """
    missing = [name for name in language.needs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {language.title} toolchain: install {language.install}")
    folder = DEV / "polyglot" / language.name
    built, version = folder / ".built", _version(language)
    if built.exists() and built.read_text() == version:
        return folder
    shutil.copytree(SOURCES / language.name, folder, dirs_exist_ok=True)
    environment = environment_of(language)
    if (folder / "package.json").exists():
        (folder / "node_modules").unlink(missing_ok=True)
        (folder / "node_modules").symlink_to(node_modules())
    for command in language.build:
        _run(command, folder, environment)
    built.write_text(version)
    return folder


def _version(language: Language) -> str:
    """Return a hash of the sources of a program and of the contracts."""
    sources = sorted(each for each in (SOURCES / language.name).rglob("*") if each.is_file())
    hashed = hashlib.sha256(repr(language).encode())
    for file in (DESCRIPTORS, ROOT / "tools/npm/package-lock.json", *sources):
        hashed.update(file.read_bytes())
    return hashed.hexdigest()


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
