"""The Secondary Capture: the slice with the class map over it and, below, what a reader must not miss."""

from __future__ import annotations

from typing import Any

import cv2
import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from export.answer import Answer
from service.dicom.model import ModelIdentity
from service.dicom.source import Source, decimals

_MIN_WIDTH = 512
_LINE = 26
_PAD = 8
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_WHITE, _AMBER = (255, 255, 255), (80, 190, 255)
NOT_FOR_CLINICAL_USE = "Research use only. Not for clinical use."


def caption(answer: Answer, model: ModelIdentity) -> list[str]:
    """Return the lines below the picture: class and probability, doubts, model, purpose. Plain ASCII."""
    share = float(answer.probabilities_C[answer.index])
    kind = "probability" if answer.calibrated else "score, not calibrated"
    of_phantoms = any(caution.code == "phantom_model" for caution in answer.cautions)
    doubts = [
        text
        for text, holds in (
            ("MODEL OF DRAWN PICTURES, NOT OF PATIENTS", of_phantoms),
            ("OUT OF DISTRIBUTION", answer.out_of_distribution),
            ("NO ANSWER SHOULD BE RELIED ON", answer.abstains),
            ("NO HEAD FOUND", not answer.head_found),
        )
        if holds
    ]
    lines = [f"{answer.label}: {share:.1%} ({kind})", *([", ".join(doubts)] if doubts else [])]
    lines += [f"{model.name} {model.version}, {model.precision}, model {model.digest[:16]}", NOT_FOR_CLINICAL_USE]
    return [line.encode("ascii", "replace").decode() for line in lines]


def picture(overlay_HWK: NDArray[np.uint8], answer: Answer, model: ModelIdentity) -> tuple[NDArray[np.uint8], int]:
    """Return the overlay with its caption below, uint8 RGB, and by how much it was enlarged so that text fits.

    overlay_HWK: uint8 BGR [H,W,3], of the slice's own size.
    """
    height, width = overlay_HWK.shape[:2]
    factor = -(-_MIN_WIDTH // width) if width < _MIN_WIDTH else 1
    shown = cv2.resize(overlay_HWK, (width * factor, height * factor), interpolation=cv2.INTER_LINEAR)
    lines = caption(answer, model)
    margin = np.zeros((len(lines) * _LINE + 2 * _PAD, shown.shape[1], 3), np.uint8)
    for row, line in enumerate(lines):
        (text_width, _), _ = cv2.getTextSize(line, _FONT, 0.55, 1)
        scale = 0.55 * min(1.0, (shown.shape[1] - 2 * _PAD) / max(text_width, 1))
        colour = _WHITE if row == 0 or row == len(lines) - 2 else _AMBER
        at = (_PAD, _PAD + row * _LINE + 18)
        cv2.putText(margin, line, at, _FONT, scale, colour, 1, cv2.LINE_AA)
    rgb: NDArray[np.uint8] = np.ascontiguousarray(np.vstack([shown, margin])[:, :, ::-1])
    return rgb, factor


def secondary_capture(
    source: Source,
    stand_in: Dataset,
    answer: Answer,
    *,
    model: ModelIdentity,
    overlay_HWK: NDArray[np.uint8],
    identifiers: dict[str, Any],
) -> Dataset:
    """Return the Secondary Capture of one answer. identifiers: series, number and UIDs, as highdicom names them."""
    rgb, factor = picture(overlay_HWK, answer, model)
    spacing: Any = None  # its annotation asks for whole millimetres, its documentation does not
    if source.spacing is not None:
        spacing = tuple(decimals(*(value / factor for value in source.spacing)))
    made: Dataset = hd.sc.SCImage.from_ref_dataset(
        ref_dataset=stand_in,
        pixel_array=rgb,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # the library knows single letters only; set below
        pixel_spacing=spacing,
        transfer_syntax_uid=hd.UID("1.2.840.10008.1.2.1"),
        **identifiers,
    )
    made.PatientOrientation = _orientation(source)
    if source.spacing is not None:
        made.NominalScannedPixelSpacing = made.PixelSpacing
    said = str(source.header.get("BurnedInAnnotation", "")).strip()
    if said in ("YES", "NO"):  # our caption names nobody; where the source does not say, neither can we
        made.BurnedInAnnotation = said
    made.ImageComments = " ".join(caption(answer, model))[:10240]
    made.DerivationDescription = "Slice with class activation map of the predicted class laid over"
    return made


def _orientation(source: Source) -> list[str] | None:
    """Return the patient's directions of growing column and row index, by their largest parts (PS3.3 C.7.6.1.1.1)."""
    if source.plane is None:
        return None
    return [_directions(source.plane.along_row), _directions(source.plane.along_column)]


def _directions(vector: NDArray[np.float64]) -> str:
    letters = [("R", "L"), ("A", "P"), ("F", "H")]
    largest_first = np.argsort(-np.abs(vector), kind="stable")
    return "".join(letters[axis][int(vector[axis] > 0)] for axis in largest_first if abs(vector[axis]) > 0.1)
