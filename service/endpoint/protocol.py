"""HTTP/1.1 as uvicorn speaks it, with what it leaves open: time and size of headers, number of connections.

Without these a client that never ends its headers or trailers, drips a body that nobody reads, or never reads its
answer, holds a connection, and memory, for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.endpoint.limits import error_body
from service.endpoint.settings import LimitSettings

MAX_HEADER_BYTES = 32 << 10
"""Largest request line with headers, and largest trailers; usual ones have some hundred bytes."""


class _Pieces:
    """A stand-in for uvicorn's bytearray of a body: it keeps the pieces as they are, where that copies them twice."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._num_bytes = 0

    def __iadd__(self, piece: bytes) -> _Pieces:
        self._pieces.append(piece)
        self._num_bytes += len(piece)
        return self

    def __len__(self) -> int:
        return self._num_bytes

    def __bytes__(self) -> bytes:
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Subclass per server by `bounded`, which says the limits."""

    limits: ClassVar[LimitSettings]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or refuse it where there are too many."""
        super().connection_made(transport)
        self._num_header_bytes = 0
        self._patience: asyncio.TimerHandle | None = None
        self._body_due: asyncio.TimerHandle | None = None
        self._answer_due: asyncio.TimerHandle | None = None
        # told of every answer that does not go at once, however small: a buffer that nobody empties outlives `close`
        transport.set_write_buffer_limits(high=1, low=0)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(503, f"{self.limits.max_connections} connections are open, the limit; try again later")
            return
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        self._end_body()
        self._stop_sending()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless headers or trailers grow too long."""
        if self.transport.is_closing():
            return
        self._num_header_bytes += len(data)
        super().data_received(data)
        # counted until they are complete: the chunk that completes them may hold a body too
        is_incomplete = self._patience is not None or self._body_due is not None
        if is_incomplete and self._num_header_bytes > MAX_HEADER_BYTES:
            self._refuse(431, f"the request's headers have more than {MAX_HEADER_BYTES} bytes; send fewer")

    def on_message_begin(self) -> None:
        """A request begins; its headers have a time to arrive."""
        super().on_message_begin()
        if self._patience is None:
            self._await_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, not a trailer: the application has begun on the headers that it knows."""
        if self._body_due is None:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Headers are here; the body has a time to arrive, also where nobody reads it."""
        self._stop_waiting()
        is_upgrade = self.parser.should_upgrade()
        if is_upgrade and any(name in _BODY_HEADERS for name, _ in self.headers):
            raise ValueError("the parser takes what follows an Upgrade for another protocol")  # gives a 400
        if len(self.pipeline) >= _MOST_PIPELINED:
            raise ValueError("too many requests ahead of their answers")  # hangs up
        super().on_headers_complete()
        if is_upgrade:
            self.cycle.keep_alive = False
        self._await_body()

    def on_message_complete(self) -> None:
        """The request is here, its trailers included."""
        self._end_body()
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Give the client a time to read its answer."""
        super().pause_writing()
        self._stop_sending()
        self._answer_due = self.loop.call_later(self.limits.body_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read all of it."""
        self._stop_sending()
        super().resume_writing()

    def on_body(self, body: bytes) -> None:
        """Keep a piece of a body until the app asks for it; what is no body is counted anew."""
        self._num_header_bytes = 0
        if not self.cycle.response_complete and not self.cycle.body:
            self.cycle.body = _Pieces()  # type: ignore[assignment]
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(400, f"{msg} Send HTTP/1.1{', without Upgrade' if self.parser.should_upgrade() else ''}")

    def _await_headers(self) -> None:
        self._num_header_bytes = 0
        self._patience = self.loop.call_later(self.limits.header_seconds, self._tire)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _stop_sending(self) -> None:
        if self._answer_due is not None:
            self._answer_due.cancel()
            self._answer_due = None

    def _await_body(self) -> None:
        self._num_header_bytes = 0
        self._body_due = self.loop.call_later(self.limits.body_seconds, self._tire_of_body)

    def _end_body(self) -> None:
        if self._body_due is not None:
            self._body_due.cancel()
            self._body_due = None

    def _tire_of_body(self) -> None:
        if self.cycle.response_complete:
            self.transport.close()
        else:
            self._await_body()  # whoever reads it holds it to its time

    def _tire(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._await_headers()  # a request behind one that is being answered is not read meanwhile
            return
        self._refuse(408, f"the request's headers took more than {self.limits.header_seconds:g} s; send them faster")

    def _refuse(self, status: int, message: str) -> None:
        self._stop_waiting()
        if self.transport is None or self.transport.is_closing():
            return
        body = error_body(message)
        head = (
            f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        cycle = self.cycle
        is_reading = cycle is not None and cycle.more_body and not (cycle.response_started or self.pipeline)
        if cycle is None or cycle.response_complete or is_reading:  # never into the middle of another answer
            self.transport.write(head.encode() + body)
        self.transport.close()


_MOST_PIPELINED = 16
_BODY_HEADERS = (b"content-length", b"transfer-encoding")
_PHRASES = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


def bounded(settings: LimitSettings) -> type[BoundedProtocol]:
    """Return the protocol with these limits, for uvicorn's `http`."""
    namespace: dict[str, Any] = {"limits": settings}
    return type("BoundedProtocol", (BoundedProtocol,), namespace)
