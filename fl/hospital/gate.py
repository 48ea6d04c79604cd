"""The only door to the SuperLink: what SuperNodes with registered keys need, and nothing else.

Flower 1.41 serves its Fleet, Control and Runtime APIs on one port, and without an account service the Control API asks
nobody who he is: who reaches the port may register keys and start runs, which is to run code at every site. Here these
APIs cannot be reached at all, and a request is not even read unless it names a registered key. That the key is really
the caller's is then proved by Flower (`NodeAuthMiddleware`).

A SuperNode that asks for messages in vain sleeps for three seconds. So a question is held until there is an answer, or
for a while; a round over many short messages takes a fraction of the time.
"""

from __future__ import annotations

import asyncio
import binascii
import json
from base64 import b64decode
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BODY_BYTES = 32 * 2**20
"""Of one request. Flower sends arrays in pieces of 5 MiB, and lists of pieces far below this."""

UNKNOWN_KEY = "this site's key is not registered with this federation"

_DOORS = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
_PULL = "/v1/fleet/pull-messages"
HOLD_SECONDS = 15.0
"""For a question to be held; Flower's client gives up after 30."""

_LOOK_SECONDS = 0.05
_KEY_HEADER = b"flwr-public-key"
_REFUSED_CODE = 90001


class Gate:
    """An ASGI application before the SuperLink's.

    keys: registered public keys, PEM. has_mail: whether a message waits for the site with this key, or there is any
    other reason to hold its question no longer.
    """

    def __init__(self, superlink: AsgiApp, keys: frozenset[bytes], has_mail: Callable[[bytes], bool]) -> None:
        self._superlink = superlink
        self._keys = keys
        self._has_mail = has_mail

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a refusal; its body is then not read."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if scope["type"] not in ("http", "lifespan"):
            return  # a websocket: closed without a word
        if refusal is None:
            if scope["type"] == "http" and scope["path"] == _PULL:
                await self._hold(_key(scope))
            await self._superlink(scope, receive, send)
            return
        status, reason = refusal
        body = json.dumps({"code": _REFUSED_CODE, "detail": reason}).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if scope["method"] != "POST" or scope["path"] not in _DOORS:
            return 404, "there is nothing here"
        if _key(scope) not in self._keys:
            return 412, UNKNOWN_KEY
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or int(length) > MOST_BODY_BYTES:
            return 413, f"a request may have {MOST_BODY_BYTES} bytes at most, and must say how many"
        return None

    async def _hold(self, key: bytes) -> None:
        deadline = asyncio.get_running_loop().time() + HOLD_SECONDS
        while not self._has_mail(key) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_LOOK_SECONDS)


def _key(scope: Scope) -> bytes:
    try:
        return b64decode(dict(scope["headers"]).get(_KEY_HEADER, b""), validate=True)
    except binascii.Error:
        return b""
