"""A model bundle: one folder with all that serving needs, whose every byte is accounted for.

    MANIFEST.json          format version; SHA-256 and size of every other file
    model.onnx             graph and weights
    preprocess.json        the preprocessing spec, the only one that serving reads
    configs/metadata.json  in the manner of a MONAI bundle: inputs, outputs, labels, intended use
    metrics.json           figures of this model      provenance.json  where it comes from
    MODEL_CARD.md          all of this for people
    golden/{grays,logits}.npy   optional: images and the answers they must give, to check an installation

The hashes give integrity, not authenticity: they catch a damaged, mixed-up or half-copied bundle, but whoever
can write the folder can write a fitting manifest too. Only a signature over MANIFEST.json can tell who made a
bundle.

This module needs neither torch nor ONNX Runtime.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from export.card import OUTPUT_NAMES, DataKind, describe, render_card
from export.errors import BundleError
from kernels.spec import PreprocessSpec

FORMAT_VERSION = 1

PREPROCESS_KEY = "gliofed.preprocess"
LABELS_KEY = "gliofed.labels"
"""Keys of the ONNX file's metadata_props. They let a reader of the bare file know its input, and let the
predictor refuse a model beside another model's preprocess.json."""

_MANIFEST = "MANIFEST.json"
_MODEL, _PREPROCESS, _METADATA = "model.onnx", "preprocess.json", "configs/metadata.json"
_METRICS, _PROVENANCE, _CARD = "metrics.json", "provenance.json", "MODEL_CARD.md"
_GRAYS, _LOGITS = "golden/grays.npy", "golden/logits.npy"
_REQUIRED = frozenset({_MODEL, _PREPROCESS, _METADATA, _METRICS, _PROVENANCE, _CARD})
_OPTIONAL = frozenset({_GRAYS, _LOGITS})
_MAX_MANIFEST_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Golden:
    """Images and the scores they must give wherever the bundle is installed.

    grays_NHW: uint8, before preprocessing. They travel in the clear: use phantoms, never a patient's.
    logits_NC: float32, as the exporting machine computed them.
    """

    grays_NHW: NDArray[np.uint8]
    logits_NC: NDArray[np.float32]

    def __post_init__(self) -> None:
        grays, logits = self.grays_NHW, self.logits_NC
        if grays.ndim != 3 or grays.dtype != np.uint8 or grays.size == 0:
            raise BundleError(_GRAYS, f"golden images must be uint8 [N,H,W], N >= 1; got {grays.dtype} {grays.shape}")
        if logits.ndim != 2 or logits.dtype != np.float32 or len(logits) != len(grays):
            raise BundleError(_LOGITS, f"expected float32 [{len(grays)},C]; got {logits.dtype} {logits.shape}")
        if not np.isfinite(logits).all():
            raise BundleError(_LOGITS, "golden scores must be finite; compute them again with a healthy model")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Bundle:
    """A bundle that was read and found whole. `model_onnx` are the very bytes that were hashed.

    digest: SHA-256 of MANIFEST.json, which names every other file; it identifies the bundle.
    """

    path: Path
    digest: str
    model_onnx: bytes = field(repr=False)
    preprocess: PreprocessSpec
    labels: tuple[str, ...]
    data_kind: DataKind
    metadata: Mapping[str, Any] = field(repr=False)
    metrics: Mapping[str, Any] = field(repr=False)
    provenance: Mapping[str, Any] = field(repr=False)
    golden: Golden | None = field(repr=False)


