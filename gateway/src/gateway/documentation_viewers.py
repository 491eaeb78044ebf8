"""The viewers of the generated documents (Swagger UI and asyncapi-viewer), and their assets."""

from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

from gateway.static_documents import HTML, SELF_CONTAINED, StaticDocument, page_text

__all__ = ["viewer_documents"]

_VIEWERS: Final = {
    "/docs": "rest.html",
    "/docs/events": "events.html",
}
_SCRIPT: Final = "text/javascript; charset=utf-8"
_OWN_ASSETS: Final = {
    "/docs/viewer.css": ("viewer.css", "text/css"),
    "/docs/rest.js": ("rest.js", _SCRIPT),
}
_SWAGGER: Final = "fastapi_swagger/resources"
_ASSETS: Final = {
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
_POLICY: Final = (
    f"{SELF_CONTAINED}; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:"
)


def viewer_documents() -> dict[str, StaticDocument]:
    """Return the pages of the viewers, their scripts and styles, by path."""
    assets = _assets()
    policy = {"Content-Security-Policy": _POLICY}
    return assets | {
        path: StaticDocument(_versioned(page_text(name), assets).encode(), HTML, policy)
        for path, name in _VIEWERS.items()
    }


def _versioned(page: str, assets: Mapping[str, StaticDocument]) -> str:
    """Add its version to the URL of each asset of a page, so that browsers cache it."""
    for path, asset in assets.items():
        name = path.rpartition("/")[2]
        page = page.replace(f'{name}"', f'{name}?v={asset.version}"')
    return page


def _assets() -> dict[str, StaticDocument]:
    """Read scripts and styles, without importing their packages, which would take longer."""
    found = {
        path: StaticDocument(
            Path(str(distribution(package).locate_file(name))).read_bytes(), media_type
        )
        for path, (package, name, media_type) in _ASSETS.items()
    }
    own = {
        path: StaticDocument(page_text(name).encode(), media_type)
        for path, (name, media_type) in _OWN_ASSETS.items()
    }
    return found | own
