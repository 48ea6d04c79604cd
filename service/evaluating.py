"""`gliofed eval`: a bundle on labelled images. It reads the bundle and the images, nothing else.

Needs no training packages, so that a hospital can try a bundle on scans of its own; the search for near-copies does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.bundle import load_bundle
from export.predictor import Predictor
from export.signing import Trust
from fl.data.admission import AdmissionSettings, admit
from fl.data.layout import FileSet, LabelledFile, discover
from fl.data.scans import read_gray
from fl.errors import DataError
from fl.evaluation.metrics import evaluate_paired
from fl.types import Quarantined, Scan

BATCH = 64


def evaluate_bundle(
    bundle_folder: Path, data: Path, deduplicate_against: Path | None, *, trust: Trust
) -> dict[str, Any]:
    """Return the bundle's metrics on labelled images as JSON; the deduplicated twin where asked for.

    data: a <class>/* folder, or one with Testing/, which is then used. deduplicate_against: any known layout; all of
    its images but those under Testing/ count as training.
    """
    predictor = Predictor(load_bundle(bundle_folder, trust), num_threads=len(os.sched_getaffinity(0)))
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
        from fl.data.duplicates import near_duplicate_mask  # with SciPy

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
    outcomes = list(admit(files, AdmissionSettings(num_threads=len(os.sched_getaffinity(0)))))
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