def write_bundle(
    path: Path,
    *,
    onnx_bytes: bytes,
    preprocess: PreprocessSpec,
    labels: Sequence[str],
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    data_kind: DataKind,
    golden: Golden | None = None,
    name: str = "gliofed",
    model_version: str = "0.1.0",
) -> Path:
    """Write the bundle's folder at `path` and return it; the same arguments give the same bytes.

    metrics, provenance: JSON objects of finite numbers; card.VIEWS names the figures that the card shows. No
    time or machine name is added: what should be known goes into provenance. The folder appears complete or
    not at all. If the same bundle is there already nothing is written; anything else there raises BundleError
    and stays as it is. Does not run the model and does not sign.
    """
    if data_kind not in get_args(DataKind):
        raise BundleError(str(path), f"data_kind is {data_kind!r}; expected one of {get_args(DataKind)}")
    if not labels or len(set(labels)) != len(labels):
        raise BundleError(str(path), f"labels are {list(labels)}; expected at least one, each once")
    _check_model_says(onnx_bytes, preprocess, labels)
    files = {
        _MODEL: onnx_bytes,
        _PREPROCESS: _json_bytes(_PREPROCESS, preprocess.to_json()),
        _METADATA: _json_bytes(_METADATA, describe(name, model_version, labels, preprocess, data_kind)),
        _METRICS: _json_bytes(_METRICS, metrics),
        _PROVENANCE: _json_bytes(_PROVENANCE, provenance),
        _CARD: render_card(
            name=name,
            model_version=model_version,
            labels=labels,
            preprocess=preprocess,
            metrics=metrics,
            provenance=provenance,
            data_kind=data_kind,
            model_sha256=hashlib.sha256(onnx_bytes).hexdigest(),
            model_size_bytes=len(onnx_bytes),
        ).encode(),
    }
    if golden is not None:
        files |= {_GRAYS: _npy_bytes(golden.grays_NHW), _LOGITS: _npy_bytes(golden.logits_NC)}
    files[_MANIFEST] = _manifest_bytes(files)
    return _publish(Path(path), files)


def load_bundle(path: Path) -> Bundle:
    """Return the bundle at `path` after checking every file against the manifest.

    Raises BundleError, naming the file with what was expected and found, if a file is missing, extra,
    altered, not a plain file, or if the manifest has an unknown format version or names a path outside the
    bundle. Nothing is repaired and nothing is read past. Does not check who made the bundle (see the module's
    docstring).
    """
    root = Path(path)
    manifest_bytes = _read_manifest(root)
    entries = _parse_manifest(manifest_bytes)
    _check_inventory(root, set(entries))
    contents = {name: _read_verified(root, name, entry) for name, entry in sorted(entries.items())}
    metadata = _parse_json(_METADATA, contents[_METADATA])
    labels, data_kind = _labels_and_kind(metadata)
    return Bundle(
        path=root,
        digest=hashlib.sha256(manifest_bytes).hexdigest(),
        model_onnx=contents[_MODEL],
        preprocess=_parse_preprocess(contents[_PREPROCESS]),
        labels=labels,
        data_kind=data_kind,
        metadata=metadata,
        metrics=_parse_json(_METRICS, contents[_METRICS]),
        provenance=_parse_json(_PROVENANCE, contents[_PROVENANCE]),
        golden=_parse_golden(contents),
    )


