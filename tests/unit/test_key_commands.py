from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from export.errors import SigningKeyError, UntrustedBundle
from export.signing import SigningKey, Trust, new_key
from service.__main__ import app
from service.keys import ExportSettings, keys_folder, signing_key, trusted_keys

Write = Callable[..., Path]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def told(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without keys."""
    monkeypatch.setenv("GLIOFED_KEYS", str(tmp_path / "machine"))
    return tmp_path / "machine"


def test_the_first_export_makes_this_machine_s_key_and_the_next_ones_use_it(home: Path) -> None:
    said: list[str] = []
    made = signing_key(ExportSettings(), said.append)
    assert len(said) == 1 and str(home / "signing.pem") in said[0]
    (home / "signing.pub").unlink()
    again = signing_key(ExportSettings(), said.append)
    assert again.public == made.public
    assert len(said) == 1
    assert trusted_keys([]) == Trust.of(made), "its public half was written again"


def test_a_public_key_that_is_another_s_is_not_taken_for_the_machine_s(home: Path, tmp_path: Path) -> None:
    signing_key(ExportSettings(), print)
    other = new_key(tmp_path / "other")
    (home / "signing.pub").write_bytes(other.public.pem())
    with pytest.raises(SigningKeyError, match="is not the other half"):
        signing_key(ExportSettings(), print)


def test_the_job_s_own_key_is_used_and_must_be_there(home: Path, tmp_path: Path) -> None:
    own = new_key(tmp_path / "own")
    assert signing_key(ExportSettings(signing_key=own.path), print).public == own.public
    with pytest.raises(SigningKeyError, match=r"absent\.pem: cannot be read"):
        signing_key(ExportSettings(signing_key=tmp_path / "absent.pem"), print)
    assert not home.exists()


def test_trust_is_every_public_key_of_the_machine_unless_others_are_given(home: Path, tmp_path: Path) -> None:
    assert trusted_keys([]).keys == ()
    machine, north, south = (new_key(folder) for folder in (home, tmp_path / "north", tmp_path / "south"))
    (home / "north.pub").write_bytes(north.public.pem())
    (home / "notes.txt").write_text("no key")
    assert set(trusted_keys([]).keys) == {machine.public, north.public}
    assert trusted_keys([tmp_path / "south"]) == Trust.of(south)
    with pytest.raises(SigningKeyError, match=r"absent\.pub: cannot be read"):
        trusted_keys([tmp_path / "absent.pub"])
    (home / "broken.pub").write_text("-----BEGIN PUBLIC KEY-----")
    with pytest.raises(SigningKeyError, match=r"broken\.pub: holds no public key"):
        trusted_keys([])


def test_keys_lie_in_the_home_unless_a_folder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GLIOFED_KEYS")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keys_folder() == tmp_path / ".config" / "gliofed" / "keys"


def test_keys_are_made_and_shown(home: Path, tmp_path: Path) -> None:
    assert "no public key" in told("keys", "show")
    made = told("keys", "new")
    fingerprint = SigningKey.read(home / "signing.pem").public.fingerprint
    assert fingerprint in made
    assert told("keys", "show") == f"{fingerprint}  {home / 'signing.pub'}\n"
    assert isinstance(call("keys", "new").exception, SigningKeyError)
    told("keys", "new", tmp_path / "other")
    assert len(told("keys", "show", home, tmp_path / "other" / "signing.pub").splitlines()) == 2


def test_a_bundle_is_verified_and_shown_with_its_signer(
    tmp_path: Path, write: Write, full: dict[str, Any], signing_key: SigningKey
) -> None:
    bundle = write(tmp_path / "bundle", name="north", **full)
    fingerprint = signing_key.public.fingerprint
    assert f"whole, 15 files; signed by {fingerprint}" in told("bundle", "verify", bundle)
    shown = told("bundle", "show", bundle)
    for words in ("north 0.1.0", fingerprint, "engines/sm_90-fp16.engine", "test.as_published.accuracy 0.9672"):
        assert words in shown


def test_a_bundle_of_a_stranger_is_refused_until_their_key_is_given(tmp_path: Path, write: Write) -> None:
    stranger = new_key(tmp_path / "stranger")
    bundle = write(tmp_path / "bundle", key=stranger)
    for command in ("verify", "show"):
        refused = call("bundle", command, bundle)
        assert isinstance(refused.exception, UntrustedBundle)
        assert "--trust PUBKEY" in str(refused.exception)
        told("bundle", command, bundle, "--trust", tmp_path / "stranger")
        told("bundle", command, bundle, "--trust", tmp_path / "stranger" / "signing.pub")


def test_verify_reads_the_models_too(tmp_path: Path, write: Write) -> None:
    bundle = write(tmp_path / "bundle")
    data = (bundle / "model.onnx").read_bytes()
    (bundle / "model.onnx").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert isinstance(call("bundle", "verify", bundle).exception, UntrustedBundle)


@pytest.mark.parametrize("command", ["predict", "eval", "serve"])
def test_whoever_uses_a_bundle_refuses_a_stranger_s(tmp_path: Path, write: Write, command: str) -> None:
    bundle = write(tmp_path / "bundle", key=new_key(tmp_path / "stranger"))
    image = tmp_path / "slice.png"
    image.write_bytes(b"never looked at")
    more: dict[str, list[object]] = {"predict": [image], "eval": ["--data", tmp_path], "serve": ["--set", "port=0"]}
    refused = call(command, "--bundle", bundle, *more[command])
    assert refused.exit_code != 0
    assert "not trusted here" in str(refused.exception)


def test_metrics_of_any_shape_are_shown(tmp_path: Path, write: Write) -> None:
    metrics = {"num": 3, "list": [1, 2], "flag": True, "text": "x", "none": None, "deep": {"er": {"f1": 0.5}}}
    shown = told("bundle", "show", write(tmp_path / "bundle", metrics=metrics))
    figures = [line.split()[1:] for line in shown.splitlines() if line.startswith("figure")]
    assert figures == [["deep.er.f1", "0.5000"], ["num", "3"]]
    assert json.loads((tmp_path / "bundle" / "metrics.json").read_text()) == metrics
