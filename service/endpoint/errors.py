"""What a request is refused with: a status and one complete sentence, sent as `{"error": ...}`.

EndpointError
├── BadRequest        400  the request is malformed or does not fit the model
├── NotFound          404  no such route, model or version
├── TooSlow           408  the body did not arrive in time
├── Conflict          409  the models' state does not allow it
├── TooLarge          413  the body, or what it decompresses to, is over the limit
├── UnsupportedMedia  415  an encoding or a kind of file that is not read here
├── ModelFault        500  the model gave no usable answer; never the caller's fault
├── Busy              503  too much at once, or no model ready; come back after `retry_after_seconds`
└── TooLate           504  the time for the request was up before there was an answer
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class EndpointError(Exception):
    """Base of all refusals; the message is complete and holds nothing of a patient: no file name, no UID."""

    status: ClassVar[int] = 500

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers that go with the refusal."""
        return {}


class BadRequest(EndpointError):
    """Malformed, or not what the model takes."""

    status = 400


class NotFound(EndpointError):
    """No such route, model or version."""

    status = 404


class TooSlow(EndpointError):
    """The body did not arrive in time; the connection ends, because the rest of the body may still come."""

    status = 408

    @property
    def headers(self) -> Mapping[str, str]:
        """Close the connection."""
        return {"connection": "close"}


class Conflict(EndpointError):
    """The models' state does not allow what was asked."""

    status = 409


class TooLarge(EndpointError):
    """Over a limit; what follows of the body is discarded, because hanging up would take the refusal with it."""

    status = 413


class UnsupportedMedia(EndpointError):
    """An encoding or a kind of file that is not read here."""

    status = 415


class ModelFault(EndpointError):
    """The model gave no usable answer."""

    status = 500


class Busy(EndpointError):
    """Back-pressure. retry_after_seconds: when it is worth coming back."""

    status = 503

    def __init__(self, message: str, *, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds

    @property
    def headers(self) -> Mapping[str, str]:
        """Say when to come back."""
        return {"retry-after": str(self.retry_after_seconds)}


class TooLate(EndpointError):
    """The time for the request was up."""

    status = 504
