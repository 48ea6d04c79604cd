"""From what the network says of one image to what a person is told.

Shape legend: C classes, h w class map.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from export.answer import Answer, Caution
from export.card import DataKind
from export.confidence import Confidence, Judgement
from export.heatmap import stride_of
from kernels.spec import Box


def tell(
    judgement: Judgement,
    row: int,
    *,
    confidence: Confidence,
    labels: Sequence[str],
    data_kind: DataKind,
    image_shape: tuple[int, ...],
    box: Box | None,
    class_maps_Chw: NDArray[np.float32],
    network_side: int,
) -> Answer:
    """Return the answer for one image of a judged batch, in its row.

    image_shape: (height, width) as it came. box: the region that the network saw, None for all of it. network_side:
    pixels that the network gets of it, each way.
    """
    probabilities_C, in_set_C = judgement.probabilities_NC[row], judgement.in_set_NC[row]
    ranked, (height, width) = np.argsort(-probabilities_C, kind="stable"), image_shape
    seen = box or Box(0, 0, width, height)
    cell = stride_of(network_side, class_maps_Chw.shape[1]) / network_side
    not_ruled_out = tuple(labels[index] for index in ranked if in_set_C[index])
    return Answer(
        label=labels[ranked[0]],
        index=int(ranked[0]),
        labels=tuple(labels),
        probabilities_C=probabilities_C,
        calibrated=confidence.calibrated,
        uncertainty=float(judgement.uncertainty_N[row]),
        prediction_set=not_ruled_out,
        ood_score=None if judgement.strangeness_N is None else float(judgement.strangeness_N[row]),
        ood_threshold=confidence.strange_above,
        out_of_distribution=bool(judgement.strange_N[row]),
        abstains=bool(judgement.abstains[row]),
        cautions=_cautions(judgement, row, confidence, not_ruled_out, data_kind=data_kind, head_found=box is not None),
        head_found=box is not None,
        box=box,
        image_size=(width, height),
        class_maps_Chw=class_maps_Chw,
        cell_pixels=((seen.right - seen.left) * cell, (seen.bottom - seen.top) * cell),
    )


def _cautions(
    judgement: Judgement,
    row: int,
    confidence: Confidence,
    not_ruled_out: Sequence[str],
    *,
    data_kind: DataKind,
    head_found: bool,
) -> tuple[Caution, ...]:
    """Return why the answer deserves a second look, the gravest first."""
    cautions = []
    if data_kind == "phantom":
        text = "This model learnt from drawn pictures, not from patients. Its answers say nothing about a patient."
        cautions.append(Caution(code="phantom_model", text=text))
    if judgement.strange_N[row] and judgement.strangeness_N is not None:
        text = (
            "This picture is unlike the scans that the model learnt from, so its answer means little: strangeness "
            f"{judgement.strangeness_N[row]:.4g}, where {confidence.accepted:.1%} of such scans stay below "
            f"{confidence.strange_above:.4g}. Check that it is one brain MRI slice, upright and not inverted."
        )
        cautions.append(Caution(code="out_of_distribution", text=text))
    if not head_found:
        text = "No head was found in this picture, so all of it was used. Check that it is one brain MRI slice."
        cautions.append(Caution(code="no_head_found", text=text))
    if judgement.unsure_N[row]:
        reason = "On the scans that it was checked with, it was wrong too often at any probability."
        if confidence.abstain_below is not None:
            found, needed = judgement.probabilities_NC[row].max(), confidence.abstain_below
            promise = f"to be wrong in at most {confidence.max_error:.0%} of answers"
            reason = f"{found:.1%}, where it takes {needed:.1%} {promise}."
        text = f"The model is not sure enough to be asked: {reason} Not ruled out: {', '.join(not_ruled_out)}."
        cautions.append(Caution(code="unsure", text=text))
    if not confidence.calibrated:
        text = "The probabilities are scores: nobody has checked how often the model is right when it says so."
        cautions.append(Caution(code="not_calibrated", text=text))
    return tuple(cautions)
