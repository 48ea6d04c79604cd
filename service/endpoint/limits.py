"""What a request may cost, held before any route sees it. Pure ASGI.

Every request with a body (POST, PUT, PATCH, DELETE) takes one of `max_queue` places until it is answered, so that at
most max_queue * max_body_bytes of bodies are in memory. Without a free place it is refused at once with 503, its body
unread: the server discards it as it comes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.endpoint.errors import Busy, EndpointError, TooLarge, TooSlow
from service.endpoint.settings import LimitSettings

DEADLINE = "gliofed.deadline"
"""Key of the scope: when the answer is due, in the event loop's time. Set once the body has arrived."""

_WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass(slots=True)
class Places:
    """The places taken now, and the largest number since the start."""

    taken: int = 0
    peak: int = 0

    def take(self) -> None:
        """Take one more."""
        self.taken += 1
        self.peak = max(self.peak, self.taken)


class Limits:
    """ASGI middleware: places, length and time of bodies, time of responses."""

    def __init__(self, app: ASGIApp, settings: LimitSettings, places: Places) -> None:
        self._app = app
        self._settings = settings
        self._places = places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer that it is refused."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limited_send = self._timed(send)
        if scope["method"] not in _WITH_BODY:
            await self._app(scope, receive, limited_send)
            return
        if refusal := self._refusal(scope):
            await send_error(limited_send, refusal)
            return
        self._places.take()
        try:
            await self._app(scope, self._counted(scope, receive), limited_send)
        finally:
            self._places.taken -= 1

    def _refusal(self, scope: Scope) -> EndpointError | None:
        limits = self._settings
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if length.isdigit() and int(length) > limits.max_body_bytes:
            return _too_large(limits.max_body_bytes)
        if self._places.taken >= limits.max_queue:
            return Busy(f"{limits.max_queue} requests are under way, the limit of max_queue; try again later")
        return None

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        """Return a receive that holds the body to its length and time."""
        limits, num_bytes, complete = self._settings, 0, False
        loop = asyncio.get_running_loop()
        due = loop.time() + limits.body_seconds
        scope[DEADLINE] = due + limits.request_seconds

        async def counted() -> Message:
            nonlocal num_bytes, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(due):
                    message = await receive()
            except TimeoutError:
                raise TooSlow(f"the body took more than {limits.body_seconds:g} s; send it faster") from None
            num_bytes += len(message.get("body", b""))
            if num_bytes > limits.max_body_bytes:
                raise _too_large(limits.max_body_bytes)
            if not message.get("more_body", False):
                complete = True
                scope[DEADLINE] = loop.time() + limits.request_seconds
            return message

        return counted

    def _timed(self, send: Send) -> Send:
        """Return a send that gives up on a client that does not read."""

        async def timed(message: Message) -> None:
            async with asyncio.timeout(self._settings.body_seconds):
                await send(message)

        return timed


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"the body has more than {max_bytes} bytes, the limit of max_body_bytes")


async def send_error(send: Send, error: EndpointError) -> None:
    """Answer with a refusal."""
    await send_json(send, error.status, error_body(str(error)), error.headers)


async def send_json(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    """Answer with JSON from outside of the routes."""
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def error_body(message: str) -> bytes:
    """Return `{"error": ...}`; ASCII, because a message may quote half of a character that a client sent."""
    return json.dumps({"error": message}).encode()
