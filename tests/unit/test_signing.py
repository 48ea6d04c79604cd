from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.bundle import load_bundle
from export.errors import BundleError, ExportError, SigningKeyError, UntrustedBundle
from export.signing import PublicKey, SigningKey, Trust, new_key, sign

Write = Callable[..., Path]
Edit = Callable[[Path], object]


def read_all(path: Path, trust: Trust) -> None:
    load_bundle(path, trust).check_files()


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, write: Write, full: dict[str, Any]) -> Path:
    """A whole bundle that nobody changes."""
    return write(tmp_path_factory.mktemp("signed") / "bundle", **full)


@pytest.fixture
def copy(signed: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(signed, tmp_path / "bundle"))


# ---- tampering ----


def replace_bytes(name: str, old: bytes, new: bytes) -> Edit:
    def edit(path: Path) -> None:
        data = (path / name).read_bytes()
        assert old in data
        (path / name).write_bytes(data.replace(old, new, 1))

    return edit


def edit_signature(change: Callable[[dict[str, Any]], object]) -> Edit:
    def edit(path: Path) -> None:
        bundle = json.loads((path / "model.sig").read_text())
        change(bundle)
        (path / "model.sig").write_text(json.dumps(bundle, separators=(",", ":")))

    return edit


def edit_payload(change: Callable[[dict[str, Any]], object]) -> Edit:
    """Change what is signed and leave the signature as it was."""

    def in_bundle(bundle: dict[str, Any]) -> None:
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        change(statement)
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()

    return edit_signature(in_bundle)


def put(name: str, data: bytes = b"hello") -> Edit:
    def edit(path: Path) -> None:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(data)

    return edit


def link(name: str) -> Edit:
    def edit(path: Path) -> None:
        target = path.parent / "elsewhere"
        shutil.move(path / name, target)
        (path / name).symlink_to(target)

    return edit


def pipe(name: str) -> Edit:
    def edit(path: Path) -> None:
        (path / name).unlink()
        os.mkfifo(path / name)

    return edit


def remove(name: str) -> Edit:
    return lambda path: (path / name).unlink()


def fit_the_manifest(name: str, data: bytes) -> Edit:
    """Replace a file together with the manifest's word on it, as who can write the folder can."""

    def edit(path: Path) -> None:
        manifest = json.loads((path / "MANIFEST.json").read_text())
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
        (path / "MANIFEST.json").write_text(json.dumps(manifest))
        (path / name).write_bytes(data)

    return edit


def _format_one(path: Path) -> None:
    manifest = json.loads((path / "MANIFEST.json").read_text())
    (path / "MANIFEST.json").write_text(json.dumps(manifest | {"format_version": 1}))


