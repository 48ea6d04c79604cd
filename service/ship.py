"""From trained parameters to a bundle that answers, and pictures of how it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from export.bundle import load_bundle, write_bundle
from export.onnx import export_onnx
from export.onnx_checks import WideHead
from export.predictor import Predictor, encode_png, grad_cam, overlay_heatmap
from fl.data.federation import Federation
from fl.data.scans import read_gray
from fl.evaluation.gradcam import scores_and_contributions
from fl.model.flat import FlatParameters, scatter
from fl.model.head import WidePooling
from fl.model.vgg import SplitVgg19
from fl.training.trainer import load_model_state
from fl.types import CLASSES, Scan
from kernels.ops import crop, preprocess
from service.machine import software
from service.runs import Run
from service.start import Start, preprocess_spec

NUM_CHECKED_IMAGES = 8
SAMPLES_PER_CLASS = 2


def export_bundle(
    run: Run,
    federation: Federation,
    start: Start,
    parameters: FlatParameters,
    metrics: Mapping[str, Any],
) -> Path:
    """Write the run's bundle and return its folder. Raises ExportMismatch where ONNX Runtime and torch disagree."""
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
    return write_bundle(
        run.folder / "bundle",
        onnx_bytes=onnx_bytes,
        preprocess=spec,
        labels=CLASSES,
        metrics=metrics,
        provenance={
            "job": run.spec.learning_digest(),
            "data": federation.digest(),
            "start": start.digest(),
            "scenario": run.spec.scenario,
            "seed": run.spec.seed,
            "num_sites": len(federation.sites),
            "software": software(),
            "largest_difference_from_torch": {"logits": agreement.logits, "class_maps": agreement.class_maps},
        },
        data_kind=federation.data_kind,
        name=run.spec.name,
    )


def wide_head(model: SplitVgg19) -> WideHead | None:
    """Return what the exporter must know of a wide head, None for an average one. The model is in evaluation mode."""
    pooling = model.pooling
    if not isinstance(pooling, WidePooling):
        return None
    return WideHead(
        frozen_layer=list(dict(model.prefix.named_children()))[-1],
        random_RF=pooling.random_RF,
        truth=partial(scores_and_contributions, model),
    )


def write_samples(run: Run, bundle: Path, federation: Federation) -> list[dict[str, Any]]:
    """Let the bundle answer some test images of each class; write them with their class maps, and tell about them."""
    predictor = Predictor(load_bundle(bundle))
    folder = run.folder / "samples"
    folder.mkdir(exist_ok=True)
    chosen = _choose(federation.test_scans)
    grays = [read_gray(scan.path, scan.pixels_sha256) for scan in chosen]
    answers = predictor.predict(grays)
    samples = []
    for number, (scan, gray_HW) in enumerate(zip(chosen, grays, strict=True)):
        label = int(np.argmax(answers.logits_NC[number]))
        overlay = overlay_heatmap(
            gray_HW,
            grad_cam(answers.class_maps_NChw[number], label),
            crop(gray_HW).box,
            image_size=predictor.bundle.preprocess.size,
        )
        image = folder / f"{number:02d}.png"
        image.write_bytes(encode_png(gray_HW))
        image.with_stem(f"{image.stem}-cam").write_bytes(encode_png(overlay))
        samples.append(
            {
                "image": f"samples/{image.name}",
                "overlay": f"samples/{image.stem}-cam.png",
                "label": CLASSES[scan.label],
                "predicted": CLASSES[label],
                "probability": float(answers.probabilities_NC[number, label]),
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
