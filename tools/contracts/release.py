"""`just contracts`: the documents of the gateway and packages of the types, as a release folder."""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from importlib.resources import files
from pathlib import Path
from zipfile import ZipFile

from gateway.documentation_routes import contracts_page
from postbus.reasons import REASONS
from tools.contracts.npm_reasons import write_npm_reasons
from tools.node import node_environment, node_modules, npm
from tools.paths import ROOT
from tools.uv import uv

__all__ = ["release"]

_FILES = {
    "openapi.json": "openapi.json",
    "asyncapi.json": "asyncapi.json",
    "descriptor.binpb": "contracts.binpb",
    "protos.zip": "protos.zip",
}
_ABOUT = """<h2>Install the types</h2>
<p>Each package has a README with an example.</p>
<h3>Python</h3>
<pre>pip install ./{wheel}</pre>
<h3>JavaScript and TypeScript</h3>
<pre>npm install ./{tarball}</pre>
<p><code>sha256sum -c SHA256SUMS</code> checks the files.</p>
"""


def release(target: Path) -> None:
    """Replace `target` by a new release folder; the same gen/ gives the same bytes."""
    with tempfile.TemporaryDirectory() as name:
        fresh, work = Path(name) / "contracts", Path(name) / "npm"
        fresh.mkdir()
        for published, generated in _FILES.items():
            source = files("postbus").joinpath(generated)
            (fresh / published).write_bytes(source.read_bytes())
        about = _ABOUT.format(wheel=_wheel(fresh), tarball=_npm_package(work, fresh))
        (fresh / "index.html").write_text(contracts_page("", about))
        (fresh / "SHA256SUMS").write_text(_sums(fresh))
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(fresh, target)


def _wheel(target: Path) -> str:
    build = [uv(), "build", "--quiet", "--wheel", "gen", "--out-dir", str(target)]
    subprocess.run([*build, "--no-create-gitignore"], cwd=ROOT, check=True)
    [wheel] = target.glob("*.whl")
    return wheel.name


def _npm_package(work: Path, target: Path) -> str:
    """Build the types of the contracts and their imports by protoc-gen-es; return the file name."""
    with ZipFile(target / "protos.zip") as archive:
        archive.extractall(work / "protos")
        names = [name for name in archive.namelist() if not name.startswith("google/protobuf/")]
    modules, types = node_modules(), work / "types"
    types.mkdir()
    plugin = f"--plugin=protoc-gen-es={modules / '.bin' / 'protoc-gen-es'}"
    options = [f"--es_out={types}", "--es_opt=target=js+dts,import_extension=js"]
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{work / 'protos'}", plugin, *options]
    subprocess.run([*protoc, *names], env=node_environment(), check=True)
    write_npm_reasons(types / "postbus", REASONS.values())
    (types / "package.json").write_text(json.dumps(_manifest(modules), indent=2) + "\n")
    readme = Path(__file__).with_name("npm_readme.md").read_text()
    (types / "README.md").write_text(readme)
    packed = npm("pack", "--json", "--pack-destination", str(target), cwd=types)
    return str(json.loads(packed)[0]["filename"])


def _manifest(modules: Path) -> dict[str, object]:
    project = tomllib.loads((ROOT / "gen" / "pyproject.toml").read_text())["project"]
    runtime = json.loads((modules / "@bufbuild" / "protobuf" / "package.json").read_text())
    return {
        "name": project["name"],
        "version": project["version"],
        "description": "Message types of the Postbus contracts",
        "license": project["license"],
        "type": "module",
        "sideEffects": False,
        "exports": {"./*": {"types": "./postbus/*.d.ts", "default": "./postbus/*.js"}},
        "dependencies": {"@bufbuild/protobuf": f"^{runtime['version']}"},
    }


def _sums(folder: Path) -> str:
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()
    }
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