TAMPERINGS: dict[str, tuple[Edit, str]] = {
    "no signature": (remove("model.sig"), r"^model.sig: is missing .* nobody signed this bundle.*--trust PUBKEY"),
    "empty signature": (put("model.sig", b""), r"^model.sig: is no OpenSSF model signature"),
    "junk signature": (put("model.sig", b"\xff" * 99), r"^model.sig: is no OpenSSF model signature"),
    "deep signature": (put("model.sig", b"[" * 100_000), r"^model.sig: is no OpenSSF model signature"),
    "huge signature": (put("model.sig", b" " * (1 << 20) + b" "), r"^model.sig: has 1048577 bytes; expected at most"),
    "linked signature": (link("model.sig"), r"^model.sig: cannot be read .* expected a plain file"),
    "pipe for a signature": (pipe("model.sig"), r"^model.sig: is no plain file"),
    "another payload": (
        edit_payload(lambda statement: statement["predicate"]["resources"].pop()),
        r"^model.sig: does not fit the key",
    ),
    "another predicate": (
        edit_payload(lambda statement: statement.update(predicateType="https://slsa.dev/provenance/v1")),
        r"^model.sig: does not fit the key",
    ),
    "another payload type": (
        edit_signature(lambda bundle: bundle["dsseEnvelope"].update(payloadType="text/plain")),
        "other parts than one envelope",
    ),
    "another media type": (edit_signature(lambda bundle: bundle.update(mediaType="x")), "other parts than one"),
    "another key's name": (
        edit_signature(lambda bundle: bundle["verificationMaterial"]["publicKey"].update(hint="0" * 64)),
        r"not trusted here.*--trust PUBKEY",
    ),
    "a second signature": (
        edit_signature(lambda bundle: bundle["dsseEnvelope"]["signatures"].append({"sig": "", "keyid": ""})),
        "other parts than one envelope",
    ),
    "no signature in it": (
        edit_signature(lambda bundle: bundle["dsseEnvelope"]["signatures"].clear()),
        "is no OpenSSF",
    ),
    "altered manifest": (replace_bytes("MANIFEST.json", b"  ", b" \t"), r"^MANIFEST.json: is .* the signature says"),
    "altered model": (replace_bytes("model.onnx", b"tiny", b"tinx"), r"^model.onnx: has SHA-256 .* was altered"),
    "altered twin": (replace_bytes("model.int8.onnx", b"tiny", b"tinx"), r"^model.int8.onnx: has SHA-256"),
    "altered engine": (put("engines/sm_90-fp16.engine", b"engine for an H1OO"), r"^engines/sm_90-fp16.engine: has SHA"),
    "altered card": (replace_bytes("MODEL_CARD.md", b"PHANTOMS", b"PATIENTS"), r"^MODEL_CARD.md: has SHA-256"),
    "altered with its manifest": (
        fit_the_manifest("metrics.json", b"{}\n"),
        r"^MANIFEST.json: is .* signature says",
    ),
    "longer model": (replace_bytes("model.onnx", b"tiny", b"tiny."), r"^model.onnx: has \d+ bytes; the manifest says"),
    "shorter metrics": (put("metrics.json", b"{}"), r"^metrics.json: has 2 bytes; the manifest says"),
    "missing model": (remove("model.onnx"), r"^model.onnx: is in the manifest but not in"),
    "missing manifest": (remove("MANIFEST.json"), r"^MANIFEST.json: is missing from"),
    "extra file": (put("notes.txt"), r"^notes.txt: is in .* but not in the manifest"),
    "extra hidden file": (put(".hidden"), r"^.hidden: is in .* but not in the manifest"),
    "extra git folder": (put(".git/config"), r"^.git: is a folder in .* but not in the manifest"),
    "extra file in a folder": (put("configs/model.py"), r"^configs/model.py: is in .* but not in the manifest"),
    "extra empty folder": (lambda path: (path / "new").mkdir(), r"^new: is a folder in .* but not in the manifest"),
    "linked model": (link("model.onnx"), r"^model.onnx: is a link; a bundle holds plain files only"),
    "linked folder": (link("golden"), r"^golden: is a link"),
    "pipe for a model": (pipe("preprocess.json"), r"^preprocess.json: has 0 bytes|^preprocess.json: is no plain file"),
    "format 1": (_format_one, r"version 1; this gliofed reads 'gliofed-bundle' version 2, which is signed. Export"),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_whatever_is_not_what_was_signed_is_refused_with_its_reason(copy: Path, trust: Trust, name: str) -> None:
    read_all(copy, trust)
    edit, message = TAMPERINGS[name]
    edit(copy)
    with pytest.raises(BundleError, match=message) as caught:
        read_all(copy, trust)
    assert isinstance(caught.value, UntrustedBundle) or name == "format 1"


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_of_any_file_is_refused(copy: Path, trust: Trust, data: st.DataObject) -> None:
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    spoilt = bytearray(whole)
    spoilt[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(spoilt)
    try:
        with pytest.raises(BundleError):
            read_all(copy, trust)
    finally:
        path.write_bytes(whole)
    read_all(copy, trust)


def test_without_a_trusted_key_or_with_another_nothing_is_accepted(signed: Path, tmp_path: Path, trust: Trust) -> None:
    with pytest.raises(UntrustedBundle, match=r"no key is trusted here.*--trust PUBKEY"):
        load_bundle(signed, Trust(keys=()))
    stranger = new_key(tmp_path / "stranger")
    with pytest.raises(UntrustedBundle, match=stranger.public.fingerprint[:16]):
        load_bundle(signed, Trust.of(stranger))
    bundle = load_bundle(signed, Trust.of(stranger, *trust.keys))
    assert bundle.signer == trust.keys[0]


def test_what_is_altered_between_loading_and_reading_is_not_handed_out(copy: Path, trust: Trust) -> None:
    bundle = load_bundle(copy, trust)
    replace_bytes("model.onnx", b"tiny", b"tinx")(copy)
    with pytest.raises(UntrustedBundle, match=r"^model.onnx: has SHA-256"):
        bundle.read("model.onnx")


# ---- statements that are authentic, but about something else ----


def sign_statement(path: Path, key: SigningKey, change: Callable[[dict[str, Any]], object]) -> None:
    """Sign a changed statement with the right key, as DSSE v1 says."""
    bundle = json.loads((path / "model.sig").read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    change(statement)
    payload = json.dumps(statement).encode()
    private = serialization.load_pem_private_key(key.path.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    kind = "application/vnd.in-toto+json"
    signature = private.sign(f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload, ec.ECDSA(hashes.SHA256()))
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    (path / "model.sig").write_text(json.dumps(bundle))


def serialise(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda statement: statement["predicate"]["serialization"].update(changes)


def first_resource(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda statement: statement["predicate"]["resources"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda statement: statement.update(predicateType="https://model_signing/Digests/v0.1"), "predicateType is"),
        (lambda statement: statement.update(_type="https://in-toto.io/Statement/v0.1"), "_type is"),
        (lambda statement: statement.pop("predicate"), "predicate is missing"),
        (lambda statement: statement["subject"].append(statement["subject"][0]), "too many values"),
        (lambda statement: statement["subject"][0]["digest"].update(sha256="0" * 64), "not that of its parts"),
        (lambda statement: statement["predicate"]["resources"].pop(), "not that of its parts"),
        (
            lambda statement: statement["predicate"]["resources"].append(statement["predicate"]["resources"][0]),
            "a key is repeated",
        ),
        (serialise(method="shards"), "expected whole files by SHA-256"),
        (serialise(hash_type="blake3"), "expected whole files by SHA-256"),
        (serialise(allow_symlinks=True), "without links"),
        (first_resource(algorithm="blake3"), "is no file with its SHA-256"),
        (first_resource(digest="../"), "is no file with its SHA-256"),
        (first_resource(name=7), "is no file with its SHA-256"),
    ],
)
def test_an_authentic_statement_about_something_else_is_refused(
    copy: Path, signing_key: SigningKey, trust: Trust, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    sign_statement(copy, signing_key, lambda statement: None)
    read_all(copy, trust)
    sign_statement(copy, signing_key, change)
    with pytest.raises(UntrustedBundle, match=rf"signs something other than .*{message}"):
        read_all(copy, trust)


def test_a_signature_of_other_files_of_the_same_maker_is_refused(
    copy: Path, write: Write, tmp_path: Path, trust: Trust
) -> None:
    other = write(tmp_path / "other", provenance={"seed": 8})
    shutil.copy(other / "model.sig", copy / "model.sig")
    with pytest.raises(UntrustedBundle, match="the signature says"):
        load_bundle(copy, trust)


# ---- OpenSSF's own command ----


def openssf(*arguments: object) -> subprocess.CompletedProcess[str]:
    flags = ["-P"] * sys.flags.safe_path + ["-S"] * sys.flags.no_site
    command = [sys.executable, *flags, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_openssf_s_command_accepts_our_signature_and_refuses_an_altered_bundle(
    copy: Path, signing_key: SigningKey
) -> None:
    public = signing_key.path.with_suffix(".pub")
    command = (
        "verify",
        "key",
        copy,
        "--signature",
        copy / "model.sig",
        "--public_key",
        public,
        "--no-ignore-git-paths",
    )
    accepted = openssf(*command)
    assert accepted.returncode == 0, accepted.stdout + accepted.stderr
    replace_bytes("metrics.json", b"0.9", b"0.8")(copy)
    refused = openssf(*command)
    assert refused.returncode != 0
    assert "metrics.json" in refused.stdout + refused.stderr


def test_we_accept_a_signature_made_by_openssf_s_command(copy: Path, tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys")
    (copy / "model.sig").unlink()
    made = openssf("sign", "key", copy, "--signature", copy / "model.sig", "--private_key", key.path)
    assert made.returncode == 0, made.stdout + made.stderr
    read_all(copy, Trust.of(key))


# ---- keys ----


def test_a_new_key_is_its_owner_s_alone_and_never_overwritten(tmp_path: Path) -> None:
    key = new_key(tmp_path / "deep" / "keys")
    assert stat.S_IMODE(key.path.stat().st_mode) == 0o600
    assert sorted(path.name for path in key.path.parent.iterdir()) == ["signing.pem", "signing.pub"]
    assert SigningKey.read(key.path).public == PublicKey.read(key.path.with_suffix(".pub")) == key.public
    assert Trust.read([key.path.parent]) == Trust.of(key)
    before = key.path.read_bytes()
    with pytest.raises(SigningKeyError, match="never overwritten"):
        new_key(key.path.parent)
    assert key.path.read_bytes() == before
    assert sorted(path.name for path in key.path.parent.iterdir()) == ["signing.pem", "signing.pub"]


def test_the_fingerprint_is_that_of_openssl(signing_key: SigningKey) -> None:
    public = signing_key.path.with_suffix(".pub")
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", public, "-outform", "DER"], capture_output=True, check=True, timeout=60
    ).stdout
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    assert signing_key.public.fingerprint == digest.finalize().hex()


def _pem(key: Any) -> bytes:
    return bytes(key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "holds no public key in PEM"),
        (b"ssh-ed25519 AAAA someone@somewhere", "holds no public key in PEM"),
        (b"x" * 70_000, "is too large for a key"),
        (_pem(ed25519.Ed25519PrivateKey.generate().public_key()), "is another kind of key"),
        (_pem(ec.generate_private_key(ec.SECP384R1()).public_key()), "is another kind of key"),
    ],
)
def test_what_is_no_public_key_is_refused_by_name(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "partner.pub"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SigningKeyError, match=rf"partner.pub: {message}"):
        Trust.read([path])


def test_a_private_key_with_a_password_and_a_public_one_do_not_sign(tmp_path: Path, signing_key: SigningKey) -> None:
    private = serialization.load_pem_private_key(signing_key.path.read_bytes(), None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    for path in (locked, signing_key.path.with_suffix(".pub")):
        with pytest.raises(SigningKeyError, match="holds no private key in PEM without a password"):
            SigningKey.read(path)


def test_a_folder_that_cannot_be_signed_is_left_without_a_signature(tmp_path: Path, signing_key: SigningKey) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "link").symlink_to(tmp_path)
    with pytest.raises(ExportError, match="cannot be signed"):
        sign(tmp_path / "bundle", signing_key)
    assert not (tmp_path / "bundle" / "model.sig").exists()