def canonical_json(value: object) -> str:
    """Return the one JSON text of a value: sorted keys, two spaces, UTF-8 as it is, no NaN or infinity."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)


# ---- writing ----


def _check_model_says(onnx_bytes: bytes, preprocess: PreprocessSpec, labels: Sequence[str]) -> None:
    """Raise BundleError unless the ONNX file is self-contained and names this preprocessing and these
    labels.
    """
    import onnx  # only who writes bundles needs it

    try:
        model = onnx.load_model_from_string(onnx_bytes)
        said = {item.key: json.loads(item.value) for item in model.metadata_props}
    except Exception as error:  # protobuf's DecodeError and json's ValueError share no other base
        raise BundleError(_MODEL, f"is no ONNX file of ours ({error}); pass what export.onnx gave") from error
    expected = {PREPROCESS_KEY: preprocess.to_json(), LABELS_KEY: list(labels)}
    for key, value in expected.items():
        if said.get(key) != value:
            raise BundleError(_MODEL, f"was exported for {key} = {said.get(key)}; the bundle is to say {value}")
    if any(weight.data_location == onnx.TensorProto.EXTERNAL for weight in model.graph.initializer):
        raise BundleError(_MODEL, "keeps weights outside the file; export it with export.onnx, which never does")


def _json_bytes(name: str, value: object) -> bytes:
    try:
        return (canonical_json(value) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise BundleError(
            name, f"cannot be written as JSON ({error}); pass plain finite numbers, text, lists"
        ) from error


def _npy_bytes(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _manifest_bytes(files: Mapping[str, bytes]) -> bytes:
    entries = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)} for name, data in files.items()
    }
    return _json_bytes(_MANIFEST, {"format": "gliofed-bundle", "format_version": FORMAT_VERSION, "files": entries})


def _publish(target: Path, files: Mapping[str, bytes]) -> Path:
    """Put the files at `target` in one rename, or find the same bundle there already."""
    if target.is_symlink() or target.is_file() or (target.is_dir() and any(target.iterdir())):
        _require_same(target, files[_MANIFEST])
        return target
    temporary = target.parent / f".{target.name}.{secrets.token_hex(6)}.partial"
    try:
        for name, data in files.items():
            _write_file(temporary / name, data)
        for folder in (*{(temporary / name).parent for name in files}, temporary):
            _sync_folder(folder)
        temporary.rename(target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise BundleError(str(target), f"could not be written ({error}); nothing was left there") from error
    _sync_folder(target.parent)
    return target


def _require_same(target: Path, manifest_bytes: bytes) -> None:
    try:
        same = load_bundle(target).digest == hashlib.sha256(manifest_bytes).hexdigest()
    except BundleError as error:
        raise BundleError(
            str(target),
            f"holds something else or a damaged bundle ({error}); choose another folder or move it away",
        ) from error
    if not same:
        raise BundleError(str(target), "holds a different bundle; bundles are never overwritten, choose another folder")


def _write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- reading ----


def _read_manifest(root: Path) -> bytes:
    if not root.is_dir():
        raise BundleError(str(root), "expected a bundle's folder; there is none")
    return _read_plain_file(root, _MANIFEST, _MAX_MANIFEST_BYTES)


def _parse_manifest(data: bytes) -> dict[str, tuple[str, int]]:
    """Return (sha256, size_bytes) of each file the manifest names, having refused what version 1 does not
    have.
    """
    manifest = _parse_json(_MANIFEST, data)
    found = (manifest.get("format"), manifest.get("format_version"))
    if found != ("gliofed-bundle", FORMAT_VERSION) or isinstance(found[1], bool):
        raise BundleError(
            _MANIFEST,
            f"format is {found[0]!r} version {found[1]!r}; this gliofed reads 'gliofed-bundle' version "
            f"{FORMAT_VERSION}. Use the gliofed that wrote it, or export again",
        )
    files = manifest.get("files")
    if set(manifest) != {"format", "format_version", "files"} or not isinstance(files, dict):
        raise BundleError(_MANIFEST, f"has keys {sorted(manifest)}; expected format, format_version and files")
    entries = {name: _parse_entry(name, entry) for name, entry in files.items()}
    if missing := _REQUIRED - set(entries):
        raise BundleError(_MANIFEST, f"does not name {sorted(missing)}; a bundle has these files")
    if len(_OPTIONAL & set(entries)) == 1:
        raise BundleError(_MANIFEST, f"names one of {sorted(_OPTIONAL)}; expected both or none")
    return entries


def _parse_entry(name: str, entry: object) -> tuple[str, int]:
    if name not in _REQUIRED | _OPTIONAL:  # an exact list of names leaves no room for "..", "/" or odd characters
        raise BundleError(_MANIFEST, f"names {name!r}, which is no file of a version {FORMAT_VERSION} bundle; refused")
    if not isinstance(entry, dict) or set(entry) != {"sha256", "size_bytes"}:
        raise BundleError(_MANIFEST, f"entry of {name} is {entry!r}; expected sha256 and size_bytes")
    sha256, size = entry["sha256"], entry["size_bytes"]
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise BundleError(_MANIFEST, f"sha256 of {name} is {sha256!r}; expected 64 hexadecimal digits")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise BundleError(_MANIFEST, f"size_bytes of {name} is {size!r}; expected a whole number, 0 or more")
    return sha256, size


def _check_inventory(root: Path, expected: set[str]) -> None:
    """Raise BundleError unless the folder holds exactly the expected plain files and their folders."""
    found: set[str] = set()
    for entry in sorted(root.rglob("*")):
        name = entry.relative_to(root).as_posix()
        if entry.is_symlink():
            raise BundleError(name, "is a link; a bundle holds plain files only")
        if not entry.is_dir():
            found.add(name)
    if missing := expected - found:
        raise BundleError(min(missing), f"is in the manifest but not in {root}; copy the bundle again")
    if extra := found - expected - {_MANIFEST}:
        raise BundleError(min(extra), f"is in {root} but not in the manifest; remove it if you know what it is")


def _read_verified(root: Path, name: str, entry: tuple[str, int]) -> bytes:
    sha256, size = entry
    data = _read_plain_file(root, name, size)
    if len(data) != size:
        raise BundleError(name, f"has {len(data)} bytes; the manifest says {size}. Copy the bundle again")
    if (actual := hashlib.sha256(data).hexdigest()) != sha256:
        raise BundleError(name, f"has SHA-256 {actual}; the manifest says {sha256}. It was altered or damaged")
    return data


def _read_plain_file(root: Path, name: str, max_bytes: int) -> bytes:
    """Return the file's bytes; links, pipes and files larger than max_bytes are refused before they are
    read.
    """
    path = root / name
    try:
        if path.is_symlink() or not path.is_file():
            raise BundleError(name, f"is missing from {root} or is not a plain file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise BundleError(name, f"has {size} bytes; expected at most {max_bytes}")
            return file.read(max_bytes + 1)
    except OSError as error:
        raise BundleError(name, f"cannot be read ({error})") from error


def _parse_json(name: str, data: bytes) -> dict[str, Any]:
    """Return the file's JSON object; repeated keys and NaN, which readers take differently, are refused."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(name, f"is not the JSON we write ({error})") from error
    if not isinstance(value, dict):
        raise BundleError(name, f"holds a {type(value).__name__}; expected a JSON object")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is repeated")
    return result


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")


