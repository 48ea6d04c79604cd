"""Reading a bundle: the signature first, then the manifest, then each file against it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from export.bundle.encoding import parse_json
from export.bundle.golden import Golden
from export.bundle.layout import (
    CONFIDENCE,
    CONFIDENCE_ARRAYS,
    INT8_MODEL,
    MANIFEST,
    METADATA,
    METRICS,
    MODEL,
    PREPROCESS,
    PROVENANCE,
    SIGNATURE,
)
from export.bundle.manifest import (
    MAX_MANIFEST_BYTES,
    Entry,
    check_inventory,
    parse_manifest,
    read_plain_file,
    read_verified,
)
from export.card import OUTPUT_NAMES, DataKind
from export.errors import BundleError, UntrustedBundle
from export.signing import MAX_SIGNATURE_BYTES, PublicKey, Signed, Trust, read_signature
from kernels.spec import PreprocessSpec

_MAX_SMALL_BYTES = 64 << 20
"""What is read at once, descriptions and golden images, is never larger."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Bundle:
    """A bundle that a trusted key signed. Models and engines are read, and checked, when they are asked for.

    digest: SHA-256 of MANIFEST.json, which names every other file; it identifies the bundle.
    signer: the key that signed it. version: the model's own, as text. entries: the manifest's word on each file.
    """

    path: Path
    digest: str
    signer: PublicKey
    name: str
    version: str
    preprocess: PreprocessSpec
    labels: tuple[str, ...]
    data_kind: DataKind
    metadata: Mapping[str, Any] = field(repr=False)
    metrics: Mapping[str, Any] = field(repr=False)
    provenance: Mapping[str, Any] = field(repr=False)
    golden: Golden | None = field(repr=False)
    entries: Mapping[str, Entry] = field(repr=False)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that the manifest lists, in order."""
        return tuple(sorted(self.entries))

    @property
    def model_onnx(self) -> bytes:
        """Bytes of model.onnx, read and checked now."""
        return self.read(MODEL)

    @property
    def has_int8(self) -> bool:
        """Whether there is a quantized twin."""
        return INT8_MODEL in self.entries

    @property
    def confidence_files(self) -> dict[str, bytes]:
        """The files of calibration and statistics, read and checked now; empty where the bundle has none."""
        return {name: self.read(name) for name in (CONFIDENCE, CONFIDENCE_ARRAYS) if name in self.entries}

    def read(self, name: str) -> bytes:
        """Return a file's bytes, which are those that were signed. Raises UntrustedBundle otherwise."""
        if name not in self.entries:
            raise BundleError(name, f"is no file of the bundle {self.path}; it has {', '.join(self.files)}")
        return read_verified(self.path, name, self.entries[name])

    def check_files(self) -> None:
        """Read every file once. Raises UntrustedBundle for the first that is not what was signed."""
        for name in self.files:
            self.read(name)


def load_bundle(path: Path, trust: Trust) -> Bundle:
    """Return the bundle at `path`, which a key of `trust` signed.

    Raises UntrustedBundle, naming the file with what was expected and found, where there is no signature of such a
    key, or a file is missing, extra, altered or no plain file; BundleError where the manifest is of another format or
    names what no bundle has. Nothing is repaired and nothing is read past. Files of the models and engines are present
    and of the right size; their bytes are checked by `Bundle.read`, whoever reads them.
    """
    root = Path(path).resolve()  # a link to the current version may be turned while we read
    manifest, entries = read_manifest(root)
    signed = read_signature(_signature_bytes(root), trust)
    require_signed(signed, manifest, entries)
    check_inventory(root, entries)
    _check_sizes(root, entries)

    def small(name: str) -> bytes:
        if entries[name].size_bytes > _MAX_SMALL_BYTES:
            raise BundleError(name, f"has {entries[name].size_bytes} bytes; expected at most {_MAX_SMALL_BYTES}")
        return read_verified(root, name, entries[name])

    metadata = parse_json(METADATA, small(METADATA))
    labels, data_kind = _labels_and_kind(metadata)
    return Bundle(
        path=root,
        digest=hashlib.sha256(manifest).hexdigest(),
        signer=signed.signer,
        name=_text(metadata, "name"),
        version=_text(metadata, "version"),
        preprocess=_parse_preprocess(small(PREPROCESS)),
        labels=labels,
        data_kind=data_kind,
        metadata=metadata,
        metrics=parse_json(METRICS, small(METRICS)),
        provenance=parse_json(PROVENANCE, small(PROVENANCE)),
        golden=Golden.from_files(entries, small),
        entries=entries,
    )


