"""Who may do what: an API key or a client certificate against the role that a route needs.

A route that is not named here needs `predict`. A wrong key is refused even where a right certificate comes with it.
Without keys and certificates (loopback only, see `require_guard`) everybody on the machine may do everything, but no
page of another site may through their browser.
"""

from __future__ import annotations

import ipaddress
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fl.errors import HospitalError
from service.endpoint.errors import Busy, EndpointError
from service.endpoint.keys import KeyFile, Role
from service.endpoint.pages import is_viewer_page
from service.yaml_source import SpecError

Refusal = Literal["no_key", "wrong_key", "too_many_wrong_keys", "not_allowed", "other_site", "keys_unreadable"]

ALL_ROLES: frozenset[Role] = frozenset(("predict", "admin", "metrics"))
OPEN_ROUTES = frozenset(("/v2/health/live", "/v2/health/ready"))
"""For probes, which have no key; they are told yes or no alone."""

_MINUTE = 60.0
_MOST_ADDRESSES = 1024
_RETRY_SECONDS = 60


class AccessSettings(BaseModel):
    """Who may use the endpoint, besides those with a client certificate (`tls.client_ca`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    api_keys: Path | None = Field(None, description="File of API keys, made by `gliofed api-keys new`; null: none.")
    wrong_keys_a_minute: int = Field(
        10, ge=1, le=10000, description="Wrong keys from one address after which it is told to wait."
    )
    admin_certificates: tuple[str, ...] = Field(
        (), description="Subjects (RFC 4514, `CN=pacs,O=Hospital`) of certificates that may load and unload models."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Client:
    """Who asks. name: `key:<name>`, `certificate:<subject>` or `local`; never a secret."""

    name: str
    roles: frozenset[Role]


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """What a request brought. address: of the other end. certificate: subject, RFC 4514, already verified by TLS."""

    address: str
    keys: tuple[str, ...] = ()
    certificate: str | None = None


class Unauthorized(EndpointError):
    """No key, or a wrong one."""

    status = 401

    @property
    def headers(self) -> dict[str, str]:
        """Say how to come in."""
        return {"www-authenticate": "Bearer"}


class Forbidden(EndpointError):
    """A right key whose role does not reach so far."""

    status = 403


class TooManyWrongKeys(EndpointError):
    """An address that keeps on trying."""

    status = 429

    @property
    def headers(self) -> dict[str, str]:
        """Say when to come back."""
        return {"retry-after": str(_RETRY_SECONDS)}


class Access:
    """Decides about requests, on one thread. refused: how many were refused, by reason."""

    def __init__(self, settings: AccessSettings, *, needs_certificate: bool) -> None:
        """Read the keys. Raises HospitalError where they cannot be used."""
        self._settings = settings
        self._keys = None if settings.api_keys is None else KeyFile(settings.api_keys)
        self._open = self._keys is None and not needs_certificate
        self._wrong = _RecentFaults(settings.wrong_keys_a_minute)
        self.refused: Counter[Refusal] = Counter()

    def admit(self, given: Credentials, role: Role) -> Client:
        """Return who asks. Raises Unauthorized, Forbidden, TooManyWrongKeys, and Busy where keys cannot be read."""
        client = self._identify(given)
        if role not in client.roles:
            self.refused["not_allowed"] += 1
            raise Forbidden(
                f"{client.name} may not do that; it needs the role '{role}' and has {', '.join(sorted(client.roles))}"
            )
        return client

    def require_same_site(self, origin: str | None, host: str | None) -> None:
        """Raise Forbidden for a browser's request that a page of another site made. origin, host: headers."""
        if origin is not None and origin.partition("://")[2] != host:
            self.refused["other_site"] += 1
            raise Forbidden("a page of another site may not use this endpoint; open the endpoint's own page")

    def _identify(self, given: Credentials) -> Client:
        if given.keys and self._keys is not None:
            return self._of_key(given, self._keys)
        if given.certificate is not None:
            return self._of_certificate(given.certificate)
        if self._open:
            return Client(name="local", roles=ALL_ROLES)
        self.refused["no_key"] += 1
        raise Unauthorized("an API key is needed: send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")

    def _of_key(self, given: Credentials, keys: KeyFile) -> Client:
        try:
            key = keys.find(given.keys[0]) if len(set(given.keys)) == 1 else None
        except HospitalError as error:
            self.refused["keys_unreadable"] += 1
            # which file, and what is wrong with it, is the owner's business: `gliofed api-keys list` tells
            raise Busy("the API keys cannot be read; tell who runs this endpoint", retry_after_seconds=30) from error
        if key is not None:  # counted faults of a neighbour behind the same address do not keep a right key out
            return Client(name=f"key:{key.name}", roles=frozenset(key.roles))
        if self._wrong.one_more(given.address):
            self.refused["too_many_wrong_keys"] += 1
            raise TooManyWrongKeys(f"too many wrong API keys from this address; wait {_RETRY_SECONDS} seconds")
        self.refused["wrong_key"] += 1
        raise Unauthorized("the API key is not known here, or was revoked; ask who runs this endpoint for one")

    def _of_certificate(self, subject: str) -> Client:
        roles: set[Role] = {"predict", "metrics"}
        if subject in self._settings.admin_certificates:
            roles.add("admin")
        return Client(name=f"certificate:{subject}", roles=frozenset(roles))


def role_for(path: str) -> Role | None:
    """Return the role that an HTTP path needs; None: it is open to all."""
    if path in OPEN_ROUTES or is_viewer_page(path):
        return None
    if path == "/metrics":
        return "metrics"
    return "admin" if path.startswith("/v2/repository/") else "predict"


def require_guard(host: str, settings: AccessSettings, *, needs_certificate: bool) -> None:
    """Raise SpecError where others than this machine's users would be let in without key or certificate."""
    if is_loopback(host) or settings.api_keys is not None or needs_certificate:
        return
    raise SpecError(
        [
            f"host: {host} is open to other machines, and nothing keeps strangers out. Make an API key "
            "(gliofed api-keys new NAME --file keys.json) and set access.api_keys=keys.json, or ask for client "
            "certificates (tls.certificate, tls.key, tls.client_ca), or listen on 127.0.0.1"
        ]
    )


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class _RecentFaults:
    """Counts faults by address over minutes, for so many addresses as matter."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._faults: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def one_more(self, address: str) -> bool:
        """Count one; return whether there were more than `most` within a minute of the first."""
        now = time.monotonic()
        began, count = self._faults.pop(address, (now, 0))
        if now - began >= _MINUTE:
            began, count = now, 0
        self._faults[address] = (began, count + 1)
        while len(self._faults) > _MOST_ADDRESSES:
            self._faults.popitem(last=False)
        return count >= self._most
