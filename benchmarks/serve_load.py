"""Clients of the endpoint that ask without rest: HTTP/1.1 over kept connections, in one process of asyncio.

Written on bare streams, because a client library costs more than what is measured.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

REFUSED = 503


@dataclass(slots=True)
class Tally:
    """What the clients saw: seconds of each accepted request, answers by status, faults of the line."""

    accepted_seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What every client asks, of whom, until when (in perf_counter's seconds), and its pause after a refusal."""

    host: str
    port: int
    request: bytes
    end: float
    pause_seconds: float


def request_bytes(path: str, body: bytes, content_type: str, headers: dict[str, str] | None = None) -> bytes:
    """Return a whole POST request."""
    fields = {
        "Host": "endpoint",
        "Content-Type": content_type,
        "Content-Length": str(len(body)),
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def press(*, host: str, port: int, request: str, clients: int, seconds: float, pause_seconds: float) -> dict[str, Any]:
    """Let clients ask for a time; the entry of a process of its own, in and out plain JSON.

    request: base64. pause_seconds: after a 503. Returns accepted_seconds, statuses and faults with their counts.
    """
    sent = base64.b64decode(request)
    tally = asyncio.run(_press(host, port, sent, num_clients=clients, seconds=seconds, pause_seconds=pause_seconds))
    return {
        "accepted_seconds": tally.accepted_seconds,
        "statuses": {str(status): count for status, count in tally.statuses.items()},
        "faults": dict(tally.faults),
    }


async def _press(
    host: str, port: int, request: bytes, *, num_clients: int, seconds: float, pause_seconds: float
) -> Tally:
    tally, end = Tally(), time.perf_counter() + seconds
    target = Target(host=host, port=port, request=request, end=end, pause_seconds=pause_seconds)
    clients = (_client(target, tally) for _ in range(num_clients))
    await asyncio.gather(*clients)
    return tally


async def _client(target: Target, tally: Tally) -> None:
    writer = None
    while time.perf_counter() < target.end:
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection(target.host, target.port)
            started = time.perf_counter()
            writer.write(target.request)
            await writer.drain()
            status, closes = await _answer(reader)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            tally.faults[f"{type(error).__name__}: {error}"] += 1
            writer = None
            await asyncio.sleep(target.pause_seconds)
            continue
        tally.statuses[status] += 1
        if status == 200:
            tally.accepted_seconds.append(time.perf_counter() - started)
        if closes:
            writer.close()
            writer = None
        if status == REFUSED:
            await asyncio.sleep(target.pause_seconds)
    if writer is not None:
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Read one answer; return its status and whether the connection ends with it."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    fields = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
    await reader.readexactly(int(fields["content-length"]))
    return int(head[0].split(" ")[1]), fields.get("connection") == "close"
