"""TLS of the endpoint: its certificate, and the certificates that clients must show where a CA for them is named.

uvicorn tells an application nothing of the client's certificate; `tells_client` adds what the ASGI extension `tls`
(asgi.readthedocs.io, "TLS Extension") defines.
"""

from __future__ import annotations

import asyncio
import ssl
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import BaseModel, ConfigDict, Field
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fl.errors import HospitalError

_VERSIONS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}


class TlsSettings(BaseModel):
    """The endpoint's certificate, and whose certificates it asks of clients. TLS 1.2 or newer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    certificate: Path = Field(description="The endpoint's certificate and those between it and its CA, PEM.")
    key: Path = Field(description="Its private key, PEM, not encrypted, readable by its owner alone.")
    client_ca: Path | None = Field(
        None, description="CA certificates, PEM: clients must show a certificate of one of them; null: they need none."
    )


def server_context(settings: TlsSettings) -> ssl.SSLContext:
    """Return the context to serve with. Raises HospitalError for files that are missing, damaged, open or expired."""
    check_files(settings)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(settings.certificate, settings.key, password=_refuse_password)
    except ssl.SSLError as error:
        raise HospitalError(
            f"{settings.key}: does not go with {settings.certificate}, or is no PEM private key ({error.reason}); "
            "expected the key that the certificate was made for"
        ) from error
    if settings.client_ca is not None:
        context.load_verify_locations(settings.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def check_files(settings: TlsSettings) -> None:
    """Raise HospitalError for files that cannot be read, hold no valid certificate, or show the key to others."""
    now = datetime.now(UTC)
    for path in filter(None, (settings.certificate, settings.client_ca)):
        try:
            certificates = x509.load_pem_x509_certificates(_read(path))
        except ValueError as error:
            raise HospitalError(f"{path}: holds no certificate in PEM ({error})") from error
        first = certificates[0]
        if not first.not_valid_before_utc <= now <= first.not_valid_after_utc:
            raise HospitalError(
                f"{path}: the certificate is valid from {first.not_valid_before_utc:%Y-%m-%d %H:%M} to "
                f"{first.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and now is {now:%Y-%m-%d %H:%M}; renew it"
            )
    _read(settings.key)
    mode = stat.S_IMODE(settings.key.stat().st_mode)
    if mode & 0o077:
        raise HospitalError(f"{settings.key}: others may read this private key (mode {mode:03o}); chmod 600 it")


def tells_client(base: type[HttpToolsProtocol]) -> type[HttpToolsProtocol]:
    """Return the HTTP protocol with one thing added: a request's scope says who is at the other end of its TLS."""

    class TlsProtocol(base):  # type: ignore[misc, valid-type]
        _tls: dict[str, Any] | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._tls = _tls_extension(transport.get_extra_info("ssl_object"))

        def on_message_begin(self) -> None:
            super().on_message_begin()
            if self._tls is not None:
                self.scope["extensions"] = {"tls": self._tls}

    return TlsProtocol


def client_subject(scope: Mapping[str, Any]) -> str | None:
    """Return the subject (RFC 4514) of the verified client certificate of an ASGI scope; None: there is none."""
    name: str | None = scope.get("extensions", {}).get("tls", {}).get("client_cert_name")
    return name


def subject_of(certificate: bytes) -> str:
    """Return the subject, RFC 4514, of a certificate in PEM."""
    return x509.load_pem_x509_certificate(certificate).subject.rfc4514_string()


def _tls_extension(connection: ssl.SSLObject | None) -> dict[str, Any] | None:
    if connection is None:
        return None
    der = connection.getpeercert(binary_form=True)
    certificate = None if der is None else x509.load_der_x509_certificate(der)
    return {
        "server_cert": None,
        "client_cert_chain": [] if certificate is None else [certificate.public_bytes(Encoding.PEM).decode()],
        "client_cert_name": None if certificate is None else certificate.subject.rfc4514_string(),
        "client_cert_error": None,
        "tls_version": _VERSIONS.get(connection.version() or ""),
        "cipher_suite": None,
    }


def _refuse_password() -> NoReturn:
    raise HospitalError("the TLS private key is encrypted; expected one without a password (openssl pkey -in KEY)")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise HospitalError(f"{path}: cannot be read ({error.strerror}); expected a PEM file") from error
