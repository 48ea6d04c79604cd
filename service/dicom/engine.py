"""A bundle's predictor as what the DICOM side asks for answers."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from export.answer import Answer
from export.heatmap import grad_cam, overlay_heatmap
from export.predictor import Predictor
from service.dicom.model import Engine, ModelIdentity


def engine_of(predictor: Predictor, *, name: str | None = None, model_version: str | None = None) -> Engine:
    """Return the engine of a predictor. name, model_version: as it is served by; None: the bundle's own."""
    bundle = predictor.bundle

    def draw(gray_HW: NDArray[np.uint8], answer: Answer) -> NDArray[np.uint8]:
        cam_hw = grad_cam(answer.class_maps_Chw, answer.index)
        return overlay_heatmap(gray_HW, cam_hw, answer.box, image_size=bundle.preprocess.size)

    identity = ModelIdentity(
        name=name or bundle.name,
        version=model_version or bundle.version,
        digest=bundle.digest,
        precision=predictor.precision,
        software=version("gliofed"),
    )
    return Engine(identity=identity, answer=predictor.answer, draw=draw)