def read_manifest(root: Path) -> tuple[bytes, dict[str, Entry]]:
    """Return the manifest's bytes and what they say; nobody vouches for them yet."""
    try:
        is_folder = root.is_dir()
    except OSError as error:
        raise BundleError(str(root), f"cannot be looked at ({error.strerror}); give a folder that can be") from error
    if not is_folder:
        raise BundleError(str(root), "expected a bundle's folder; there is none")
    manifest = read_plain_file(root, MANIFEST, MAX_MANIFEST_BYTES)
    return manifest, parse_manifest(manifest)


def require_signed(signed: Signed, manifest: bytes, entries: Mapping[str, Entry]) -> None:
    """Raise UntrustedBundle unless the signature is over this manifest and over the files that it names."""
    expected = {name: entry.sha256 for name, entry in entries.items()}
    expected[MANIFEST] = hashlib.sha256(manifest).hexdigest()
    for name in sorted(expected.keys() | signed.digests.keys()):
        if expected.get(name) != signed.digests.get(name):
            found, said = expected.get(name, "not there"), signed.digests.get(name, "nothing of it")
            raise UntrustedBundle(
                name, f"is {found}; the signature says {said}. The bundle was altered after signing: copy it again"
            )


def _signature_bytes(root: Path) -> bytes:
    if not (root / SIGNATURE).exists():
        raise UntrustedBundle(
            SIGNATURE,
            f"is missing from {root}: nobody signed this bundle. Copy it again, or have its maker export it with a "
            "key, and give their public key: --trust PUBKEY",
        )
    return read_plain_file(root, SIGNATURE, MAX_SIGNATURE_BYTES)


def _check_sizes(root: Path, entries: Mapping[str, Entry]) -> None:
    for name, entry in entries.items():
        try:
            size = (root / name).lstat().st_size
        except OSError as error:
            raise UntrustedBundle(name, f"cannot be read from {root} ({error}); copy the bundle again") from error
        if size != entry.size_bytes:
            problem = f"has {size} bytes; the manifest says {entry.size_bytes}. Copy the bundle again"
            raise UntrustedBundle(name, problem)


def _text(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key)
    if not isinstance(value, str) or not value:
        raise BundleError(METADATA, f"{key} is {value!r}; expected a text")
    return value


def _parse_preprocess(data: bytes) -> PreprocessSpec:
    try:
        return PreprocessSpec.from_json(parse_json(PREPROCESS, data))
    except (ValueError, TypeError, KeyError) as error:
        raise BundleError(PREPROCESS, f"is no preprocessing that this gliofed knows ({error})") from error


def _labels_and_kind(metadata: Mapping[str, Any]) -> tuple[tuple[str, ...], DataKind]:
    try:
        channels = metadata["network_data_format"]["outputs"][OUTPUT_NAMES[0]]["channel_def"]
        labels = tuple(channels[str(index)] for index in range(len(channels)))
        kinds: dict[str, DataKind] = {kind: kind for kind in get_args(DataKind)}
        kind = kinds[metadata["data_kind"]]
    except (KeyError, TypeError) as error:
        raise BundleError(METADATA, f"lacks or has an unknown {error}; see docs/bundle.md") from error
    if not labels or not all(isinstance(label, str) for label in labels) or len(set(labels)) != len(labels):
        raise BundleError(METADATA, f"channel_def of the scores gives labels {labels}; expected distinct texts")
    return labels, kind
