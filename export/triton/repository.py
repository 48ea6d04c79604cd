"""The repository's folder:

    gliofed/            config.pbtxt  labels.txt  warmup/  1/model.onnx        ONNX Runtime, float32
    gliofed_int8/       the same of the int8 twin, where there is one
    gliofed_trt/        the same of TensorRT's engines, by GPU, where there are any
    gliofed_preprocess/ config.pbtxt  1/model.dali                             DALI: a JPEG to the network's input
    gliofed_from_jpeg/  config.pbtxt  labels.txt  1/                           both in one request

The same bundle and settings give the same bytes. The folder appears complete or not at all.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from export.bundle import INT8_MODEL, MODEL, Bundle
from export.card import INPUT_NAME
from export.errors import TritonError
from export.predictor import open_session
from export.tensorrt.engine import REPORT, Engine, gather_engines
from export.triton import configs
from export.triton.configs import Signature
from export.triton.settings import TritonSettings
from kernels import dali
from kernels.ops import preprocess

_PLUGIN_HELP = """
DALI's backend must load our plugin, libgliofed_dali-<version>.so of the package `kernels`, built against the DALI that
Triton's image has (see docs/triton.md): tritonserver --backend-config=dali,plugin_libs=/path/to/the/plugin.so"""


def write_triton_repository(
    bundle: Bundle,
    out: Path,
    *,
    settings: TritonSettings,
    engines: Mapping[str, Engine] | None = None,
) -> Path:
    """Write the repository at `out`, which must not exist, and return it.

    engines: as `read_engines` gives them; None: those in the bundle. Of these the ones of settings.engine_precision are
    added. Raises TritonError where `out` exists, where an engine is damaged, made from another file or takes fewer
    than max_batch images, or where preprocessing is asked for without DALI. Nothing is left behind then.
    """
    if out.exists():
        raise TritonError(f"{out} exists; repositories are never written into, choose another folder or move it away")
    files = _Repository(bundle, settings).files(_in_bundle(bundle) if engines is None else engines)
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(6)}.partial")
    try:
        for name, data in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            _write(temporary / name, data)
        temporary.rename(out)
    except OSError as error:
        raise TritonError(f"{out} could not be written ({error}); nothing was left there") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


