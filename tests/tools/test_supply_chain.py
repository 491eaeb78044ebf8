"""Versions become digests, and dependencies without a permitted licence are found."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tools.supply_chain.audit import advisories, refused_licences
from tools.supply_chain.pin import Registries, pin

DIGEST, COMMIT = f"sha256:{'a' * 64}", "b" * 40
COMPOSE = "services:\n  mongo:\n    image: mongo:8.0.13\n  users:\n    image: postbus-users\n"
DOCKERFILE = "ARG PYTHON=python:3.13.7-slim-bookworm\n\nFROM ${PYTHON}\n"
WORKFLOW = "    steps:\n      - uses: actions/checkout@v4.2.2\n      - run: ./just check\n"


@contextmanager
def registry(digest: str) -> Iterator[str]:
    """Serve a registry of images and actions; yield its URL."""
    responses: dict[str, Any] = {
        "/token?": {"token": "t"},
        "/repos/actions/checkout/git/ref/tags/v4.2.2": {"object": {"type": "tag", "sha": "c"}},
        "/repos/actions/checkout/git/tags/c": {"object": {"type": "commit", "sha": COMMIT}},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            [body] = [body for path, body in responses.items() if self.path.startswith(path)]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def do_HEAD(self) -> None:
            assert self.headers["Authorization"] == "Bearer t"
            self.send_response(200)
            self.send_header("Docker-Content-Digest", digest)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "deploy").mkdir()
    (tmp_path / ".github" / "workflows").mkdir(parents=True)
    (tmp_path / "compose.yaml").write_text(COMPOSE)
    (tmp_path / "deploy" / "Dockerfile").write_text(DOCKERFILE)
    (tmp_path / ".github" / "workflows" / "ci.yml").write_text(WORKFLOW)
    return tmp_path


def texts(tree: Path) -> list[str]:
    names = ("compose.yaml", "deploy/Dockerfile", ".github/workflows/ci.yml")
    return [(tree / name).read_text() for name in names]


def test_pin_writes_digests_and_commits_beside_the_versions(tree: Path) -> None:
    with registry(DIGEST) as url:
        codes = [pin(Registries(tokens=url, images=url, actions=url), tree) for _ in range(2)]

    assert codes == [0, 0]
    assert texts(tree) == [
        COMPOSE.replace("mongo:8.0.13", f"mongo:8.0.13@{DIGEST}"),
        DOCKERFILE.replace("bookworm", f"bookworm@{DIGEST}"),
        WORKFLOW.replace("@v4.2.2", f"@{COMMIT} # v4.2.2"),
    ]


def test_what_has_no_digest_is_unchanged_and_named(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with registry("invented") as url:
        closed = Registries(tokens=url, images=url, actions="http://127.0.0.1:9")
        code = pin(closed, tree)

    assert code == 1
    assert texts(tree) == [COMPOSE, DOCKERFILE, WORKFLOW]
    output = capsys.readouterr().out
    for name in ("mongo:8.0.13", "python:3.13.7-slim-bookworm", "actions/checkout:v4.2.2"):
        assert f"not resolved, unchanged: {name}: " in output


def test_component_without_a_permitted_licence_is_refused() -> None:
    licences = {
        "good": [{"license": {"id": "MIT"}}],
        "choice": [{"expression": "GPL-2.0-only OR Apache-2.0"}],
        "weak": [{"license": {"name": "GNU Lesser General Public License v3"}}],
        "strong": [{"license": {"id": "GPL-3.0-or-later"}}],
        "affero": [{"license": {"id": "AGPL-3.0-only"}}],
        "unknown": [],
    }
    components = [{"name": name, "version": "1", "licenses": licences[name]} for name in licences]

    assert list(refused_licences({"components": components})) == [
        "strong 1: ['GPL-3.0-or-later']",
        "affero 1: ['AGPL-3.0-only']",
        "unknown 1: unknown",
    ]


def test_advisories_are_found_and_unchecked_packages_named() -> None:
    packages: list[dict[str, Any]] = [
        {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]},
        {"name": "b", "version": "1", "vulns": [{"id": "GHSA-2", "fix_versions": []}]},
        {"name": "c", "version": "1", "vulns": []},
        {"name": "d", "skip_reason": "not found"},
    ]

    assert advisories(packages) == (
        ["a 1: PYSEC-1 (fixed in 2)", "b 1: GHSA-2 (fixed in no version)"],
        ["d"],
    )
