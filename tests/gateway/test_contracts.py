"""The published contracts: documents, the page that lists them, viewers."""

import base64
import hashlib
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from importlib.resources import files
from urllib.parse import urljoin

import httpx
import pytest

from gateway.app import build_app
from gateway.documentation_routes import documentation_routes
from shared.access_tokens import TokenVerifier
from shared.bus.memory import MemoryBus

DOCUMENTS = {
    "/openapi.json": ("openapi.json", "application/json"),
    "/asyncapi.json": ("asyncapi.json", "application/json"),
    "/contracts/descriptor.binpb": ("contracts.binpb", "application/protobuf"),
    "/contracts/protos.zip": ("protos.zip", "application/zip"),
}
PAGES = ["/contracts", "/docs", "/docs/events"]


class References(HTMLParser):
    """Collects the URLs that a page links to or loads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {value for name, value in attrs if name in {"href", "src"} and value}


@pytest.mark.parametrize("path", DOCUMENTS)
async def test_documents_are_the_generated_files(gateway: httpx.AsyncClient, path: str) -> None:
    name, media_type = DOCUMENTS[path]
    generated = files("postbus").joinpath(name).read_bytes()
    for address in (b'"url": "http://localhost:8000"', b'"host": "localhost:8000"'):
        generated = generated.replace(address, address.replace(b"localhost:8000", b"gateway"))

    response = await gateway.get(path)

    assert response.status_code == 200
    assert response.content == generated
    assert response.headers["content-type"] == media_type
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/docs/swagger-ui-bundle.js"])
async def test_document_is_compressed_for_clients_that_accept_it(
    gateway: httpx.AsyncClient, path: str
) -> None:
    plain = await gateway.get(path, headers={"Accept-Encoding": "identity"})
    packed = await gateway.get(path, headers={"Accept-Encoding": "br, gzip;q=0.5"})

    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == plain.content
    assert int(packed.headers["content-length"]) < len(plain.content)
    assert packed.headers["etag"] != plain.headers["etag"]
    assert "Accept-Encoding" in packed.headers["vary"] == plain.headers["vary"]
    for response, coding in ((plain, "identity"), (packed, "gzip")):
        known = {"If-None-Match": response.headers["etag"], "Accept-Encoding": coding}
        assert (await gateway.get(path, headers=known)).status_code == 304


@pytest.mark.parametrize("coding", ["identity", "gzip"])
async def test_documents_name_the_host_of_the_request(
    gateway: httpx.AsyncClient, coding: str
) -> None:
    headers = {"Host": "api.example.com:8443", "Accept-Encoding": coding}
    rest = await gateway.get("/openapi.json", headers=headers)
    socket = await gateway.get("/asyncapi.json", headers=headers)
    usual = await gateway.get("/openapi.json", headers={"Accept-Encoding": coding})

    assert rest.json()["servers"][0]["url"] == "http://api.example.com:8443"
    gateway_server = socket.json()["servers"]["gateway"]
    assert gateway_server == {"host": "api.example.com:8443", "protocol": "ws"}
    assert rest.headers["etag"] != usual.headers["etag"]
    assert rest.headers["cache-control"] == "no-cache"


async def test_document_over_tls_names_the_protocol_with_tls(verifier: TokenVerifier) -> None:
    app = build_app(MemoryBus(), verifier, max_body_bytes=10_000)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="https://gateway") as client:
        rest = (await client.get("/openapi.json")).json()
        socket = (await client.get("/asyncapi.json")).json()

    assert rest["servers"][0]["url"] == "https://gateway"
    assert socket["servers"]["gateway"] == {"host": "gateway", "protocol": "wss"}


@pytest.mark.parametrize("coding", ["", "br", "gzip;q=0", "*;q=0", "identity"])
async def test_document_is_not_compressed_for_other_clients(
    gateway: httpx.AsyncClient, coding: str
) -> None:
    response = await gateway.get("/openapi.json", headers={"Accept-Encoding": coding})

    assert "content-encoding" not in response.headers


def test_document_is_compressed_once_for_the_process() -> None:
    first, second = documentation_routes(), documentation_routes()

    assert [each.endpoint for each in first] == [each.endpoint for each in second]


@pytest.mark.parametrize("page", ["/docs", "/docs/events"])
async def test_pages_load_their_assets_by_cacheable_urls(
    gateway: httpx.AsyncClient, page: str
) -> None:
    found = References((await gateway.get(page)).text).found
    loaded = {each for each in found if not each.endswith(".json")}

    assert loaded
    for reference in loaded:
        response = await gateway.get(urljoin(page, reference))
        assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
        unknown = await gateway.get(urljoin(page, reference.partition("?")[0] + "?v=other"))
        assert unknown.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", ["/contracts/descriptor.binpb", "/contracts/protos.zip"])
async def test_binary_documents_are_saved_under_their_name(
    gateway: httpx.AsyncClient, path: str
) -> None:
    disposition = (await gateway.get(path)).headers["content-disposition"]

    assert disposition == f'attachment; filename="{path.rpartition("/")[2]}"'


@pytest.mark.parametrize("path", [*DOCUMENTS, *PAGES, "/docs/swagger-ui-bundle.js"])
@pytest.mark.parametrize("known", ["{}", "W/{}", '"old, one", W/"other", {}', " * "])
async def test_matching_etag_of_a_document_gets_304(
    gateway: httpx.AsyncClient, path: str, known: str
) -> None:
    etag = (await gateway.get(path)).headers["etag"]

    response = await gateway.get(path, headers={"If-None-Match": known.format(etag)})

    assert response.status_code == 304
    assert response.content == b""
    assert response.headers["etag"] == etag
    assert response.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("known", ['"other"', 'W/"other"', "", '"*"', "bare"])
async def test_other_etag_of_a_document_gets_the_full_response(
    gateway: httpx.AsyncClient, known: str
) -> None:
    response = await gateway.get("/openapi.json", headers={"If-None-Match": known})

    assert response.status_code == 200
    assert response.json()["openapi"] == "3.1.0"


async def test_if_none_match_may_be_repeated(gateway: httpx.AsyncClient) -> None:
    etag = (await gateway.get("/openapi.json")).headers["etag"]
    headers = [("If-None-Match", '"other"'), ("If-None-Match", etag)]

    assert (await gateway.get("/openapi.json", headers=headers)).status_code == 304


async def test_etags_of_documents_differ(gateway: httpx.AsyncClient) -> None:
    etags = {(await gateway.get(path)).headers["etag"] for path in [*DOCUMENTS, *PAGES]}

    assert len(etags) == len(DOCUMENTS) + len(PAGES)
    assert not any(etag.startswith("W/") for etag in etags)


async def test_etag_is_the_same_at_every_gateway(
    gateway: httpx.AsyncClient, verifier: TokenVerifier
) -> None:
    other = build_app(MemoryBus(), verifier, max_body_bytes=10_000)
    transport = httpx.ASGITransport(other)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        theirs = (await client.get("/contracts/protos.zip")).headers["etag"]

    assert (await gateway.get("/contracts/protos.zip")).headers["etag"] == theirs


@pytest.mark.parametrize("path", [*DOCUMENTS, *PAGES])
async def test_head_has_the_headers_of_get_without_the_body(
    gateway: httpx.AsyncClient, path: str
) -> None:
    response = await gateway.head(path)

    assert response.status_code == 200
    assert response.content == b""
    assert response.headers == (await gateway.get(path)).headers


@pytest.mark.parametrize("path", PAGES)
async def test_pages_need_no_other_host(gateway: httpx.AsyncClient, path: str) -> None:
    page = await gateway.get(path)
    references = References(page.text).found

    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none';")
    assert "unsafe" not in page.headers["content-security-policy"]
    assert "https://" not in page.text
    assert references
    for reference in references:
        assert "//" not in reference
        assert (await gateway.get(urljoin(path, reference))).status_code == 200, reference


async def test_page_lists_every_document_and_both_references(gateway: httpx.AsyncClient) -> None:
    references = References((await gateway.get("/contracts")).text).found

    targets = {urljoin("/contracts", reference) for reference in references}
    assert targets == {*DOCUMENTS, "/docs", "/docs/events"}


async def test_commands_have_the_host_of_the_request(gateway: httpx.AsyncClient) -> None:
    page = await gateway.get("/contracts", headers={"Host": "api.example.com:8443"})

    assert "  http://api.example.com:8443/contracts/protos.zip \\" in page.text


@pytest.mark.parametrize("host", ["<script>alert(1)</script>", "a&lt;script"])
async def test_host_cannot_become_markup(gateway: httpx.AsyncClient, host: str) -> None:
    page = await gateway.get("/contracts", headers={"Host": host})

    assert page.status_code == 200
    assert "<script" not in page.text
    assert "&lt;script" not in page.text


async def test_page_allows_its_own_style_and_nothing_else(gateway: httpx.AsyncClient) -> None:
    page = await gateway.get("/contracts")
    [style] = re.findall("<style>(.*?)</style>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()

    assert page.headers["content-security-policy"] == (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
        f" style-src 'sha256-{digest}'"
    )


async def test_security_contact_is_published_where_it_is_set(
    gateway: httpx.AsyncClient, verifier: TokenVerifier
) -> None:
    contact = "mailto:security@example.com"
    app = build_app(MemoryBus(), verifier, max_body_bytes=10_000, security_contact_uri=contact)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://gateway"
    ) as client:
        response = await client.get("/.well-known/security.txt")

    assert (await gateway.get("/.well-known/security.txt")).status_code == 404
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    lines = dict(line.split(": ", 1) for line in response.text.splitlines())
    assert lines.keys() == {"Contact", "Expires"}
    assert lines["Contact"] == contact
    left = datetime.fromisoformat(lines["Expires"]) - datetime.now(UTC)
    assert timedelta(days=30) < left < timedelta(days=365)


async def test_root_leads_to_the_documentation(gateway: httpx.AsyncClient) -> None:
    response = await gateway.get("/")

    assert (response.status_code, response.headers["location"]) == (307, "/docs")


async def test_viewer_keeps_no_access_token(gateway: httpx.AsyncClient) -> None:
    """A token in localStorage outlives the page, and every script of the origin can read it."""
    script = (await gateway.get("/docs/rest.js")).text

    assert "persistAuthorization: false" in script


async def test_problem_has_a_page_about_its_reason(gateway: httpx.AsyncClient) -> None:
    problem = (await gateway.get("/nowhere")).json()

    assert problem["type"] == "/problems/UNKNOWN_PATH"
    page = await gateway.get(problem["type"])
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "There is nothing at this path." in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none';")
    for reference in References(page.text).found:
        assert (await gateway.get(urljoin(problem["type"], reference))).status_code == 200
    assert (await gateway.get("/problems/NONE")).status_code == 404


@pytest.mark.parametrize(
    ("reason", "code", "status", "text"),
    [
        ("NOT_THE_AUTHOR", "PERMISSION_DENIED", 403, "postbus.posts.v1.PostsService.UpdatePost"),
        ("BODY_TOO_LARGE", "INVALID_ARGUMENT", 413, "Errors of HTTP requests have it"),
        ("OVERLOADED", "RESOURCE_EXHAUSTED", 429, "Errors of every method may have it."),
    ],
)
async def test_page_of_a_reason_has_its_code_status_and_methods(
    gateway: httpx.AsyncClient, reason: str, code: str, status: int, text: str
) -> None:
    page = (await gateway.get(f"/problems/{reason}")).text

    assert f"<code>{code}</code>" in page
    assert f"<td>{status}</td>" in page
    assert text in page
    assert ("PostsService.GetPost<" in page) is False
