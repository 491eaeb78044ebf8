"""The published contracts: the generated documents, the page about them, and their viewers."""

import base64
import hashlib
import html
from functools import cache
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path
from string import Template

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from gateway.conditional import names_tag

__all__ = ["contracts_page", "publication_routes"]

_HTML = "text/html; charset=utf-8"
_SCRIPT = "text/javascript; charset=utf-8"
_GENERATED = {
    "/openapi.json": ("openapi.json", "application/json"),
    "/asyncapi.json": ("asyncapi.json", "application/json"),
    "/contracts/descriptor.binpb": ("contracts.binpb", "application/protobuf"),
    "/contracts/protos.zip": ("protos.zip", "application/zip"),
}
_VIEWERS = {
    "/docs": ("rest.html", _HTML),
    "/docs/viewer.css": ("viewer.css", "text/css"),
    "/docs/rest.js": ("rest.js", _SCRIPT),
    "/docs/events": ("events.html", _HTML),
}
_SWAGGER = "fastapi_swagger/resources"
_ASSETS = {
    "/docs/swagger-ui.css": ("fastapi-swagger", f"{_SWAGGER}/swagger-ui.css", "text/css"),
    "/docs/swagger-ui-bundle.js": (
        "fastapi-swagger",
        f"{_SWAGGER}/swagger-ui-bundle.js",
        _SCRIPT,
    ),
    "/docs/favicon.png": ("fastapi-swagger", f"{_SWAGGER}/favicon-32x32.png", "image/png"),
    "/docs/asyncapi-viewer.js": (
        "asyncapi-viewer",
        "asyncapi_viewer/static/asyncapi-viewer.iife.js",
        _SCRIPT,
    ),
}
_NOWHERE_ELSE = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_VIEWER_POLICY = (
    f"{_NOWHERE_ELSE}; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:"
)


class Document:
    """What is served as it stands, with a strong ETag: who has it already gets 304."""

    def __init__(self, body: bytes, media_type: str, headers: dict[str, str] | None = None) -> None:
        self._body = body
        self._etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        # no-cache: keep it, but ask before each use whether it still holds.
        self._validators = {"ETag": self._etag, "Cache-Control": "no-cache"}
        self._headers = self._validators | {
            "Content-Type": media_type,
            "X-Content-Type-Options": "nosniff",
            **(headers or {}),
        }

    async def answer(self, request: Request) -> Response:
        """Answer GET and HEAD."""
        if names_tag(request.headers.getlist("if-none-match"), self._etag):
            return Response(status_code=304, headers=self._validators)
        return Response(self._body, headers=self._headers)


def publication_routes() -> list[Route]:
    """Return the routes of /contracts, /docs and all documents, which are read now."""
    documents = _generated() | _viewers() | _assets()
    return [
        Route("/", _to_docs),
        Route("/contracts", _contracts),
        *(Route(path, document.answer) for path, document in documents.items()),
    ]


def contracts_page(folder: str, more: str) -> str:
    """Return the page that lists the files, which are in `folder`; `more` is HTML about them."""
    return Template(_page("contracts.html")).substitute(folder=folder, more=more)


async def _contracts(request: Request) -> Response:
    origin = html.escape(str(request.base_url).rstrip("/"))
    page = contracts_page("contracts/", Template(_page("served.html")).substitute(origin=origin))
    policy = f"{_NOWHERE_ELSE}; style-src '{_style_hash(page)}'"
    document = Document(page.encode(), _HTML, {"Content-Security-Policy": policy})
    return await document.answer(request)


async def _to_docs(_request: Request) -> Response:
    return RedirectResponse("/docs")


def _generated() -> dict[str, Document]:
    return {
        path: Document(files("postbus").joinpath(name).read_bytes(), media_type, _file_name(path))
        for path, (name, media_type) in _GENERATED.items()
    }


def _file_name(path: str) -> dict[str, str]:
    """Browsers show JSON, and save the rest by its name."""
    if path.endswith(".json"):
        return {}
    return {"Content-Disposition": f'attachment; filename="{path.rpartition("/")[2]}"'}


def _viewers() -> dict[str, Document]:
    policy = {"Content-Security-Policy": _VIEWER_POLICY}
    return {
        path: Document(_page(name).encode(), media_type, policy)
        for path, (name, media_type) in _VIEWERS.items()
    }


def _assets() -> dict[str, Document]:
    """Found without importing their packages, which takes longer than all the rest."""
    return {
        path: Document(Path(str(distribution(package).locate_file(name))).read_bytes(), media_type)
        for path, (package, name, media_type) in _ASSETS.items()
    }


@cache
def _page(name: str) -> str:
    return files("gateway").joinpath("pages", name).read_text()


def _style_hash(page: str) -> str:
    """The page's one style element, as a source of Content Security Policy."""
    style = page.partition("<style>")[2].partition("</style>")[0]
    return f"sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}"
