"""`gliofed serve`: one process, one port, told by signals.

SIGTERM and SIGINT stop taking connections, let requests under way end within `drain_seconds`, and exit 0. SIGHUP loads
every bundle again. The log is JSON lines on standard error, with nothing of a patient in it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
import threading
import time
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.endpoint.access import is_loopback, require_guard
from service.endpoint.app import create_app
from service.endpoint.metrics import describe_fault
from service.endpoint.protocol import bounded
from service.endpoint.serving import Serving
from service.endpoint.settings import ServeSettings
from service.endpoint.tls import server_context, tells_client
from service.yaml_source import SpecError

_log = logging.getLogger("gliofed.endpoint")


class JsonLines(logging.Formatter):
    """One JSON object a record: time, level, event, facts. Exceptions without their messages."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        told = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            told |= describe_fault(record.exc_info[1])
        return json.dumps(told)


def serve(settings: ServeSettings) -> str | None:
    """Serve until told to stop; return why it failed, None where it was told to stop.

    Raises SpecError where the address cannot be had or would be open to strangers, HospitalError where keys,
    certificates or the audit log cannot be used.
    """
    _start_log()
    require_guard(settings.host, settings.access, needs_certificate=settings.needs_certificate)
    protocol: type[HttpToolsProtocol] = bounded(settings.limits)
    secured: dict[str, Any] = {}
    if settings.tls is not None:
        context, protocol = server_context(settings.tls), tells_client(protocol)
        secured = {"ssl_context_factory": lambda *_: context}
    listener = _listen(settings.host, settings.port)
    faults: list[str] = []
    app = create_app(settings, on_fault=lambda fault: _fail(server, faults, fault))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            **secured,
            http=protocol,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=max(1, round(settings.limits.drain_seconds)),
        )
    )
    # uvicorn repeats the signal that stopped it once it has stopped; to be told to stop is no failure here
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    asyncio.run(_run(server, listener, app.state.serving))
    return faults[0] if faults else None


async def _run(server: uvicorn.Server, listener: socket.socket, serving: Serving) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, lambda: threading.Thread(target=serving.models.reload, daemon=True).start())
    host, port = listener.getsockname()[:2]
    scheme = "http" if serving.settings.tls is None else "https"
    shown = f"[{host}]" if ":" in host else host
    if serving.audit is None:
        _log.warning("no audit log is kept; set audit.path")
    if not is_loopback(serving.settings.host) and serving.settings.tls is None:
        _log.warning("keys and images travel in clear; set tls, or keep a TLS proxy before this")
    _log.info("listening", extra={"facts": {"address": f"{scheme}://{shown}:{port}", **_head_of(serving)}})
    await server.serve(sockets=[listener])
    _log.info("stopped", extra={"facts": _head_of(serving)})


def _head_of(serving: Serving) -> dict[str, str]:
    """Return the last line's digest of the audit log: kept elsewhere, it shows where a log was cut short."""
    return {} if serving.audit is None else {"audit_head": serving.audit.head}


def _fail(server: uvicorn.Server, faults: list[str], fault: str) -> None:
    faults.append(fault)
    server.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise SpecError([f"host, port: cannot listen on {host} port {port} ({error}); choose others"]) from error


def _start_log() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
