"""Routes of the documentation: the generated documents, the page that lists them, and viewers."""

import base64
import hashlib
import html
import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from string import Template

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from gateway.documentation_viewers import viewer_documents
from gateway.static_documents import (
    HTML,
    SELF_CONTAINED,
    AddressedDocument,
    StaticDocument,
    page_text,
)
from postbus.reasons import REASONS
from postbus.registry import METHODS, Access
from postbus_runtime.reasons import Reason, Scope
from shared.errors import Code

__all__ = ["contracts_page", "documentation_routes"]

_GENERATED = {
    "/contracts/descriptor.binpb": ("contracts.binpb", "application/protobuf"),
    "/contracts/protos.zip": ("protos.zip", "application/zip"),
}
_ORIGINS = {
    Scope.NAMED: "Errors of these methods have it:",
    Scope.CALL: "Errors of every method may have it.",
    Scope.HTTP: "Errors of HTTP requests have it, whatever their method is.",
    Scope.WEBSOCKET: "Errors of the WebSocket have it, whatever method is called.",
    Scope.BUS: "Errors on the message broker have it; clients do not get them.",
}
"""The errors that have a reason, by its scope."""


def documentation_routes() -> list[Route]:
    """Return the routes of /contracts, /docs and all documents, which are loaded immediately."""
    return [
        Route("/", _to_docs),
        Route("/contracts", _contracts),
        Route("/problems/{reason}", _reason),
        *(Route(path, document.serve) for path, document in _documents().items()),
    ]


@cache
def _documents() -> Mapping[str, StaticDocument]:
    """Return all documents by path, which are read and compressed once per process."""
    return _generated() | viewer_documents()


def contracts_page(folder: str, more: str) -> str:
    """Return the page that lists the files in `folder`; `more` is HTML that follows the list."""
    return Template(page_text("contracts.html")).substitute(folder=folder, more=more)


async def _contracts(request: Request) -> Response:
    origin = html.escape(_origin(request))
    more = Template(page_text("served.html")).substitute(origin=origin)
    page = contracts_page("contracts/", more)
    return await _styled(page).serve(request)


async def _reason(request: Request) -> Response:
    reason = request.path_params["reason"]
    if reason not in REASONS:
        raise HTTPException(404)
    return await _styled(_reason_page(REASONS[reason])).serve(request)


def _reason_page(reason: Reason) -> str:
    """Return the page about a reason, with the methods that clients may call and that name it."""
    methods = [
        f"<li><code>{method.name}</code></li>"
        for method in METHODS.values()
        if reason in method.reasons and method.access is not Access.INTERNAL
    ]
    return Template(page_text("reason.html")).substitute(
        reason=reason,
        meaning=html.escape(reason.meaning),
        code=Code.try_value(reason.code).name,
        status=reason.http_status,
        origin=_ORIGINS[reason.scope],
        methods="".join(methods),
    )


def _styled(page: str) -> StaticDocument:
    """Return a page that may use its own style only."""
    policy = f"{SELF_CONTAINED}; style-src '{_style_hash(page)}'"
    headers = {"Content-Security-Policy": policy}
    return StaticDocument(page.encode(), HTML, headers, compressed=False)


async def _to_docs(_request: Request) -> Response:
    return RedirectResponse("/docs")


def _generated() -> dict[str, StaticDocument]:
    described: dict[str, StaticDocument] = {
        f"/{name}": AddressedDocument(
            files("postbus").joinpath(name).read_bytes(), "application/json", placeholder, address
        )
        for name, (placeholder, address) in _ADDRESSED.items()
    }
    return described | {
        path: StaticDocument(
            files("postbus").joinpath(name).read_bytes(), media_type, _disposition(path)
        )
        for path, (name, media_type) in _GENERATED.items()
    }


def _origin(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _rest_address(request: Request) -> str:
    """Return the URL of the gateway, in OpenAPI's list of servers."""
    return f'"url": {json.dumps(_origin(request))}'


def _websocket_address(request: Request) -> str:
    """Return the host and the protocol of the gateway, in AsyncAPI's servers."""
    protocol = "wss" if request.url.scheme == "https" else "ws"
    return f'"host": {json.dumps(request.base_url.netloc)},\n      "protocol": "{protocol}"'


_ADDRESSED: Mapping[str, tuple[bytes, Callable[[Request], str]]] = {
    "openapi.json": (b'"url": "http://localhost:8000"', _rest_address),
    "asyncapi.json": (
        b'"host": "localhost:8000",\n      "protocol": "ws"',
        _websocket_address,
    ),
}
"""By document: the address that the generator writes, and that of the gateway."""


def _disposition(path: str) -> dict[str, str]:
    """Return the header with which a browser saves a file under its name."""
    return {"Content-Disposition": f'attachment; filename="{path.rpartition("/")[2]}"'}


def _style_hash(page: str) -> str:
    """Return the hash of the page's style element, as a source of Content Security Policy."""
    style = page.partition("<style>")[2].partition("</style>")[0]
    return f"sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}"
