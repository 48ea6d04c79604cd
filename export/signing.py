"""Signatures over a bundle's folder, in the format of OpenSSF's model-signing 1.x with local keys.

The format: a Sigstore bundle v0.3 holds a DSSE envelope around an in-toto statement v1, whose predicate
`https://model_signing/signature/v1.0` lists the SHA-256 of every file. The key is elliptic, P-256; nothing is asked of
any network.

Signing is model-signing's own. Checking is ours, of the same format, because the library's hashes the folder by itself:
what it looked at and what is loaded later could differ. Here the digests that were signed are handed out, for the
reader to hold against the bytes that it uses. And ours takes one form of signature, where the library still admits a
flawed one of its releases before 1.0, and loads in a tenth of the time. Either side accepts what the other signed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from export.errors import SigningKeyError, UntrustedBundle

SIGNATURE_FILE = "model.sig"
PRIVATE_KEY, PUBLIC_KEY = "signing.pem", "signing.pub"
MAX_SIGNATURE_BYTES = 1 << 20

_MAX_KEY_BYTES = 1 << 16
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TRUST_IT = "If you know who made the bundle and have their public key by another way, give it: --trust PUBKEY"


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicKey:
    """A key that checks signatures.

    fingerprint: SHA-256 of its SubjectPublicKeyInfo (DER), hexadecimal. source: the file that it was read from.
    """

    fingerprint: str
    source: Path = field(compare=False)
    key: ec.EllipticCurvePublicKey = field(repr=False, compare=False)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a PEM file. Raises SigningKeyError unless it holds one public P-256 key."""
        try:
            key = serialization.load_pem_public_key(_read_key_file(path))
        except (ValueError, UnsupportedAlgorithm) as error:
            raise SigningKeyError(f"{path}: holds no public key in PEM ({error}); expected a {PUBLIC_KEY}") from error
        return cls._of(key, path)

    @classmethod
    def _of(cls, key: object, path: Path) -> Self:
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise SigningKeyError(f"{path}: is another kind of key; expected P-256, as gliofed keys new makes")
        der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return cls(fingerprint=hashlib.sha256(der).hexdigest(), source=path, key=key)

    def pem(self) -> bytes:
        """Return the key as a PEM file."""
        return self.key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True, kw_only=True, slots=True)
class SigningKey:
    """A private key that signs bundles. It stays in its file; `public` is its other half."""

    path: Path
    public: PublicKey

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a PEM file. Raises SigningKeyError unless it holds one private P-256 key without a password."""
        try:
            key = serialization.load_pem_private_key(_read_key_file(path), None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise SigningKeyError(
                f"{path}: holds no private key in PEM without a password ({error}); make one with gliofed keys new"
            ) from error
        return cls(path=path, public=PublicKey._of(key.public_key(), path))


@dataclass(frozen=True, kw_only=True, slots=True)
class Trust:
    """The public keys whose bundles are accepted. An empty set accepts none."""

    keys: tuple[PublicKey, ...]

    @classmethod
    def read(cls, paths: Iterable[Path]) -> Self:
        """Read key files, and every *.pub of folders. Raises SigningKeyError for one that is no key or not there."""
        files = [file for path in paths for file in (sorted(path.glob("*.pub")) if path.is_dir() else [path])]
        return cls(keys=tuple(PublicKey.read(file) for file in files))

    @classmethod
    def of(cls, *keys: SigningKey | PublicKey) -> Self:
        """Return trust in these keys alone."""
        return cls(keys=tuple(key.public if isinstance(key, SigningKey) else key for key in keys))


@dataclass(frozen=True, kw_only=True, slots=True)
class Signed:
    """What a trusted key signed: the SHA-256 of each file by its name, hexadecimal."""

    signer: PublicKey
    digests: Mapping[str, str]


def new_key(folder: Path) -> SigningKey:
    """Make signing.pem (readable by its owner alone) and signing.pub in the folder, which is made where missing.

    Raises SigningKeyError if there is a signing.pem: keys are never overwritten.
    """
    key, path = ec.generate_private_key(ec.SECP256R1()), folder / PRIVATE_KEY
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    temporary = folder / f".{PRIVATE_KEY}.{secrets.token_hex(6)}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # appears complete, and fails where there is one
    except FileExistsError as error:
        raise SigningKeyError(f"{path}: is there already; keys are never overwritten, choose another folder") from error
    except OSError as error:
        raise SigningKeyError(f"{path}: cannot be written ({error}); choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)
    signing_key = SigningKey.read(path)
    write_public(signing_key)
    return signing_key


def write_public(key: SigningKey) -> Path:
    """Write the key's signing.pub beside it and return its path. Raises SigningKeyError if another key lies there."""
    path = key.path.with_suffix(".pub")
    try:
        if not path.exists():
            path.write_bytes(key.public.pem())
    except OSError as error:
        raise SigningKeyError(f"{path}: cannot be written ({error})") from error
    if PublicKey.read(path) != key.public:
        raise SigningKeyError(f"{path}: is not the other half of {key.path}; move one of them away")
    return path


