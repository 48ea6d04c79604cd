"""Who may use the endpoint: keys are kept as hashes, revoked at once, and never let in by accident."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.errors import HospitalError
from service.endpoint.access import (
    ALL_ROLES,
    Access,
    AccessSettings,
    Credentials,
    Forbidden,
    TooManyWrongKeys,
    Unauthorized,
    is_loopback,
    require_guard,
    role_for,
)
from service.endpoint.errors import Busy
from service.endpoint.guard import keys_in
from service.endpoint.keys import KeyFile, new_key, read_keys, revoke_key
from service.yaml_source import SpecError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def brought(*keys: str, certificate: str | None = None, address: str = "192.0.2.7") -> Credentials:
    return Credentials(address=address, keys=keys, certificate=certificate)


def test_a_key_is_found_by_its_secret_which_is_kept_nowhere(file: Path) -> None:
    secret, other = new_key(file, "ward-3", ["predict", "predict"]), new_key(file, "it", ["admin", "metrics"])
    keys = KeyFile(file)
    found = keys.find(secret)
    assert found is not None and (found.name, found.roles) == ("ward-3", ("predict",))
    assert keys.find(other) != found and keys.find(secret + "x") is None and keys.find("x" * 10_000) is None
    assert len(secret.removeprefix("gliofed_")) == 43, "256 bits in base64"
    assert secret not in file.read_text() and stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_revoked_key_and_a_new_one_are_known_at_once(file: Path) -> None:
    secret = new_key(file, "ward-3", ["predict"])
    keys = KeyFile(file)
    revoke_key(file, "ward-3")
    assert keys.find(secret) is None
    assert keys.find(new_key(file, "ward-3", ["predict"])) is not None


def test_a_file_that_became_unusable_lets_nobody_in(file: Path) -> None:
    secret = new_key(file, "ward-3", ["predict"])
    access = Access(AccessSettings(api_keys=file), needs_certificate=False)
    for spoil in (lambda: file.write_text("{"), file.unlink):
        spoil()
        with pytest.raises(Busy, match="cannot be read") as caught:
            access.admit(brought(secret), "predict")
        assert str(file) not in str(caught.value), "callers need not know where it lies"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no file of API keys"),
        ('{"format": 2, "keys": []}', "format"),
        ('{"format": 1, "keys": [{"name": "a"}]}', r"keys\.0"),
        ('{"format": 1, "keys": [], "more": 1}', "more"),
    ],
)
def test_a_damaged_file_is_told(file: Path, content: str, message: str) -> None:
    file.write_text(content)
    with pytest.raises(HospitalError, match=message):
        read_keys(file)


def test_a_file_that_others_may_write_or_with_a_name_twice_or_none_is_refused(file: Path) -> None:
    with pytest.raises(HospitalError, match="api-keys new"):
        KeyFile(file)
    new_key(file, "a", ["predict"])
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"keys": content["keys"] * 2}))
    with pytest.raises(HospitalError, match="two keys of one name"):
        read_keys(file)
    file.chmod(0o620)
    with pytest.raises(HospitalError, match="chmod 600"):
        read_keys(file)


def test_names_and_roles_that_do_not_fit_change_nothing(file: Path) -> None:
    new_key(file, "a", ["predict"])
    before = file.read_bytes()
    for name, roles in (("a", ["predict"]), ("a b", ["predict"]), ("b\n", ["predict"]), ("b", []), ("b", ["root"])):
        with pytest.raises(HospitalError):
            new_key(file, name, roles)
    with pytest.raises(HospitalError, match="it has a"):
        revoke_key(file, "b")
    assert file.read_bytes() == before


def test_roles_reach_as_far_as_they_say(file: Path) -> None:
    secrets = {role: new_key(file, role, [role]) for role in sorted(ALL_ROLES)}
    access = Access(AccessSettings(api_keys=file), needs_certificate=False)
    for role, secret in secrets.items():
        assert access.admit(brought(secret), role).name == f"key:{role}"
        for other in ALL_ROLES - {role}:
            with pytest.raises(Forbidden, match=other):
                access.admit(brought(secret), other)
    with pytest.raises(Unauthorized, match="X-API-Key"):
        access.admit(brought(), "predict")
    with pytest.raises(Unauthorized, match="not known"):
        access.admit(brought(*secrets.values()), "predict")
    assert access.refused == {"not_allowed": 6, "no_key": 1, "wrong_key": 1}


def test_whoever_keeps_on_trying_is_told_to_wait_and_a_right_key_still_comes_in(file: Path) -> None:
    secret = new_key(file, "ward-3", ["predict"])
    access = Access(AccessSettings(api_keys=file, wrong_keys_a_minute=3), needs_certificate=False)
    for _ in range(3):
        with pytest.raises(Unauthorized):
            access.admit(brought("wrong"), "predict")
    with pytest.raises(TooManyWrongKeys):
        access.admit(brought("wrong"), "predict")
    with pytest.raises(Unauthorized):
        access.admit(brought("wrong", address="192.0.2.8"), "predict")
    assert access.admit(brought(secret), "predict").name == "key:ward-3"
    assert access.refused == {"wrong_key": 4, "too_many_wrong_keys": 1}


def test_a_certificate_predicts_and_only_a_named_one_administers(file: Path) -> None:
    access = Access(AccessSettings(admin_certificates=("CN=it,O=Hospital",)), needs_certificate=True)
    assert access.admit(brought(certificate="CN=pacs"), "predict").name == "certificate:CN=pacs"
    assert access.admit(brought(certificate="CN=it,O=Hospital"), "admin").roles == ALL_ROLES
    for certificate in ("CN=pacs", "CN=it", "CN=it,O=Hospital,C=DE"):
        with pytest.raises(Forbidden):
            access.admit(brought(certificate=certificate), "admin")
    with pytest.raises(Unauthorized):
        access.admit(brought(), "predict")


def test_a_wrong_key_is_refused_even_with_a_right_certificate(file: Path) -> None:
    new_key(file, "ward-3", ["predict"])
    access = Access(AccessSettings(api_keys=file), needs_certificate=True)
    assert access.admit(brought(certificate="CN=pacs"), "predict")
    with pytest.raises(Unauthorized):
        access.admit(brought("wrong", certificate="CN=pacs"), "predict")


def test_a_page_of_another_site_may_not_use_a_visitors_browser() -> None:
    access = Access(AccessSettings(), needs_certificate=False)
    for origin in (None, "http://127.0.0.1:8000"):
        access.require_same_site(origin, "127.0.0.1:8000")
    for origin in ("null", "http://evil.example", "http://127.0.0.1:8001", "https://127.0.0.1:8000.evil.example"):
        with pytest.raises(Forbidden, match="another site"):
            access.require_same_site(origin, "127.0.0.1:8000")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "localhost.example.org", "127.0.0.1.example.org", "*"])
def test_an_address_open_to_others_needs_keys_or_certificates(host: str, file: Path) -> None:
    with pytest.raises(SpecError, match=re.escape(host)):
        require_guard(host, AccessSettings(), needs_certificate=False)
    require_guard(host, AccessSettings(api_keys=file), needs_certificate=False)
    require_guard(host, AccessSettings(), needs_certificate=True)


def test_loopback_needs_neither() -> None:
    for host in ("127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"):
        require_guard(host, AccessSettings(), needs_certificate=False)
        assert is_loopback(host)


def test_probes_and_the_viewers_pages_are_open_and_everything_unknown_is_not() -> None:
    assert {role_for(path) for path in ("/v2/health/live", "/v2/health/ready", "/", "/viewer/app.js")} == {None}
    assert role_for("/v2/repository/models/tiny/load") == role_for("/v2/repository/index") == "admin"
    assert role_for("/metrics") == "metrics"
    assert {
        role_for(path) for path in ("/v1/predict", "/viewers", "/v2/health/live/", "/metrics/", "//v2/health/live")
    } == {"predict"}


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1), st.sampled_from(["Bearer", "bearer"]))
def test_a_key_is_read_from_either_header(key: str, scheme: str) -> None:
    assert keys_in({"authorization": [f"{scheme} {key}"]}) == (key,)
    assert keys_in({"x-api-key": [key]}) == (key,)
    assert keys_in({"authorization": [f"Basic {key}"], "x-other": [key]}) == ()
