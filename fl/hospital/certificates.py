"""The federation's own certificate authority, the coordinator's TLS certificate, and the sites' key pairs.

TLS proves the coordinator to the sites; a site proves itself with its own key (Flower's node authentication, ECDSA on
P-384 over a time stamp within TLS). So sites need no certificate, and the CA's key is only ever used for the
coordinator's. Primitives are those of `cryptography`.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl.errors import HospitalError

AUTHORITY_DAYS = 3650
MOST_DAYS = 825
"""Longest life of a coordinator's certificate; what browsers and Apple's TLS stack allow at most."""

_CLOCK_SKEW = timedelta(hours=1)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Authority:
    """A certificate authority: its certificate and key, both PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyPair:
    """A site's P-384 key pair in OpenSSH's format, which Flower reads; the private key is not encrypted."""

    private: bytes
    public: bytes


def new_authority(*, now: datetime) -> Authority:
    """Make a certificate authority that lasts ten years and may sign server certificates only."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gliofed federation CA")])
    certificate = (
        _certificate(name, name, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    return Authority(certificate=certificate.public_bytes(Encoding.PEM), key=_pem(key))


def issue_server_certificate(authority: Authority, host: str, *, days: int, now: datetime) -> tuple[bytes, bytes]:
    """Return (certificate, private key), both PEM, for a server reached as `host` or on loopback.

    host: DNS name or IP address. days: life from `now`, 1..825; an hour is added before it, for clocks that are slow.
    Raises HospitalError for other lives.
    """
    if not 1 <= days <= MOST_DAYS:
        raise HospitalError(f"--days is {days}; expected 1..{MOST_DAYS}: renew the certificate in time instead")
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    signer = load_pem_private_key(authority.key, password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey), "it was made by new_authority"
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gliofed coordinator")])
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _certificate(name, issuer.subject, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_alternative_names(host)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(signer, hashes.SHA384())
    )
    return certificate.public_bytes(Encoding.PEM), _pem(key)


def new_key_pair() -> KeyPair:
    """Make a site's key pair."""
    key = ec.generate_private_key(ec.SECP384R1())
    return KeyPair(
        private=key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
        public=key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n",
    )


def public_key_of(private: bytes) -> bytes:
    """Return the public key of an OpenSSH private key, PEM. Raises ValueError where it is no such P-384 key."""
    key = load_ssh_private_key(private, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not a key on an elliptic curve")
    return _public_pem(key.public_key())


def as_pem(public: bytes) -> bytes:
    """Return an OpenSSH public key as PEM, which is how Flower registers it. Raises ValueError for other keys."""
    key = load_ssh_public_key(public)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("not a P-384 key")
    return _public_pem(key)


def server_certificate_fault(certificate: bytes, key: bytes, authority: bytes, *, now: datetime) -> str | None:
    """Return what is wrong with a server certificate, its private key and its CA's certificate; None: nothing.

    All PEM. Looked at: the dates of both certificates, the CA's signature, and that the key belongs.
    """
    server, issuer = x509.load_pem_x509_certificate(certificate), x509.load_pem_x509_certificate(authority)
    for what, given in (("the coordinator's certificate", server), ("the CA's certificate", issuer)):
        if now > given.not_valid_after_utc:
            return f"{what} expired on {given.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        if now < given.not_valid_before_utc:
            return f"{what} is valid from {given.not_valid_before_utc:%Y-%m-%d %H:%M} UTC only; is this clock right?"
    private = load_pem_private_key(key, password=None)
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != server.public_key():
        return "the private key does not belong to the coordinator's certificate"
    try:
        server.verify_directly_issued_by(issuer)
    except Exception:  # ValueError, TypeError or InvalidSignature: all mean the same here
        return "the coordinator's certificate was not signed by the CA beside it"
    return None


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.astimezone(UTC) - _CLOCK_SKEW)
        .not_valid_after(now.astimezone(UTC) + timedelta(days=days))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_names(host: str) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for name in dict.fromkeys((host, *_LOOPBACK)):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            names.append(x509.DNSName(name))
    return names


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
