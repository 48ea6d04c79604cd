"""What every request passes: is the client allowed in, and is its answer written down before it leaves?

An ASGI application around the endpoint's own. It decides before a byte of the body is read (the server discards that as
it comes: to close the connection on it would often lose the refusal), and gives each request an id of its own: one that
a client chose might say who the patient is.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from service.endpoint.access import Access, Client, Credentials, role_for
from service.endpoint.audit import EndpointAudit, Facts
from service.endpoint.errors import EndpointError
from service.endpoint.limits import send_error
from service.endpoint.tls import client_subject

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

CLIENT_GONE = 499
"""Status in the log of a request whose client left before there was an answer (nginx's number)."""

REQUEST_HEADER = b"gliofed-request"
"""Header of an answer that names its line of the log. X-Request-ID is for proxies, Ray's among them."""

_TURNED_AWAY = (429, 503)
"""Not looked at, for want of room; the figures count them, and a log of them would fill the disk in an overload."""


class Guard:
    """The endpoint behind its door. Handlers find `client` and, where a log is kept, `audit` in the scope's state."""

    def __init__(self, app: ASGIApp, access: Access, audit: EndpointAudit | None) -> None:
        self._app, self._access, self._audit = app, access, audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, headers = _path(scope), _headers(scope)
        route = _audited_route(scope["method"], path)
        try:
            client = self._admit(scope, path, headers)
            if route is not None and self._audit is not None:
                self._audit.require_writable()
        except EndpointError as error:
            await send_error(send, error)
            return
        state = scope.setdefault("state", {})
        state["client"] = client
        if route is None or self._audit is None:
            await self._app(scope, receive, send)
            return
        note = RequestNote(self._audit, client, route)
        state["audit"] = note.facts
        answer = _Answer(note, send)
        try:
            await self._app(scope, receive, answer.send)
        finally:
            if not answer.begun:
                note.write_soon(CLIENT_GONE)

    def _admit(self, scope: Scope, path: str, headers: Mapping[str, list[str]]) -> Client | None:
        role = role_for(path)
        if role is None:
            return None
        self._access.require_same_site(_first(headers, "origin"), _first(headers, "host"))
        address = (scope.get("client") or ("unknown", 0))[0]
        given = Credentials(address=address, keys=keys_in(headers), certificate=client_subject(scope))
        return self._access.admit(given, role)


class RequestNote:
    """What is written down about one request. facts: filled in by whoever answers it."""

    def __init__(self, audit: EndpointAudit, client: Client | None, route: str) -> None:
        self._audit, self._route = audit, route
        self._client = "anyone" if client is None else client.name
        self._began = time.perf_counter()
        self.request_id = secrets.token_hex(16)
        self.facts = Facts()

    async def write(self, status: int) -> None:
        """Return once the answer may leave. Raises AuditUnavailable where it may not."""
        if status in _TURNED_AWAY:
            return
        if self._route == "infer" or status >= 400:
            self._audit.write_soon(self._entry(status))
        else:
            await self._audit.write(self._entry(status))

    def write_soon(self, status: int) -> None:
        """Note that nothing left."""
        if status not in _TURNED_AWAY:
            with suppress(EndpointError):
                self._audit.write_soon(self._entry(status))

    def _entry(self, status: int) -> dict[str, Any]:
        return self._audit.entry(
            request_id=self.request_id,
            client=self._client,
            route=self._route,
            status=status,
            milliseconds=(time.perf_counter() - self._began) * 1e3,
            facts=self.facts,
        )


class _Answer:
    """One answer on its way out: held back until its line is where it must be."""

    def __init__(self, note: RequestNote, send: Send) -> None:
        self._note, self._send = note, send
        self.begun = self._refused = False

    async def send(self, message: Message) -> None:
        if self._refused:
            return  # the rest of an answer that does not leave
        if message["type"] == "http.response.start":
            self.begun = True
            try:
                await self._note.write(message["status"])
            except EndpointError as error:
                self._refused = True
                await send_error(self._send, error)
                return
            message["headers"] = [*message.get("headers", ()), (REQUEST_HEADER, self._note.request_id.encode())]
        await self._send(message)


def facts_of(scope: Mapping[str, Any]) -> Facts | None:
    """Return what a handler is to fill in about its request; None: no log is kept."""
    facts: Facts | None = scope.get("state", {}).get("audit")
    return facts


def keys_in(headers: Mapping[str, list[str]]) -> tuple[str, ...]:
    """Return the API keys among headers (names in small letters), or gRPC metadata."""
    bearers = [value.partition(" ") for value in headers.get("authorization", ())]
    return (
        *(rest.strip() for scheme, _, rest in bearers if scheme.lower() == "bearer"),
        *headers.get("x-api-key", ()),
    )


def _audited_route(method: str, path: str) -> str | None:
    """Return how the log names a route; None: its answers are not written down. A path itself may name a patient."""
    if method != "POST":
        return None
    if path == "/v1/predict":
        return "predict"
    if path.startswith("/v2/models/"):
        return "infer"
    if path.startswith("/v2/repository/models/"):
        return "repository"
    return "stow" if path.startswith("/dicom-web/") else None


def _path(scope: Scope) -> str:
    """Return the path below where the application is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


def _headers(scope: Scope) -> dict[str, list[str]]:
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    return headers


def _first(headers: Mapping[str, list[str]], name: str) -> str | None:
    return headers[name][0] if name in headers else None
