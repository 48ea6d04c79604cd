"""What a bundle says about images: `predict` and `eval`. They read the bundle and the images, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.bundle import load_bundle
from export.predictor import Predictor, encode_png, grad_cam, overlay_heatmap
from fl.data.admission import AdmissionSettings, admit
from fl.data.duplicates import near_duplicate_mask
from fl.data.layout import FileSet, LabelledFile, discover
from fl.data.scans import read_gray
from fl.errors import DataError
from fl.evaluation.metrics import evaluate_paired
from fl.runtime.cluster import num_cores
from fl.types import Quarantined, Scan
from kernels.decode import decode_gray
from kernels.ops import crop

BATCH = 64


def predict_images(bundle_folder: Path, images: Sequence[Path], heatmap: Path | None) -> Iterator[dict[str, Any]]:
    """Yield an answer for each image: class, probabilities, and whether a head was found in it.

    heatmap: where to write the class-activation map of the only image. Raises UnreadableImage or DataError for an
    image that cannot be read.
    """
    predictor = Predictor(load_bundle(bundle_folder), num_threads=num_cores())
    labels = predictor.bundle.labels
    for path in images:
        try:
            gray_HW = decode_gray(path.read_bytes(), source=str(path))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); give an existing JPEG or PNG file") from error
        answer = predictor.predict([gray_HW])
        label = int(np.argmax(answer.logits_NC[0]))
        if heatmap is not None:
            cam_hw = grad_cam(answer.class_maps_NChw[0], label)
            size = predictor.bundle.preprocess.size
            heatmap.write_bytes(encode_png(overlay_heatmap(gray_HW, cam_hw, crop(gray_HW).box, image_size=size)))
        yield {
            "image": str(path),
            "class": labels[label],
            "probabilities": {name: float(p) for name, p in zip(labels, answer.probabilities_NC[0], strict=True)},
            "head_found": bool(answer.found_N[0]),
            "data_kind": predictor.bundle.data_kind,
            "model": predictor.bundle.digest,
        }


def evaluate_bundle(bundle_folder: Path, data: Path, deduplicate_against: Path | None) -> dict[str, Any]:
    """Return the bundle's metrics on labelled images as JSON; the deduplicated twin where asked for.

    data: a <class>/* folder, or one with Testing/, which is then used. deduplicate_against: any known layout; all of
    its images but those under Testing/ count as training.
    """
    predictor = Predictor(load_bundle(bundle_folder), num_threads=num_cores())
    scans, quarantined = _admit(_test_files(data))
    if not scans:
        raise DataError(f"{data}: none of its {len(quarantined)} files is a usable image")
    logits_NC = np.concatenate(
        [
            predictor.predict(
                [read_gray(scan.path, scan.pixels_sha256) for scan in scans[start : start + BATCH]]
            ).logits_NC
            for start in range(0, len(scans), BATCH)
        ]
    )
    near_N = np.zeros(len(scans), np.bool_)
    if deduplicate_against is not None:
        training, _ = _admit(_training_files(deduplicate_against))
        near_N = near_duplicate_mask(scans, training)
    report = evaluate_paired([scan.label for scan in scans], logits_NC, near_N, predictor.bundle.labels).to_json()
    if deduplicate_against is None:
        report = {"as_published": report["as_published"]}
    return {
        "bundle": predictor.bundle.digest,
        "data_kind": predictor.bundle.data_kind,
        "data": str(data),
        **report,
        "quarantined": [{"path": str(q.path), "reason": q.reason} for q in quarantined],
    }


def _admit(files: Sequence[LabelledFile]) -> tuple[list[Scan], list[Quarantined]]:
    outcomes = list(admit(files, AdmissionSettings(num_threads=num_cores())))
    scans = [outcome for outcome in outcomes if isinstance(outcome, Scan)]
    return scans, [outcome for outcome in outcomes if isinstance(outcome, Quarantined)]


def _test_files(data: Path) -> tuple[LabelledFile, ...]:
    layout = discover(data)
    file_set: FileSet | None = layout.plain or layout.testing
    if file_set is None:
        raise DataError(
            f"{data}: has neither class folders nor Testing/; give the folder with the labelled test images"
        )
    return file_set.files


def _training_files(folder: Path) -> list[LabelledFile]:
    layout = discover(folder)
    return [file for file_set in layout.file_sets if file_set is not layout.testing for file in file_set.files]
