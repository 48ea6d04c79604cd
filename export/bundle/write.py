"""Writing a bundle: all of its files, signed, in one rename."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from export.bundle.encoding import json_bytes
from export.bundle.golden import Golden
from export.bundle.layout import (
    CARD,
    CONFIDENCE,
    CONFIDENCE_ARRAYS,
    ENGINE_REPORT,
    INT8_MODEL,
    LABELS_KEY,
    MANIFEST,
    METADATA,
    METRICS,
    MODEL,
    PREPROCESS,
    PREPROCESS_KEY,
    PROVENANCE,
    SIGNATURE,
    engine_file,
)
from export.bundle.manifest import check_inventory, manifest_bytes, parse_manifest, read_verified
from export.bundle.read import load_bundle, read_manifest, require_signed
from export.card import Card, DataKind, describe, render_card
from export.errors import BundleError, ExportError
from export.signing import SigningKey, Trust, sign
from kernels.spec import PreprocessSpec

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def write_bundle(
    path: Path,
    *,
    onnx_bytes: bytes,
    preprocess: PreprocessSpec,
    labels: Sequence[str],
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    data_kind: DataKind,
    key: SigningKey | None,
    golden: Golden | None = None,
    int8_onnx: bytes | None = None,
    engines: Mapping[str, bytes] = _NOTHING,
    engine_report: Mapping[str, Any] = _NOTHING,
    confidence: Mapping[str, bytes] = _NOTHING,
    name: str = "gliofed",
    model_version: str = "0.1.0",
) -> Path:
    """Write the bundle's folder at `path` and return it; the same arguments give the same bytes, model.sig apart.

    metrics, provenance: JSON objects of finite numbers; `export.card` tells which figures the card shows. No time or
    machine name is added: what should be known goes into provenance. engines: by name, such as sm_90-fp16, with
    their report. confidence: `Confidence.to_files()`. key: None leaves the bundle unsigned, for a signature made
    elsewhere; nobody loads it until then. The folder appears complete and signed or not at all. If the same bundle is
    there already, signed by this key, nothing is written; anything else there raises BundleError and stays as it is.
    Does not run the model.
    """
    if data_kind not in get_args(DataKind):
        raise BundleError(str(path), f"data_kind is {data_kind!r}; expected one of {get_args(DataKind)}")
    if not labels or len(set(labels)) != len(labels):
        raise BundleError(str(path), f"labels are {list(labels)}; expected at least one, each once")
    if unknown := confidence.keys() - {CONFIDENCE, CONFIDENCE_ARRAYS}:
        raise BundleError(str(path), f"cannot hold {sorted(unknown)}; expected the files of a Confidence")
    outputs = _check_model_says(MODEL, onnx_bytes, preprocess, labels)
    engine_files = {engine_file(engine): data for engine, data in sorted(engines.items())}
    files = {MODEL: onnx_bytes, **engine_files, **confidence}
    if int8_onnx is not None:
        if _check_model_says(INT8_MODEL, int8_onnx, preprocess, labels).keys() != outputs.keys():
            raise BundleError(INT8_MODEL, f"has other outputs than {MODEL}: {list(outputs)}; quantize that model again")
        files[INT8_MODEL] = int8_onnx
    if engines:
        files[ENGINE_REPORT] = json_bytes(ENGINE_REPORT, engine_report)
    if golden is not None:
        files |= golden.to_files()
    card = Card(
        name=name,
        model_version=model_version,
        labels=tuple(labels),
        preprocess=preprocess,
        data_kind=data_kind,
        outputs=outputs,
        models={file: files[file] for file in (MODEL, INT8_MODEL, *engine_files) if file in files},
        metrics=metrics,
        provenance=provenance,
        confidence=json.loads(confidence[CONFIDENCE]) if CONFIDENCE in confidence else {},
    )
    files |= {
        PREPROCESS: json_bytes(PREPROCESS, preprocess.to_json()),
        METADATA: json_bytes(METADATA, describe(card)),
        METRICS: json_bytes(METRICS, metrics),
        PROVENANCE: json_bytes(PROVENANCE, provenance),
        CARD: render_card(card).encode(),
    }
    return _publish(Path(path), files | {MANIFEST: manifest_bytes(files)}, key)


def _check_model_says(
    name: str, onnx_bytes: bytes, preprocess: PreprocessSpec, labels: Sequence[str]
) -> dict[str, tuple[int | str, ...]]:
    """Return the shape of each output, having refused a file that leans on others or is of another model."""
    import onnx  # only who writes bundles needs it

    try:
        model = onnx.load_model_from_string(onnx_bytes)
        said = {item.key: json.loads(item.value) for item in model.metadata_props}
    except Exception as error:  # protobuf's DecodeError and json's ValueError share no other base
        raise BundleError(name, f"is no ONNX file of ours ({error}); pass what export.onnx gave") from error
    expected = {PREPROCESS_KEY: preprocess.to_json(), LABELS_KEY: list(labels)}
    for key, value in expected.items():
        if said.get(key) != value:
            raise BundleError(name, f"was exported for {key} = {said.get(key)}; the bundle is to say {value}")
    if any(weight.data_location == onnx.TensorProto.EXTERNAL for weight in model.graph.initializer):
        raise BundleError(name, "keeps weights outside the file; export it with export.onnx, which never does")
    return {
        output.name: tuple(axis.dim_value or axis.dim_param for axis in output.type.tensor_type.shape.dim)
        for output in model.graph.output
    }


def _publish(target: Path, files: Mapping[str, bytes], key: SigningKey | None) -> Path:
    """Put the files at `target`, signed, in one rename; or find the same bundle there already."""
    if target.is_symlink() or target.is_file() or (target.is_dir() and any(target.iterdir())):
        _require_same(target, files[MANIFEST], key)
        return target
    temporary = target.parent / f".{target.name}.{secrets.token_hex(6)}.partial"
    folder = temporary / target.name  # the signature names it
    try:
        for name, data in files.items():
            _write_file(folder / name, data)
        if key is not None:
            require_signed(sign(folder, key), files[MANIFEST], parse_manifest(files[MANIFEST]))
            _sync(folder / SIGNATURE)
        for written in (*{(folder / name).parent for name in files}, folder):
            _sync(written)
        folder.rename(target)
        temporary.rmdir()
    except OSError as error:
        raise BundleError(str(target), f"could not be written ({error}); nothing was left there") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync(target.parent)
    return target


def _require_same(target: Path, manifest: bytes, key: SigningKey | None) -> None:
    """Raise BundleError unless exactly this bundle is there, whole, and signed by the key if there is one."""
    try:
        if key is not None:
            load_bundle(target, Trust.of(key)).check_files()
        found, entries = read_manifest(target)
        check_inventory(target, entries)
        for name, entry in entries.items():
            read_verified(target, name, entry)
    except ExportError as error:
        raise BundleError(
            str(target),
            f"holds something else or a damaged bundle ({error}); choose another folder or move it away",
        ) from error
    if hashlib.sha256(found).digest() != hashlib.sha256(manifest).digest():
        raise BundleError(str(target), "holds a different bundle; bundles are never overwritten, choose another folder")


def _write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Let a file or folder reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
