"""JSON out: every body that the routes send, errors included."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response

from service.endpoint.errors import EndpointError
from service.endpoint.limits import error_body


def json_reply(value: object, status: int = 200) -> Response:
    """Return a JSON response; raises ValueError for numbers that JSON has not."""
    body = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    return Response(body, status_code=status, media_type="application/json")


def refusal(error: EndpointError) -> Response:
    """Return a refusal."""
    return error_reply(error.status, str(error), error.headers)


def error_reply(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return `{"error": message}`."""
    return Response(error_body(message), status_code=status, media_type="application/json", headers=headers)
