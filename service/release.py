"""From a network in ONNX to what hospitals install: its quantized twin, what it knows of itself, one signed folder."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.acceptance import Acceptance, accept
from export.bundle import Bundle, Golden, load_bundle, write_bundle
from export.driver import probe
from export.errors import Int8Rejected
from export.predictor import Predictor, make_golden
from export.quantize import quantize
from export.signing import SigningKey, Trust
from export.tensorrt.engine import build_engine, precisions_for, report_json, require_gpu
from export.triton import TritonSettings, write_triton_repository
from fl.data.federation import Federation
from fl.data.scans import read_gray
from fl.errors import DataError
from fl.evaluation.metrics import confusion_matrix, metrics_from_confusion
from fl.runtime.cluster import num_cores
from fl.types import CLASSES, Scan
from kernels import dali
from kernels.ops import preprocess
from kernels.spec import PreprocessSpec
from service.confidence import learn_confidence
from service.explain import explain_lesions
from service.keys import Target
from service.probes import draw_probes
from service.runs import Run
from service.ship import Graph
from service.start import preprocess_spec

NUM_CALIBRATED_PER_CLASS = 32
GOLDEN_LABELS = (0, 1, 2, 3)
BATCH = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What a release shall hold, where it goes and who signs it.

    model_version: the bundle's. triton: folder of the model repository. insists: whether a quantized twin that loses
    too much is a failure; else it is left out and told of, because a night's training should not end in nothing.
    """

    targets: frozenset[Target]
    model_version: str
    folder: Path
    triton: Path
    key: SigningKey
    insists: bool
    say: Callable[[str], object]


def release(run: Run, federation: Federation, graph: Graph, metrics: Mapping[str, Any], order: Order) -> Path:
    """Write the bundle, and the Triton repository where it is wanted; return the bundle's folder.

    metrics: of the trained model, for metrics.json. Raises Int8Rejected where the quantized twin loses too much,
    DataError where int8 is wanted and no scan is at hand, BundleError where other files are in the way.
    """
    spec = preprocess_spec(run.spec)
    figures: dict[str, Any] = dict(metrics)
    int8 = None
    if "int8" in order.targets:
        int8, figures["int8"] = judged_twin(graph.onnx_bytes, spec, federation, order)
    confidence_files: dict[str, bytes] = {}
    if learnt := learn_confidence(graph.onnx_bytes, spec, federation, int8_onnx=int8, num_threads=num_cores()):
        confidence_files, figures["confidence"] = learnt[0].to_files(), learnt[1]
    golden_NHW = np.stack([phantom.image_HW for phantom in draw_probes(run.spec, GOLDEN_LABELS)])
    golden = make_golden(graph.onnx_bytes, golden_NHW, spec, int8_onnx=int8)

    def write(folder: Path, **more: Any) -> Path:
        return write_bundle(
            folder,
            onnx_bytes=graph.onnx_bytes,
            int8_onnx=int8,
            preprocess=spec,
            labels=CLASSES,
            metrics=figures,
            provenance=graph.provenance,
            data_kind=federation.data_kind,
            golden=golden,
            confidence=confidence_files,
            key=order.key,
            name=run.spec.name,
            model_version=order.model_version,
            **more,
        )

    with tempfile.TemporaryDirectory(dir=order.folder.parent, prefix=".draft.", suffix=".partial") as draft:
        # measured through the very door that a hospital uses
        predictor = Predictor(load_bundle(write(Path(draft) / "bundle"), Trust.of(order.key)))
        figures["explanations"] = explain_lesions(predictor, run.spec).to_json()
        del predictor
    engines: Mapping[str, bytes] = {}
    report: Mapping[str, Any] = {}
    if "tensorrt" in order.targets:
        engines, report = build_engines(graph.onnx_bytes, int8, golden, spec, order)
    bundle = write(order.folder, engines=engines, engine_report=report)
    if "triton" in order.targets:
        write_repository(load_bundle(bundle, Trust.of(order.key)), order.triton, order.say)
    return bundle


def require_targets(targets: Iterable[Target]) -> None:
    """Raise EngineError where engines are wanted and cannot be built here: ask before the work, not after it."""
    if "tensorrt" in targets:
        require_gpu(probe())


