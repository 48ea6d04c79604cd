"""Suite `serve`: what it calls wrong, and its clients against a server that misbehaves."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import pytest

from benchmarks.serve import overload_complaint
from benchmarks.serve_gpu import gpu_cases
from benchmarks.serve_load import press, request_bytes
from export.driver import Machine


@contextmanager
def answering(*answers: bytes) -> Iterator[int]:
    """A server that gives the answers in turn, for ever."""
    loop, ports = asyncio.new_event_loop(), list[int]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(10**6):
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            writer.write(answers[number % len(answers)])
            await writer.drain()
            if b"connection: close" in answers[number % len(answers)]:
                break
        writer.close()

    async def start() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])

    loop.run_until_complete(start())
    thread = Thread(target=loop.run_forever)
    thread.start()
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def pressed(port: int) -> dict[str, Any]:
    request = base64.b64encode(request_bytes("/", b"body", "image/jpeg")).decode()
    return press(host="127.0.0.1", port=port, request=request, clients=3, seconds=0.5, pause_seconds=0.01)


def answer(status: int, *, closes: bool = False) -> bytes:
    return (
        f"HTTP/1.1 {status} X\r\ncontent-length: 2\r\n{'connection: close' if closes else 'x: y'}\r\n\r\n{{}}".encode()
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_clients_count_every_answer_and_time_the_accepted_ones() -> None:
    with answering(answer(200), answer(503), answer(500)) as port:
        told = pressed(port)
    assert set(told["statuses"]) == {"200", "503", "500"}
    assert len(told["accepted_seconds"]) == told["statuses"]["200"] > 3
    assert not told["faults"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_connection_that_ends_is_opened_again_and_one_that_breaks_is_a_fault() -> None:
    with answering(answer(200, closes=True)) as port:
        told = pressed(port)
    assert told["statuses"]["200"] > 6
    assert not told["faults"]
    with answering(answer(200)[:20] + b"connection: close") as port:
        assert pressed(port)["faults"]


def test_what_is_wrong_under_overload() -> None:
    assert overload_complaint({"200": 5, "503": 100}, {}, 0.01) is None
    assert "500" in str(overload_complaint({"200": 5, "500": 1}, {}, 0.01))
    assert "reset" in str(overload_complaint({"200": 5}, {"reset": 1}, 0.01))
    assert "memory" in str(overload_complaint({"200": 5}, {}, 0.2))


def test_without_a_gpu_there_are_no_gpu_cases(tmp_path: Any) -> None:
    bare = Machine(
        driver=None,
        cuda=None,
        gpus=(),
        tensorrt=None,
        tensorrt_rtx=None,
        providers=("CPUExecutionProvider",),
        absent={},
    )
    assert list(gpu_cases(None, bare, tmp_path)) == []  # type: ignore[arg-type]
