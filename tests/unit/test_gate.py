"""The coordinator's port from outside: who gets in, and what a site finds out before it sends anything."""

from __future__ import annotations

import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from fl.errors import HospitalError
from fl.hospital.address import Address
from fl.hospital.folders import SiteFolder, read_coordinator_folder, read_site_folder
from fl.hospital.gate import MOST_BODY_BYTES, UNKNOWN_KEY
from fl.hospital.preflight import coordinator_answers
from fl.hospital.provision import provision
from fl.hospital.superlink import SuperLink


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteFolder]:
    """A site of a federation whose SuperLink is up."""
    out = tmp_path_factory.mktemp("federation")
    provision(out, ["north", "south"], f"127.0.0.1:{free_port()}")
    with SuperLink(read_coordinator_folder(out / "coordinator"), log=out / "superlink.log", run_config={}):
        yield read_site_folder(out / "north")


@pytest.fixture(scope="module")
def browser(site: SiteFolder) -> Iterator[httpx.Client]:
    context = ssl.create_default_context(cafile=site.authority_file)
    with httpx.Client(base_url=f"https://{site.coordinator}", verify=context, trust_env=False) as client:
        yield client


def key_header(site: SiteFolder) -> dict[str, str]:
    return {"flwr-public-key": b64encode(site.public_key).decode(), "content-type": "application/protobuf"}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/runtime/responses",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/../control/start-run",
        "/docs",
        "/openapi.json",
        "/health",
        "/",
    ],
)
def test_what_a_site_has_no_need_of_is_not_there_even_for_a_site(
    browser: httpx.Client, site: SiteFolder, path: str
) -> None:
    for method in ("GET", "POST", "PUT"):
        assert browser.request(method, path, headers=key_header(site)).status_code == 404


def test_a_request_without_a_registered_key_is_not_even_read(browser: httpx.Client, tmp_path: Path) -> None:
    provision(tmp_path / "other", ["north"], "127.0.0.1:9443")
    stranger = read_site_folder(tmp_path / "other" / "north")
    for headers in ({}, {"flwr-public-key": "no base64 at all"}, key_header(stranger)):
        answer = browser.post("/v1/fleet/activate-node", headers=headers, content=b"anything")
        assert (answer.status_code, answer.json()["detail"]) == (412, UNKNOWN_KEY)


def test_a_registered_key_without_its_signature_opens_nothing(browser: httpx.Client, site: SiteFolder) -> None:
    for path in ("activate-node", "push-messages", "pull-object"):
        signed_by_nobody = {**key_header(site), "flwr-timestamp": "2026-01-01T00:00:00+00:00", "flwr-signature": "AAAA"}
        for headers in (key_header(site), signed_by_nobody):
            assert browser.post(f"/v1/fleet/{path}", headers=headers, content=b"").status_code == 401


@pytest.mark.parametrize("size", [f"content-length: {MOST_BODY_BYTES + 1}", "transfer-encoding: chunked"])
def test_a_body_that_is_too_large_or_of_unknown_size_is_refused_before_it_comes(site: SiteFolder, size: str) -> None:
    head = [f"{name}: {value}" for name, value in key_header(site).items()]
    request = "\r\n".join(["POST /v1/fleet/push-object HTTP/1.1", "host: x", *head, size, "", ""])
    context = ssl.create_default_context(cafile=site.authority_file)
    where = (site.coordinator.host, site.coordinator.port)
    with (
        socket.create_connection(where, timeout=5) as connection,
        context.wrap_socket(connection, server_hostname=site.coordinator.host) as line,
    ):
        line.sendall(request.encode())
        assert line.recv(100).startswith(b"HTTP/1.1 413")


def test_nothing_older_than_tls_1_3_is_spoken(site: SiteFolder) -> None:
    context = ssl.create_default_context(cafile=site.authority_file)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    where = (site.coordinator.host, site.coordinator.port)
    with socket.create_connection(where, timeout=5) as connection, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(connection, server_hostname=site.coordinator.host)


def test_a_site_knows_its_coordinator_and_waits_for_one_that_is_not_there(site: SiteFolder) -> None:
    assert coordinator_answers(site.coordinator, site.authority_file)
    assert not coordinator_answers(Address(host="127.0.0.1", port=free_port()), site.authority_file)


def test_a_site_refuses_a_coordinator_of_another_authority(site: SiteFolder, tmp_path: Path) -> None:
    provision(tmp_path / "other", ["north"], str(site.coordinator))
    with pytest.raises(HospitalError, match="not made by this federation's CA"):
        coordinator_answers(site.coordinator, tmp_path / "other" / "north" / "ca.pem")


def test_a_site_refuses_an_expired_certificate_and_one_for_another_address(tmp_path: Path) -> None:
    out, then = tmp_path / "expired", datetime.now(UTC) - timedelta(days=40)
    provision(out, ["north"], f"127.0.0.1:{free_port()}", days=30, now=then)
    site = read_site_folder(out / "north")
    with SuperLink(read_coordinator_folder(out / "coordinator", now=then), log=out / "superlink.log", run_config={}):
        with pytest.raises(HospitalError, match="has expired; ask the coordinator to renew it"):
            coordinator_answers(site.coordinator, site.authority_file)
        renamed = Address(host="127.0.0.2", port=site.coordinator.port)
        assert not coordinator_answers(renamed, site.authority_file), "it listens on its own address alone"


def test_a_site_tells_apart_what_is_no_coordinator(site: SiteFolder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"220 mail.example.org\r\n")

        greeter = threading.Thread(target=greet)
        greeter.start()
        address = Address(host="127.0.0.1", port=server.getsockname()[1])
        with pytest.raises(HospitalError, match="not as a gliofed coordinator does"):
            coordinator_answers(address, site.authority_file)
        greeter.join()


def test_two_coordinators_cannot_have_one_address(site: SiteFolder, tmp_path: Path) -> None:
    provision(tmp_path / "second", ["north"], str(site.coordinator))
    second = SuperLink(
        read_coordinator_folder(tmp_path / "second" / "coordinator"), log=tmp_path / "log", run_config={}
    )
    with pytest.raises(HospitalError, match="cannot listen on"), second:
        pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
