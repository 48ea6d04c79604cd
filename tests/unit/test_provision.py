"""Certificates and folders of a federation: what is made, what is refused, and that nothing is written over."""

from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from hypothesis import given
from hypothesis import strategies as st

from fl.errors import HospitalError
from fl.hospital.address import Address, read_address
from fl.hospital.folders import read_coordinator_folder, read_site_folder
from fl.hospital.provision import provision, renew_certificate

ADDRESS = "coordinator.example.org:9443"


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    out = tmp_path / "federation"
    provision(out, ["north", "south"], ADDRESS)
    return out


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_side_reads_its_folder_and_knows_the_other(federation: Path) -> None:
    coordinator, site = read_coordinator_folder(federation / "coordinator"), read_site_folder(federation / "south")
    assert (
        coordinator.address
        == coordinator.listen
        == site.coordinator
        == Address(host="coordinator.example.org", port=9443)
    )
    assert list(coordinator.public_keys) == ["north", "south"]
    assert coordinator.public_keys["south"] == site.public_key
    assert site.settings.name == "south"


def test_private_keys_are_for_their_owner_alone_and_in_no_other_folder(federation: Path) -> None:
    secrets = {path: path.read_bytes() for path in federation.rglob("*.key")}
    assert {str(path.relative_to(federation)) for path in secrets} == {
        "ca/ca.key",
        "coordinator/certificate.key",
        "north/site.key",
        "south/site.key",
    }
    for path in secrets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert len(set(secrets.values())) == len(secrets)
    load_ssh_private_key((federation / "north" / "site.key").read_bytes(), password=None)  # the format Flower reads


def test_a_site_trusts_the_coordinator_by_name_and_on_loopback_and_nobody_else(
    federation: Path, tmp_path: Path
) -> None:
    authority = federation / "north" / "ca.pem"
    for name in ("coordinator.example.org", "localhost", "127.0.0.1", "::1"):
        assert handshake(federation / "coordinator", authority, name) is None
    other = handshake(federation / "coordinator", authority, "elsewhere.example.org")
    assert other is not None and "mismatch" in other
    provision(tmp_path / "stranger", ["north"], ADDRESS)
    stranger = handshake(tmp_path / "stranger" / "coordinator", authority, "coordinator.example.org")
    assert stranger is not None and "verify failed" in stranger


def test_the_certificate_of_the_authority_signs_servers_only_and_lives_longer_than_the_coordinators(
    federation: Path,
) -> None:
    authority = x509.load_pem_x509_certificate((federation / "ca" / "ca.pem").read_bytes())
    server = x509.load_pem_x509_certificate((federation / "coordinator" / "certificate.pem").read_bytes())
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert server.not_valid_after_utc < authority.not_valid_after_utc
    assert server.not_valid_after_utc - datetime.now(UTC) < timedelta(days=366)


def test_a_site_is_added_and_nothing_else_changes(federation: Path) -> None:
    before = everything_in(federation)
    assert provision(federation, ["west"], None) == (federation / "west",)
    after = everything_in(federation)
    assert {name for name in after if name not in before} == {
        "coordinator/sites/west.pub",
        *(f"west/{name}" for name in ("README.md", "ca.pem", "site.key", "site.yaml")),
    }
    assert {name: after[name] for name in before} == before
    assert (
        read_site_folder(federation / "west").public_key
        == (read_coordinator_folder(federation / "coordinator").public_keys["west"])
    )


@pytest.mark.parametrize(
    ("sites", "address", "message"),
    [
        (["west", "north"], None, "north is there already"),
        (["west", "West"], None, "named twice"),
        (["NORTH"], None, "there already"),
        (["ca"], None, "cannot name a site"),
        (["../up"], None, "cannot name a site"),
        (["a b"], None, "cannot name a site"),
        ([""], None, "cannot name a site"),
        ([], None, "names no site"),
        (["west"], "other.example.org:9443", "coordinator is coordinator.example.org:9443"),
    ],
)
def test_a_name_or_address_that_does_not_fit_changes_nothing(
    federation: Path, sites: list[str], address: str | None, message: str
) -> None:
    before = everything_in(federation)
    with pytest.raises(HospitalError, match=message):
        provision(federation, sites, address)
    assert everything_in(federation) == before


