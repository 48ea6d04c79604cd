"""Fitting how sure an exported model is, on the coordinator's own scans.

In a federation of hospitals the coordinator has no validation scans: its bundle then has no confidence, and every
answer says that it is not calibrated.
Shape legend: N images, C classes, E embedding, H W image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from export.card import INPUT_NAME, OUTPUT_NAMES
from export.confidence import Confidence
from export.confidence_fit import fit_confidence, measure_confidence
from export.predictor import open_session
from fl.data.federation import Federation
from fl.data.scans import read_gray
from fl.random import stream
from fl.types import Scan
from kernels.ops import preprocess
from kernels.spec import PreprocessSpec

NUM_REFERENCE_SCANS = 500
"""Of training scans, for the statistics of what is usual: 400 and 1200 real ones tell strange images apart alike."""

NUM_STRANGE_IMAGES = 24
"""Of each kind, to measure whether they are called strange."""

_BATCH = 16
_SIDE = 224
_Gray = NDArray[np.uint8]


def learn_confidence(
    onnx_bytes: bytes,
    spec: PreprocessSpec,
    federation: Federation,
    *,
    int8_onnx: bytes | None = None,
    num_threads: int = 1,
) -> tuple[Confidence, dict[str, Any]] | None:
    """Return a model's `Confidence`, and its figures for metrics.json; None without scans at the coordinator.

    The figures: `validation`, as `fit_confidence` measures them, and `test`, on scans that chose nothing. The network
    answers every validation and test scan once, and some hundreds of training scans and strange images. Raises
    DataError where a scan changed since its admission.
    """
    if not federation.validation_scans:
        return None
    session = open_session(onnx_bytes, num_threads=num_threads)

    def answer(
        grays: Iterable[_Gray], asked: ort.InferenceSession = session
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return _answers(asked, spec, grays, num_threads)

    logits_NC, embedding_NE = answer(_read(federation.validation_scans))
    _, reference_ME = answer(_read(_spread(federation.training_scans, NUM_REFERENCE_SCANS)))
    int8_embedding_NE = None
    if int8_onnx is not None:
        int8 = open_session(int8_onnx, num_threads=num_threads)
        _, int8_embedding_NE = answer(_read(federation.validation_scans), int8)
    usual = list(_read(_spread(federation.validation_scans, NUM_STRANGE_IMAGES)))
    confidence = fit_confidence(
        logits_NC,
        embedding_NE,
        _labels(federation.validation_scans),
        reference_ME=reference_ME,
        int8_embedding_NE=int8_embedding_NE,
        strange={kind: answer(images)[1] for kind, images in strange_images(usual)},
    )
    figures = {"validation": dict(confidence.quality), "test": None}
    if federation.test_scans:
        labels_N = _labels(federation.test_scans)
        figures["test"] = measure_confidence(confidence, *answer(_read(federation.test_scans)), labels_N)
    return confidence, figures


def strange_images(usual: Sequence[_Gray]) -> Iterator[tuple[str, list[_Gray]]]:
    """Yield kinds of images that a model of upright MRI slices should not answer, drawn or made from usual ones.

    Each is measured apart, since some are easily told and some hardly. The same slices give the same images.
    """
    rng = stream(0, "strange images")
    for kind, change in _CHANGES.items():
        yield kind, [np.ascontiguousarray(change(gray_HW)) for gray_HW in usual]
    yield "noise", [rng.integers(0, 256, (_SIDE, _SIDE), np.uint8) for _ in usual]
    yield "texture", [_texture(rng) for _ in usual]
    yield "printed text", [_text(rng) for _ in usual]


def _upside_down(gray_HW: _Gray) -> _Gray:
    return gray_HW[::-1]


def _quarter(gray_HW: _Gray) -> _Gray:
    height, width = gray_HW.shape
    return gray_HW[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4]


def _blurred(gray_HW: _Gray) -> _Gray:
    blurred: _Gray = cv2.GaussianBlur(gray_HW, (0, 0), max(gray_HW.shape) * 6 / _SIDE).astype(np.uint8)
    return blurred


_CHANGES: dict[str, Callable[[_Gray], _Gray]] = {
    "slice inverted": np.invert,
    "slice upside down": _upside_down,
    "slice on its side": np.rot90,
    "middle quarter of a slice": _quarter,
    "slice heavily blurred": _blurred,
}


def _texture(rng: np.random.Generator) -> _Gray:
    field = cv2.GaussianBlur(rng.standard_normal((_SIDE, _SIDE)), (0, 0), float(rng.uniform(1, 20)))
    texture: _Gray = np.rint((field - field.min()) / np.ptp(field) * 255).astype(np.uint8)
    return texture


def _text(rng: np.random.Generator) -> _Gray:
    page = np.full((_SIDE, _SIDE), 255, np.uint8)
    for row in range(20, _SIDE, 20):
        words = "".join(chr(code) for code in rng.integers(ord("a"), ord("z") + 1, 24))
        cv2.putText(page, words, (4, row), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 0, 1)
    return page


def _answers(
    session: ort.InferenceSession, spec: PreprocessSpec, grays: Iterable[_Gray], num_threads: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return logits_NC and embedding_NE, a batch in memory at a time."""
    answers, remaining = [], iter(grays)
    while batch := list(islice(remaining, _BATCH)):
        images_NCHW, _ = preprocess(batch, spec, num_threads=num_threads)
        answers.append(session.run([OUTPUT_NAMES[0], OUTPUT_NAMES[2]], {INPUT_NAME: images_NCHW}))
    logits, embedded = zip(*answers, strict=True)
    return np.concatenate(logits), np.concatenate(embedded)


def _read(scans: Sequence[Scan]) -> Iterator[_Gray]:
    return (read_gray(scan.path, scan.pixels_sha256) for scan in scans)


def _labels(scans: Sequence[Scan]) -> NDArray[np.int64]:
    return np.array([scan.label for scan in scans], np.int64)


def _spread(scans: Sequence[Scan], number: int) -> list[Scan]:
    """Return at most so many scans, evenly over all, so that every site and class has its share."""
    number = min(number, len(scans))
    return [scans[index * len(scans) // number] for index in range(number)]
