"""How well an exported model's class maps find lesions whose place is known: those of phantoms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from export.answer import Answer
from export.heatmap import grad_cam, spread
from export.predictor import Predictor
from fl.data.phantoms import Phantom
from fl.evaluation.explanations import ExplainedScan, ExplanationQuality, Score, measure_explanations
from kernels.spec import Box
from service.probes import LESIONS, draw_probes
from service.spec import JobSpec

NUM_PER_CLASS = 12
NUM_CURVES = 9


def explain_lesions(predictor: Predictor, spec: JobSpec) -> ExplanationQuality:
    """Return how well the model's maps of each phantom's true class find its lesion, wherever it named that class.

    12 phantoms of each class that has lesions; deletion and insertion curves for 9 of all. About 520 predictions.
    """
    phantoms = draw_probes(spec, LESIONS * NUM_PER_CLASS)
    answers = [answer for phantom in phantoms for answer in predictor.answer([phantom.image_HW])]
    scans = [_explained(predictor, *pair) for pair in zip(phantoms, answers, strict=True)]
    scores = [_score_of(predictor, phantom.label) for phantom in phantoms]
    return measure_explanations(scans, scores, num_curves=NUM_CURVES, seed=spec.seed)


def _explained(predictor: Predictor, phantom: Phantom, answer: Answer) -> ExplainedScan:
    height, width = phantom.image_HW.shape
    region = answer.box or Box(0, 0, width, height)
    heat_HW = np.zeros(phantom.image_HW.shape, np.float32)
    heat_HW[region.top : region.bottom, region.left : region.right] = spread(
        grad_cam(answer.class_maps_Chw, phantom.label),
        region.bottom - region.top,
        region.right - region.left,
        predictor.bundle.preprocess.size,
    )
    return ExplainedScan(
        image_HW=phantom.image_HW,
        lesion_HW=phantom.mask_HW,
        heat_HW=heat_HW,
        region=region,
        predicted=answer.index == phantom.label,
    )


def _score_of(predictor: Predictor, label: int) -> Score:
    def score(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return predictor.predict(images).probabilities_NC[:, label]

    return score
