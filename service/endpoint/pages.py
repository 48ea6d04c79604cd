"""The viewer's pages: a fixed set of small files, served from memory under a policy that lets nothing else in or out.

A browser that shows these pages runs only their scripts, talks only to this server and stores nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)

_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # "no-cache" keeps a copy but asks each time: after an update nobody sees yesterday's page with today's answers.
    "Cache-Control": "no-cache",
}
_INDEX = "index.html"
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Page:
    body: bytes
    etag: str
    media_type: str


def mount_viewer(app: Starlette) -> None:
    """Serve the viewer at `/viewer/` and send `/` and `/viewer` there.

    Redirects and the pages' own links are relative, so that a prefix in front of the app changes nothing. Any other
    name under `/viewer/` raises Starlette's HTTPException 404. The routes stay out of the OpenAPI schema. Raises
    FileNotFoundError if the installed package lacks the pages.
    """
    pages = _read_pages()

    async def to_viewer(_: Request) -> Response:
        return RedirectResponse("viewer/", status_code=307, headers={"Cache-Control": "no-cache"})

    async def page(request: Request) -> Response:
        return _respond(pages, request.path_params["name"] or _INDEX, request.headers.get("If-None-Match", ""))

    for path, answer in (("/", to_viewer), ("/viewer", to_viewer), ("/viewer/{name:path}", page)):
        app.router.routes.append(Route(path, answer, methods=["GET"], include_in_schema=False))


def is_viewer_page(path: str) -> bool:
    """Return whether a path is one of the viewer's.

    They hold no secret and must be open to all: a browser sends no key with an address, only the page can ask for one.
    """
    return path in {"/", "/viewer"} or path.startswith("/viewer/")


def _read_pages() -> dict[str, _Page]:
    folder = resources.files(__package__) / "viewer"
    pages = {}
    for file in folder.iterdir():
        media_type = _MEDIA_TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            body = file.read_bytes()
            # Of the content, not of the file's time: images built to be reproducible give every version one time.
            etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            pages[file.name] = _Page(body=body, etag=etag, media_type=media_type)
    if _INDEX not in pages:
        raise FileNotFoundError(f"{folder} holds no {_INDEX}; the installation is incomplete, install gliofed again")
    return pages


def _respond(pages: Mapping[str, _Page], name: str, known_etags: str) -> Response:
    if name not in pages:
        raise HTTPException(404, f"the viewer has no page {name[:80]!r}; open /viewer/")
    page = pages[name]
    headers = {**_HEADERS, "ETag": page.etag}
    if page.etag in known_etags:
        return Response(status_code=304, headers=headers)
    return Response(page.body, media_type=page.media_type, headers=headers)
