"""What a request may cost the endpoint, over real sockets."""

from __future__ import annotations

import gzip
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def strict(serve_module: Any, tiny_bundle: Path) -> Any:
    limits = {
        "max_body_bytes": 100_000,
        "max_queue": 1,
        "header_seconds": 0.4,
        "body_seconds": 0.6,
        "max_connections": 6,
    }
    return serve_module(tiny_bundle, settings={"limits": limits})


def chunks(size: int) -> Iterator[bytes]:
    for _ in range(size // 10_000):
        yield bytes(10_000)


@pytest.mark.parametrize("path", ["/v1/predict", "/v2/models/tiny/infer", "/v2/repository/index"])
def test_a_body_over_the_limit_is_refused_and_the_next_request_is_answered(strict: Any, path: str) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < 100_000
    with strict.client() as client:
        for body, headers in ((bytes(200_000), {}), (chunks(200_000), {}), (bomb, {"content-encoding": "gzip"})):
            answer = client.post(path, content=body, headers=headers)
            assert answer.status_code == 413 and "max_body_bytes" in answer.json()["error"]
        assert client.get("/v2/health/ready").status_code == 200


def test_a_body_and_headers_that_do_not_come_are_given_up_on(strict: Any) -> None:
    head = b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n"
    assert ask_raw(strict, head + b"\r\nonly this").startswith(b"HTTP/1.1 408 ")
    assert ask_raw(strict, head).startswith(b"HTTP/1.1 408 ")
    assert ask_raw(strict, b"").startswith(b"HTTP/1.1 408 ")


def test_headers_without_end_are_refused(strict: Any) -> None:
    endless = b"GET /v2 HTTP/1.1\r\n" + b"x-more: and more\r\n" * 3000
    assert ask_raw(strict, endless).startswith(b"HTTP/1.1 431 ")


def test_more_requests_than_places_are_told_to_come_back(strict: Any, slice_jpeg: bytes) -> None:
    host, port = strict.address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as slow, strict.client() as client:
        slow.sendall(b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n")
        busy = poll(lambda: client.post("/v1/predict", content=slice_jpeg), lambda answer: answer.status_code == 503)
        assert busy.headers["retry-after"] == "1" and "max_queue" in busy.json()["error"]
        assert client.get("/v2/health/live").status_code == 200
        slow.close()
        poll(lambda: client.post("/v1/predict", content=slice_jpeg), lambda answer: answer.status_code == 200)


def poll(call: Callable[[], Any], done: Callable[[Any], bool]) -> Any:
    """Return the first result that will do."""
    began = time.monotonic()
    while time.monotonic() < began + 10:
        if done(result := call()):
            return result
        time.sleep(0.02)
    raise AssertionError(f"last result: {result}")


def test_more_connections_than_allowed_are_refused(strict: Any) -> None:
    host, port = strict.address.split(":")
    with ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
        assert ask_raw(strict, b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n").startswith(b"HTTP/1.1 503 ")


def test_what_is_no_http_is_refused_with_an_error_body(strict: Any) -> None:
    assert b'{"error": "Invalid HTTP request received. Send HTTP/1.1"}' in ask_raw(strict, b"\x00\x01 nonsense\r\n\r\n")


def ask_raw(endpoint: Any, data: bytes, *, seconds: float = 10) -> bytes:
    """Send bytes and return all that comes back until the server hangs up."""
    host, port = endpoint.address.split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(data)
        answer = b""
        with suppress(ConnectionResetError):  # it may hang up on what it has not read
            while chunk := connection.recv(65536):
                answer += chunk
    return answer