def build_engines(
    onnx_bytes: bytes, int8: bytes | None, golden: Golden, spec: PreprocessSpec, order: Order
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return engines for this machine's GPU by name, and their reports; int8 where there is a twin.

    Each was held to ONNX Runtime on the golden images. What was timed is kept beside the bundle, for the next build.
    """
    images_NCHW, _ = preprocess(list(golden.grays_NHW), spec)
    folder, machine = order.folder.parent / "engines", probe()
    reports = [
        build_engine(onnx_bytes, precision, images_NCHW, folder, machine=machine)
        for precision in precisions_for(machine)
    ]
    if int8 is not None:
        reports.append(build_engine(int8, "int8", images_NCHW, folder, machine=machine))
    for report in reports:
        order.say(f"   engine {report.name}: {report.build_seconds:.0f} s, {report.plan_bytes / 1e6:.0f} MB")
    return {report.name: (folder / f"{report.name}.engine").read_bytes() for report in reports}, report_json(reports)


def write_repository(bundle: Bundle, folder: Path, say: Callable[[str], object]) -> Path:
    """Write a Triton model repository of all that the bundle holds; without DALI its part is left out, and said so."""
    usable, reason = dali.available()
    if not usable:
        say(f"   no preprocessing in the Triton repository: {reason}")
    return write_triton_repository(
        bundle, folder, settings=TritonSettings(name=triton_name(bundle.name), preprocessing=usable)
    )


def triton_name(name: str) -> str:
    """Return a bundle's name as Triton's repositories take it: letters, digits and underscores, a letter first."""
    plain = re.sub(r"[^a-z0-9_]", "_", name.lower())
    return plain if plain[:1].isalpha() else f"m_{plain}"


def judged_twin(
    onnx_bytes: bytes, spec: PreprocessSpec, federation: Federation, order: Order
) -> tuple[bytes | None, dict[str, Any]]:
    """Return the graph in int8, None where it was rejected, and what it costs on validation scans."""
    try:
        int8, cost = quantized_twin(onnx_bytes, spec, federation)
    except Int8Rejected as rejected:
        if order.insists or rejected.acceptance is None:
            raise
        order.say(f"   int8 is left out: {rejected}")
        return None, rejected.acceptance.to_json()
    change = round(-cost.drop_points, 2) + 0.0  # no loss must not read as -0.00
    order.say(f"   int8: macro-F1 changes by {change:+.2f} points on {cost.num_images} validation scans")
    return int8, cost.to_json()


def quantized_twin(onnx_bytes: bytes, spec: PreprocessSpec, federation: Federation) -> tuple[bytes, Acceptance]:
    """Return the graph in int8 and what that costs on validation scans.

    Calibrated on training scans that this machine can read, the first of each class by their digests. Raises
    Int8Rejected where it costs too much, DataError without scans of either kind.
    """
    training = [scan for scan in federation.training_scans if scan.path.exists()]
    chosen = [scan for label in range(len(CLASSES)) for scan in _first(training, label)]
    if not chosen or not federation.validation_scans:
        raise DataError(
            f"int8 is calibrated on training scans and judged on validation scans; here are {len(chosen)} and "
            f"{len(federation.validation_scans)}. Hospitals keep theirs: leave int8 out of export.to"
        )
    int8 = quantize(onnx_bytes, (images_NCHW for images_NCHW, _ in _batches(chosen, spec)))
    return int8, accept(onnx_bytes, int8, _batches(federation.validation_scans, spec), _macro_f1)


def _macro_f1(true_N: NDArray[np.int64], predicted_N: NDArray[np.int64]) -> float:
    return metrics_from_confusion(confusion_matrix(true_N, predicted_N, len(CLASSES)), CLASSES).macro_f1


def _first(scans: Sequence[Scan], label: int) -> list[Scan]:
    of_class = sorted((scan for scan in scans if scan.label == label), key=lambda scan: scan.pixels_sha256)
    return of_class[:NUM_CALIBRATED_PER_CLASS]


def _batches(scans: Sequence[Scan], spec: PreprocessSpec) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    for start in range(0, len(scans), BATCH):
        batch = scans[start : start + BATCH]
        images_NCHW, _ = preprocess([read_gray(scan.path, scan.pixels_sha256) for scan in batch], spec)
        yield images_NCHW, np.array([scan.label for scan in batch])
