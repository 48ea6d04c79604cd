"""Bodies in and out: read into one buffer of known size, inflated no further than the limit, compressed as asked.

The limits on length and time are `limits.py`'s, which stands before every route; here is what only some need.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Mapping, Sequence

import numpy as np
from starlette.types import Receive

from service.endpoint.errors import BadRequest, TooLarge, UnsupportedMedia

ALIGNMENT_BYTES = 64
MIN_COMPRESSED_BYTES = 1024
"""Smaller responses are sent as they are."""

_WINDOWS: dict[str, int] = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_LEVEL = 1  # higher levels cost several times the CPU for tensors that hardly get smaller


async def read_body(
    receive: Receive, headers: Mapping[bytes, bytes], *, max_bytes: int, aligned_at: int = 0
) -> memoryview:
    """Return a request's body, inflated where it is compressed; at most max_bytes.

    aligned_at: this offset of the body lies at a multiple of 64 bytes in memory, so that a tensor there can be used
    in place. Raises UnsupportedMedia for an unknown encoding, BadRequest for a damaged or incomplete one, TooLarge.
    """
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
    if encoding in _WINDOWS:
        return await _read_compressed(receive, encoding, max_bytes)
    if encoding not in ("", "identity"):
        raise UnsupportedMedia(f"Content-Encoding '{encoding[:40]}' is not read; send gzip, deflate or none")
    length = headers.get(b"content-length", b"")
    if length.isdigit():
        return await _read_known(receive, int(length), aligned_at)
    parts = [chunk async for chunk in _chunks(receive)]
    return memoryview(b"".join(parts))


class Gone(Exception):
    """The client went away before its body was complete; nobody is left to answer."""


async def _read_known(receive: Receive, length: int, aligned_at: int) -> memoryview:
    space = np.empty(length + ALIGNMENT_BYTES, np.uint8)
    start = -(space.ctypes.data + aligned_at) % ALIGNMENT_BYTES
    body, position = space.data[start : start + length], 0
    async for chunk in _chunks(receive):
        body[position : position + len(chunk)] = chunk
        position += len(chunk)
    return body[:position]


async def _read_compressed(receive: Receive, encoding: str, max_bytes: int) -> memoryview:
    inflater, parts, num_left = zlib.decompressobj(_WINDOWS[encoding]), [], max_bytes
    try:
        async for chunk in _chunks(receive):
            if inflater.eof:
                raise BadRequest(f"bytes follow the end of the {encoding} body; expected none")
            parts.append(inflater.decompress(chunk, num_left + 1))
            num_left -= len(parts[-1])
            if num_left < 0:
                problem = f"the {encoding} body holds more than {max_bytes} bytes, the limit of max_body_bytes"
                raise TooLarge(problem)
    except zlib.error as error:
        raise BadRequest(f"the body is not {encoding}: {error}") from error
    if not inflater.eof or inflater.unused_data:
        raise BadRequest(f"the {encoding} body is incomplete or bytes follow it")
    return memoryview(b"".join(parts))


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        if chunk := message.get("body", b""):
            yield chunk
        more = message.get("more_body", False)


def choose_encoding(accepted: bytes) -> str | None:
    """Return gzip or deflate where an Accept-Encoding header allows it, the more wanted one; else None."""
    weights: dict[str, float] = {}
    for item in accepted.decode("latin-1").lower().split(","):
        name, _, parameter = item.partition(";")
        weight = parameter.strip().removeprefix("q=") if parameter else "1"
        try:
            weights[name.strip()] = float(weight)
        except ValueError:
            weights[name.strip()] = 0.0
    best = max(_WINDOWS, key=lambda name: weights.get(name, 0.0))
    return best if weights.get(best, 0.0) > 0 else None


def compress(parts: Sequence[bytes | memoryview], encoding: str) -> bytes:
    """Return the parts as one compressed body."""
    deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOWS[encoding])
    return b"".join([*(deflater.compress(part) for part in parts), deflater.flush()])
