"""What a person is told about one image: a class, how sure the model is, and where in the image it found that.

The one form that the command line, the endpoint, the DICOM objects and the viewer hand on.
Shape legend: C classes, h w class map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kernels.spec import Box

WarningCode = Literal["phantom_model", "not_calibrated", "no_head_found", "out_of_distribution", "unsure"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Caution:
    """Why an answer deserves a second look. code: for machines; text: for people, complete."""

    code: WarningCode
    text: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answer:
    """One image's answer.

    probabilities_C: float32, sum 1; calibrated where `calibrated` says so, else a softmax of the scores.
    uncertainty: entropy of the probabilities as a share of the largest possible, 0 (sure) to 1.
    prediction_set: the classes that cannot be ruled out at the bundle's coverage, best first; all where not calibrated.
    ood_score, ood_threshold: how far the image lies from those that the model was made for; None where the bundle
        has no statistics. out_of_distribution: score above threshold.
    abstains: the model should not be asked; `cautions` say why. The class is told all the same.
    class_maps_Chw: float32, as the graph gives them. box: the region the network saw, in the image's pixels; None for
        all of it. image_size: (width, height) of the image. cell_pixels: (width, height) of one class-map cell there.
    """

    label: str
    index: int
    labels: tuple[str, ...]
    probabilities_C: NDArray[np.float32]
    calibrated: bool
    uncertainty: float
    prediction_set: tuple[str, ...]
    ood_score: float | None
    ood_threshold: float | None
    out_of_distribution: bool
    abstains: bool
    cautions: tuple[Caution, ...]
    head_found: bool
    box: Box | None
    image_size: tuple[int, int]
    class_maps_Chw: NDArray[np.float32]
    cell_pixels: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers and texts; class maps are left to whoever draws them."""
        return {
            "label": self.label,
            "probabilities": {
                name: float(value) for name, value in zip(self.labels, self.probabilities_C, strict=True)
            },
            "calibrated": self.calibrated,
            "uncertainty": self.uncertainty,
            "prediction_set": list(self.prediction_set),
            "out_of_distribution": self.out_of_distribution,
            "ood_score": self.ood_score,
            "ood_threshold": self.ood_threshold,
            "abstains": self.abstains,
            "cautions": [{"code": caution.code, "text": caution.text} for caution in self.cautions],
            "head_found": self.head_found,
            "box": None if self.box is None else list(self.box),
            "image_size": list(self.image_size),
        }