class _Repository:
    """The files of one repository, by path."""

    def __init__(self, bundle: Bundle, settings: TritonSettings) -> None:
        self._bundle, self._settings = bundle, settings
        self._model, self._int8 = bundle.read(MODEL), bundle.read(INT8_MODEL) if bundle.has_int8 else None
        self._signature = _signature(self._model)
        self._labels = "".join(f"{label}\n" for label in bundle.labels).encode()
        self._warmup = _golden_image(bundle)
        self._origin = f"From a gliofed bundle of digest {bundle.digest}."

    def files(self, engines: Mapping[str, Engine]) -> dict[str, bytes]:
        name, version = self._settings.name, self._settings.version
        files = self._network(name, self._model)
        if self._int8 is not None:
            files |= self._network(f"{name}_int8", self._int8)
        chosen = [engine for engine in engines.values() if engine.report.precision == self._settings.engine_precision]
        if chosen:
            files |= self._engines(f"{name}_trt", chosen)
        if self._settings.preprocessing:
            files |= self._preprocessing(f"{name}_preprocess")
            steps = (f"{name}_preprocess", f"{name}_trt" if chosen else name)
            config = configs.ensemble(f"{name}_from_jpeg", steps, self._signature, self._settings, self._origin)
            files |= {
                f"{name}_from_jpeg/config.pbtxt": config.encode(),
                f"{name}_from_jpeg/{configs.LABELS_FILE}": self._labels,
                # Triton wants a version's folder, and not every copy keeps an empty one.
                f"{name}_from_jpeg/{version}/about.txt": b"An ensemble has no model file of its own.\n",
            }
        return files

    def _network(self, name: str, onnx_bytes: bytes) -> dict[str, bytes]:
        if _signature(onnx_bytes) != self._signature:
            raise TritonError(f"the file for {name} has other inputs or outputs than the bundle's model.onnx")
        config = configs.network(
            name, self._signature, self._settings, has_golden=self._warmup is not None, origin=self._origin
        )
        return self._beside(name, config) | {f"{name}/{self._settings.version}/model.onnx": onnx_bytes}

    def _engines(self, name: str, engines: Sequence[Engine]) -> dict[str, bytes]:
        source = self._int8 if self._settings.engine_precision == "int8" else self._model
        files, by_capability = dict[str, bytes](), dict[str, str]()
        for engine in engines:
            self._check_engine(engine, source)
            report = engine.report
            by_capability[report.compute_capability] = f"{report.name}.plan"
            files[f"{name}/{self._settings.version}/{report.name}.plan"] = engine.data
        versions = ", ".join(sorted({engine.report.tensorrt for engine in engines}))
        origin = f"{self._origin}\nEngines load in TensorRT {versions} and in no other: choose Triton's image by it."
        config = configs.engines(
            name,
            self._signature,
            self._settings,
            by_capability,
            has_golden=self._warmup is not None,
            origin=origin,
        )
        return self._beside(name, config) | files

    def _check_engine(self, engine: Engine, source: bytes | None) -> None:
        engine.check()
        report, digest = engine.report, hashlib.sha256(source or b"").hexdigest()
        if source is None or report.onnx_sha256 != digest:
            raise TritonError(
                f"engine {report.name} was built from a file of SHA-256 {report.onnx_sha256}; the bundle's is "
                f"{'absent' if source is None else digest}. Build the engines from this bundle"
            )
        if report.batches[0] > 1 or report.batches[2] < self._settings.max_batch:
            raise TritonError(
                f"engine {report.name} takes {report.batches[0]} to {report.batches[2]} images; the repository needs 1 "
                f"to {self._settings.max_batch}. Lower max_batch, or build the engine for more"
            )

    def _preprocessing(self, name: str) -> dict[str, bytes]:
        settings = self._settings
        try:
            stored = dali.serialized(
                self._bundle.preprocess,
                batch_size=settings.max_batch,
                num_threads=settings.preprocessing_threads,
                device=settings.device,
            )
        except dali.DaliUnavailable as error:
            raise TritonError(f"{error}. Or leave it out: preprocessing: false") from error
        (_, image) = self._signature.inputs[INPUT_NAME]
        config = configs.preprocessing(name, image, settings, self._origin + _PLUGIN_HELP)
        return {f"{name}/config.pbtxt": config.encode(), f"{name}/{settings.version}/model.dali": stored}

    def _beside(self, name: str, config: str) -> dict[str, bytes]:
        files = {f"{name}/config.pbtxt": config.encode(), f"{name}/{configs.LABELS_FILE}": self._labels}
        if self._warmup is not None:
            files[f"{name}/warmup/{configs.WARMUP_FILE}"] = self._warmup
        return files


def _signature(onnx_bytes: bytes) -> Signature:
    session = open_session(onnx_bytes)
    sides = (session.get_inputs(), session.get_outputs())
    inputs, outputs = ({value.name: (value.type, tuple(value.shape[1:])) for value in side} for side in sides)
    return Signature(inputs=inputs, outputs=outputs)


def _in_bundle(bundle: Bundle) -> dict[str, Engine]:
    if f"engines/{REPORT}" not in bundle.files:
        return {}
    return gather_engines(lambda name: bundle.read(f"engines/{name}"))


def _golden_image(bundle: Bundle) -> bytes | None:
    """Return the first golden image as the network takes it, float32 [3,S,S] in C order; None without golden images."""
    if bundle.golden is None:
        return None
    images_NCHW, _ = preprocess([bundle.golden.grays_NHW[0]], bundle.preprocess)
    return np.ascontiguousarray(images_NCHW[0], np.dtype("<f4")).tobytes()


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