def sign(folder: Path, key: SigningKey) -> Signed:
    """Sign all files of the folder into its model.sig, with the folder's name as the model's; return what was signed.

    Raises SigningKeyError where it does not work, which leaves no model.sig.
    """
    path = folder / SIGNATURE_FILE
    try:
        # its import alone takes a third of a second, for what only an exporter does
        from model_signing import hashing, signing

        files = hashing.Config().use_file_serialization(max_workers=1)  # type: ignore[no-untyped-call]
        files.set_ignored_paths(paths=[SIGNATURE_FILE], ignore_git_paths=False)
        config = signing.Config()  # type: ignore[no-untyped-call]
        config.set_hashing_config(files).use_elliptic_key_signer(private_key=key.path)
        config.sign(folder, path)
        return read_signature(path.read_bytes(), Trust.of(key))
    except (ImportError, OSError, ValueError, TypeError, UntrustedBundle) as error:
        path.unlink(missing_ok=True)
        raise SigningKeyError(f"{folder}: cannot be signed with {key.path} ({error})") from error


def read_signature(data: bytes, trust: Trust) -> Signed:
    """Return what the bytes of a model.sig say a trusted key signed.

    Raises UntrustedBundle if no key is trusted, if it is of another key or altered, or for any other form than the
    module's docstring tells.
    """
    if not trust.keys:
        raise UntrustedBundle(SIGNATURE_FILE, f"cannot be checked, for no key is trusted here. {_TRUST_IT}")
    try:
        hint, payload, signature = _parse_envelope(data)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        problem = f"is no OpenSSF model signature with a local key ({_said(error)}); copy the bundle again"
        raise UntrustedBundle(SIGNATURE_FILE, problem) from error
    signer = next((key for key in trust.keys if hashlib.sha256(key.pem()).hexdigest() == hint), None)
    if signer is None:
        trusted = ", ".join(sorted(key.fingerprint[:16] for key in trust.keys))
        problem = f"was made with a key that is not trusted here (trusted: {trusted}). {_TRUST_IT}"
        raise UntrustedBundle(SIGNATURE_FILE, problem)
    try:
        signer.key.verify(signature, _pre_authentication(payload), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        problem = f"does not fit the key {signer.fingerprint[:16]} that it names; it was altered: copy the bundle again"
        raise UntrustedBundle(SIGNATURE_FILE, problem) from error
    try:
        return Signed(signer=signer, digests=_parse_statement(payload))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        problem = f"signs something other than the files of a model ({_said(error)}); ask its maker for a new signature"
        raise UntrustedBundle(SIGNATURE_FILE, problem) from error


def _parse_envelope(data: bytes) -> tuple[str, bytes, bytes]:
    """Return the key's hint, the payload and the signature; every other part must be as model-signing writes it."""
    parsed = json.loads(data.decode(), object_pairs_hook=_unique)
    envelope = parsed["dsseEnvelope"]
    hint = parsed["verificationMaterial"]["publicKey"]["hint"]
    payload, signature = envelope["payload"], envelope["signatures"][0]["sig"]
    expected = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": payload,
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": signature, "keyid": ""}],
        },
    }
    if parsed != expected or not isinstance(hint, str):
        raise ValueError("it has other parts than one envelope, one signature and one key's hint")
    return hint, _decode(payload), _decode(signature)


def _parse_statement(payload: bytes) -> dict[str, str]:
    """Return the digests by file name; the statement is authentic, but it may be about something else."""
    statement = json.loads(payload.decode(), object_pairs_hook=_unique)
    for key, expected in (("_type", _STATEMENT_TYPE), ("predicateType", _PREDICATE_TYPE)):
        if statement[key] != expected:
            raise ValueError(f"{key} is {statement[key]!r}, expected {expected!r}")
    serialization_ = statement["predicate"]["serialization"]
    found = (serialization_["method"], serialization_["hash_type"], serialization_["allow_symlinks"])
    if found != ("files", "sha256", False):
        raise ValueError(f"it hashes {found}, expected whole files by SHA-256 without links")
    digests = _unique([_parse_resource(resource) for resource in statement["predicate"]["resources"]])
    (subject,) = statement["subject"]
    together = hashlib.sha256(b"".join(map(bytes.fromhex, digests.values()))).hexdigest()
    if subject["digest"] != {"sha256": together}:
        raise ValueError("the digest of the whole is not that of its parts")
    return digests


def _parse_resource(resource: Mapping[str, Any]) -> tuple[str, str]:
    name, algorithm, digest = resource["name"], resource["algorithm"], resource["digest"]
    if not isinstance(name, str) or algorithm != "sha256" or not _SHA256.fullmatch(digest):
        raise ValueError(f"{resource} is no file with its SHA-256")
    return name, digest


def _pre_authentication(payload: bytes) -> bytes:
    """Return what is signed of a payload: DSSE v1, "Pre-Authentication Encoding"."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)


def _decode(text: str) -> bytes:
    """Return the bytes of base64 in its one form."""
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        raise ValueError("base64 with stray bits")
    return data


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is repeated")
    return result


def _said(error: Exception) -> str:
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)


def _read_key_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_KEY_BYTES + 1)
    except OSError as error:
        raise SigningKeyError(f"{path}: cannot be read ({error.strerror}); give a key that is there") from error
    if len(data) > _MAX_KEY_BYTES:
        raise SigningKeyError(f"{path}: is too large for a key; expected a PEM file")
    return data
