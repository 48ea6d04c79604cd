"""Whatever comes, the endpoint refuses it with a reason, keeps its memory, and answers the next good request the same.

One real server for all: every case is sent, its refusal read, and a good request asked again.
"""

from __future__ import annotations

import gzip
import json
import re
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

MIB = 1 << 20
LIMITS = {"max_body_bytes": 4 * MIB, "header_seconds": 0.5, "body_seconds": 1, "max_queue": 8}
MEMORY_MIB = 500
"""Most that all of this may add to the server: two threads, each with an image of 64 million pixels or 16 MiB of JSON,
need more, but these bodies are at most 4 MiB and images at most 16 million pixels."""

INFER = "/v2/models/tiny/infer"
PREDICT = "/v1/predict"
SHAPE = [1, 3, 48, 48]


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A request and what must come of it. words: all in the refusal."""

    body: Callable[[], bytes | Iterator[bytes]] = bytes
    path: str = PREDICT
    headers: Mapping[str, str] = field(default_factory=dict)
    status: frozenset[int]
    words: tuple[str, ...] = ()


def bad(body: Any, status: int, *words: str, path: str = PREDICT, **headers: str) -> Bad:
    make = body if callable(body) else lambda: body
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Bad(body=make, path=path, headers=named, status=frozenset({status}), words=words)


# ---- images ----


def draw(height: int = 120, width: int = 100) -> np.ndarray:
    gray = np.zeros((height, width), np.uint8)
    cv2.ellipse(gray, (width // 2, height // 2), (width // 3, height // 3), 0, 0, 360, 160, -1)
    return np.where(gray > 0, gray + np.random.default_rng(0).integers(-40, 40, gray.shape), 0).astype(np.uint8)


JPEG = cv2.imencode(".jpg", draw())[1].tobytes()
PNG = cv2.imencode(".png", draw())[1].tobytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *before: bytes, pixels: bytes = b"", bits: int = 8, colour: int = 0) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    data = pixels or deflated_zeros((height * (width + 1)) if width * height < 20_000_000 else 1000)
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def deflated_zeros(num_bytes: int) -> bytes:
    return zlib.compress(bytes(num_bytes), 9)


def many_scans() -> bytes:
    """A progressive JPEG of 4000x4000 pixels whose 20,000 scans say "nothing more"."""

    def segment(kind: int, content: bytes) -> bytes:
        return bytes([0xFF, kind]) + struct.pack(">H", len(content) + 2) + content

    one_code, scan = bytes([1] + [0] * 15), bytes([1, 1, 0])
    head = b"\xff\xd8" + segment(0xDB, bytes([0] + [1] * 64))
    frame = segment(0xC2, struct.pack(">BHHB", 8, 4000, 4000, 1) + bytes([1, 0x11, 0]))
    first = segment(0xC4, b"\0" + one_code + b"\0") + segment(0xDA, scan + bytes(3)) + bytes(31250)
    others = (segment(0xDA, scan + bytes([1, 63, 0])) + b"\x7f\x7e" * 8) * 20_000
    return head + frame + first + segment(0xC4, b"\x10" + one_code + b"\xe0") + others + b"\xff\xd9"


def form(*parts: tuple[str, bytes], end: bytes = b"--a--\r\n") -> bytes:
    return b"".join(b"--a\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n" for head, content in parts) + end


FORM = "multipart/form-data; boundary=a"
FILE = 'Content-Disposition: form-data; name="file"; filename="SECRET^NAME.jpg"'
BOMB = chunk(b"zTXt", b"x\0\0" + deflated_zeros(64 * MIB))

IMAGES: dict[str, Bad] = {
    "nothing": bad(b"", 400, "empty", "JPEG, PNG or DICOM"),
    "text": bad(b"SECRET^NAME is no image", 415, "expected a JPEG or PNG"),
    "a JPEG cut short": bad(JPEG[: len(JPEG) // 2], 400, "truncated"),
    "a JPEG without its head": bad(JPEG[20:], 415, "expected a JPEG or PNG"),
    "a JPEG's first bytes": bad(JPEG[:3], 400, "header"),
    "a JPEG of zeros": bad(JPEG[:300] + bytes(len(JPEG) - 300), 400, "pixel data"),
    "a JPEG of 65535 pixels a side": bad(
        JPEG.replace(struct.pack(">HH", 120, 100), struct.pack(">HH", 65535, 65535), 1), 413, "65535x65535", "at most"
    ),
    "a JPEG with 20,000 scans": bad(many_scans, 413, "20001 scans", "baseline"),
    "a PNG cut short": bad(PNG[: len(PNG) // 2], 400, "stops before its end"),
    "a PNG's first bytes": bad(PNG[:8], 400, "header"),
    "a PNG with damaged pixels": bad(PNG[:300] + b"\x55" * 40 + PNG[340:], 400, "corrupt"),
    "a PNG of 2^31 pixels a side": bad(lambda: png(2**31 - 1, 2**31 - 1), 413, "2147483647x2147483647", "at most"),
    "a PNG of no pixels": bad(lambda: png(0, 100), 400),
    "a PNG that is one line": bad(lambda: png(60_000_000, 1), 400, "at least"),
    "a PNG of 31 pixels": bad(lambda: png(31, 31), 400, "31x31", "at least"),
    "a PNG without its pixels": bad(lambda: png(4000, 4000, pixels=b"x"), 400),
    "a PNG of an unknown colour": bad(lambda: png(64, 64, colour=5), 400),
    "a PNG with a text bomb": bad(lambda: png(64, 64, BOMB), 400, "too large"),
    "a PNG with a profile bomb": bad(
        lambda: png(64, 64, chunk(b"iCCP", b"x\0\0" + deflated_zeros(64 * MIB))), 400, "too large"
    ),
    "a PNG with a bomb in UTF-8": bad(
        lambda: png(64, 64, chunk(b"iTXt", b"x\0\1\0\0\0" + deflated_zeros(64 * MIB))), 400, "too large"
    ),
    "DICOM's prefix only": bad(bytes(128) + b"DICM", 400),
    "a frame of a JPEG": bad(JPEG, 400, "frame", path=f"{PREDICT}?frame=3"),
    "a frame before the first": bad(JPEG, 400, "frame", path=f"{PREDICT}?frame=-1"),
    "a frame in words": bad(JPEG, 400, "frame", path=f"{PREDICT}?frame=first"),
    "a huge frame": bad(JPEG, 400, "frame", path=f"{PREDICT}?frame={'9' * 300}"),
    "a flag in words": bad(JPEG, 400, "slice", path=f"{PREDICT}?slice=perhaps"),
    "an unknown model": bad(JPEG, 404, "not found", path=f"{PREDICT}?model=..%2F..%2Fetc%2Fpasswd"),
    "a long model": bad(JPEG, 400, "model", path=f"{PREDICT}?model={'x' * 5000}"),
    "a version of NUL": bad(JPEG, 404, "not found", path=f"{PREDICT}?version=%00"),
    "a model in half a character": bad(JPEG, 404, "not found", path=f"{PREDICT}?model=%ed%a0%80"),
    "more than the limit": bad(bytes(5 * MIB), 413, "max_body_bytes"),
    "more than the limit, in chunks": bad(lambda: (bytes(MIB) for _ in range(5)), 413, "max_body_bytes"),
    "a gzip bomb": bad(lambda: gzip.compress(bytes(64 * MIB)), 413, "max_body_bytes", content_encoding="gzip"),
    "a deflate bomb": bad(lambda: deflated_zeros(64 * MIB), 413, "max_body_bytes", content_encoding="deflate"),
    "no gzip": bad(JPEG, 400, "not gzip", content_encoding="gzip"),
    "gzip cut short": bad(lambda: gzip.compress(JPEG)[:-9], 400, "incomplete", content_encoding="gzip"),
    "gzip with a tail": bad(lambda: gzip.compress(JPEG) + b"tail", 400, "follow", content_encoding="gzip"),
    "gzip twice": bad(JPEG, 415, "gzip, deflate or none", content_encoding="gzip, gzip"),
    "an unknown encoding": bad(JPEG, 415, "gzip, deflate or none", content_encoding="br"),
    "a form without a boundary": bad(form((FILE, JPEG)), 400, "`file`", content_type="multipart/form-data"),
    "a form with another boundary": bad(
        form((FILE, JPEG)), 400, "`file`", content_type="multipart/form-data; boundary=b"
    ),
    "a form with a boundary in pieces": bad(
        form((FILE, JPEG)), 400, "`file`", content_type="multipart/form-data; boundary*=a; boundary*0=b"
    ),
    "a form in an unknown character set": bad(
        form(('Content-Disposition: form-data; name="x\xff"', b"")), 400, "`file`", content_type=f"{FORM}; charset=idna"
    ),
    "an empty form": bad(b"--a--\r\n", 400, "`file`", content_type=FORM),
    "a form of nothing": bad(b"", 400, "`file`", content_type=FORM),
    "a form cut short": bad(form((FILE, JPEG), end=b"")[:-50], 400, content_type=FORM),
    "a form with two files": bad(form((FILE, JPEG), (FILE, JPEG)), 400, "`file`", content_type=FORM),
    "a form with another name": bad(form((FILE.replace('"file"', '"image"'), JPEG)), 400, "`file`", content_type=FORM),
    "a form with an empty file": bad(form((FILE, b"")), 400, "empty", content_type=FORM),
    "a form with text for a file": bad(form((FILE, b"text")), 415, "JPEG or PNG", content_type=FORM),
    "a form with thousands of parts": bad(
        form(*[('Content-Disposition: form-data; name="x"', b"y")] * 5000), 400, "`file`", content_type=FORM
    ),
    "a form with thousands of headers": bad(
        form((FILE + "\r\nX-More: more" * 50_000, JPEG)), 400, "`file`", content_type=FORM
    ),
    "a form with an endless header": bad(form((FILE + "x" * MIB, JPEG)), 400, "`file`", content_type=FORM),
    "a form without a disposition": bad(form(("X-Other: y", JPEG)), 400, "`file`", content_type=FORM),
    "a form with a field past its limit": bad(
        form(('Content-Disposition: form-data; name="file"', bytes(2 * MIB))), 400, "`file`", content_type=FORM
    ),
    "a compressed form": bad(form((FILE, JPEG)), 415, "Content-Encoding", content_type=FORM, content_encoding="gzip"),
}


# ---- tensors ----


def request(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "images", "datatype": "FP32", "shape": SHAPE, "data": [0.5] * 6912} | changes
    return {"inputs": [{key: value for key, value in tensor.items() if value is not None}]}


def tensors(status: int, *words: str, text: str | None = None, data: Any = None, **changes: Any) -> Bad:
    """Return a request with a changed tensor; text: JSON that stands for its data."""
    if data is not None:
        changes["data"] = data
    body = json.dumps(request(**changes))
    return bad(
        (body if text is None else body.replace("[" + "0.5, " * 6911 + "0.5]", text)).encode(),
        status,
        *words,
        path=INFER,
    )


def binary(header: Any, tail: bytes, status: int, *words: str, length: object = None) -> Bad:
    head = json.dumps(header).encode()
    said = str(len(head) if length is None else length)
    return bad(head + tail, status, *words, path=INFER, inference_header_content_length=said)


def binary_header(size: object, **changes: Any) -> dict[str, Any]:
    return request(data=None, parameters={"binary_data_size": size}, **changes)


def of(value: float) -> bytes:
    return np.full(SHAPE, value, "<f4").tobytes()


TENSORS: dict[str, Bad] = {
    "no JSON": bad(b"images", 400, "not JSON", path=INFER),
    "no bytes": bad(b"", 400, "not JSON", path=INFER),
    "no UTF-8": bad(b'{"inputs": "\xff\xfe"}', 400, "not JSON", path=INFER),
    "half a character": bad(b'{"inputs": [{"name": "\\ud800"}]}', 400, "unknown input", path=INFER),
    "a list": bad(b"[]", 400, "not a JSON object", path=INFER),
    "no inputs": bad(b"{}", 400, "'inputs'", path=INFER),
    "empty inputs": bad(b'{"inputs": []}', 400, "missing input 'images'", path=INFER),
    "inputs of numbers": bad(b'{"inputs": [1]}', 400, "list of objects", path=INFER),
    "a key twice, the last counts": bad(b'{"inputs": [], "inputs": 3}', 400, "list of objects", path=INFER),
    "an input twice": bad(
        json.dumps({"inputs": request()["inputs"] * 2}).encode(), 400, "names a tensor twice", path=INFER
    ),
    "nesting without end": bad(b"[" * 100_000, 400, "not JSON", path=INFER),
    "deep nesting for a shape": tensors(400, "shape", shape=json.loads("[" * 900 + "]" * 900)),
    "deep nesting for data": tensors(400, "regular list", text="[" * 900 + "1" + "]" * 900),
    "a number of 5000 digits": tensors(400, "not JSON", text="[" + "9" * 5000 + "]"),
    "a number of 400 digits": tensors(400, text="[" + "9" * 400 + "]"),
    "1e999": tensors(400, "NaN or infinity", text="[" + ", ".join(["1e999"] * 6912) + "]"),
    "1e39, too large for float32": tensors(400, "NaN or infinity", data=[1e39] * 6912),
    "NaN in JSON": tensors(400, "NaN", text="[NaN]"),
    "text for numbers": tensors(400, "FP32", data=["0.5"] * 6912),
    "objects for numbers": tensors(400, "FP32", data=[{}] * 6912),
    "truth for numbers": tensors(400, "FP32", data=[True] * 6912),
    "no numbers": tensors(400, "0 values", data=[]),
    "too few numbers": tensors(400, "6911 values", data=[0.5] * 6911),
    "a ragged list": tensors(400, "regular list", data=[[0.5], [0.5, 0.5]]),
    "thousands of empty lists": tensors(400, "0 values", data=[[]] * 500_000),
    "no data": tensors(400, "neither 'data'", text="null"),
    "another name": tensors(400, "unknown input", name="pictures"),
    "a name of numbers": tensors(400, "'name'", name=3),
    "another type": tensors(400, "FP64", "expected FP32", datatype="FP64"),
    "a list for a type": tensors(400, "expected FP32", datatype=["FP32"]),
    "a negative shape": tensors(400, "expected [-1, 3, 48, 48]", shape=[-1, 3, 48, 48]),
    "an empty batch": tensors(400, "expected [-1, 3, 48, 48]", shape=[0, 3, 48, 48]),
    "a shape past 2^31": tensors(400, "expected [-1, 3, 48, 48]", shape=[2**31, 3, 48, 48]),
    "a shape past 2^64": tensors(400, "expected [-1, 3, 48, 48]", shape=[2**64 + 1, 3, 48, 48]),
    "a shape whose product overflows": tensors(400, "values", shape=[2**31 - 1, 3, 48, 48]),
    "fractions for a shape": tensors(400, "expected [-1, 3, 48, 48]", shape=[1.0, 3, 48, 48]),
    "truth for a shape": tensors(400, "expected [-1, 3, 48, 48]", shape=[True, 3, 48, 48]),
    "a shape of one million sides": tensors(400, "expected [-1, 3, 48, 48]", shape=[1] * 1_000_000),
    "a shape too short": tensors(400, "expected [-1, 3, 48, 48]", shape=[3, 48, 48]),
    "another size": tensors(400, "expected [-1, 3, 48, 48]", shape=[1, 3, 64, 64]),
    "more images than are taken": binary(
        binary_header(17 * 27648, shape=[17, 3, 48, 48]), bytes(17 * 27648), 400, "max_images"
    ),
    "shared memory": tensors(400, "shared_memory_region", parameters={"shared_memory_region": "x"}),
    "parameters of numbers": tensors(400, "'parameters'", parameters=[1]),
    "an unknown output": bad(
        json.dumps(request() | {"outputs": [{"name": "x" * 10_000}]}).encode(), 400, "unknown output", path=INFER
    ),
    "classes of a map": bad(
        json.dumps(request() | {"outputs": [{"name": "class_maps", "parameters": {"classification": 2}}]}).encode(),
        400,
        "no list of scores",
        path=INFER,
    ),
    "a negative number of classes": bad(
        json.dumps(request() | {"outputs": [{"name": "logits", "parameters": {"classification": -1}}]}).encode(),
        400,
        "whole number",
        path=INFER,
    ),
    "a number for an id": bad(json.dumps(request() | {"id": 7}).encode(), 400, "'id'", path=INFER),
    "NaN in bytes": binary(binary_header(27648), of(np.nan), 400, "NaN or infinity"),
    "infinity in bytes": binary(binary_header(27648), of(-np.inf), 400, "NaN or infinity"),
    "the largest floats": binary(binary_header(27648), of(3.4e38), 400, "no finite answer"),
    "fewer bytes than said": binary(binary_header(27648), of(0)[:-1], 400, "are left"),
    "more bytes than said": binary(binary_header(27648), of(0) + b"x", 400, "follow"),
    "a size that is not the shape's": binary(binary_header(27644), of(0), 400, "has 27648 bytes"),
    "a negative size": binary(binary_header(-27648), of(0), 400, "has 27648 bytes"),
    "a size past 2^64": binary(binary_header(2**70), of(0), 400, "has 27648 bytes"),
    "a size in words": binary(binary_header("27648"), of(0), 400, "has 27648 bytes"),
    "data and bytes": binary(request(parameters={"binary_data_size": 27648}), of(0), 400, "both"),
    "a negative header length": binary(binary_header(27648), of(0), 400, "whole number", length=-1),
    "a header length past the body": binary(binary_header(27648), of(0), 400, "the body has", length=10**7),
    "a header length past 2^64": binary(binary_header(27648), of(0), 400, "whole number", length=2**70),
    "a header length in words": binary(binary_header(27648), of(0), 400, "whole number", length="all"),
    "a header length of nothing": binary(binary_header(27648), of(0), 400, "not JSON", length=0),
    "a gzip bomb": bad(
        lambda: gzip.compress(b" " * 64 * MIB), 413, "max_body_bytes", path=INFER, content_encoding="gzip"
    ),
    "an index of no JSON": bad(b"{", 400, "not JSON", path="/v2/repository/index"),
    "an index of a list": bad(b"[1]", 400, "object", path="/v2/repository/index"),
    "an index past its limit": bad(b" " * 100_000, 400, "at most", path="/v2/repository/index"),
    "a model to load": bad(b"{}", 409, "repository_control", path="/v2/repository/models/tiny/load"),
}

PATHS: tuple[str, ...] = (
    "/..",
    "/../../etc/passwd",
    "/v2/models/..",
    "/v2/models/../../ready",
    "/v2/models/%2e%2e",
    "/v2/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd/ready",
    "/v2/models/%00",
    "/v2/models/tiny%00/ready",
    "/v2/models/" + "x" * 20_000,
    "/v2/models/%F0%9F%A7%A0",
    "/v2/models/%ff%fe/config",
    "/v2/models/%ed%a0%80",
    "/v2/models/tiny/versions/-1",
    "/v2/models/tiny/versions/..%2f..",
    "/v2/models/tiny/versions/" + "9" * 5000,
    "/viewer/../app.py",
    "/viewer/%2e%2e/pages.py",
    "/viewer/..%5c..%5cpages.py",
    "/viewer//etc/passwd",
    "/viewer/%00",
    "/viewer/" + "x" * 20_000,
    "//",
    "/v1/predict/..",
    "/studies/../x",
)


# ---- HTTP itself ----


def post(head: str, body: bytes = b"", target: str = INFER) -> bytes:
    return f"POST {target} HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n".encode("latin-1") + body


RAW: dict[str, tuple[bytes, int]] = {
    "zeros": (bytes(4000), 400),
    "noise": (np.random.default_rng(1).bytes(4000), 400),
    "a TLS greeting": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "an unknown version": (b"GET / HTTP/9.9\r\n\r\n", 400),
    "an unknown method": (b"BREW /v1/predict HTTP/1.1\r\n\r\n", 400),
    "a tunnel": (b"CONNECT elsewhere:22 HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "an upgrade with a body": (post("connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 2", b"{}"), 400),
    "a target outside of ASCII": (b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "a target that is no address": (b"GET http://[::1 HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "NUL in a header's name": (b"GET /v2 HTTP/1.1\r\nho\x00st: x\r\n\r\n", 400),
    "a folded header": (b"GET /v2 HTTP/1.1\r\nhost: x\r\nx: a\r\n b\r\n\r\n", 400),
    "too many headers": (b"GET /v2 HTTP/1.1\r\n" + b"x-more: more\r\n" * 5000, 431),
    "an endless header": (b"GET /v2 HTTP/1.1\r\nx: " + b"x" * 100_000, 431),
    "an endless target": (b"GET /" + b"x" * 100_000, 431),
    "a negative length": (post("content-length: -2", b"{}"), 400),
    "a length in words": (post("content-length: all", b"{}"), 400),
    "a length past 2^64": (post("content-length: 99999999999999999999999", b"{}"), 400),
    "a length of 2^64 - 1": (post("content-length: 18446744073709551615", b"{}"), 413),
    "two lengths": (post("content-length: 2\r\ncontent-length: 3", b"{}"), 400),
    "a length and chunks": (post("content-length: 2\r\ntransfer-encoding: chunked", b"0\r\n\r\n"), 400),
    "a length that is too large": (post("content-length: 9", b"{}"), 408),
    "a length that is too small": (post("content-length: 1\r\nconnection: close", b"{}"), 400),
    "no length": (post("connection: close", b""), 400),
    "a chunk without a size": (post("transfer-encoding: chunked", b"ZZ\r\n{}\r\n"), 400),
    "a chunk past 2^64": (post("transfer-encoding: chunked", b"f" * 20 + b"\r\n"), 400),
    "chunks without an end": (post("transfer-encoding: chunked", b"2\r\n{}\r\n"), 408),
    "trailers without end": (post("transfer-encoding: chunked", b"0\r\n" + b"x-more: more\r\n" * 30_000), 431),
    "an endless trailer": (post("transfer-encoding: chunked", b"0\r\nx: " + b"x" * 400_000), 431),
    "headers that stop": (b"GET /v2 HTTP/1.1\r\nhost: x\r\nx-a", 408),
    "nothing": (b"", 408),
    "a key of noise": (
        post("authorization: Bearer \xff\x01\r\nx-api-key: \xfe\r\ncontent-length: 2\r\nconnection: close", b"{}"),
        400,
    ),
    "two encodings": (
        post("content-encoding: br\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\nconnection: close", b"{}"),
        400,
    ),
    "two header lengths": (
        post(
            "inference-header-content-length: 2\r\ninference-header-content-length: -9\r\ncontent-length: 2"
            "\r\nconnection: close",
            b"{}",
        ),
        400,
    ),
    "a page of another site": (post("origin: http://elsewhere\r\ncontent-length: 2\r\nconnection: close", b"{}"), 403),
}


# ---- the server ----


@pytest.fixture(scope="module")
def endpoint(serve_module: Any, tiny_bundle: Path) -> Any:
    return serve_module(tiny_bundle, settings={"limits": LIMITS})


class Court:
    """The server, its good answers before all this, and the memory that it had."""

    def __init__(self, endpoint: Any) -> None:
        self.endpoint = endpoint
        self.client = endpoint.client()
        self._before: list[bytes] = []
        self._before = self.good_answers()
        self.memory_before = self.memory_mib("VmRSS")

    def good_answers(self) -> list[bytes]:
        """Return what good requests are answered with."""
        tensor = binary(binary_header(27648), of(0.25), 200)
        answers = [
            self.client.post(f"{PREDICT}?slice=true", files={"file": ("SECRET^NAME.jpg", JPEG)}),
            self.client.post(INFER, content=tensor.body(), headers=tensor.headers),
        ]
        assert [answer.status_code for answer in answers] == [200, 200]
        return [answer.content for answer in answers]

    def require_as_before(self) -> None:
        """The server lives and answers as ever."""
        assert self.endpoint.process.poll() is None
        assert self.good_answers() == self._before

    def memory_mib(self, key: str) -> float:
        """Return a figure of the process: VmRSS, VmHWM (the most so far)."""
        status = Path(f"/proc/{self.endpoint.process.pid}/status").read_text()
        found = re.search(rf"{key}:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def exchange(self, data: bytes, *, seconds: float = 10) -> bytes:
        """Send bytes and return all that comes back until the server hangs up."""
        host, port = self.endpoint.address.split(":")
        answer = b""
        with socket.create_connection((host, int(port)), timeout=seconds) as connection, suppress(ConnectionError):
            with suppress(ConnectionError):  # it may hang up on what it has not read
                connection.sendall(data)
            while piece := connection.recv(65536):
                answer += piece
        return answer


@pytest.fixture(scope="module")
def court(endpoint: Any) -> Iterator[Court]:
    made = Court(endpoint)
    yield made
    made.client.close()


def require_refusal(body: bytes, *words: str) -> None:
    told = json.loads(body)
    assert set(told) == {"error"} and len(told["error"]) >= 10, told
    for word in words:
        assert word in told["error"], told
    for secret in ("SECRET^NAME", "Traceback", "site-packages", ".py"):
        assert secret not in told["error"]


@pytest.mark.parametrize("case", [*IMAGES.values(), *TENSORS.values()], ids=[*IMAGES, *TENSORS])
def test_a_bad_body_is_refused_with_the_reason(court: Court, case: Bad) -> None:
    answer = court.client.post(case.path, content=case.body(), headers=case.headers)
    assert answer.status_code in case.status, answer.text[:300]
    require_refusal(answer.content, *case.words)
    court.require_as_before()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_path_leads_elsewhere(court: Court, method: str) -> None:
    for path in PATHS:
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
        status, body = split(court.exchange(head))
        assert status in (404, 405), path
        require_refusal(body)
    court.require_as_before()


@pytest.mark.parametrize("name", RAW)
def test_what_is_hardly_http_is_refused(court: Court, name: str) -> None:
    data, expected = RAW[name]
    status, body = split(court.exchange(data))
    assert status == expected
    require_refusal(body)
    court.require_as_before()


def split(answer: bytes) -> tuple[int, bytes]:
    """Return the status and body of the first answer in some bytes."""
    head, _, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert head.startswith(b"HTTP/1.1 ") and length is not None, answer[:200]
    return int(head.split()[1]), body[: int(length[1])]


def test_clients_that_hang_up_in_the_middle_leave_nothing_behind(court: Court) -> None:
    host, port = court.endpoint.address.split(":")
    whole = post(f"content-length: {len(JPEG)}", JPEG, PREDICT)
    for length in range(1, len(whole), 257):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(whole[:length])
    eventually(lambda: in_flight(court) == 0)
    court.require_as_before()


def test_a_body_is_dripped_no_longer_than_it_may_take_even_where_nobody_reads_it(court: Court) -> None:
    host, port = court.endpoint.address.split(":")
    for target in (PREDICT, "/nowhere"):
        began = time.monotonic()
        with socket.create_connection((host, int(port)), timeout=10) as connection, suppress(ConnectionError):
            connection.sendall(post("content-length: 1000", b"", target))
            while time.monotonic() < began + 8:
                connection.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() < began + 5
    court.require_as_before()


def test_an_answer_that_nobody_reads_is_given_up(court: Court) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1200, 1200), np.uint8)
    picture = cv2.imencode(".jpg", noise)[1].tobytes()
    ask = post(f"content-length: {len(picture)}", picture, f"{PREDICT}?slice=true&overlay=true")
    host, port = court.endpoint.address.split(":")
    num_open = open_files(court)
    with ExitStack() as stack:
        for _ in range(2):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            connection.sendall(ask)
        eventually(lambda: open_files(court) > num_open)
        eventually(lambda: open_files(court) <= num_open)
    court.require_as_before()


def test_requests_sent_ahead_are_answered_in_order_and_only_so_many(court: Court) -> None:
    ask = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    last = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    assert court.exchange(ask * 9 + last).count(b"HTTP/1.1 200 ") == 10
    assert court.exchange(ask * 20_000).count(b"HTTP/1.1 200 ") < 20_000
    court.require_as_before()


def open_files(court: Court) -> int:
    return len(list(Path(f"/proc/{court.endpoint.process.pid}/fd").iterdir()))


def in_flight(court: Court) -> float:
    text = court.client.get("/metrics").text
    found = re.search(r"^gliofed_requests_in_flight ([\d.]+)$", text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def eventually(holds: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() < began + 10
        time.sleep(0.05)


def test_what_a_refused_request_took_is_free_again(court: Court) -> None:
    """Eight requests of 4 MiB that parse to 1.3 million objects, 100 MiB each."""
    body = json.dumps(request(data=None)).replace("}]}", ', "data": [' + "{}," * 1_300_000 + "{}]}]}").encode()
    for _ in range(8):
        assert court.client.post(INFER, content=body).status_code == 400
    assert court.memory_mib("VmRSS") < court.memory_before + MEMORY_MIB
    court.require_as_before()


def test_memory_stayed_within_bounds_and_nothing_went_wrong_inside(court: Court) -> None:
    assert court.client.post(PREDICT, content=png(4000, 4000)).status_code == 200
    court.require_as_before()
    assert court.memory_mib("VmHWM") < court.memory_before + MEMORY_MIB
    events = [line for line in court.endpoint.log() if line["level"] in ("error", "critical")]
    assert events == []
    assert "SECRET^NAME" not in court.endpoint.log_file.read_text()
