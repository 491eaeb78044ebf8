"""The release folder of the contracts: complete, reproducible, used by Python and JavaScript."""

import base64
import re
import subprocess
import tarfile
from importlib.resources import files
from pathlib import Path
from zipfile import ZipFile

import grpc_tools
import pytest

from postbus.posts.v1 import Author, Post
from shared.wire import decode
from tools.contracts.release import release
from tools.node import node_environment, node_modules, npm
from tools.paths import ROOT
from tools.uv import uv

pytestmark = pytest.mark.long

DOCUMENTS = {
    "openapi.json": "openapi.json",
    "asyncapi.json": "asyncapi.json",
    "descriptor.binpb": "contracts.binpb",
    "protos.zip": "protos.zip",
}
POST = Post(
    id="018f3f6e-0000-7000-8000-000000000001",
    title="Notes",
    body="é",
    version=9_007_199_254_740_993,  # no JavaScript number holds it
    author=Author(username="ada"),
)
WRITE = """
import { create, toBinary } from "@bufbuild/protobuf";
import { PostSchema, type Post } from "postbus/posts/v1/posts_pb";

const post: Post = create(PostSchema, {
  id: "018f3f6e-0000-7000-8000-000000000001",
  title: "Notes",
  body: "é",
  version: 9007199254740993n,
  author: { username: "ada" },
});
console.log(btoa(String.fromCharCode(...toBinary(PostSchema, post))));
"""
READ = """
import base64, sys
import postbus, postbus_runtime
from postbus.codec import CODECS
from postbus.posts.v1 import Post
from postbus.registry import METHODS
codec = CODECS[Post]
post = codec.read(codec.upb.FromString(base64.b64decode(sys.argv[1])))
assert METHODS["postbus.posts.v1.PostsService.GetPost"].response_name.endswith("GetPostResponse")
print(postbus.__file__, postbus_runtime.__file__, post.title, post.version, post.author.username)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("release") / "contracts"
    release(target)
    return target


@pytest.fixture(scope="module")
def encoded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a post that a type-checked TypeScript program has encoded with the npm package."""
    project = tmp_path_factory.mktemp("javascript")
    (project / "package.json").write_text('{"type": "module"}')
    (project / "write.ts").write_text(WRITE)
    (project / "readme.ts").write_text(example("ts"))
    [tarball] = folder.glob("*.tgz")
    runtime = node_modules() / "@bufbuild" / "protobuf"
    npm("install", "--offline", "--ignore-scripts", str(tarball), str(runtime), cwd=project)
    compiler = str(node_modules() / "typescript" / "bin" / "tsc")
    options = ["--strict", "--module", "nodenext", "--target", "es2022"]
    run(project, "node", compiler, *options, "--lib", "es2022,dom", "write.ts", "readme.ts")
    assert run(project, "node", "readme.js") == example("text", of="ts")
    return run(project, "node", "write.js").strip()


def example(language: str, of: str = "") -> str:
    """Return the code, or its output, of the README of the package for a language."""
    name = "gen/README.md" if "python" in (language, of) else "tools/contracts/npm_readme.md"
    [code] = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / name).read_text(), re.M | re.S)
    return str(code)


def run(folder: Path, *command: str, **environment: str) -> str:
    result = subprocess.run(
        command,
        cwd=folder,
        env=node_environment() | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_documents_are_the_generated_files(folder: Path) -> None:
    for published, generated in DOCUMENTS.items():
        expected = files("postbus").joinpath(generated).read_bytes()
        assert (folder / published).read_bytes() == expected


def test_checksums_cover_all_files(folder: Path) -> None:
    named = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}

    assert named == {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    run(folder, "sha256sum", "--check", "--strict", "SHA256SUMS")


def test_page_links_every_file(folder: Path) -> None:
    page = (folder / "index.html").read_text()

    assert set(re.findall(r'href="([^"]+)"', page)) == set(DOCUMENTS)
    for package in (*folder.glob("*.whl"), *folder.glob("*.tgz")):
        assert f" install ./{package.name}<" in page


def test_release_is_reproducible(folder: Path, tmp_path: Path) -> None:
    release(tmp_path / "again")

    again = (tmp_path / "again" / "SHA256SUMS").read_text()
    assert again == (folder / "SHA256SUMS").read_text()


def test_packages_have_their_readme(folder: Path) -> None:
    [wheel], [tarball] = folder.glob("*.whl"), folder.glob("*.tgz")
    with ZipFile(wheel) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        assert example("python") in archive.read(metadata).decode()
    with tarfile.open(tarball) as archive:
        readme = archive.extractfile("package/README.md")
        assert readme is not None
        assert example("ts") in readme.read().decode()
    for package, name in ((wheel, "gen/README.md"), (tarball, "tools/contracts/npm_readme.md")):
        assert f" install ./{package.name}\n" in (ROOT / name).read_text()


def test_python_reads_what_typescript_wrote(encoded: str) -> None:
    assert decode(Post, base64.b64decode(encoded)) == POST


def test_wheel_without_this_repository_reads_what_typescript_wrote(
    folder: Path, encoded: str, tmp_path: Path
) -> None:
    [wheel] = folder.glob("*.whl")
    run(tmp_path, uv(), "venv", "--quiet", "--no-project", "scratch")
    python = tmp_path / "scratch" / "bin" / "python"
    run(tmp_path, uv(), "pip", "install", "--quiet", "--python", "scratch", "--no-deps", str(wheel))
    # The dependencies without gen/, because editable installs do not work from PYTHONPATH.
    dependencies = str(Path(grpc_tools.__file__).parents[1])

    printed = run(tmp_path, str(python), "-c", READ, encoded, PYTHONPATH=dependencies).split()

    printed_example = run(tmp_path, str(python), "-c", example("python"), PYTHONPATH=dependencies)
    assert printed_example == example("text", of="python")
    assert all(Path(module).is_relative_to(tmp_path / "scratch") for module in printed[:2])
    assert printed[2:] == ["Notes", "9007199254740993", "ada"]
    package = Path(printed[0]).parent
    present = {path.name for path in package.iterdir()}
    assert {"py.typed", *DOCUMENTS.values()} <= present