def test_a_new_federation_needs_an_address_and_a_bounded_life(tmp_path: Path) -> None:
    with pytest.raises(HospitalError, match="--address"):
        provision(tmp_path / "new", ["north"], None)
    for days in (0, 826):
        with pytest.raises(HospitalError, match="--days"):
            provision(tmp_path / "new", ["north"], ADDRESS, days=days)


def test_an_expired_certificate_is_told_and_renewed_without_the_sites(tmp_path: Path) -> None:
    out = tmp_path / "federation"
    provision(out, ["north"], ADDRESS, days=30, now=datetime.now(UTC) - timedelta(days=31))
    site = everything_in(out / "north")
    with pytest.raises(HospitalError, match=r"expired on .*--renew"):
        read_coordinator_folder(out / "coordinator")
    assert str(renew_certificate(out, days=30)) == ADDRESS
    read_coordinator_folder(out / "coordinator")
    assert everything_in(out / "north") == site
    assert handshake(out / "coordinator", out / "north" / "ca.pem", "coordinator.example.org") is None


def test_a_folder_that_was_tampered_with_is_refused(federation: Path, tmp_path: Path) -> None:
    coordinator, site = federation / "coordinator", federation / "north"
    (site / "site.key").chmod(0o640)
    with pytest.raises(HospitalError, match="chmod 600"):
        read_site_folder(site)
    (site / "site.key").chmod(0o600)
    (site / "site.yaml").write_text("name: north\ncoordinator: nowhere\n")
    with pytest.raises(HospitalError, match="HOST:PORT"):
        read_site_folder(site)
    (site / "site.yaml").write_text("name: north\ncoordinater: nowhere:1\n")
    with pytest.raises(HospitalError, match="coordinater"):
        read_site_folder(site)
    (coordinator / "sites" / "copy.pub").write_bytes((coordinator / "sites" / "north.pub").read_bytes())
    with pytest.raises(HospitalError, match="copy and north have the same key"):
        read_coordinator_folder(coordinator)
    (coordinator / "sites" / "copy.pub").write_text("ssh-ed25519 AAAA\n")
    with pytest.raises(HospitalError, match="is no site's public key"):
        read_coordinator_folder(coordinator)
    (coordinator / "sites" / "copy.pub").unlink()
    provision(tmp_path / "stranger", ["north"], ADDRESS)
    (coordinator / "ca.pem").write_bytes((tmp_path / "stranger" / "ca" / "ca.pem").read_bytes())
    with pytest.raises(HospitalError, match="not signed by the CA"):
        read_coordinator_folder(coordinator)


@given(st.integers(1, 65535), st.sampled_from(["localhost", "a-b.example.org", "192.0.2.7", "2001:db8::7", "::1"]))
def test_an_address_reads_back_as_it_is_written(port: int, host: str) -> None:
    address = Address(host=host, port=port)
    assert read_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:", ":9443", "host:0", "host:65536", "host:9x", "::1:9443", "[host]:1", "999.1.1.1:5", "host:٩"],
)
def test_what_has_no_port_or_no_host_is_refused(text: str) -> None:
    with pytest.raises(HospitalError, match="HOST:PORT"):
        read_address(text)


@pytest.mark.parametrize("host", ["a..b", "-a", "a-", "a_b", "http://host", "a" * 64, "a b", "."])
def test_what_is_no_name_is_refused(host: str) -> None:
    with pytest.raises(HospitalError, match="HOST:PORT"):
        read_address(f"{host}:9443")


def handshake(coordinator: Path, authority: Path, name: str) -> str | None:
    """Shake hands in memory; return why the client refuses the server, None where it does not."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(coordinator / "certificate.pem", coordinator / "certificate.key")
    client_context = ssl.create_default_context(cafile=authority)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                return str(error)
    return None
