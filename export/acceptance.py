"""Whether an int8 graph answers well enough to stand for its float32 graph: measured on images it was not made from.

Shape legend: N batch, C classes, h w class map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from export.calibration import softmax
from export.card import INPUT_NAME
from export.errors import Int8Rejected, UnsupportedModel
from export.predictor import open_session

MAX_DROP_POINTS = 0.5
"""Macro-F1 on validation may fall by less than this, in hundredths."""

_READ = ("logits", "class_maps")


@dataclass(frozen=True, kw_only=True, slots=True)
class Acceptance:
    """What int8 costs, on num_images images.

    macro_f1_*: 0 to 1. agreement: share of images with the same decision. largest_probability_difference: of any class
    on any image, of uncalibrated probabilities. maps_cosine_median, maps_cosine_lowest: cosine similarity of an image's
    two class maps, all classes at once. maps_energy_ratio: int8's squared maps over float32's, summed over all images.
    """

    macro_f1_float32: float
    macro_f1_int8: float
    agreement: float
    largest_probability_difference: float
    maps_cosine_median: float
    maps_cosine_lowest: float
    maps_energy_ratio: float
    num_images: int

    @property
    def drop_points(self) -> float:
        """By how many hundredths macro-F1 falls; negative where it rises."""
        return 100 * (self.macro_f1_float32 - self.macro_f1_int8)

    @property
    def accepted(self) -> bool:
        """True where macro-F1 falls by less than MAX_DROP_POINTS; false where it is not a number."""
        return self.drop_points < MAX_DROP_POINTS

    def to_json(self) -> dict[str, float | int | bool]:
        """Return plain numbers, those derived included."""
        return asdict(self) | {"drop_points": self.drop_points, "accepted": self.accepted}


def accept(
    float32_onnx: bytes,
    int8_onnx: bytes,
    labelled_batches: Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]],
    macro_f1: Callable[[NDArray[np.int64], NDArray[np.int64]], float],
    *,
    num_threads: int = 1,
) -> Acceptance:
    """Return what int8 costs, or raise Int8Rejected, which carries the same figures, where that is too much.

    labelled_batches: images_NCHW float32 with their classes_N, of the validation split: neither calibrated on nor test.
    macro_f1: from true and predicted classes, 0 to 1. Raises UnsupportedModel without images, Int8Rejected also for
    scores that are not finite.
    """
    found = compare(float32_onnx, int8_onnx, labelled_batches, macro_f1, num_threads=num_threads)
    if not found.accepted:
        raise Int8Rejected(
            f"int8 takes macro-F1 from {found.macro_f1_float32:.4f} to {found.macro_f1_int8:.4f} on {found.num_images} "
            f"validation images: {found.drop_points:.2f} points, allowed are less than {MAX_DROP_POINTS}; "
            f"{found.agreement:.1%} of the decisions agree. Serve float32, or calibrate on more images like those that "
            f"it will see",
            found,
        )
    return found


def compare(
    float32_onnx: bytes,
    int8_onnx: bytes,
    labelled_batches: Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]],
    macro_f1: Callable[[NDArray[np.int64], NDArray[np.int64]], float],
    *,
    num_threads: int = 1,
) -> Acceptance:
    """Return the figures of `accept` without a verdict."""
    sessions = [open_session(data, num_threads=num_threads) for data in (float32_onnx, int8_onnx)]
    batches = [
        _Batch.of(classes_N, [_answer(session, images_NCHW) for session in sessions])
        for images_NCHW, classes_N in labelled_batches
        if len(images_NCHW)
    ]
    if not batches:
        raise UnsupportedModel("int8 is judged on validation images and was given none; pass that split")
    true_N, float32_N, int8_N = (
        np.concatenate([getattr(batch, name) for batch in batches]) for name in ("true_N", "float32_N", "int8_N")
    )
    cosine_N = np.concatenate([batch.maps_cosine_N for batch in batches])
    exact_energy, int8_energy = np.sum([batch.maps_energy for batch in batches], axis=0)
    return Acceptance(
        macro_f1_float32=macro_f1(true_N, float32_N),
        macro_f1_int8=macro_f1(true_N, int8_N),
        agreement=float((float32_N == int8_N).mean()),
        largest_probability_difference=max(batch.probability_difference for batch in batches),
        maps_cosine_median=float(np.median(cosine_N)),
        maps_cosine_lowest=float(cosine_N.min()),
        maps_energy_ratio=float(int8_energy / exact_energy) if exact_energy > 0 else 1.0,
        num_images=len(true_N),
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Batch:
    """What is kept of one batch: decisions and a few numbers, no maps."""

    true_N: NDArray[np.int64]
    float32_N: NDArray[np.int64]
    int8_N: NDArray[np.int64]
    probability_difference: float
    maps_cosine_N: NDArray[np.float64]
    maps_energy: tuple[float, float]

    @staticmethod
    def of(true_N: NDArray[np.int64], answers: list[tuple[NDArray[np.float32], NDArray[np.float64]]]) -> _Batch:
        (exact_NC, exact_maps_NM), (int8_NC, int8_maps_NM) = answers
        norms = np.linalg.norm(exact_maps_NM, axis=1) * np.linalg.norm(int8_maps_NM, axis=1)
        products_N = (exact_maps_NM * int8_maps_NM).sum(axis=1)
        alike = np.divide(products_N, norms, out=np.zeros_like(norms), where=norms > 0)
        return _Batch(
            true_N=true_N,
            float32_N=exact_NC.argmax(axis=1),
            int8_N=int8_NC.argmax(axis=1),
            probability_difference=float(np.abs(softmax(exact_NC) - softmax(int8_NC)).max()),
            maps_cosine_N=alike,
            maps_energy=(float(np.square(exact_maps_NM).sum()), float(np.square(int8_maps_NM).sum())),
        )


def _answer(
    session: ort.InferenceSession, images_NCHW: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return scores_NC and class maps, one row an image."""
    logits_NC, maps_NChw = session.run(list(_READ), {INPUT_NAME: images_NCHW})
    if not (np.isfinite(logits_NC).all() and np.isfinite(maps_NChw).all()):
        raise Int8Rejected("scores or class maps of a validation image are not finite; export the float32 graph again")
    return logits_NC, maps_NChw.reshape(len(maps_NChw), -1).astype(np.float64)
