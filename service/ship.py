"""From trained parameters to a bundle that answers, and pictures of how it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from export.heatmap import encode_png
from export.onnx import export_onnx
from export.onnx_checks import WideHead
from export.predictor import Predictor
from fl.data.federation import Federation
from fl.data.scans import read_gray
from fl.evaluation.gradcam import pooled_values, scores_and_contributions
from fl.model.flat import FlatParameters, scatter
from fl.model.head import WidePooling
from fl.model.vgg import SplitVgg19
from fl.training.trainer import load_model_state
from fl.types import CLASSES, Scan
from kernels.ops import preprocess
from service.dicom.engine import engine_of
from service.machine import software
from service.runs import Run
from service.start import Start, preprocess_spec

NUM_CHECKED_IMAGES = 8
SAMPLES_PER_CLASS = 2

MEASURED = ("int8", "confidence", "explanations")
"""Keys of metrics.json that a release measures itself; the rest is of the training."""

PROMISES = ("temperature", "coverage", "max_error", "abstain_below", "accepted")
"""Of `Confidence`: numbers that the answers go by; strangeness has no unit, so its threshold tells a reader nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """The trained network as ONNX, and where it comes from: plain values for provenance.json."""

    onnx_bytes: bytes
    provenance: Mapping[str, Any]


def export_graph(run: Run, federation: Federation, start: Start, parameters: FlatParameters) -> Graph:
    """Return the trained network as ONNX. Raises ExportMismatch where ONNX Runtime and torch disagree."""
    model = SplitVgg19(run.spec.model.network)
    load_model_state(model, start.state)
    scatter(parameters, model.trained_parameters())
    model.eval()
    spec = preprocess_spec(run.spec)
    # the coordinator's own scans: a hospital's may lie on another machine
    checked = (federation.validation_scans or federation.test_scans)[:NUM_CHECKED_IMAGES]
    images_NCHW, _ = preprocess([read_gray(scan.path, scan.pixels_sha256) for scan in checked], spec)
    onnx_bytes, agreement = export_onnx(
        model.features(),
        model.head,
        preprocess=spec,
        labels=CLASSES,
        images_NCHW=images_NCHW,
        wide=wide_head(model),
    )
    provenance = {
        "job": run.spec.learning_digest(),
        "data": federation.digest(),
        "start": start.digest(),
        "scenario": run.spec.scenario,
        "seed": run.spec.seed,
        "num_sites": len(federation.sites),
        "software": software(),
        "largest_difference_from_torch": {
            "logits": agreement.logits,
            "class_maps": agreement.class_maps,
            "embedding": agreement.embedding,
        },
    }
    return Graph(onnx_bytes=onnx_bytes, provenance=provenance)


def wide_head(model: SplitVgg19) -> WideHead | None:
    """Return what the exporter must know of a wide head, None for an average one. The model is in evaluation mode."""
    pooling = model.pooling
    if not isinstance(pooling, WidePooling):
        return None
    return WideHead(
        frozen_layer=list(dict(model.prefix.named_children()))[-1],
        random_RF=pooling.random_RF,
        truth=partial(scores_and_contributions, model),
        pooled=partial(pooled_values, model),
    )


def measured(predictor: Predictor) -> dict[str, Any]:
    """Return what the release measured of its model, and what the model's answers promise, for result.json."""
    figures = {name: predictor.bundle.metrics[name] for name in MEASURED if name in predictor.bundle.metrics}
    return {**figures, "rules": {name: getattr(predictor.confidence, name) for name in PROMISES}}


def write_samples(run: Run, predictor: Predictor, federation: Federation) -> list[dict[str, Any]]:
    """Let the model answer some test images of each class; write them with their class maps, and tell about them."""
    folder = run.folder / "samples"
    folder.mkdir(exist_ok=True)
    chosen = _choose(federation.test_scans)
    grays = [read_gray(scan.path, scan.pixels_sha256) for scan in chosen]
    engine = engine_of(predictor)
    samples = []
    for number, (scan, gray_HW) in enumerate(zip(chosen, grays, strict=True)):
        (answer,) = engine.answer([gray_HW])
        image = folder / f"{number:02d}.png"
        image.write_bytes(encode_png(gray_HW))
        image.with_stem(f"{image.stem}-cam").write_bytes(encode_png(engine.draw(gray_HW, answer)))
        samples.append(
            {
                "image": f"samples/{image.name}",
                "overlay": f"samples/{image.stem}-cam.png",
                "label": CLASSES[scan.label],
                "predicted": answer.label,
                "probability": float(answer.probabilities_C[answer.index]),
                "abstains": answer.abstains,
                "source": scan.path.name,
            }
        )
    return samples


def _choose(scans: Sequence[Scan]) -> list[Scan]:
    """Return the first scans of each class in the test set's order: chosen before anyone looked at an answer."""
    return [
        scan
        for label in range(len(CLASSES))
        for scan in [scan for scan in scans if scan.label == label][:SAMPLES_PER_CLASS]
    ]