def _parse_preprocess(data: bytes) -> PreprocessSpec:
    try:
        return PreprocessSpec.from_json(_parse_json(_PREPROCESS, data))
    except (ValueError, TypeError, KeyError) as error:
        raise BundleError(_PREPROCESS, f"is no preprocessing that this gliofed knows ({error})") from error


def _labels_and_kind(metadata: Mapping[str, Any]) -> tuple[tuple[str, ...], DataKind]:
    try:
        channels = metadata["network_data_format"]["outputs"][OUTPUT_NAMES[0]]["channel_def"]
        labels = tuple(channels[str(index)] for index in range(len(channels)))
        kinds: dict[str, DataKind] = {kind: kind for kind in get_args(DataKind)}
        kind = kinds[metadata["data_kind"]]
    except (KeyError, TypeError) as error:
        raise BundleError(_METADATA, f"lacks or has an unknown {error}; see export/bundle.py") from error
    if not labels or not all(isinstance(label, str) for label in labels) or len(set(labels)) != len(labels):
        raise BundleError(_METADATA, f"channel_def of the scores gives labels {labels}; expected distinct texts")
    return labels, kind


def _parse_golden(contents: Mapping[str, bytes]) -> Golden | None:
    if _GRAYS not in contents:
        return None
    return Golden(grays_NHW=_parse_npy(_GRAYS, contents), logits_NC=_parse_npy(_LOGITS, contents))


def _parse_npy(name: str, contents: Mapping[str, bytes]) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(io.BytesIO(contents[name]), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BundleError(name, f"is not a NumPy array file ({error})") from error
    return array
