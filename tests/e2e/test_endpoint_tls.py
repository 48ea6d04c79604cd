"""The endpoint over TLS: clients known by their certificates, over HTTP and gRPC, and files that cannot be used."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from fl.errors import HospitalError
from service.endpoint.tls import TlsSettings, server_context


class Authority:
    """A CA for one test: writes certificates into a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        certificate = self._builder(self._name, self._key).add_extension(constraints, critical=True)
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(certificate.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def issue(self, name: str, *, days: int = 1) -> tuple[Path, Path]:
        """Return (certificate, key) of loopback's server or of a client."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Hospital"), x509.NameAttribute(NameOID.COMMON_NAME, name)]
        )
        names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        certificate = self._builder(subject, key, days).add_extension(names, critical=False)
        paths = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        paths[0].write_bytes(certificate.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        paths[1].chmod(0o600)
        return paths

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int = 1) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + timedelta(days=days))
        )


def trusting(authority: Authority, pair: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.path)
    if pair is not None:
        context.load_cert_chain(*pair)
    return context


def test_a_client_is_known_by_its_certificate_and_nobody_comes_in_without(
    serve: Any, tiny_bundle: Path, slice_png: bytes, tmp_path: Path
) -> None:
    ours, strangers = Authority(tmp_path, "ours"), Authority(tmp_path, "strangers")
    certificate, key = ours.issue("server")
    pacs, admin, stranger = ours.issue("pacs"), ours.issue("admin"), strangers.issue("stranger")
    log = tmp_path / "audit.jsonl"
    endpoint = serve(
        tiny_bundle,
        settings={
            "tls": {"certificate": str(certificate), "key": str(key), "client_ca": str(ours.path)},
            "access": {"admin_certificates": ["CN=admin,O=Hospital"]},
            "audit": {"path": str(log)},
        },
    )
    url = f"https://localhost:{endpoint.address.rpartition(':')[2]}"
    with httpx.Client(base_url=url, verify=trusting(ours, pacs)) as client:
        answers = [client.post("/v1/predict", content=slice_png) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert client.post("/v2/repository/index").status_code == 403
    assert find(log, answers[1])["client"] == "certificate:CN=pacs,O=Hospital"
    with httpx.Client(base_url=url, verify=trusting(ours, admin)) as client:
        assert client.post("/v2/repository/index").status_code == 200
    for pair in (None, stranger):
        with httpx.Client(base_url=url, verify=trusting(ours, pair)) as client, pytest.raises(httpx.TransportError):
            client.get("/v2/health/live")
    old = trusting(ours, pacs)
    old.minimum_version, old.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, ssl.TLSVersion.TLSv1_2
    with httpx.Client(base_url=url, verify=old) as client:
        assert client.get("/v2/health/live").status_code == 200
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{endpoint.address}/v2/health/live")
    host, _, port = endpoint.address.rpartition(":")
    with socket.create_connection((host, int(port))) as plain:
        plain.sendall(b"\x16\x03\x01\x00\x05hello")  # no TLS: the server goes on
        plain.recv(64)
    with httpx.Client(base_url=url, verify=trusting(ours, pacs)) as client:
        assert client.get("/v2/health/ready").status_code == 200


def test_grpc_asks_for_the_same_certificate(serve: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    triton_grpc = pytest.importorskip("tritonclient.grpc", reason="needs gliofed[grpc]")
    ours, strangers = Authority(tmp_path, "ours"), Authority(tmp_path, "strangers")
    certificate, key = ours.issue("server")
    log = tmp_path / "audit.jsonl"
    endpoint = serve(
        tiny_bundle,
        settings={
            "grpc_port": 0,
            "tls": {"certificate": str(certificate), "key": str(key), "client_ca": str(ours.path)},
            "audit": {"path": str(log), "flush_seconds": 0.02},
        },
    )
    address = f"localhost:{endpoint.wait_for('listening for gRPC')['port']}"
    images = triton_grpc.InferInput("images", [1, 3, 48, 48], "FP32")
    images.set_data_from_numpy(np.zeros((1, 3, 48, 48), np.float32))

    def ask(pair: tuple[Path, Path]) -> Any:
        files = {"root_certificates": ours.path, "certificate_chain": pair[0], "private_key": pair[1]}
        options = {name: str(path) for name, path in files.items()}
        with triton_grpc.InferenceServerClient(address, ssl=True, **options) as client:
            return client.infer("tiny", [images], client_timeout=10).as_numpy("logits")

    assert ask(ours.issue("pacs")).shape == (1, 4)
    with pytest.raises(triton_grpc.InferenceServerException):
        ask(strangers.issue("stranger"))
    poll(log.read_text, lambda text: '"answered"' in text)
    assert read_all(log)[-1]["client"] == "certificate:CN=pacs,O=Hospital"


def test_certificates_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")
    certificate, key = ours.issue("server")
    _, other_key = ours.issue("other")
    expired, expired_key = ours.issue("expired", days=-1)
    server_context(TlsSettings(certificate=certificate, key=key, client_ca=ours.path))
    encrypted = tmp_path / "encrypted.key"
    secret = load_pem_private_key(key.read_bytes(), None)
    encrypted.write_bytes(secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    encrypted.chmod(0o600)
    for pair, message in (
        ((certificate, other_key), "does not go with"),
        ((certificate, encrypted), "is encrypted"),
        ((certificate, certificate), "others may read"),
        ((key, key), "holds no certificate"),
        ((expired, expired_key), "renew it"),
        ((tmp_path / "none.pem", key), "cannot be read"),
        ((certificate, tmp_path / "none.key"), "cannot be read"),
    ):
        with pytest.raises(HospitalError, match=message):
            server_context(TlsSettings(certificate=pair[0], key=pair[1]))
    key.chmod(0o640)
    with pytest.raises(HospitalError, match="chmod 600"):
        server_context(TlsSettings(certificate=certificate, key=key))


def find(log: Path, answer: httpx.Response) -> dict[str, Any]:
    (line,) = [line for line in read_all(log) if line.get("request") == answer.headers["gliofed-request"]]
    return line


def poll(get: Callable[[], Any], is_enough: Callable[[Any], bool]) -> Any:
    until = datetime.now(UTC) + timedelta(seconds=20)
    while not is_enough(found := get()):
        assert datetime.now(UTC) < until, found
        time.sleep(0.02)
    return found


def read_all(log: Path) -> list[dict[str, Any]]:
    files = [*sorted(log.parent.glob(f"{log.stem}-*{log.suffix}")), log]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]
