"""`just bench codec`: construct, encode and decode a message, beside two rivals."""

import json
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from grpc_tools import protoc

from bench.report import Result
from tools.contracts.generate.message_classes import with_runtime_classes
from tools.contracts.generate.package_modules import write_package_modules
from tools.paths import DEV
from tools.uv import uv

__all__ = ["run"]

_HERE = Path(__file__).parent
_SCRATCH = DEV / "bench/codec"
_RIVALS = ("betterproto", "betterproto2")
_ROUNDS = 3
_BETTERPROTO2 = ("betterproto2==0.10.0", "betterproto2-compiler==0.10.1")


def run() -> list[Result]:
    """Build every contender, and measure them in turn, in several rounds."""
    shutil.rmtree(_SCRATCH, ignore_errors=True)
    _SCRATCH.mkdir(parents=True)
    rival_python = _install()
    _compile(rival_python)
    pythons = {"ours": Path(sys.executable), "betterproto": Path(sys.executable)}
    pythons["betterproto2"] = rival_python
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(_ROUNDS):
        print(f"bench: codec: round {number + 1} of {_ROUNDS}", flush=True)
        rounds.append({name: _measure(name, python) for name, python in pythons.items()})
    best = {
        name: {measure: min(each[name][measure] for each in rounds) for measure in rounds[0][name]}
        for name in pythons
    }
    size = int(best["ours"].pop("bytes"))
    return [
        Result(
            measure=f"codec: {measure}, {size} bytes",
            unit="µs",
            ours=value,
            rivals={rival: best[rival][measure] for rival in _RIVALS},
        )
        for measure, value in best["ours"].items()
    ]


def _measure(name: str, python: Path) -> dict[str, float]:
    command = [str(python), str(_HERE / "program.py"), name, str(_SCRATCH)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measures: dict[str, float] = json.loads(result.stdout)
    return measures


def _install() -> Path:
    """Install betterproto2 in its own environment: its command names collide with betterproto's."""
    environment = _SCRATCH / "venv"
    python = environment / "bin/python"
    make = [uv(), "venv", "--quiet", "--python", sys.executable, str(environment)]
    subprocess.run(make, check=True)
    install = [uv(), "pip", "install", "--quiet", "--python", str(python)]
    subprocess.run([*install, *_BETTERPROTO2, "grpcio-tools"], check=True)
    return python


def _compile(rival_python: Path) -> None:
    """Compile the contract by betterproto, by betterproto with our codec, and by betterproto2."""
    options = [
        f"-I{_HERE / 'proto'}",
        f"-I{files('grpc_tools').joinpath('_proto')}",
        "bench/v1/post.proto",
    ]
    plugin = Path(sys.executable).with_name("protoc-gen-python_betterproto")
    descriptors = _SCRATCH / "contracts.binpb"
    ours: list[Any] = [
        "protoc",
        f"--plugin={plugin}",
        f"--python_betterproto_out={_SCRATCH}",
        "--include_imports",
        f"-o{descriptors}",
        *options,
    ]
    if protoc.main(ours) != 0:
        raise RuntimeError("post.proto does not compile")
    shutil.copytree(_SCRATCH / "bench/v1", _SCRATCH / "plain/v1")
    (_SCRATCH / "plain/__init__.py").touch()
    module = _SCRATCH / "bench/v1/__init__.py"
    module.write_text(with_runtime_classes(module.read_text()))
    shutil.copy(descriptors, _SCRATCH / "bench")
    write_package_modules(_SCRATCH / "bench")
    (_SCRATCH / "two").mkdir()
    plugin = rival_python.with_name("protoc-gen-python_betterproto2")
    theirs = [f"--plugin={plugin}", f"--python_betterproto2_out={_SCRATCH / 'two'}", *options]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the plugin calls ruff
    compiler = [str(rival_python), "-m", "grpc_tools.protoc", *theirs]
    subprocess.run(compiler, check=True, env=os.environ | {"PATH": path})
